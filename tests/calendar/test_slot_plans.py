"""Slot generation as plans: decided before anything is written, per agenda, applied exactly, taken back."""

from __future__ import annotations

import re

import sqlalchemy as sa

from polydesk_dagster import changes
from polydesk_dagster.changes import Plan
from polydesk_dagster.clinic.calendar import slots
from polydesk_dagster.outcome import Outcome
from polydesk_dagster.told import teller
from tests import world
from tests.world import AS_OF, rome


def _practice(engine: sa.Engine, **agenda: object) -> world.Practice:
    with engine.begin() as connection:
        practice = world.practice(connection, **agenda)
    slots.generate(engine, AS_OF)
    return practice


def _run(engine: sa.Engine, statement: str, **values: object) -> None:
    with engine.begin() as connection:
        connection.execute(sa.text(statement), values)


def _slots(engine: sa.Engine) -> list[tuple[object, ...]]:
    """Every slot that is not retired, whatever happened to it in between."""
    with engine.connect() as connection:
        rows = connection.execute(
            sa.text("""
                SELECT agenda_id, starts_at, ends_at, capacity, state FROM slot WHERE state <> 'retired'
                ORDER BY agenda_id, starts_at""")
        )
        return [tuple(row) for row in rows]


def _plans(engine: sa.Engine, state: str = "ready") -> list[Plan]:
    with engine.connect() as connection:
        return [plan for plan in changes.latest(connection, service="generate_slots") if plan.state == state]


def _apply(engine: sa.Engine, plan: int, *past: str) -> Outcome:
    with engine.begin() as connection:
        return changes.apply(
            connection, plan, as_of=AS_OF, actor="desk:anna", reason="guardato in segreteria", past_guards=past
        ).outcome


def _undo(engine: sa.Engine, plan: int) -> Outcome:
    with engine.begin() as connection:
        return changes.undo(connection, plan, as_of=AS_OF, actor="desk:anna", reason="turni sbagliati").outcome


def test_a_turn_that_moves_to_another_day_leaves_nothing_of_both(engine: sa.Engine) -> None:
    practice = _practice(engine, weekdays=(1,))
    before = _slots(engine)
    _run(engine, "UPDATE agenda_rule SET weekday = 2")
    report = slots.generate(engine, AS_OF)
    assert _slots(engine) == before
    assert (report.outcome, report.counts.changed) == (Outcome.PARTIAL, 0)
    (plan,) = _plans(engine)
    assert plan.scope == {"agenda": practice.agenda}
    assert (plan.tally["retire"], plan.tally["create"]) == (len(before), len(before) + 5)  # today's are still ahead
    assert _apply(engine, plan.id) is Outcome.REFUSED
    assert _apply(engine, plan.id, slots.RETIREMENT_GUARD) is Outcome.OK
    assert len(_slots(engine)) == len(before) + 5
    assert slots.generate(engine, AS_OF).outcome is Outcome.NOTHING_TO_DO


def test_new_slots_do_not_hide_how_many_old_ones_go(engine: sa.Engine) -> None:
    _practice(engine, weekdays=(4,), horizon_days=7)
    before = _slots(engine)
    _run(engine, "DELETE FROM agenda_rule")
    with engine.begin() as connection:
        agenda = connection.scalar(sa.text("SELECT id FROM agenda"))
        assert agenda is not None
        world.rules(connection, agenda, (1, 2, 3, 5), "08:00", "20:00")
        connection.execute(sa.text("UPDATE agenda SET horizon_days = 90"))
    slots.generate(engine, AS_OF)
    assert _slots(engine) == before


def test_one_held_agenda_does_not_keep_the_others(engine: sa.Engine) -> None:
    practice = _practice(engine)
    with engine.begin() as connection:
        other = world.agenda(connection, practice.clinic, practice.location, specialist_id=practice.specialist)
        connection.execute(
            sa.text("UPDATE agenda_rule SET ends_at = '11:00' WHERE agenda_id = :id"), {"id": practice.agenda}
        )
    report = slots.generate(engine, AS_OF)
    assert report.outcome is Outcome.PARTIAL
    assert {row[0] for row in _slots(engine)} == {practice.agenda, other}
    with engine.connect() as connection:
        states = connection.execute(sa.text("SELECT agenda_id, outcome FROM agenda_state ORDER BY agenda_id")).all()
    assert [tuple(row) for row in states] == [(practice.agenda, "refused"), (other, "ok")]
    again = slots.generate(engine, AS_OF)
    assert again.outcome is Outcome.NOTHING_TO_DO, "what waited before does not colour the run"
    assert again.counts.waiting == report.counts.waiting


