"""Whom changed turns touch, before the slots follow them: as with a closure, found by doing it and taking it back.

Turns, capacities and closures are edited where they stand; the slots follow at the next generation. Its plans are made
here and tried inside a savepoint that is rolled back; what is kept are plans of the same slots with the places of whom
that touches, applied by their numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime

import sqlalchemy as sa

from polydesk_dagster import changes
from polydesk_dagster.changes import plans
from polydesk_dagster.changes.plans import Plan
from polydesk_dagster.clinic.bookings import places
from polydesk_dagster.clinic.calendar import slots
from polydesk_dagster.clinic.calendar.desk_closures import Proposal
from polydesk_dagster.clinic.calendar.orphans import lost
from polydesk_dagster.clinic.calendar.replacing import Touched, proposals
from polydesk_dagster.clinic.calendar.slot_plan import SLOT
from polydesk_dagster.outcome import Outcome, Reason, Report

_LOOKING = "anteprima di chi tocca"
"""Why a trial goes past the guard of an agenda that a person must look at: nothing of it stays."""

_ORPHANED = "(SELECT r.id AS slot_id FROM {rows} r WHERE r.action = 'update' AND r.state = 'orphan')"


def _keep(connection: sa.Connection, rows: str, as_of: datetime) -> None:
    newly = f"(SELECT * FROM {rows} n WHERE n.was_state <> 'orphan')"
    lost = _ORPHANED.format(rows=newly)
    standing = f"r.id IN (SELECT o.slot_id FROM {lost} o)"
    places.keep(connection, rows, as_of, lost, standing)


def _lost(connection: sa.Connection, rows: str, as_of: datetime) -> Report | None:
    """Whom the slots leave without one; of those for whom the plan keeps a place nothing more is said."""
    report = places.once(connection, rows, lost(connection, rows, as_of))
    if report is None:
        return None
    kept = connection.scalar(sa.text(f"SELECT count(*) FROM {rows} r WHERE action = 'link'")) or 0
    left = (replace(reason, count=reason.count - int(kept)) for reason in report.reasons)
    return replace(report, reasons=tuple(reason for reason in left if reason.count > 0))


TURNS = replace(
    SLOT,
    name="turns",
    key=f"coalesce(r.what, {SLOT.key})",
    carried={**SLOT.carried, **places.CARRIED},
    together="'turns'",
    undo_reconsider=(*SLOT.undo_reconsider, *places.UNLESS_TAKEN),
    undo_before=(*SLOT.undo_before, places.GIVE_BACK),
    effect=_lost,
    last=_keep,
)
"""Slots that follow edited turns, and the places of whom that touches."""

_OF_SLOT = tuple(column for column in ("id", *SLOT.written, *SLOT.carried))

_WITH_PLACES = f"""
    SELECT r.action, r.finding, r.reason, {", ".join(f"r.{column}" for column in _OF_SLOT)}, {places.NONE}
    FROM {{rows}} r WHERE r.action <> 'conflict'
    UNION ALL
    SELECT w.action, NULL, w.reason, {", ".join("NULL" for _ in _OF_SLOT)},
           w.what, w.booking, w.booked_at, w.place_agenda, w.place_at, w.offered_until
    FROM ({places.ROWS}) w"""

_ORPHANED_BY = f"""
    SELECT DISTINCT t.appointment_id FROM {_ORPHANED} o JOIN seat t ON t.slot_id = o.slot_id
    WHERE t.appointment_id IS NOT NULL"""


def propose(engine: sa.Engine, clinic: str, *, as_of: datetime) -> Proposal:
    """The plans that bring the slots of ``clinic`` in step with its turns, the bookings that would lose their slot, and
    a new place for each where there is one: applied, a plan lets the slots follow and keeps the places of those that it
    touches, all or none. Nothing but the plans is kept.

    The report names in its reasons the agendas whose plan a person must look at; what those touch is shown too.
    """
    report = slots.generate(engine, as_of, clinic=clinic, preview=True)
    if report.outcome in {Outcome.FAILED, Outcome.REFUSED}:
        return Proposal(report)
    made = {report.plan_id, *(reason.values.get("plan") for reason in report.reasons)}
    with engine.begin() as connection:
        numbers = sorted(number for number in made if isinstance(number, int))
        tried = [changes.load(connection, number) for number in numbers]
        trial = connection.begin_nested()
        before = connection.scalar(sa.text("SELECT coalesce(max(id), 0) FROM orphan")) or 0
        for plan in tried:
            past = [guard.name for guard in plan.failed_guards]
            changes.apply(connection, plan.id, as_of=as_of, actor="desk:preview", reason=_LOOKING, past_guards=past)
        touched = proposals(connection, before, as_of)
        trial.rollback()
        kept = _with_places(connection, tried, touched, as_of)
        plans.discard(connection, kept.keys())
    figures = {
        **report.figures,
        "bookings_to_move": len(touched),
        "places_found": sum(each.place is not None for each in touched),
        "places_to_keep": sum(plan.tally.get("link", 0) for plan in kept.values()),
    }
    told = replace(
        report,
        figures=figures,
        tables=(),
        reasons=tuple(_of_plan(reason, kept) for reason in report.reasons),
        plan_id=kept[report.plan_id].id if report.plan_id in kept else report.plan_id,
    )
    return Proposal(told, tuple(touched))


def _with_places(
    connection: sa.Connection, tried: list[Plan], touched: list[Touched], as_of: datetime
) -> dict[int, Plan]:
    """By the number of each plan of slots the one that stands for it; each booking is in the first that touches it."""
    left = {each.appointment_id: each for each in touched}
    kept = {}
    for plan in tried:
        if not plan.rows_kept:
            continue
        lost = connection.scalars(sa.text(_ORPHANED_BY.format(rows=plan.rows))).all()
        places.want(connection, [left.pop(number) for number in lost if number in left])
        query = _WITH_PLACES.format(rows=plan.rows)
        unchanged = plan.tally.get("unchanged", 0)
        kept[plan.id] = changes.propose(connection, TURNS, plan.within, query, as_of=as_of, unchanged=unchanged)
    return kept


def _of_plan(reason: Reason, kept: Mapping[int, Plan]) -> Reason:
    number = reason.values.get("plan")
    if not isinstance(number, int) or number not in kept:
        return reason
    return replace(reason, values={**reason.values, "plan": kept[number].id})
