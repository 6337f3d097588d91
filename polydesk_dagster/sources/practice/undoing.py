"""Take back what a workbook did, and the slots of the turns that it had given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

import sqlalchemy as sa

from polydesk_dagster import changes
from polydesk_dagster.changes import plans
from polydesk_dagster.changes.plans import Plan
from polydesk_dagster.changes.registry import kind
from polydesk_dagster.clinic.calendar.agendas import RETIREMENT_GUARD
from polydesk_dagster.database.locks import exclusive
from polydesk_dagster.outcome import Reason, Report, Table, combine, done
from polydesk_dagster.sources.practice.importing import Import


def undo(
    connection: sa.Connection,
    found: Import,
    *,
    as_of: datetime,
    actor: str,
    reason: str | None,
    preview: bool = False,
) -> Report:
    """Take back what the workbook did, the last plan first. What came into use meanwhile stays, and is named.

    A ``preview`` does so too, and then none of it: whether what one sheet gave is in use depends on what the sheets
    after it have taken back.
    """
    now = plans.several(connection, [each.id for each in found.plans])
    applied = [each.id for each in now if each.state == "applied" and each.writes]
    if not applied:
        return Report.refused("not_undoable", {"plan": found.number, "why": Reason("not_applied")})
    attempt = connection.begin_nested()
    parts = [changes.undo(connection, each, as_of=as_of, actor=actor, reason=reason) for each in reversed(applied)]
    if not preview:
        attempt.commit()
        return combine(parts)
    tables = tuple(table for part in parts for table in _rows(connection, part))
    attempt.rollback()
    told = [replace(part, plan_id=None) for part in parts]  # there are no such plans any more
    return replace(combine(told), tables=tables, preview=True)


def _rows(connection: sa.Connection, part: Report) -> tuple[Table, ...]:
    """What a plan that takes another back has done, or left."""
    back = None if part.plan_id is None else plans.load(connection, part.plan_id)
    return () if back is None or back.undoes is None else changes.preview(connection, back, kind(back.kind)).tables


_OF_TIMES = {
    "practice_agenda": "SELECT clinic_id FROM {rows}",
    "practice_turn": "SELECT a.clinic_id FROM {rows} r JOIN agenda a ON a.id = r.agenda_id",
}
"""SQL by kinds that slots are made of: the clinics of a plan's rows. A closure gives and takes its slots by itself."""


def clinics_of_its_times(connection: sa.Connection, found: Import) -> list[str]:
    """The active clinics whose agendas or turns the workbook has changed: to be asked before it is taken back."""
    changed = [each for each in found.plans if each.rows_kept and each.kind in _OF_TIMES]
    touched = " UNION ".join(_OF_TIMES[each.kind].format(rows=each.rows) for each in changed)
    named = f"SELECT code FROM clinic WHERE active AND id IN ({touched}) ORDER BY code"
    return list(connection.scalars(sa.text(named))) if changed else []


def left_by_its_turns(connection: sa.Connection, found: Import) -> tuple[Plan, ...]:
    """The newest plans of slots that wait for a person, of agendas whose turns the workbook has given or changed."""
    agendas = sorted(
        {
            number
            for each in found.plans
            if each.rows_kept and each.kind == "practice_turn"
            for number in connection.scalars(sa.text(f"SELECT DISTINCT agenda_id FROM {each.rows}"))
        }
    )
    waiting = connection.scalars(
        sa.text("""
            SELECT max(id) FROM plan
            WHERE kind = 'slot' AND state = 'ready' AND CAST(scope->>'agenda' AS bigint) = ANY(:agendas)
            GROUP BY scope"""),
        {"agendas": agendas},
    ).all()
    return plans.several(connection, waiting)


def retire_left(
    engine: sa.Engine,
    found: Import,
    made: Report,
    before: Sequence[Plan],
    *,
    as_of: datetime,
    actor: str,
    reason: str | None,
) -> Report:
    """``made``, the report of the slots made anew, once those have gone that generation left for a person to look at
    where the turns are those of the workbook that was taken back: whoever did that has looked, and said why. What
    waited already ``before`` goes on waiting."""
    gone = {}
    known = [each.scope for each in before if not each.expired]
    with engine.connect() as connection:
        waiting = [each for each in left_by_its_turns(connection, found) if each.scope not in known]
    for each in waiting:
        with exclusive(engine, each.service, each.clinic) as alone, engine.begin() as writing:
            if alone:
                past = (RETIREMENT_GUARD,)
                part = changes.apply(writing, each.id, as_of=as_of, actor=actor, reason=reason, past_guards=past)
                if part.counts.changed:
                    gone[each.id] = part.counts.changed
    if not gone:
        return made
    number = sum(gone.values())
    counts = replace(made.counts, retired=made.counts.retired + number, waiting=max(0, made.counts.waiting - number))
    reasons = tuple(each for each in made.reasons if each.values.get("plan") not in gone)
    return replace(made, outcome=made.outcome if reasons else done(counts), counts=counts, reasons=reasons)
