"""What a booking occupies stays with its hold until something of it moves, and is free again as soon as it is."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from polydesk_dagster.clinic.bookings import appointments, confirming, holds
from polydesk_dagster.clinic.bookings.answers import Answer
from polydesk_dagster.clinic.bookings.confirming import Booking
from tests import world
from tests.world import AS_OF, rome

START = rome("2026-03-11", "09:00")
HALF = timedelta(minutes=30)

ROWS = sa.text("""SELECT kind, hold_id IS NOT NULL AS with_hold, lower(during) AS at, until IS NULL AS stands
                  FROM occupancy ORDER BY kind, at""")


@pytest.fixture
def practice(connection: sa.Connection) -> world.Practice:
    return world.practice(connection)


@pytest.fixture
def elsewhere(connection: sa.Connection, practice: world.Practice) -> world.Practice:
    """The same doctor at another clinic."""
    other = world.practice(connection, "RE01")
    connection.execute(sa.text("UPDATE specialist SET fiscal_code = 'BNCLNE70A41A944X'"))
    connection.execute(sa.text("SELECT refresh_bookable()"))
    return other


def booked(connection: sa.Connection, practice: world.Practice, **chosen: Any) -> tuple[int, int]:
    """A hold that was confirmed, of the patient unless another is chosen, and its booking."""
    slot = world.slot(connection, practice.agenda, START)
    given = {"slot_id": slot, "service_id": practice.service, "token": "ada", "visitor": "ada", "as_of": AS_OF}
    held = holds.place(connection, **given)
    booking = Booking(practice.service, **{"patient_id": practice.patient, **chosen})
    reply = confirming.confirm(connection, token="ada", booking=booking, as_of=AS_OF)
    assert held.hold_id is not None
    assert reply.appointment_id is not None
    return held.hold_id, reply.appointment_id


def place(connection: sa.Connection, practice: world.Practice, who: str = "bice") -> Answer:
    """Whether the same time can be had at a practice, asked and given back."""
    slot = connection.scalar(
        sa.text("SELECT id FROM slot WHERE agenda_id = :agenda AND starts_at = :at"),
        {"agenda": practice.agenda, "at": START},
    ) or world.slot(connection, practice.agenda, START)
    asked = connection.begin_nested()
    given = {"slot_id": slot, "service_id": practice.service, "token": who, "visitor": who, "as_of": AS_OF}
    answer = holds.place(connection, **given).answer
    asked.rollback()
    return answer


def test_what_stands_stays_with_its_hold_and_what_waits_does_not(
    connection: sa.Connection, practice: world.Practice, elsewhere: world.Practice
) -> None:
    trial = connection.begin_nested()
    booked(connection, practice)
    assert [tuple(row) for row in connection.execute(ROWS)] == [
        ("doctor", True, START, True),
        ("patient", True, START, True),
    ]
    assert place(connection, elsewhere) is Answer.FULL
    trial.rollback()
    booked(connection, practice, patient_id=None, contact_email="chi@example.org")
    assert [tuple(row) for row in connection.execute(ROWS)] == [("doctor", False, START, False)]
    assert place(connection, elsewhere) is Answer.FULL


@pytest.mark.parametrize("first", [None, "DELETE FROM hold WHERE id = :hold"], ids=["with its hold", "after it went"])
def test_a_booking_that_is_cancelled_or_moved_frees_everybody(
    connection: sa.Connection, practice: world.Practice, elsewhere: world.Practice, first: str | None
) -> None:
    hold, booking = booked(connection, practice)
    if first is not None:
        connection.execute(sa.text(first), {"hold": hold})
        assert {row.with_hold for row in connection.execute(ROWS)} == {False}
    assert place(connection, elsewhere) is Answer.FULL
    trial = connection.begin_nested()
    assert appointments.cancel(connection, appointment_id=booking, as_of=AS_OF).done
    assert connection.execute(ROWS).all() == []
    assert place(connection, elsewhere) is Answer.PLACED
    trial.rollback()
    later = world.slot(connection, practice.agenda, START + HALF)
    assert appointments.move(connection, appointment_id=booking, slot_id=later, as_of=AS_OF).done
    assert {row.at for row in connection.execute(ROWS)} == {START + HALF}
    assert place(connection, elsewhere) is Answer.PLACED
    back = appointments.move(
        connection, appointment_id=booking, slot_id=world.slot(connection, practice.agenda, START - HALF), as_of=AS_OF
    )
    assert back.done
    assert len(connection.execute(ROWS).all()) == 2


def test_a_booking_is_not_in_its_own_way_at_another_clinic(connection: sa.Connection, practice: world.Practice) -> None:
    """The same doctor has two agendas here: the booking moves from one to the other, to the same time."""
    _, booking = booked(connection, practice)
    second = world.agenda(
        connection, practice.clinic, practice.location, specialist_id=practice.specialist, services=[practice.service]
    )
    slot = world.slot(connection, second, START)
    taken = holds.place(connection, slot_id=slot, service_id=practice.service, token="b", visitor="b", as_of=AS_OF)
    assert taken.answer is Answer.FULL, "the doctor is on her other agenda"
    moved = appointments.move(connection, appointment_id=booking, slot_id=slot, as_of=AS_OF)
    assert moved.answer is appointments.Answer.MOVED


def test_holds_that_go_with_their_bookings_leave_nothing(connection: sa.Connection, practice: world.Practice) -> None:
    booked(connection, practice)
    connection.execute(sa.text("DELETE FROM seat"))
    connection.execute(sa.text("WITH h AS (DELETE FROM hold) DELETE FROM appointment"))
    assert connection.execute(ROWS).all() == []


def test_a_doctor_whose_code_comes_later_has_what_was_booked_of_holds(
    connection: sa.Connection, practice: world.Practice
) -> None:
    """Also where another doctor works on the agenda by now."""
    other = world.practice(connection, "RE01")
    booked(connection, practice)
    stranger = world.specialist(connection, practice.clinic)
    connection.execute(sa.text("UPDATE agenda SET specialist_id = :s WHERE id = :a"),
                       {"s": stranger, "a": practice.agenda})  # fmt: skip
    assert place(connection, other) is Answer.PLACED
    connection.execute(
        sa.text("UPDATE specialist SET fiscal_code = 'BNCLNE70A41A944X' WHERE id IN (:a, :b)"),
        {"a": practice.specialist, "b": other.specialist},
    )
    assert place(connection, other) is Answer.FULL


def test_who_is_elsewhere_leaves_no_trace_of_the_question(connection: sa.Connection, practice: world.Practice) -> None:
    other = world.practice(connection, "RE01")
    elsewhere = world.slot(connection, other.agenda, START)
    assert appointments.book(
        connection, slot_id=elsewhere, service_id=other.service, patient_id=practice.patient, as_of=AS_OF
    ).done
    slot = world.slot(connection, practice.agenda, START)
    given = {"slot_id": slot, "service_id": practice.service, "token": "ada", "visitor": "ada", "as_of": AS_OF}
    assert holds.place(connection, **given).done
    before = connection.execute(ROWS).all()
    booking = Booking(practice.service, practice.patient)
    assert confirming.confirm(connection, token="ada", booking=booking, as_of=AS_OF).answer is Answer.ELSEWHERE
    assert connection.execute(ROWS).all() == before
    connection.execute(sa.text("DELETE FROM seat WHERE hold_id IS NOT NULL"))  # a clock ahead of ours took it over
    connection.execute(sa.text("UPDATE appointment SET status = 'cancelled', cancelled_at = :at"), {"at": AS_OF})
    before = connection.execute(ROWS).all()
    assert confirming.confirm(connection, token="ada", booking=booking, as_of=AS_OF).answer is Answer.EXPIRED
    assert connection.execute(ROWS).all() == before


CHANGES = {
    "nothing": "SELECT 1",
    "agenda closed": "UPDATE agenda SET active = false",
    "agenda not online": "UPDATE agenda SET online = false",
    "clinic closed": "UPDATE clinic SET active = false",
    "service withdrawn": "UPDATE service SET active = false",
    "service at the desk only": "UPDATE service SET bookable_online = false",
    "another service": "DELETE FROM agenda_service",
    "a longer service": "UPDATE service SET duration_minutes = 60",
    "short notice": "UPDATE agenda SET min_notice_minutes = 100000",
    "a pause": "UPDATE service SET pause_after_minutes = 10",
    "location closed": "UPDATE location SET active = false",
    "doctor gone": "UPDATE specialist SET active = false",
    "slot gone": "UPDATE slot SET state = 'retired'",
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_answers_are_the_same_while_what_is_offered_is_behind(
    connection: sa.Connection, practice: world.Practice, change: str
) -> None:
    """Asked before a hold, and before its confirmation."""
    slot = world.slot(connection, practice.agenda, START)
    given = {"slot_id": slot, "service_id": practice.service, "token": "b", "visitor": "b", "as_of": AS_OF}
    booking = Booking(practice.service, practice.patient)

    def told(state: str) -> list[object]:
        answers: list[object] = []
        for held in (True, False):
            trial = connection.begin_nested()
            if held:
                assert holds.place(connection, **given).done
            connection.execute(sa.text(change))
            connection.execute(sa.text(state))
            if held:
                reply = confirming.confirm(connection, token="b", booking=booking, as_of=AS_OF)
            else:
                reply = holds.place(connection, **given)
            answers += [reply.answer, *(tuple(row) for row in connection.execute(ROWS))]
            trial.rollback()
        return answers

    assert told("SELECT refresh_bookable()") == told("INSERT INTO bookable_stale SELECT id FROM clinic")
