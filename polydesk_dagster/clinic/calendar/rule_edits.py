"""Whom changed turns touch, before the slots follow them: as with a closure, found by doing it and taking it back.

Turns, capacities and closures are edited where they stand; the slots follow at the next generation. Its plans are made
here, applied inside a savepoint that is rolled back, and applied for good by their numbers.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

import sqlalchemy as sa

from polydesk_dagster import changes
from polydesk_dagster.clinic.calendar import slots
from polydesk_dagster.clinic.calendar.desk_closures import Proposal
from polydesk_dagster.clinic.calendar.replacing import proposals
from polydesk_dagster.outcome import Outcome

_LOOKING = "anteprima di chi tocca"
"""Why a trial goes past the guard of an agenda that a person must look at: nothing of it stays."""


def propose(engine: sa.Engine, clinic: str, *, as_of: datetime) -> Proposal:
    """The plans that bring the slots of ``clinic`` in step with its turns, the bookings that would lose their slot, and
    a new place for each where there is one. Nothing but the plans is kept.

    The report names in its reasons the agendas whose plan a person must look at; what those touch is shown too.
    """
    report = slots.generate(engine, as_of, clinic=clinic, preview=True)
    if report.outcome in {Outcome.FAILED, Outcome.REFUSED}:
        return Proposal(report)
    plans = {report.plan_id, *(reason.values.get("plan") for reason in report.reasons)}
    with engine.begin() as connection:
        trial = connection.begin_nested()
        before = connection.scalar(sa.text("SELECT coalesce(max(id), 0) FROM orphan")) or 0
        for number in sorted(plan for plan in plans if isinstance(plan, int)):
            plan = changes.load(connection, number)
            past = [guard.name for guard in plan.failed_guards]
            changes.apply(connection, number, as_of=as_of, actor="desk:preview", reason=_LOOKING, past_guards=past)
        touched = proposals(connection, before, as_of)
        trial.rollback()
    figures = {
        **report.figures,
        "bookings_to_move": len(touched),
        "places_found": sum(each.place is not None for each in touched),
    }
    return Proposal(replace(report, figures=figures, tables=()), tuple(touched))
