"""The bookable slots of agendas: what the rules and closures produce, and the smallest change that brings it about.

A slot's identity is its agenda and its start instant. Rules are expanded in the wall time of the clinic's zone and
stored as instants. A slot with a booking or a live hold keeps its hours: if the rules no longer produce it, it becomes
an orphan for the desk. All is decided before anything is written. One clinic is one plan and one transaction; an agenda
that a person must look at first waits with a plan of its own; one whose rules make no sense, or whose slots the
database refuses, is named, left as it is, and stops nobody else.

Most days of most agendas have not changed since the last run. So three kinds of agenda-days are told apart: those
without any slot get theirs from one query; those whose slots have the digest that the rules give are done; only the
rest is compared slot by slot.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from zoneinfo import ZoneInfo

import sqlalchemy as sa

from polydesk_dagster import changes
from polydesk_dagster.changes.plans import Scope
from polydesk_dagster.clinic.calendar.agendas import (
    ENDS_AHEAD,
    HOLDING,
    LOCK_AGENDAS,
    REMEMBER,
    REMEMBER_FAILED,
    RETIREMENT_GUARD,
    TAKEN_BACK_GUARD,
    Clinic,
    agenda,
    leave_out_what_makes_no_sense,
    manual_agendas,
    services_too_long,
    tell_gaps_and_ends,
)
from polydesk_dagster.clinic.calendar.comparison import compare, due
from polydesk_dagster.clinic.calendar.days import COUNT_BEFORE, sort_cells
from polydesk_dagster.clinic.calendar.expansion import expand_rules, shift_across_dst
from polydesk_dagster.clinic.calendar.orphans import SEATED, WORK, orphan_tables
from polydesk_dagster.clinic.calendar.slot_plan import AFTER, DUE_ROWS, HELD_ROWS, SERVICE, SLOT
from polydesk_dagster.database.locks import in_turn
from polydesk_dagster.errors import in_brief
from polydesk_dagster.outcome import WHAT_TO_DO, Counts, Outcome, Reason, Report, combine, done
from polydesk_dagster.values import Value

__all__ = ["RETIREMENT_GUARD", "TAKEN_BACK_GUARD", "derive", "generate"]

Progress = Callable[[int, int, str], None]


def generate(
    engine: sa.Engine,
    as_of: datetime,
    *,
    clinic: str | None = None,
    preview: bool = False,
    actor: str = "dagster",
    progress: Progress | None = None,
) -> Report:
    """Bring the slots of all automatic agendas in step with their rules, from ``as_of`` to each agenda's horizon.

    One plan a clinic, and one for every agenda of which more slots would go than the guard lets pass: those wait until
    a person applies them. With ``preview`` no plan is applied. Counts are slots, except ``skipped`` (manual agendas)
    and ``failed`` (agendas that were, or of which some days were, left as they are); ``waiting`` are bookings whose
    slot is gone and the slots of agendas that are held.
    """
    with engine.connect() as connection:
        clinics = _clinics(connection, clinic)
    if clinic is not None and not clinics:
        return Report.failed("no_such_clinic", {"code": clinic}, clinic)
    reports = []
    for number, each in enumerate(clinics, 1):
        reports.append(_generate_clinic(engine, each, as_of, preview=preview, actor=actor))
        if progress is not None:
            progress(number, len(clinics), "progress.clinics")
    return combine(reports)


def _clinics(connection: sa.Connection, code: str | None) -> list[Clinic]:
    rows = connection.execute(
        sa.text("""
            SELECT c.id, c.code, c.time_zone, greatest(c.horizon_days, coalesce(max(a.horizon_days), 0))
            FROM clinic c LEFT JOIN agenda a ON a.clinic_id = c.id
            WHERE c.active AND (c.code = :code OR CAST(:code AS text) IS NULL)
            GROUP BY c.id ORDER BY c.code"""),
        {"code": code},
    )
    return [Clinic(*row) for row in rows]


# --- one clinic --------------------------------------------------------------------------------------------------


class _Refused(Exception):  # noqa: N818 -- unwinds a transaction, never leaves this module
    """The schema has refused a plan that was made a moment ago."""

    def __init__(self, report: Report) -> None:
        super().__init__(report.outcome)
        self.report = report


def _generate_clinic(engine: sa.Engine, clinic: Clinic, as_of: datetime, *, preview: bool, actor: str) -> Report:
    try:
        today = as_of.astimezone(ZoneInfo(clinic.time_zone)).date()
    except (KeyError, ValueError):
        return _unknown_zone(clinic)

    def part(agendas: Sequence[int]) -> Report:
        with engine.begin() as connection:
            _serialise(connection, clinic.id)
            connection.execute(
                sa.text("""
                    CREATE TEMP TABLE derive_cell ON COMMIT DROP AS
                    SELECT a.id AS agenda_id, CAST(:today AS date) + n AS local_date
                    FROM agenda a JOIN clinic c ON c.id = a.clinic_id
                    CROSS JOIN generate_series(0, coalesce(a.horizon_days, c.horizon_days) - 1) AS n
                    WHERE a.clinic_id = :clinic_id AND a.auto_generate AND a.id = ANY(:agendas)"""),
                {"today": today, "clinic_id": clinic.id, "agendas": list(agendas)},
            )
            return _plan(connection, clinic, as_of, today, preview=preview, actor=actor)

    def failed(agenda_id: int, error: Exception) -> Report:
        with engine.begin() as connection:
            if not preview:
                connection.execute(sa.text(REMEMBER_FAILED), {"agenda": agenda_id, "as_of": as_of})
            return _agenda_refused(connection, clinic, agenda_id, error)

    try:
        with engine.connect() as connection:
            manual = manual_agendas(connection, clinic)
            too_long = services_too_long(connection, clinic, today)
            agendas = connection.scalars(
                sa.text("SELECT id FROM agenda WHERE clinic_id = :clinic AND auto_generate ORDER BY id"),
                {"clinic": clinic.id},
            ).all()
        report = combine(_in_parts(agendas, part, failed))
    except sa.exc.DBAPIError as error:
        return _clinic_refused(clinic, error)
    counts = report.counts + Counts(skipped=manual.count if manual else 0)
    return replace(report, counts=counts, reasons=(*report.reasons, *too_long, *([manual] if manual else [])))


def _in_parts(
    agendas: Sequence[int], part: Callable[[Sequence[int]], Report], failed: Callable[[int, Exception], Report]
) -> list[Report]:
    """All agendas at once; where the database refuses that, by halves, until the agenda is found that it is about."""
    try:
        return [part(agendas)]
    except (sa.exc.DBAPIError, _Refused) as error:
        lost = isinstance(error, sa.exc.DBAPIError) and error.connection_invalidated
        if lost or not agendas:
            raise
        if len(agendas) == 1:
            return [failed(agendas[0], error)]
        half = len(agendas) // 2
        return _in_parts(agendas[:half], part, failed) + _in_parts(agendas[half:], part, failed)


def _unknown_zone(clinic: Clinic) -> Report:
    return Report.failed("unknown_time_zone", {"zone": clinic.time_zone}, clinic.code)


def _clinic_refused(clinic: Clinic, error: sa.exc.DBAPIError) -> Report:
    return Report.failed("clinic_refused", {"error": in_brief(error)}, clinic.code)


def _agenda_refused(connection: sa.Connection, clinic: Clinic, agenda_id: int, error: Exception) -> Report:
    row = connection.execute(sa.text("SELECT id, name FROM agenda WHERE id = :id"), {"id": agenda_id}).one()
    cause: Value = in_brief(error)
    if isinstance(error, _Refused) and error.report.reasons:
        cause = error.report.reasons[0]
    return Report.failed("agenda_refused", {"agenda": agenda(row), "error": cause}, clinic.code)


def _serialise(connection: sa.Connection, clinic_id: int) -> None:
    """One derivation of a clinic's slots at a time: nightly generation and a closure's wait for each other."""
    in_turn(connection, "slots", str(clinic_id))


def _plan(
    connection: sa.Connection, clinic: Clinic, as_of: datetime, today: date, *, preview: bool, actor: str
) -> Report:
    """The plan over the agenda-days of ``derive_cell``, applied unless only a ``preview`` is wanted."""
    values = _values(connection, clinic, as_of, today)
    if values is None:
        return Report(Outcome.NOTHING_TO_DO, preview=preview)
    decided = _decide(connection, clinic, values, lock=not preview)
    scope = Scope(SERVICE, clinic.code, clinic.id)
    plan = changes.propose(connection, SLOT, scope, DUE_ROWS, as_of=as_of, unchanged=decided.unchanged)
    held, newly_held = _plans_of_held(connection, clinic, values)
    shown = changes.preview(connection, plan, SLOT)
    counts = plan.counts
    if not preview:
        applied = changes.apply(connection, plan.id, as_of=as_of, actor=actor)
        if applied.outcome in {Outcome.REFUSED, Outcome.FAILED}:
            raise _Refused(applied)
        connection.execute(sa.text(REMEMBER), values)
    waiting = _orphans(connection, as_of) + (decided.orphaned if preview else 0)
    counts += Counts(waiting=waiting + sum(reason.count for reason in held), failed=decided.failed)
    figures = {**decided.figures, WHAT_TO_DO: shown.figures[WHAT_TO_DO]} if preview else decided.figures
    return Report(
        done(counts, set_aside=decided.orphaned + newly_held),
        counts,
        (*held, *decided.reasons, *tell_gaps_and_ends(connection, clinic, values)),
        figures,
        shown.tables if preview else orphan_tables(connection, clinic) if decided.orphaned else (),
        plan.id if plan.writes or preview or not held else None,
        preview=preview,
    )


def _orphans(connection: sa.Connection, as_of: datetime) -> int:
    """Open orphans ahead of the agendas at work; in a preview without those that the plan would settle."""
    found = connection.scalar(
        sa.text(f"""
            SELECT count(DISTINCT {WORK})
            FROM orphan o JOIN slot s ON s.id = o.slot_id AND s.starts_at > :as_of {SEATED}
            JOIN working_agenda a ON a.id = s.agenda_id
            WHERE o.state = 'open' AND NOT EXISTS (SELECT FROM slot_change c WHERE c.id = s.id AND c.state <> 'orphan')
            """),
        {"as_of": as_of},
    )
    return int(found or 0)


def _plans_of_held(connection: sa.Connection, clinic: Clinic, values: Mapping[str, object]) -> tuple[list[Reason], int]:
    """A plan for every agenda that a person must look at, told as a reason, and how many of their slots were not held
    the night before already."""
    rows = connection.execute(
        sa.text(f"""
            SELECT a.id, a.name, a.problem,
                   count(*) FILTER (WHERE c.action = 'retire' AND c.was_state = 'free') AS leaving,
                   (SELECT count(*) FROM slot s
                    WHERE s.agenda_id = a.id AND s.starts_at > :as_of AND s.state = 'free') AS ahead,
                   coalesce((SELECT g.reason_code = a.problem FROM agenda_state g WHERE g.agenda_id = a.id), false)
                       AS known
            FROM working_agenda a JOIN slot_change c ON c.agenda_id = a.id
            WHERE a.problem IN {HOLDING} GROUP BY a.id, a.name, a.problem ORDER BY a.name, a.id"""),
        values,
    ).all()
    reasons, newly = [], 0
    for row in rows:
        scope = Scope(SERVICE, clinic.code, clinic.id, {"agenda": row.id})
        as_of = values["as_of"]
        assert isinstance(as_of, datetime)
        plan = changes.propose(connection, SLOT, scope, HELD_ROWS, as_of=as_of)
        told: dict[str, Value] = {"agenda": agenda(row), "plan": plan.id}
        if row.problem == RETIREMENT_GUARD:
            told |= {"leaving": row.leaving, "ahead": row.ahead}
        reasons.append(Reason(row.problem, told, clinic.code, plan.writes))
        newly += 0 if row.known else plan.writes
    return reasons, newly


# --- what both generation and closures do ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Decided:
    """What must change, before anything is written; the rows are in the table ``slot_change``."""

    unchanged: int
    orphaned: int
    failed: int
    figures: Mapping[str, Value]
    reasons: tuple[Reason, ...]


def _values(connection: sa.Connection, clinic: Clinic, as_of: datetime, today: date) -> dict[str, object] | None:
    """What the statements bind; None where there is no agenda-day to derive."""
    first, last = connection.execute(sa.text("SELECT min(local_date), max(local_date) FROM derive_cell")).one()
    if first is None:
        return None
    return {
        "clinic_id": clinic.id,
        "time_zone": clinic.time_zone,
        "as_of": as_of,
        "today": today,
        "ends_before": today + ENDS_AHEAD,
        "first_day": first - timedelta(days=1),
        "last_day": last + timedelta(days=1),
    }


def _decide(connection: sa.Connection, clinic: Clinic, values: Mapping[str, object], *, lock: bool) -> _Decided:
    if lock:
        connection.execute(sa.text(LOCK_AGENDAS))
    connection.execute(sa.text("ANALYZE derive_cell"))
    expand_rules(connection, values)
    reasons: list[Reason] = []
    failed = leave_out_what_makes_no_sense(connection, clinic, values, reasons)
    dropped = shift_across_dst(connection, values)
    sort_cells(connection, values)
    compare(connection, values, lock=lock)
    counted = connection.execute(
        sa.text(f"""
            SELECT coalesce((SELECT sum(n) FROM ({COUNT_BEFORE}) b (n)), 0)
                   - count(*) FILTER (WHERE {due()} AND was_state <> 'retired') AS unchanged,
                   (SELECT count(DISTINCT {WORK}) FROM slot_change s {SEATED}
                    WHERE {due("s")} AND s.state = 'orphan' AND s.was_state <> 'orphan') AS orphaned
            FROM slot_change WHERE id IS NOT NULL""")
    ).one()
    figures = {
        "bookings_to_move": int(counted.orphaned),
        "slots_too_long_for_their_turn": dropped["too_long"],
        "slots_in_the_hour_that_is_missing": dropped["gap"],
        "slots_in_the_hour_that_comes_twice": dropped["fold"],
    }
    return _Decided(int(counted.unchanged), int(counted.orphaned), failed, figures, tuple(reasons))


# --- the days that a closure touches -----------------------------------------------------------------------------


_TEMPORARY = (
    "derive_cell",
    "working_agenda",
    "closed_hours",
    "rule_day",
    "left_out_day",
    "shifted_slot",
    "present_cell",
    "fresh_cell",
    "changed_cell",
    "wanted_slot",
    "present_slot",
    "slot_change",
    "lost_together",
)


def derive(connection: sa.Connection, cells: str, as_of: datetime) -> Report:
    """Re-derive exactly the agenda-days of the table ``cells`` (agenda_id bigint, local_date date), in the caller's
    transaction and as part of its plan; days outside an agenda's horizon and manual agendas are left alone.

    The cost grows with the cells, not with the slots. Called when closures have changed; what a closure explains is
    written whatever else a person must look at first.
    """
    clinics = [
        Clinic(*row)
        for row in connection.execute(
            sa.text(f"""
                SELECT DISTINCT c.id, c.code, c.time_zone, c.horizon_days
                FROM {cells} x JOIN agenda a ON a.id = x.agenda_id JOIN clinic c ON c.id = a.clinic_id
                ORDER BY c.id""")
        )
    ]
    return combine([_derive_clinic(connection, each, cells, as_of) for each in clinics])


def _derive_clinic(connection: sa.Connection, clinic: Clinic, cells: str, as_of: datetime) -> Report:
    try:
        today = as_of.astimezone(ZoneInfo(clinic.time_zone)).date()
    except (KeyError, ValueError):
        return _unknown_zone(clinic)

    def part(agendas: Sequence[int]) -> Report:
        with connection.begin_nested():
            connection.execute(
                sa.text(f"""
                    CREATE TEMP TABLE derive_cell ON COMMIT DROP AS
                    SELECT DISTINCT x.agenda_id, x.local_date
                    FROM {cells} x JOIN agenda a ON a.id = x.agenda_id JOIN clinic c ON c.id = a.clinic_id
                    WHERE a.id = ANY(:agendas)
                      AND x.local_date >= :today
                      AND x.local_date < CAST(:today AS date) + coalesce(a.horizon_days, c.horizon_days)"""),
                {"agendas": list(agendas), "today": today},
            )
            report = _write(connection, clinic, as_of, today)
            for table in _TEMPORARY:
                connection.execute(sa.text(f"DROP TABLE IF EXISTS {table}"))
            return report

    def failed(agenda_id: int, error: Exception) -> Report:
        return _agenda_refused(connection, clinic, agenda_id, error)

    _serialise(connection, clinic.id)
    agendas = connection.scalars(
        sa.text(f"""
            SELECT DISTINCT a.id FROM {cells} x JOIN agenda a ON a.id = x.agenda_id
            WHERE a.clinic_id = :clinic AND a.auto_generate ORDER BY a.id"""),
        {"clinic": clinic.id},
    ).all()
    return combine(_in_parts(agendas, part, failed))


def _write(connection: sa.Connection, clinic: Clinic, as_of: datetime, today: date) -> Report:
    """Write what is due of the agenda-days of ``derive_cell``; the rest waits for the plan of the night."""
    values = _values(connection, clinic, as_of, today)
    if values is None:
        return Report(Outcome.NOTHING_TO_DO)
    decided = _decide(connection, clinic, values, lock=True)
    retired, updated = (
        connection.execute(
            sa.text(f"""
                UPDATE slot SET ends_at = r.ends_at, capacity = r.capacity, state = r.state
                FROM slot_change r WHERE r.action = :action AND slot.id = r.id AND {due("r")}"""),
            {"action": action},
        ).rowcount
        for action in ("retire", "update")
    )
    created = connection.execute(
        sa.text(f"""
            INSERT INTO slot (agenda_id, starts_at, ends_at, local_date, capacity)
            SELECT agenda_id, starts_at, ends_at, local_date, capacity FROM slot_change
            WHERE action = 'create' AND {due()}""")
    ).rowcount
    for statement in AFTER:
        connection.execute(sa.text(statement.format(rows=f"(SELECT * FROM slot_change WHERE {due()})")), values)
    counts = Counts(created=created, updated=updated, retired=retired, waiting=decided.orphaned, failed=decided.failed)
    counts += Counts(unchanged=decided.unchanged)
    return Report(
        done(counts, set_aside=decided.orphaned),
        counts,
        decided.reasons,
        decided.figures,
        orphan_tables(connection, clinic) if decided.orphaned else (),
    )
