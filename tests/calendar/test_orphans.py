"""What is booked and no longer produced: listed once, for as long as it is so, with its cause; capacity included."""

from __future__ import annotations

from datetime import timedelta

import pytest
import sqlalchemy as sa

from polydesk_dagster.clinic.bookings import appointments, offers
from polydesk_dagster.clinic.calendar import checks, desk, slots
from polydesk_dagster.clinic.messages import closed
from polydesk_dagster.outcome import Outcome
from tests import world
from tests.world import AS_OF, rome

THURSDAY = "2026-03-12"


@pytest.fixture
def practice(engine: sa.Engine) -> world.Practice:
    with engine.begin() as connection:
        practice = world.practice(connection)
    slots.generate(engine, AS_OF)
    return practice


def _run(engine: sa.Engine, statement: str, **values: object) -> None:
    with engine.begin() as connection:
        connection.execute(sa.text(statement), values)


def _slot(connection: sa.Connection, practice: world.Practice, at: str = "12:30") -> int:
    found = connection.scalar(
        sa.text("SELECT id FROM slot WHERE agenda_id = :agenda AND starts_at = :start"),
        {"agenda": practice.agenda, "start": rome(THURSDAY, at)},
    )
    assert found is not None
    return int(found)


def _book(engine: sa.Engine, practice: world.Practice, at: str = "12:30") -> int:
    with engine.begin() as connection:
        slot = _slot(connection, practice, at)
        return world.appointment(connection, slot, service_id=practice.service, patient_id=practice.patient)


def _cancel(engine: sa.Engine, appointment: int) -> None:
    _run(engine, "DELETE FROM seat WHERE appointment_id = :id", id=appointment)
    _run(engine, "UPDATE appointment SET status = 'cancelled', cancelled_at = now() WHERE id = :id", id=appointment)


def _orphans(engine: sa.Engine) -> list[tuple[str, str]]:
    """State of the slot and cause of every unresolved orphan."""
    with engine.connect() as connection:
        rows = connection.execute(
            sa.text("SELECT s.state, o.cause FROM orphan o JOIN slot s ON s.id = o.slot_id WHERE o.resolved_at IS NULL")
        )
        return [(state, cause) for state, cause in rows]


def test_a_day_closed_a_second_time_lists_its_new_booking(engine: sa.Engine, practice: world.Practice) -> None:
    first = _book(engine, practice)
    with engine.begin() as connection:
        world.closure(connection, THURSDAY)
    slots.generate(engine, AS_OF)
    _cancel(engine, first)
    _run(engine, "UPDATE closure SET lifted_at = now()")
    slots.generate(engine, AS_OF)
    assert _orphans(engine) == []
    _run(engine, "UPDATE orphan SET state = 'kept' WHERE resolved_at IS NULL")
    _book(engine, practice)
    _run(engine, "UPDATE closure SET lifted_at = NULL")
    report = slots.generate(engine, AS_OF)
    assert (report.outcome, report.counts.waiting) == (Outcome.PARTIAL, 1)
    assert _orphans(engine) == [("orphan", "closure")]


@pytest.mark.parametrize(
    "contradiction",
    [
        "UPDATE slot SET state = 'orphan' WHERE id = :slot",
        "INSERT INTO orphan (slot_id, cause, detected_at) VALUES (:slot, 'closure', now())",
    ],
)
def test_the_schema_refuses_a_slot_and_an_orphan_that_contradict_each_other(
    engine: sa.Engine, practice: world.Practice, contradiction: str
) -> None:
    with engine.connect() as connection:
        slot = _slot(connection, practice)
    with pytest.raises(sa.exc.IntegrityError, match="not listed"):
        _run(engine, contradiction, slot=slot)


def test_an_orphan_is_settled_by_whoever_frees_its_slot(engine: sa.Engine, practice: world.Practice) -> None:
    _book(engine, practice)
    with engine.begin() as connection:
        world.closure(connection, THURSDAY)
    slots.generate(engine, AS_OF)
    with pytest.raises(sa.exc.IntegrityError):
        _run(engine, "UPDATE orphan SET state = 'resolved', resolved_at = now()")
    _run(engine, "UPDATE slot SET state = 'free' WHERE state = 'orphan'")
    assert _orphans(engine) == []


# Capacity.


def _places(engine: sa.Engine, slot: int) -> tuple[int, str, list[int]]:
    with engine.connect() as connection:
        capacity, state = connection.execute(
            sa.text("SELECT capacity, state FROM slot WHERE id = :id"), {"id": slot}
        ).one()
        units = connection.scalars(
            sa.text("SELECT unit FROM seat WHERE slot_id = :id ORDER BY unit"), {"id": slot}
        ).all()
        return capacity, state, list(units)


def _capacity(engine: sa.Engine, capacity: int) -> None:
    _run(engine, "UPDATE agenda SET capacity = :capacity", capacity=capacity)
    slots.generate(engine, AS_OF)


def test_a_booked_slot_follows_capacity_down_to_its_seats_and_up_again(
    engine: sa.Engine, practice: world.Practice
) -> None:
    _capacity(engine, 3)
    _book(engine, practice)
    with engine.connect() as connection:
        slot = _slot(connection, practice)
    _capacity(engine, 1)
    assert _places(engine, slot) == (1, "free", [1])
    _capacity(engine, 4)
    assert _places(engine, slot) == (4, "free", [1])


