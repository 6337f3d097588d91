"""What a new installation is told: values by variable, checked as at every start, and each address tried."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import httpx

from polydesk_dagster import network
from polydesk_dagster.database.engine import business_url
from polydesk_dagster.errors import PermanentError
from polydesk_dagster.keeping import checking
from polydesk_dagster.runtime import outside
from polydesk_dagster.runtime.state import probing
from polydesk_dagster.runtime.state.model import Answer, SystemState
from polydesk_dagster.settings import Settings, variable
from polydesk_dagster.told import teller
from polydesk_dagster.values import Reason

ASKED: Sequence[str] = (
    "database_url",
    "web_host",
    "web_port",
    "public_url",
    "central_url",
    "central_token",
    "sms_url",
    "sms_token",
    "sms_sender",
    "smtp_url",
    "mail_from",
    "operator_mail",
    "alert_url",
    "alert_token",
    "alert_apprise",
    "ping_url",
    "documents",
)
"""Fields that a person is asked for, in this order; the others are for a file."""
OF_CLINICS = ("POLYDESK_STUDIOLAB_TOKEN_", "POLYDESK_FILES_TOKEN_", "POLYDESK_FHIR_TOKEN_")
"""How the variables begin that clinics' integrations may name."""


@dataclass(frozen=True, slots=True)
class Tried:
    """An address that the installation was given, and what came of it: ``why`` is None where all is well."""

    what: str
    why: Reason | None


def unknown(values: Mapping[str, str]) -> tuple[str, ...]:
    """Names that mean nothing to us; what a clinic's source asks for is known by its form."""
    known = {variable(field) for field in Settings.model_fields}
    return tuple(name for name in values if name not in known and not name.startswith(OF_CLINICS))


def tried(settings: Settings, now: datetime) -> Iterator[Tried]:
    """Every address that is given, asked now. Nothing is changed, and nothing sent but one word to those who are told
    when something is wrong: there is no other way to know that they are."""
    if not settings.embedded:
        yield Tried(variable("database_url"), _database(settings))
    yield from addresses(settings, now)


def addresses(settings: Settings, now: datetime) -> Iterator[Tried]:
    """Those of ``tried`` that are not the database's."""
    for state in probing.asked(probing.systems(settings, now)):
        if state.configured:
            yield Tried(state.code, _why(state))
    if settings.oidc_issuer is not None:
        yield Tried(variable("oidc_issuer"), _issuer(settings.oidc_issuer))
    yield from _outside(settings, now)


def _outside(settings: Settings, now: datetime) -> Iterator[Tried]:
    """Who is told when something is wrong, and who waits for a sign of life."""
    said = {"ok": True, "at": now.isoformat(), "installation": settings.address, "findings": []}
    body = {**said, "text": f"Polydesk · {settings.address}: {teller().text('alert.trial')}"}
    silent = Reason("not_taken")
    with outside.Outside(settings) as others:
        for way in others.ways:
            yield Tried(variable(way), None if others.tell(way, body, f"trial {now.isoformat()}") else silent)
        if settings.ping_url is not None:
            yield Tried(variable(outside.PING), None if others.ping() else silent)


def _why(state: SystemState) -> Reason | None:
    return None if state.answer is Answer.WELL else state.why or Reason("carrier_silent", {"answer": None})


LATER = {"schema", "theirs"}
"""Of what is looked at of a database that which ``db migrate`` sees to."""


def _database(settings: Settings) -> Reason | None:
    """What is wrong with the database, in one word; one that is not there yet is well where we may make it."""
    found = {each.what: each.why for each in checking.look(settings)}
    entry = found["ours"]
    if entry is not None:
        return None if entry.code == "refused_missing" and checking.may_make(business_url(settings)) else entry
    return next((why for what, why in found.items() if why is not None and what not in LATER), None)


def _issuer(issuer: str) -> Reason | None:
    """Whether an OpenID provider describes itself there, under the same name."""
    try:
        with httpx.Client(
            transport=network.transport(network.trust(environment=True)), trust_env=False, timeout=probing.PATIENCE
        ) as client:
            answer = client.get(f"{issuer}/.well-known/openid-configuration")
            said = answer.json().get("issuer") if answer.is_success else None
    except (httpx.HTTPError, ValueError, RecursionError, AttributeError, PermanentError):
        said = None
    return None if said and str(said).rstrip("/") == issuer else Reason("no_issuer", {"address": issuer})
