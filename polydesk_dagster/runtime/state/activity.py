"""Who lets a service work by itself, who keeps it waiting, and until when.

An installation with a database or a gateway of its own starts with every service waiting until somebody lets it go
live; one that plays both starts live. A pause ends by itself; of a service that runs
clinic by clinic it may be one clinic's. What is said is kept for ever, and audited. A run by hand is none of this: it
is always allowed.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING

import sqlalchemy as sa

from polydesk_dagster.catalog import BY_KEY, SERVICES, OnDemand
from polydesk_dagster.errors import PermanentError
from polydesk_dagster.runtime.state.model import Activity, Mode
from polydesk_dagster.values import Instant, Reason, ServiceKey

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
    ``switch_no_reason`` (it says too little), ``switch_past`` (a pause that would have ended already),
    ``switch_whole_chain`` (a clinic's pause of what runs for all of them at once) or ``switch_clinic``."""


@dataclass(frozen=True, slots=True)
class Said:
    """One line of a service's history: ``action`` is ``go_live``, ``pause`` or ``resume``."""

    service: str
    action: str
    at: datetime
    until: datetime | None
    actor: str
    reason: str
    clinic: str | None = None
    """Its code; None: the whole chain."""

    def pauses(self, as_of: datetime) -> bool:
        """Whether it keeps the service waiting at ``as_of``."""
        return self.until is not None and self.until > as_of


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


def paused(connection: sa.Connection, service: str, as_of: datetime) -> dict[str, Reason]:
    """The clinics (codes) at which somebody keeps a service waiting at ``as_of``, each with who, why and until when."""
    known = _newest(connection, [service]).get(service)
    return {
        code: Reason(
            "clinic_paused",
            {"service": ServiceKey(service), "until": Instant(said.until), "actor": said.actor, "why": said.reason},
            code,
        )
        for code, said in (known.clinics.items() if known else ())
        if said.until is not None and said.pauses(as_of)
    }


def history(
    connection: sa.Connection, service: str, limit: int = 50, *, clinics: Collection[str] | None = None
) -> list[Said]:
    """What was said of a service, newest first; with ``clinics`` (codes) what was said of theirs and of the chain."""
    rows = connection.execute(
        sa.text("""
            SELECT w.service, w.action, w.at, w.until, w.actor, w.reason, c.code
            FROM service_switch w LEFT JOIN clinic c ON c.id = w.clinic_id
            WHERE w.service = :service
              AND (CAST(:clinics AS text[]) IS NULL OR c.code IS NULL OR c.code = ANY(:clinics))
            ORDER BY w.id DESC LIMIT :limit"""),
        {"service": service, "limit": limit, "clinics": None if clinics is None else list(clinics)},
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
        before = known[key].said if key in known else None
        _say(connection, Said(key, "go_live", as_of, None, actor, reason))
        if before is not None and before.pauses(as_of):
            _say(connection, Said(key, "pause", as_of, before.until, before.actor, before.reason))
    return let


def pause(
    connection: sa.Connection,
    service: str,
    *,
    until: datetime,
    actor: str,
    reason: str,
    as_of: datetime,
    clinic: str | None = None,
) -> None:
    """Keep a service from starting by itself until an instant, for a clinic (its code) or the whole chain; a pause of
    before is replaced by this one.

    Raises:
        SwitchError: nothing was said then.
    """
    _check([service], reason)
    _check_clinic(connection, service, clinic)
    if until <= as_of:
        raise SwitchError("switch_past", service=ServiceKey(service))
    _say(connection, Said(service, "pause", as_of, until, actor, reason, clinic))


def resume(
    connection: sa.Connection, service: str, *, actor: str, reason: str, as_of: datetime, clinic: str | None = None
) -> bool:
    """End a service's pause, a clinic's or the chain's. Returns False, with nothing said, where it is not paused.

    Raises:
        SwitchError: nothing was said then.
    """
    _check([service], reason)
    _check_clinic(connection, service, clinic)
    known = _newest(connection, [service]).get(service)
    said = None if known is None else known.said if clinic is None else known.clinics.get(clinic)
    if said is None or not said.pauses(as_of):
        return False
    _say(connection, Said(service, "resume", as_of, None, actor, reason, clinic))
    return True


@dataclass(slots=True)
class _Known:
    """The newest that was said of a service: of the chain and of each clinic."""

    live: bool
    said: Said | None = None
    clinics: dict[str, Said] = field(default_factory=dict)


def _newest(connection: sa.Connection, services: Sequence[str]) -> dict[str, _Known]:
    rows = connection.execute(
        sa.text("""
            SELECT DISTINCT ON (w.service, w.clinic_id) w.service, w.action, w.at, w.until, w.actor, w.reason, c.code,
                   bool_or(w.action = 'go_live') OVER (PARTITION BY w.service)
            FROM service_switch w LEFT JOIN clinic c ON c.id = w.clinic_id
            WHERE w.service = ANY(:services) ORDER BY w.service, w.clinic_id, w.id DESC"""),
        {"services": list(services)},
    )
    found: dict[str, _Known] = {}
    for *line, live in rows:
        said = Said(*line)
        known = found.setdefault(said.service, _Known(live))
        if said.clinic is None:
            known.said = said
        else:
            known.clinics[said.clinic] = said
    return found


def _activity(service: str, known: _Known | None, as_of: datetime, live: bool) -> Activity:
    if service not in STANDING:
        return Activity(Mode.ON_DEMAND)
    if not live and (known is None or not known.live):
        return Activity(Mode.NOT_LIVE)
    if known is None:
        return Activity(Mode.ON)
    clinics = {code: _paused(said) for code, said in known.clinics.items() if said.pauses(as_of)}
    resumed = {code: said.until or said.at for code, said in known.clinics.items() if code not in clinics}
    said = known.said
    if said is None:
        return Activity(Mode.ON, paused=clinics, resumed=resumed)
    if said.pauses(as_of):
        return replace(_paused(said), paused=clinics, resumed=resumed)
    return Activity(Mode.ON, said.until or said.at, None, said.actor, said.reason, clinics, resumed)


def _paused(said: Said) -> Activity:
    return Activity(Mode.PAUSED, said.at, said.until, said.actor, said.reason)


def _check_clinic(connection: sa.Connection, service: str, clinic: str | None) -> None:
    if clinic is None:
        return
    if not BY_KEY[service].per_clinic:
        raise SwitchError("switch_whole_chain", service=ServiceKey(service))
    if not connection.scalar(sa.text("SELECT count(*) FROM clinic WHERE code = :code"), {"code": clinic}):
        raise SwitchError("switch_clinic", given=clinic)


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

    values = {name: getattr(said, name) for name in ("service", "action", "at", "until", "actor", "reason", "clinic")}
    connection.execute(
        sa.text("""
            INSERT INTO service_switch (service, action, at, until, actor, reason, clinic_id)
            VALUES (:service, :action, :at, :until, :actor, :reason, (SELECT id FROM clinic WHERE code = :clinic))"""),
        values,
    )
    detail = {"reason": said.reason} | ({"until": said.until.isoformat()} if said.until else {})
    audit.append(
        connection,
        as_of=said.at,
        actor=said.actor,
        action=said.action,
        service=said.service,
        clinic=said.clinic,
        detail=detail,
    )
