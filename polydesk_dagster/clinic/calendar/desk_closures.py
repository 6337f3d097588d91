"""Closures that the desk types or lifts: as plans, with the bookings that they touch and a new place for each.

Whom a closure touches is found by doing it: a plan is applied inside a savepoint that is then rolled back, so that what
is shown is what applying it does. Where a booking could go is ``replacing``; the plan closes and keeps those places.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import date, datetime, time
from typing import Any

import sqlalchemy as sa

from polydesk_dagster import changes
from polydesk_dagster.changes.kind import Kind
from polydesk_dagster.changes.plans import Scope
from polydesk_dagster.clinic.bookings import places
from polydesk_dagster.clinic.calendar.closures import NAMED
from polydesk_dagster.clinic.calendar.replacing import Touched, proposals
from polydesk_dagster.clinic.calendar.touched import derive_touched
from polydesk_dagster.outcome import Outcome, Report

SERVICE = "import_closures"


@dataclass(frozen=True, slots=True)
class Closure:
    """What the desk wants closed: an agenda, a clinic or, where neither is given, the whole chain. Dates are inclusive;
    the hours, local, go together."""

    name: str
    date_from: date
    date_to: date
    from_time: time | None = None
    to_time: time | None = None
    clinic: str | None = None
    agenda: int | None = None

    @property
    def problem(self) -> str | None:
        """The code of a reason why this is no closure, or None."""
        if not self.name.strip():
            return "closure_without_name"
        if self.date_to < self.date_from:
            return "closure_ends_before_it_starts"
        if (self.from_time is None) != (self.to_time is None):
            return "closure_half_hours"
        if self.from_time is not None and self.to_time is not None and self.to_time <= self.from_time:
            return "closure_ends_before_it_starts"
        return None


def _derive(connection: sa.Connection, rows: str, as_of: datetime) -> Report | None:
    return derive_touched(connection, f"SELECT * FROM {rows} r WHERE layer IS NOT NULL", as_of)


_STANDS = """t.lifted_at IS NULL AND t.source = 'desk' AND t.effect = 'closed' AND NOT t.yearly"""
_SAME = f"""{_STANDS}
    AND (t.layer, t.clinic_id, t.agenda_id, t.date_from, t.date_to, t.from_time, t.to_time) IS NOT DISTINCT FROM
        (r.layer, r.clinic_id, r.agenda_id, r.date_from, r.date_to, r.from_time, r.to_time)"""
"""However it is called: of two alike the second would stay when the first is lifted, and nobody could book."""

DESK_CLOSURE = Kind(
    name="desk_closure",
    whole=True,
    table="closure",
    key=NAMED,
    taken=_SAME,
    fixed=(
        "layer",
        "name",
        "date_from",
        "date_to",
        "from_time",
        "to_time",
        "region",
        "municipality_code",
        "clinic_id",
        "agenda_id",
    ),
    owned=("lifted_at",),
    kept=("effect", "yearly", "source"),
    dependents=("orphan",),
    undo_before=(
        "UPDATE orphan SET closure_id = NULL WHERE closure_id IN (SELECT id FROM {rows} r WHERE action = 'delete')",
    ),
    effect=_derive,
)


_CLOSED = "(SELECT o.slot_id FROM orphan o JOIN {rows} r ON o.closure_id = r.id WHERE o.resolved_at IS NULL)"


def _close(connection: sa.Connection, rows: str, as_of: datetime) -> Report | None:
    return places.once(connection, rows, _derive(connection, rows, as_of))


def _keep(connection: sa.Connection, rows: str, as_of: datetime) -> None:
    places.keep(connection, rows, as_of, _CLOSED.format(rows=rows), "r.action = 'create'")


CLOSING = replace(
    DESK_CLOSURE,
    name="closing",
    key=f"coalesce(r.what, {NAMED})",
    carried=places.CARRIED,
    together="'closure'",
    undo_reconsider=places.UNLESS_TAKEN,
    undo_before=(places.GIVE_BACK, *DESK_CLOSURE.undo_before),
    effect=_close,
    last=_keep,
)
"""A closure and the places of whom it touches."""

_NEW = """
    SELECT 'create' AS action, CAST(NULL AS text) AS finding, CAST(NULL AS text) AS reason, CAST(NULL AS bigint) AS id,
           CASE WHEN CAST(:agenda AS bigint) IS NOT NULL THEN 'agenda'
                WHEN CAST(:clinic_id AS bigint) IS NOT NULL THEN 'clinic' ELSE 'chain' END AS layer,
           :name AS name, :date_from AS date_from, :date_to AS date_to, CAST(:from_time AS time) AS from_time,
           CAST(:to_time AS time) AS to_time,
           CAST(NULL AS text) AS region, CAST(NULL AS text) AS municipality_code,
           CASE WHEN CAST(:agenda AS bigint) IS NULL THEN CAST(:clinic_id AS bigint) END AS clinic_id,
           CAST(:agenda AS bigint) AS agenda_id, CAST(NULL AS timestamptz) AS lifted_at
