"""A closure and the places of whom it touches are one plan: seen, applied whole or not at all, killed anywhere and
applied again, taken back until somebody has taken hers."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from datetime import datetime

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

from polydesk_dagster import changes
from polydesk_dagster.clinic.bookings import appointments, places
from polydesk_dagster.clinic.bookings.offers import Taken
from polydesk_dagster.clinic.calendar import desk, desk_closures, rule_edits, slots
from polydesk_dagster.clinic.messages import closed
from polydesk_dagster.database.engine import create_engine
from polydesk_dagster.outcome import Outcome, Reason, Report
from tests import world
from tests.bookings.test_offers import FAIR, MONDAY, NEAREST, NEXT, at, kept, start_of, take
from tests.kill_world import killed_at
from tests.world import AS_OF, rome


def booked(engine: sa.Engine, practice: world.Practice, start: datetime) -> int:
    with engine.begin() as connection:
        slot, patient = at(connection, practice.agenda, start), world.patient(connection)
        given = {"slot_id": slot, "service_id": practice.service, "patient_id": patient}
        reply = appointments.book(connection, **given, as_of=AS_OF)
    assert reply.appointment_id is not None
    return reply.appointment_id


def on_monday(engine: sa.Engine, practice: world.Practice, *times: str) -> list[int]:
    return [booked(engine, practice, rome(MONDAY, each)) for each in times]


def proposed(engine: sa.Engine) -> int:
    shown = desk_closures.propose(engine, FAIR, as_of=AS_OF).report
    assert shown.plan_id is not None
    return shown.plan_id


def applied(engine: sa.Engine, plan: int) -> Report:
    with engine.begin() as connection:
        return changes.apply(connection, plan, as_of=AS_OF, actor="desk:anna")


def undone(engine: sa.Engine, plan: int) -> Report:
    with engine.begin() as connection:
        return changes.undo(connection, plan, as_of=AS_OF, actor="desk:anna")


def state(engine: sa.Engine) -> list[list[tuple[object, ...]]]:
    """All that a closure may touch."""
    looked = (
        "SELECT id, starts_at, status, start_version FROM appointment ORDER BY id",
        "SELECT id, state FROM slot ORDER BY id",
        "SELECT slot_id, unit, appointment_id, hold_id IS NOT NULL FROM seat ORDER BY 1, 2",
        "SELECT slot_id, cause FROM orphan WHERE resolved_at IS NULL ORDER BY 1",
        "SELECT offered_to, slot_id, state FROM hold WHERE state <> 'released' ORDER BY 1, 2",
        "SELECT kind, subject, during, appointment_id FROM occupancy WHERE hold_id IS NULL ORDER BY 1, 2, 3",
        "SELECT kind, subject, during FROM occupancy WHERE hold_id IS NOT NULL ORDER BY 1, 2, 3",
        "SELECT name FROM closure WHERE lifted_at IS NULL",
        "SELECT subject_id, kind, version FROM message_ledger ORDER BY 1, 2, 3",
    )
    with engine.connect() as connection:
        return [[tuple(row) for row in connection.execute(sa.text(each))] for each in looked]


def whys(report: Report) -> list[str]:
    found = [reason.values.get("why") for reason in report.reasons]
    return [why.code for why in found if isinstance(why, Reason)]


def test_closing_marks_and_keeps_the_places_by_one_plan(engine: sa.Engine, practice: world.Practice) -> None:
    first, second = on_monday(engine, practice, "09:00", "09:30")
    before = state(engine)
    shown = desk_closures.propose(engine, FAIR, as_of=AS_OF)
    assert state(engine) == before
    assert (shown.report.counts.created, shown.report.counts.updated, shown.report.counts.waiting) == (1, 2, 2)
    assert "Rossi" not in str(shown.report)
    plan = shown.report.plan_id
    assert plan is not None
    report = applied(engine, plan)
    assert (report.outcome, report.counts.created, report.counts.updated) == (Outcome.PARTIAL, 1, 2)
    assert report.counts.waiting == 2, "both have yet to answer"
    assert kept(engine) == {first: NEAREST, second: NEXT}
    with engine.connect() as connection:
        assert [each.offer for each in desk.orphans(connection, AS_OF, 10)] == ["waiting", "waiting"]
        assert all("Le teniamo un posto" in each.notice for each in closed.untold(connection, AS_OF))
    assert undone(engine, plan).outcome is Outcome.OK
    assert state(engine) == before


def test_it_is_taken_back_until_somebody_has_taken_hers(engine: sa.Engine, practice: world.Practice) -> None:
    first, second = on_monday(engine, practice, "09:00", "09:30")
    plan = proposed(engine)
    applied(engine, plan)
    assert take(engine, first) is Taken.TAKEN
    before = state(engine)
    refused = undone(engine, plan)
    assert refused.outcome is Outcome.REFUSED
    assert sorted(whys(refused)) == ["place_was_taken", "whole_or_nothing", "whole_or_nothing"]
    assert state(engine) == before
    assert (start_of(engine, first), kept(engine)) == (NEAREST, {second: NEXT})


def book_there(engine: sa.Engine, practice: world.Practice, bookings: list[int]) -> None:
    booked(engine, practice, rome(MONDAY, "11:00"))


def take_the_place(engine: sa.Engine, practice: world.Practice, bookings: list[int]) -> None:
    booked(engine, practice, NEXT)


def cancel_one(engine: sa.Engine, practice: world.Practice, bookings: list[int]) -> None:
    with engine.begin() as connection:
        assert appointments.cancel(connection, appointment_id=bookings[1], as_of=AS_OF).done


@pytest.mark.parametrize(
    ("meanwhile", "why"),
    [
        (book_there, "booked_meanwhile"),
        (take_the_place, "place_gone"),
        (cancel_one, "changed_since_preview"),
    ],
)
def test_what_has_moved_since_the_look_refuses_all_of_it(
    engine: sa.Engine,
    practice: world.Practice,
    meanwhile: Callable[[sa.Engine, world.Practice, list[int]], None],
    why: str,
) -> None:
    bookings = on_monday(engine, practice, "09:00", "09:30")
    plan = proposed(engine)
    meanwhile(engine, practice, bookings)
    before = state(engine)
    refused = applied(engine, plan)
    assert (refused.outcome, whys(refused)) == (Outcome.REFUSED, [why])
    assert state(engine) == before
    assert applied(engine, proposed(engine)).outcome is Outcome.PARTIAL


def test_who_finds_no_place_waits_for_the_desk_and_stops_nothing(engine: sa.Engine, practice: world.Practice) -> None:
    first, second = on_monday(engine, practice, "09:00", "09:30")
    with engine.begin() as connection:
        connection.execute(
            sa.text("""UPDATE appointment SET patient_id = NULL, status = 'unverified', channel = 'online',
                              contact_email = 'chi@example.org', verification_expires_at = :until WHERE id = :id"""),
            {"until": rome(MONDAY, "08:00"), "id": second},
        )
    report = applied(engine, proposed(engine))
    assert (report.counts.updated, report.counts.waiting) == (1, 2)
    assert set(kept(engine)) == {first}


def test_the_term_is_the_same_as_of_any_offer(engine: sa.Engine, practice: world.Practice) -> None:
    (booking,) = on_monday(engine, practice, "09:00")
    applied(engine, proposed(engine))
    assert take(engine, booking, AS_OF + places.TERM) is Taken.OVER
    with engine.begin() as connection:
        (waiting,) = desk.orphans(connection, AS_OF + places.TERM, 10)
        assert waiting.offer == "unanswered"


def test_edited_turns_are_followed_and_the_places_kept_by_one_plan(engine: sa.Engine, practice: world.Practice) -> None:
    first, second = on_monday(engine, practice, "09:00", "09:30")
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE agenda_rule SET starts_at = '10:00' WHERE weekday = 1"))
    before = state(engine)
    shown = rule_edits.propose(engine, "BO01", as_of=AS_OF)
    assert state(engine) == before
    plan = shown.report.plan_id
    assert plan is not None
    assert shown.report.figures["places_to_keep"] == 2
    assert applied(engine, plan).counts.updated == 2 + 2
    here, then = rome(MONDAY, "10:00"), rome(MONDAY, "10:30")
    assert kept(engine) == {first: here, second: then}
    assert undone(engine, plan).outcome is Outcome.OK
    assert state(engine) == before
    (held,) = rule_edits.propose(engine, "BO01", as_of=AS_OF).report.reasons
    waiting = held.values["plan"]
    assert (held.code, isinstance(waiting, int)) == ("taken_back", True)
    with engine.begin() as connection:
        given = {"as_of": AS_OF, "actor": "desk:anna", "reason": "adesso vanno bene", "past_guards": [held.code]}
        again = changes.apply(connection, waiting, **given)
    assert (again.outcome, again.counts.waiting, again.reasons) == (Outcome.PARTIAL, 2, ()), "as of a closure"
    assert take(engine, first) is Taken.TAKEN
    assert "place_was_taken" in whys(undone(engine, waiting))
    assert (start_of(engine, first), kept(engine)) == (here, {second: then})


# Where applying and taking wait for somebody: each is a step that a kill may hit.
STEPS = {
    "plan": "SELECT id FROM plan FOR UPDATE",
    "agenda": "SELECT id FROM agenda FOR UPDATE",
    "slots": "SELECT s.id FROM slot s JOIN seat t ON t.slot_id = s.id FOR UPDATE",
    "booking": "SELECT id FROM appointment ORDER BY id DESC LIMIT 1 FOR UPDATE",
    "place": "SELECT id FROM slot WHERE starts_at = (SELECT max(place) FROM wanted_place) FOR UPDATE",
    "audit": "SELECT * FROM audit_head FOR UPDATE",
}


def _apply(url: URL, plan: int) -> None:
    engine = create_engine(url)
    applied(engine, plan)
    os.kill(os.getpid(), signal.SIGKILL)  # it has committed and never answers


def _take(url: URL, booking: int) -> None:
    engine = create_engine(url)
    take(engine, booking)
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS)
def test_a_killed_closing_has_done_nothing_and_is_applied_again(
    engine: sa.Engine, practice: world.Practice, step: str
) -> None:
    first, second = on_monday(engine, practice, "09:00", "09:30")
    plan, before = proposed(engine), state(engine)
    row = STEPS[step].replace("(SELECT max(place) FROM wanted_place)", f"'{NEXT.isoformat()}'")
    killed_at(engine, row, _apply, engine.url, plan)
    assert state(engine) == before
    assert applied(engine, plan).counts.updated == 2
    assert kept(engine) == {first: NEAREST, second: NEXT}
    assert applied(engine, plan).outcome is Outcome.REFUSED, "once only"


@pytest.mark.slow
@pytest.mark.parametrize(
    "row",
    [
        "SELECT id FROM appointment FOR UPDATE",
        "SELECT id FROM hold FOR UPDATE",
        "SELECT s.id FROM slot s JOIN seat t ON t.slot_id = s.id JOIN hold h ON h.id = t.hold_id FOR UPDATE",
    ],
)
def test_a_killed_taking_has_taken_nothing_and_is_taken_again(
    engine: sa.Engine, practice: world.Practice, row: str
) -> None:
    (booking,) = on_monday(engine, practice, "09:00")
    applied(engine, proposed(engine))
    before = state(engine)
    killed_at(engine, row, _take, engine.url, booking)
    assert state(engine) == before
    assert [take(engine, booking), take(engine, booking)] == [Taken.TAKEN, Taken.TAKEN]
    assert start_of(engine, booking) == NEAREST


@pytest.mark.slow
def test_killed_at_any_instant_asking_again_settles_both(engine: sa.Engine, practice: world.Practice) -> None:
    (booking,) = on_monday(engine, practice, "09:00")
    context = multiprocessing.get_context("fork")
    choose = random.Random(7)
    closed_, moved = [], []
    for number in range(8):
        plan = proposed(engine)
        for target, argument, seen in ((_apply, plan, closed_), (_take, booking, moved)):
            process = context.Process(target=target, args=(engine.url, argument))
            process.start()
            if number:  # the first ones end by themselves: they commit, and their answer is lost
                time.sleep(choose.uniform(0.005, 0.25))
                os.kill(process.pid or 0, signal.SIGKILL)
            process.join()
            seen.append(state(engine))
            if target is _apply:
                applied(engine, plan)
                assert kept(engine) == {booking: NEAREST}
        assert take(engine, booking) is Taken.TAKEN
        assert (start_of(engine, booking), kept(engine)) == (NEAREST, {})
        with engine.begin() as connection:  # all as before, for the next kill
            reply = appointments.move(
                connection,
                appointment_id=booking,
                slot_id=at(connection, practice.agenda, rome(MONDAY, "11:00")),
                as_of=AS_OF,
            )
            assert reply.answer is appointments.Answer.NOT_OFFERED, "the day is closed"
            connection.execute(sa.text("UPDATE closure SET lifted_at = now()"))
        slots.generate(engine, AS_OF)
        with engine.begin() as connection:
            slot = at(connection, practice.agenda, rome(MONDAY, "09:00"))
            assert appointments.move(connection, appointment_id=booking, slot_id=slot, as_of=AS_OF).done
    seats = {str(each[2]) for each in closed_ + moved}
    assert len(seats) <= 3, "as it was, kept a place, or moved there: nothing between"