def test_more_bookings_than_places_are_an_orphan_until_one_goes(engine: sa.Engine, practice: world.Practice) -> None:
    _capacity(engine, 3)
    first, _, third = (_book(engine, practice) for _ in range(3))
    with engine.connect() as connection:
        slot = _slot(connection, practice)
    _cancel(engine, first)  # its place, the first, is free again: those of the others are beyond what is left
    _capacity(engine, 1)
    assert _places(engine, slot) == (2, "orphan", [1, 2])
    assert _orphans(engine) == [("orphan", "over_capacity")]
    assert slots.generate(engine, AS_OF).outcome is Outcome.NOTHING_TO_DO
    _cancel(engine, third)
    slots.generate(engine, AS_OF)
    assert _places(engine, slot) == (1, "free", [1])
    assert _orphans(engine) == []


def test_the_seat_of_an_expired_hold_takes_no_place(engine: sa.Engine, practice: world.Practice) -> None:
    _capacity(engine, 2)
    with engine.begin() as connection:
        slot = _slot(connection, practice)
        old = {"created_at": AS_OF - timedelta(minutes=20), "expires_at": AS_OF - timedelta(minutes=10)}
        world.hold(connection, practice.clinic, slot, **old)
    _book(engine, practice)
    _capacity(engine, 1)
    assert _places(engine, slot) == (1, "free", [1])


def test_the_schema_keeps_room_for_what_is_booked(engine: sa.Engine, practice: world.Practice) -> None:
    _capacity(engine, 2)
    _book(engine, practice)
    _book(engine, practice)
    with pytest.raises(sa.exc.IntegrityError, match="beyond its capacity"):
        _run(engine, "UPDATE slot SET capacity = 1")


def test_a_booking_that_loses_one_of_its_slots_is_an_orphan_as_a_whole(
    engine: sa.Engine, practice: world.Practice
) -> None:
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE service SET duration_minutes = 90"))
        wanted = {"slot_id": _slot(connection, practice, "10:00"), "service_id": practice.service}
        assert appointments.book(connection, **wanted, patient_id=practice.patient, as_of=AS_OF).done
        world.closure(connection, THURSDAY, from_time="10:30", to_time="11:00")
    for outcome in (Outcome.PARTIAL, Outcome.NOTHING_TO_DO):
        report = slots.generate(engine, AS_OF)
        assert (report.outcome, report.counts.waiting) == (outcome, 1), "one booking, one row of work"
        assert _orphans(engine) == [("orphan", "closure")] * 3
    with engine.begin() as connection:
        (shown,) = desk.orphans(connection, AS_OF, 10)
        assert (shown.at.at, shown.closure) == (rome(THURSDAY, "10:00"), "Chiusura")
        given = {"clinic": "BO01", "actor": "desk:prova", "as_of": AS_OF}
        assert desk.note(connection, shown.id, shown.appointment_id, "contacted", **given)
        assert [each.state for each in desk.orphans(connection, AS_OF, 10)] == ["contacted"]
        assert desk.note(connection, shown.id, shown.appointment_id, "kept", **given)
        assert desk.orphans(connection, AS_OF, 10) == []
        assert not desk.note(connection, shown.id, shown.appointment_id, "contacted", **given)
    _run(engine, "UPDATE closure SET lifted_at = now()")
    slots.generate(engine, AS_OF)
    assert _orphans(engine) == []


def test_what_is_agreed_with_one_patient_says_nothing_of_another_on_the_same_slot(
    engine: sa.Engine, practice: world.Practice
) -> None:
    _capacity(engine, 2)
    with engine.begin() as connection:
        wanted = {"slot_id": _slot(connection, practice), "service_id": practice.service, "as_of": AS_OF}
        bookings = [
            appointments.book(connection, **wanted, patient_id=world.patient(connection)).appointment_id
            for _ in range(2)
        ]
        world.closure(connection, THURSDAY)
    slots.generate(engine, AS_OF)
    with engine.begin() as connection:
        first, second = desk.orphans(connection, AS_OF, 10)
        assert [first.appointment_id, second.appointment_id] == bookings
        given = {"clinic": "BO01", "actor": "desk:prova", "as_of": AS_OF}
        assert desk.note(connection, first.id, first.appointment_id, "kept", **given)
        left = desk.orphans(connection, AS_OF, 10)
        assert [(each.appointment_id, each.state) for each in left] == [(second.appointment_id, "open")]
        assert checks.open_orphans(connection, AS_OF).count == 1
        assert [each.appointment_id for each in closed.untold(connection, AS_OF)] == [second.appointment_id]
        assert [each.appointment_id for each in offers.propose(connection, AS_OF)[1]] == [second.appointment_id]
    assert slots.generate(engine, AS_OF).counts.waiting == 1


def test_a_booking_that_is_moved_away_leaves_the_slots_that_are_still_produced(
    engine: sa.Engine, practice: world.Practice
) -> None:
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE service SET duration_minutes = 90"))
        wanted = {"slot_id": _slot(connection, practice, "10:00"), "service_id": practice.service}
        booked = appointments.book(connection, **wanted, patient_id=practice.patient, as_of=AS_OF).appointment_id
        world.closure(connection, THURSDAY, from_time="10:30", to_time="11:00")
    slots.generate(engine, AS_OF)
    with engine.begin() as connection:
        appointments.cancel(connection, appointment_id=booked or 0, as_of=AS_OF)
    slots.generate(engine, AS_OF)
    with engine.connect() as connection:
        found = connection.execute(
            sa.text("SELECT state FROM slot WHERE starts_at BETWEEN :first AND :last ORDER BY starts_at"),
            {"first": rome(THURSDAY, "10:00"), "last": rome(THURSDAY, "11:00")},
        ).scalars()
        assert list(found) == ["free", "retired", "free"]