"""

_WITH_PLACES = f"""
    SELECT n.*, {places.NONE} FROM ({_NEW}) n
    UNION ALL
    SELECT w.action, NULL, w.reason, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
           w.what, w.booking, w.booked_at, w.place_agenda, w.place_at, w.offered_until
    FROM ({places.ROWS}) w
"""

_LIFTED = """
    SELECT 'retire' AS action, CAST(NULL AS text) AS finding, CAST(NULL AS text) AS reason, c.id, c.layer, c.name,
           c.date_from, c.date_to, c.from_time, c.to_time, c.region, c.municipality_code, c.clinic_id, c.agenda_id,
           :as_of AS lifted_at
    FROM closure c WHERE c.id = :closure AND c.lifted_at IS NULL AND c.source = 'desk'
"""


@dataclass(frozen=True, slots=True)
class Proposal:
    """What a closure, or turns that were edited, would come to: applied, the plans of the report. ``touched`` names
    patients: for whoever sits at the desk, never for Dagster."""

    report: Report
    touched: tuple[Touched, ...] = ()


def propose(engine: sa.Engine, closure: Closure, *, as_of: datetime) -> Proposal:
    """The plan of ``closure``, the bookings that would lose their slot, and a new place for each where there is one:
    applied, it closes and keeps those places, all or none.

    Nothing but the plan is kept. Refused with a reason for a clinic or an agenda that does not exist.
    """
    with engine.begin() as connection:
        scope = _scope(connection, closure, as_of)
        if isinstance(scope, Report):
            return Proposal(scope)
        trial = connection.begin_nested()
        before = connection.scalar(sa.text("SELECT coalesce(max(id), 0) FROM orphan")) or 0
        at_once = changes.propose(connection, DESK_CLOSURE, scope, _NEW, as_of=as_of)
        done = changes.apply(connection, at_once.id, as_of=as_of, actor="desk:preview")
        touched = proposals(connection, before, as_of)
        trial.rollback()
        places.want(connection, touched)
        plan = changes.propose(connection, CLOSING, scope, _WITH_PLACES, as_of=as_of)
    figures = {
        **done.figures,
        "bookings_to_move": len(touched),
        "places_found": sum(t.place is not None for t in touched),
        "places_to_keep": plan.tally.get("link", 0),
    }
    counts = replace(done.counts, updated=plan.tally.get("link", 0))
    return Proposal(
        replace(done, counts=counts, figures=figures, tables=(), plan_id=plan.id, preview=True), tuple(touched)
    )


def add(engine: sa.Engine, closure: Closure, *, as_of: datetime, actor: str) -> Report:
    """Close at once, and re-derive the days: one plan, applied; what is booked there becomes an orphan."""
    with engine.begin() as connection:
        scope = _scope(connection, closure, as_of)
        if isinstance(scope, Report):
            return scope
        plan = changes.propose(connection, DESK_CLOSURE, scope, _NEW, as_of=as_of)
        return changes.apply(connection, plan.id, as_of=as_of, actor=actor)


def standing(connection: sa.Connection, as_of: datetime, clinic: str | None = None) -> dict[int, Closure]:
    """What the desk has closed and not opened again, by number, soonest first; of ``clinic`` alone where given."""
    rows = connection.execute(
        sa.text(f"""
            SELECT t.id, t.name, t.date_from, t.date_to, t.from_time, t.to_time, k.code, t.agenda_id
            FROM closure t LEFT JOIN agenda a ON a.id = t.agenda_id
            LEFT JOIN clinic k ON k.id = coalesce(t.clinic_id, a.clinic_id)
            WHERE {_STANDS}
              AND t.date_to >= CAST(:as_of AT TIME ZONE coalesce(k.time_zone, 'Europe/Rome') AS date)
              AND (CAST(:clinic AS text) IS NULL OR k.code = :clinic)
            ORDER BY t.date_from, t.id"""),
        {"as_of": as_of, "clinic": clinic},
    )
    return {number: Closure(*rest) for number, *rest in rows}


def lift(engine: sa.Engine, closure_id: int, *, as_of: datetime, actor: str, preview: bool = False) -> Report:
    """Open again what the desk had closed; its slots come back, and what was booked there is no orphan any more.

    Refused for a closure that is not the desk's, is lifted already or does not exist.
    """
    with engine.begin() as connection:
        row = connection.execute(
            sa.text("""
                SELECT k.id, k.code FROM closure c LEFT JOIN agenda a ON a.id = c.agenda_id
                LEFT JOIN clinic k ON k.id = coalesce(c.clinic_id, a.clinic_id)
                WHERE c.id = :id AND c.lifted_at IS NULL AND c.source = 'desk'"""),
            {"id": closure_id},
        ).one_or_none()
        if row is None:
            return Report.refused("no_desk_closure", {"closure": closure_id})
        scope = Scope(SERVICE, row.code, row.id, {"closure": closure_id})
        plan = changes.propose(connection, DESK_CLOSURE, scope, _LIFTED, as_of=as_of)
        if preview:
            return replace(changes.preview(connection, plan, DESK_CLOSURE), preview=True)
        return changes.apply(connection, plan.id, as_of=as_of, actor=actor)


def _scope(connection: sa.Connection, closure: Closure, as_of: datetime) -> Scope | Report:
    if closure.problem is not None:
        return Report(Outcome.REFUSED, reasons=Report.refused(closure.problem).reasons)
    where = connection.execute(
        sa.text("""
            SELECT k.id, k.code, CAST(CAST(:as_of AS timestamptz) AT TIME ZONE k.time_zone AS date) AS today
            FROM clinic k LEFT JOIN agenda a ON a.clinic_id = k.id AND a.id = :agenda
            WHERE k.active AND (CAST(:clinic AS text) IS NULL OR k.code = :clinic)
              AND (CAST(:agenda AS bigint) IS NULL OR a.id IS NOT NULL) ORDER BY k.id"""),
        {"clinic": closure.clinic, "agenda": closure.agenda, "as_of": as_of},
    ).all()
    if not where:
        return Report.refused("closure_nowhere", {"agenda": closure.agenda}, closure.clinic)
    if closure.date_to < min(row.today for row in where):
        return Report.refused("closure_is_past", {"day": closure.date_to})
    whole = closure.clinic is None and closure.agenda is None
    parameters: Mapping[str, Any] = {
        "name": closure.name.strip(),
        "date_from": closure.date_from,
        "date_to": closure.date_to,
        "from_time": closure.from_time,
        "to_time": closure.to_time,
        "agenda": closure.agenda,
    }
    scope = Scope(SERVICE, None if whole else where[0].code, None if whole else where[0].id, parameters)
    standing = connection.scalar(
        sa.text(f"SELECT t.id FROM closure t, ({_NEW}) r WHERE {_SAME} LIMIT 1"),
        {**parameters, "clinic_id": scope.clinic_id},
    )
    return scope if standing is None else Report.refused("closure_stands", {"closure": standing})
