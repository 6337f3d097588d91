"""Who lets a service work by itself, who keeps it waiting, and until when.

An installation with a database or a gateway of its own starts with every service waiting until somebody lets it go
live; one that plays both starts live. A pause ends by itself. What is said is kept for ever, and audited. A run by hand
is none of this: it is always allowed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

import sqlalchemy as sa

from polydesk_dagster.catalog import BY_KEY, SERVICES, OnDemand
from polydesk_dagster.errors import PermanentError
from polydesk_dagster.runtime.state.model import Activity, Mode
from polydesk_dagster.values import ServiceKey

if TYPE_CHECKING:
    from polydesk_dagster.settings import Settings

PLAYED = "POLYDESK_PLAYED"
"""The variable by which `polydesk up` tells its processes which gateways a simulator plays, by name and comma."""
GATEWAYS: Mapping[str, str] = {"central": "central_url", "sms": "sms_url", "mail": "smtp_url"}
"""Gateways by name, each with the setting that is its address."""

STANDING = tuple(service.key for service in SERVICES if not isinstance(service.cadence, OnDemand))
"""Services that start by themselves, in the catalogue's order."""


class SwitchError(PermanentError):
    """Why a service cannot be let, paused or resumed. Its reason's code: ``switch_unknown``, ``switch_on_demand``,
    ``switch_no_reason`` (it says too little) or ``switch_past`` (a pause that would have ended already)."""


@dataclass(frozen=True, slots=True)
class Said:
    """One line of a service's history: ``action`` is ``go_live``, ``pause`` or ``resume``."""

    service: str
    action: str
    at: datetime
    until: datetime | None
    actor: str
    reason: str


def starts_live(settings: Settings) -> bool:
    """Whether services work here without anybody's word: nothing real is configured."""
    played = set(os.environ.get(PLAYED, "").split(","))
    real = [name for name, field in GATEWAYS.items() if getattr(settings, field) is not None and name not in played]
    return settings.embedded and not real


def activities(connection: sa.Connection, as_of: datetime, *, live: bool) -> dict[str, Activity]:
    """Of every service of the catalogue whether it may start by itself at ``as_of``, by key; Dagster's own switches are
    not looked at. ``live`` is ``starts_live``."""
    newest = _newest(connection, STANDING)
    return {key: _activity(key, newest.get(key), as_of, live) for key in BY_KEY}


def activity(connection: sa.Connection, service: str, as_of: datetime, *, live: bool) -> Activity:
    """The same of one service."""
    return _activity(service, _newest(connection, [service]).get(service), as_of, live)


def history(connection: sa.Connection, service: str, limit: int = 50) -> list[Said]:
    """What was said of a service, newest first."""
    rows = connection.execute(
        sa.text("""
            SELECT service, action, at, until, actor, reason FROM service_switch
            WHERE service = :service ORDER BY id DESC LIMIT :limit"""),
        {"service": service, "limit": limit},
    )
    return [Said(*row) for row in rows]


def go_live(
    connection: sa.Connection, services: Sequence[str], *, actor: str, reason: str, as_of: datetime
) -> tuple[str, ...]:
    """Let services (keys) start by themselves from now on; one that did already is left as it is. A pause of theirs
    goes on. Returns those that were let, in the catalogue's order.

    Raises:
        SwitchError: nothing was said then of any.
    """
    _check(services, reason)
    known = _newest(connection, services)
    let = tuple(key for key in STANDING if key in services and not (key in known and known[key].live))
    for key in let:
        paused = known[key].said if key in known and known[key].said.action == "pause" else None
        _say(connection, Said(key, "go_live", as_of, None, actor, reason))
        if paused is not None and paused.until is not None and paused.until > as_of:
            _say(connection, Said(key, "pause", as_of, paused.until, paused.actor, paused.reason))
    return let


def pause(
    connection: sa.Connection, service: str, *, until: datetime, actor: str, reason: str, as_of: datetime
) -> None:
    """Keep a service from starting by itself until an instant; a pause of before is replaced by this one.

    Raises:
        SwitchError: nothing was said then.
    """
    _check([service], reason)
    if until <= as_of:
        raise SwitchError("switch_past", service=ServiceKey(service))
    _say(connection, Said(service, "pause", as_of, until, actor, reason))


def resume(connection: sa.Connection, service: str, *, actor: str, reason: str, as_of: datetime) -> bool:
    """End a service's pause. Returns False, with nothing said, where it is not paused.

    Raises:
        SwitchError: nothing was said then.
    """
    _check([service], reason)
    known = _newest(connection, [service]).get(service)
    if known is None or known.said.action != "pause" or known.said.until is None or known.said.until <= as_of:
        return False
    _say(connection, Said(service, "resume", as_of, None, actor, reason))
    return True


@dataclass(frozen=True, slots=True)
class _Known:
    said: Said
    live: bool


def _newest(connection: sa.Connection, services: Sequence[str]) -> dict[str, _Known]:
    rows = connection.execute(
        sa.text("""
            SELECT DISTINCT ON (service) service, action, at, until, actor, reason,
                   bool_or(action = 'go_live') OVER (PARTITION BY service)
            FROM service_switch WHERE service = ANY(:services) ORDER BY service, id DESC"""),
        {"services": list(services)},
    )
    return {row[0]: _Known(Said(*row[:6]), row[6]) for row in rows}


def _activity(service: str, known: _Known | None, as_of: datetime, live: bool) -> Activity:
    if service not in STANDING:
        return Activity(Mode.ON_DEMAND)
    if not live and (known is None or not known.live):
        return Activity(Mode.NOT_LIVE)
    if known is None:
        return Activity(Mode.ON)
    said = known.said
    paused = said.until is not None and said.until > as_of
    if paused:
        return Activity(Mode.PAUSED, said.at, said.until, said.actor, said.reason)
    return Activity(Mode.ON, said.until or said.at, None, said.actor, said.reason)


def _check(services: Sequence[str], reason: str) -> None:
    for key in services:
        if key not in STANDING:
            if key in BY_KEY:
                raise SwitchError("switch_on_demand", service=ServiceKey(key))
            raise SwitchError("switch_unknown", given=key, known=", ".join(STANDING))
    from polydesk_dagster.changes import audit  # not while the command only reads

    if not audit.is_reason(reason):
        raise SwitchError("switch_no_reason", least=audit.LEAST_REASON)


def _say(connection: sa.Connection, said: Said) -> None:
    from polydesk_dagster.changes import audit

    values = {name: getattr(said, name) for name in ("service", "action", "at", "until", "actor", "reason")}
    connection.execute(
        sa.text("""
            INSERT INTO service_switch (service, action, at, until, actor, reason)
            VALUES (:service, :action, :at, :until, :actor, :reason)"""),
        values,
    )
    detail = {"reason": said.reason} | ({"until": said.until.isoformat()} if said.until else {})
    audit.append(connection, as_of=said.at, actor=said.actor, action=said.action, service=said.service, detail=detail)
