"""The bookable slots of agendas: what the rules and closures produce, and the smallest change that brings it about.

A slot's identity is its agenda and its start instant. Rules are expanded in the wall time of the clinic's zone and
stored as instants. A slot with a booking or a live hold keeps its hours: if the rules no longer produce it, it becomes
an orphan for the desk. All is decided before anything is written. One clinic is one plan and one transaction; an agenda
that a person must look at first waits with a plan of its own; one whose rules make no sense, or whose slots the
database refuses, is named, left as it is, and stops nobody else.

Most days of most agendas have not changed since the last run. Of a settled agenda only the new days are looked at. Of
the others three kinds of days are told apart: those without any slot get theirs from one query; those whose slots have
the digest that the rules give are done; only the rest is compared slot by slot.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import date, datetime
from zoneinfo import ZoneInfo

import sqlalchemy as sa

from polydesk_dagster import changes
from polydesk_dagster.changes.plans import Scope
from polydesk_dagster.clinic.calendar import settled
from polydesk_dagster.clinic.calendar.agendas import (
    HOLDING,
    REMEMBER,
    REMEMBER_FAILED,
    RETIREMENT_GUARD,
    TAKEN_BACK_GUARD,
    Clinic,
    agenda,
    manual_agendas,
    services_too_long,
    tell_gaps_and_ends,
)
from polydesk_dagster.clinic.calendar.deciding import (
    Refused,
    agenda_refused,
    decide,
    in_parts,
    serialise,
    unknown_zone,
    values_of,
)
from polydesk_dagster.clinic.calendar.orphans import SAID, SEATED, WORK, orphan_tables
from polydesk_dagster.clinic.calendar.slot_plan import DUE_ROWS, HELD_ROWS, SERVICE, SLOT
from polydesk_dagster.database import refusals
from polydesk_dagster.errors import in_brief
from polydesk_dagster.outcome import WHAT_TO_DO, Counts, Outcome, Reason, Report, Table, combine, done
from polydesk_dagster.values import Value

__all__ = ["RETIREMENT_GUARD", "TAKEN_BACK_GUARD", "generate"]

SIDE_BY_SIDE = 4
"""Clinics at a time, each with a connection of its own."""

Progress = Callable[[int, int, str], None]


def generate(
    engine: sa.Engine,
    as_of: datetime,
    *,
    clinic: str | None = None,
    preview: bool = False,
    actor: str = "dagster",
    progress: Progress | None = None,
    whole: bool = False,
) -> Report:
    """Bring the slots of all automatic agendas in step with their rules, from ``as_of`` to each agenda's horizon.

    One plan a clinic, and one for every agenda of which more slots would go than the guard lets pass: those wait until
    a person applies them. ``SIDE_BY_SIDE`` clinics at a time, none in another's way. With ``preview`` no plan is
    applied; with ``whole`` settled agendas are looked at whole, which comes to the same. Counts are slots, except
    ``skipped`` (manual agendas) and ``failed`` (agendas that were, or of which some days were, left as they are);
    ``waiting`` are bookings whose slot is gone and the slots of agendas that are held.
    """
    with engine.connect() as connection:
        clinics = _clinics(connection, clinic)
    if clinic is not None and not clinics:
        return Report.failed("no_such_clinic", {"code": clinic}, clinic)
    if not preview and clinic is None:
        with engine.begin() as connection:
            settled.forget_who_is_gone(connection)

    def one(each: Clinic) -> Report:
        try:
            return _generate_clinic(engine, each, as_of, preview=preview, actor=actor, whole=whole)
        except sa.exc.DBAPIError as error:
            return _clinic_refused(each, error, engine.url)

    reports = []
    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        try:
            for number, report in enumerate(pool.map(one, clinics), 1):
                reports.append(report)
                if progress is not None:
                    progress(number, len(clinics), "progress.clinics")
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
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


def _generate_clinic(
    engine: sa.Engine, clinic: Clinic, as_of: datetime, *, preview: bool, actor: str, whole: bool
) -> Report:
    try:
        today = as_of.astimezone(ZoneInfo(clinic.time_zone)).date()
    except (KeyError, ValueError):
        return unknown_zone(clinic)

    def part(agendas: Sequence[int]) -> Report:
        with engine.begin() as connection:
            serialise(connection, [clinic])
            chosen = {"today": today, "as_of": as_of, "clinic_ids": [clinic.id], "agendas": list(agendas)}
            kept = settled.choose(connection, chosen, whole=whole)
            return _plan(connection, clinic, as_of, today, kept, preview=preview, actor=actor)

    def failed(agenda_id: int, error: Exception) -> Report:
        with engine.begin() as connection:
            if not preview:
                connection.execute(sa.text(REMEMBER_FAILED), {"agenda": agenda_id, "as_of": as_of})
            return agenda_refused(connection, agenda_id, error)

    with engine.connect() as connection:
        manual = manual_agendas(connection, clinic)
        too_long = services_too_long(connection, clinic, today)
        agendas = connection.scalars(
            sa.text("SELECT id FROM agenda WHERE clinic_id = :clinic AND auto_generate ORDER BY id"),
            {"clinic": clinic.id},
        ).all()
    report = combine(in_parts(agendas, part, failed))
    counts = report.counts + Counts(skipped=manual.count if manual else 0)
    return replace(report, counts=counts, reasons=(*report.reasons, *too_long, *([manual] if manual else [])))


def _clinic_refused(clinic: Clinic, error: sa.exc.DBAPIError, url: sa.URL) -> Report:
    if (why := refusals.known(error, url)) is not None:  # the server is in trouble, and no clinic to blame
        return Report.of_failure(replace(why, clinic=clinic.code))
    return Report.failed("clinic_refused", {"error": in_brief(error)}, clinic.code)


def _plan(
    connection: sa.Connection,
    clinic: Clinic,
    as_of: datetime,
    today: date,
    kept: tuple[Sequence[int], int],
    *,
    preview: bool,
    actor: str,
) -> Report:
    """The plan over the agenda-days of ``derive_cell``, applied unless only a ``preview`` is wanted; ``kept`` are the
    settled agendas, and how many of their slots nobody looked at."""
    values = values_of(connection, [clinic], as_of, today, kept[0])
    if values is None:
        return Report(Outcome.NOTHING_TO_DO, preview=preview)
    decided = decide(connection, values, lock=not preview)
    scope = Scope(SERVICE, clinic.code, clinic.id)
    plan = changes.propose(connection, SLOT, scope, DUE_ROWS, as_of=as_of, unchanged=decided.unchanged + kept[1])
    held, newly_held = _plans_of_held(connection, clinic, values)
    counts, figures = plan.counts, decided.figures
    tables: tuple[Table, ...] = ()
    if preview:
        shown = changes.preview(connection, plan, SLOT)
        figures, tables = {**figures, WHAT_TO_DO: shown.figures[WHAT_TO_DO]}, shown.tables
    else:
        applied = changes.apply(connection, plan, as_of=as_of, actor=actor)
        if applied.outcome in {Outcome.REFUSED, Outcome.FAILED}:
            raise Refused(applied)
        connection.execute(sa.text(REMEMBER), values)
        settled.settle(connection, values)
        tables = orphan_tables(connection, [clinic]) if decided.orphaned else ()
    waiting = _orphans(connection, as_of) + (decided.orphaned if preview else 0)
    counts += Counts(waiting=waiting + sum(reason.count for reason in held), failed=decided.failed)
    return Report(
        done(counts, set_aside=decided.orphaned + newly_held),
        counts,
        (*held, *decided.reasons, *tell_gaps_and_ends(connection, clinic, values)),
        figures,
        tables,
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
            WHERE o.resolved_at IS NULL AND {SAID} = 'open'
              AND NOT EXISTS (SELECT FROM slot_change c WHERE c.id = s.id AND c.state <> 'orphan')
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