def test_what_a_closure_takes_from_a_held_agenda_goes(engine: sa.Engine) -> None:
    _practice(engine)
    _run(engine, "UPDATE agenda_rule SET ends_at = '11:00'")
    with engine.begin() as connection:
        world.closure(connection, "2026-03-12")
    slots.generate(engine, AS_OF)
    assert not [row for row in _slots(engine) if row[1] == rome("2026-03-12", "09:00")]
    assert [row for row in _slots(engine) if row[1] == rome("2026-03-13", "12:30")]


def test_a_preview_is_the_plan_that_is_applied(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        world.practice(connection)
    shown = slots.generate(engine, AS_OF, preview=True)
    assert (_slots(engine), shown.preview) == ([], True)
    assert shown.plan_id is not None
    assert _apply(engine, shown.plan_id) is Outcome.OK
    assert len(_slots(engine)) == shown.counts.created
    assert slots.generate(engine, AS_OF).outcome is Outcome.NOTHING_TO_DO


def test_a_plan_is_refused_where_somebody_has_taken_a_slot_since(engine: sa.Engine) -> None:
    practice = _practice(engine)
    _run(engine, "UPDATE agenda_rule SET ends_at = '12:30'")
    shown = slots.generate(engine, AS_OF, preview=True)
    with engine.begin() as connection:
        slot = connection.scalar(
            sa.text("SELECT id FROM slot WHERE starts_at = :start"), {"start": rome("2026-03-12", "12:30")}
        )
        assert slot is not None
        world.hold(connection, practice.clinic, slot)
    before = _slots(engine)
    assert shown.plan_id is not None
    assert _apply(engine, shown.plan_id) is Outcome.REFUSED
    assert _slots(engine) == before


def test_generation_is_taken_back_but_for_the_days_that_are_booked(engine: sa.Engine) -> None:
    practice = _practice(engine)
    before = _slots(engine)
    _run(engine, "UPDATE agenda_rule SET ends_at = '12:30'")
    slots.generate(engine, AS_OF)
    (last, *_) = _plans(engine, "applied")
    assert len(_slots(engine)) < len(before)
    assert _undo(engine, last.id) is Outcome.OK
    assert _slots(engine) == before
    (first,) = [plan for plan in _plans(engine, "applied") if plan.tally.get("create")]
    with engine.begin() as connection:
        slot = connection.scalar(
            sa.text("SELECT id FROM slot WHERE starts_at = :start"), {"start": rome("2026-03-12", "10:00")}
        )
        world.appointment(connection, slot, service_id=practice.service, patient_id=practice.patient)
    _undo(engine, first.id)
    left = {row[1] for row in _slots(engine)}
    assert left == {row[1] for row in before if row[1].astimezone(world.ROME).date().isoformat() == "2026-03-12"}  # type: ignore[attr-defined]


def test_what_a_person_took_back_is_not_done_again_by_the_next_night(engine: sa.Engine) -> None:
    _practice(engine)
    before = _slots(engine)
    _run(engine, "UPDATE agenda_rule SET ends_at = '12:30'")
    slots.generate(engine, AS_OF)
    (last, *_) = _plans(engine, "applied")
    assert _undo(engine, last.id) is Outcome.OK
    night = slots.generate(engine, AS_OF)
    assert (night.outcome, [reason.code for reason in night.reasons]) == (Outcome.PARTIAL, [slots.TAKEN_BACK_GUARD])
    assert _slots(engine) == before
    (plan,) = [plan for plan in _plans(engine) if plan.failed_guards]
    assert _apply(engine, plan.id) is Outcome.REFUSED
    assert _apply(engine, plan.id, slots.TAKEN_BACK_GUARD) is Outcome.OK
    assert len(_slots(engine)) < len(before)
    assert slots.generate(engine, AS_OF).outcome is Outcome.NOTHING_TO_DO
    _run(engine, "UPDATE agenda_rule SET ends_at = '13:00'")
    assert slots.generate(engine, AS_OF).outcome is Outcome.OK
    assert _slots(engine) == before


def test_an_orphan_goes_and_comes_back_with_its_plan(engine: sa.Engine) -> None:
    practice = _practice(engine)
    with engine.begin() as connection:
        slot = connection.scalar(
            sa.text("SELECT id FROM slot WHERE starts_at = :start"), {"start": rome("2026-03-12", "12:30")}
        )
        world.appointment(connection, slot, service_id=practice.service, patient_id=practice.patient)
        closure = world.closure(connection, "2026-03-12")
    slots.generate(engine, AS_OF)
    _run(engine, "UPDATE closure SET lifted_at = now()")
    slots.generate(engine, AS_OF)
    lifted, closed, _ = _plans(engine, "applied")
    unresolved = sa.text("SELECT cause, closure_id FROM orphan WHERE resolved_at IS NULL")
    assert _undo(engine, lifted.id) is Outcome.PARTIAL, "it is the desk's again"
    with engine.connect() as connection:
        assert connection.execute(unresolved).one() == ("closure", closure)
    assert _undo(engine, closed.id) is Outcome.OK
    with engine.connect() as connection:
        assert connection.execute(unresolved).all() == []


def test_what_the_database_refuses_of_one_agenda_stops_nobody_else(engine: sa.Engine) -> None:
    """The schema holds more than generation knows of: an agenda that breaks it is found and named, by halves."""
    with engine.begin() as connection:
        practice = world.practice(connection)
        more = [
            world.agenda(connection, practice.clinic, practice.location, specialist_id=practice.specialist)
            for _ in range(6)
        ]
        bad = more[3]
        connection.execute(sa.text(f"ALTER TABLE slot ADD CHECK (agenda_id <> {bad})"))
    report = slots.generate(engine, AS_OF)
    assert (report.outcome, report.counts.failed) == (Outcome.PARTIAL, 1)
    (reason,) = [reason for reason in report.reasons if reason.code != "other_plans"]
    assert (reason.code, reason.values["agenda"].code) == ("agenda_refused", str(bad))  # type: ignore[union-attr]
    assert {row[0] for row in _slots(engine)} == {practice.agenda, *more} - {bad}
    with engine.connect() as connection:
        state = sa.text("SELECT outcome FROM agenda_state WHERE agenda_id = :id")
        assert connection.scalar(state, {"id": bad}) == "failed"


def test_applied_by_hand_it_says_whom_it_leaves_without_a_slot(engine: sa.Engine) -> None:
    practice = _practice(engine, weekdays=(1,))
    with engine.begin() as connection:
        free = connection.scalars(sa.text("SELECT id FROM slot WHERE state = 'free' ORDER BY starts_at")).all()
        for slot in free[:2]:
            world.appointment(connection, slot, service_id=practice.service, patient_id=practice.patient)
    _run(engine, "UPDATE agenda_rule SET weekday = 2")
    slots.generate(engine, AS_OF)
    (plan,) = _plans(engine)
    with engine.begin() as connection:
        report = changes.apply(
            connection, plan.id, as_of=AS_OF, actor="desk:anna", reason="guardato in segreteria",
            past_guards=[slots.RETIREMENT_GUARD],
        )  # fmt: skip
    assert (report.outcome, report.counts.updated, report.counts.waiting) == (Outcome.PARTIAL, 2, 2)
    assert [teller().reason(reason) for reason in report.reasons] == [
        "2 prenotazioni non hanno più il loro orario: vanno ricollocate."
    ]


def test_a_plan_of_slots_that_another_run_has_made_meanwhile_is_refused_by_their_names(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        world.practice(connection)
    seen = slots.generate(engine, AS_OF, preview=True).plan_id
    assert seen is not None
    made = slots.generate(engine, AS_OF).counts.created
    before = _slots(engine)
    with engine.begin() as connection:
        refused = changes.apply(connection, seen, as_of=AS_OF, actor="desk:anna")
    named = [reason for reason in refused.reasons if reason.code == "exists_already"]
    assert (refused.outcome, len(named)) == (Outcome.REFUSED, 20)
    assert [(reason.code, reason.count) for reason in refused.reasons[20:]] == [("more_of_plan", made - 20)]
    assert all(re.fullmatch(r"Agenda \d+ \d\d/\d\d/\d{4} \d\d:\d\d", str(reason.values["row"])) for reason in named)
    assert _slots(engine) == before


def test_a_first_generation_does_not_read_all_slots_for_each_new_one(engine: sa.Engine) -> None:
    """Statements that are planned while there are no slots run while others are adding theirs."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.text("VACUUM ANALYZE slot"))
    with engine.begin() as connection:
        world.practice(connection)
    engine.dispose()  # what a connection has read before is counted until it is idle for a second
    read = []
    question = sa.text("SELECT pg_stat_get_xact_numscans(CAST('slot' AS regclass)), pg_stat_force_next_flush()")

    def count(connection: sa.Connection) -> None:
        read.append(connection.execute(question).one()[0])

    sa.event.listen(engine, "commit", count)
    try:
        report = slots.generate(engine, AS_OF)
    finally:
        sa.event.remove(engine, "commit", count)
    assert report.counts.created > 100
    assert sum(read) < 10, read
