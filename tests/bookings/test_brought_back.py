"""An expired booking that somebody brings back: where its place is still free, and to whom and what is still there."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from polydesk_dagster import changes
from polydesk_dagster.clinic.bookings import appointments
from polydesk_dagster.clinic.bookings import unverified as bookings
from polydesk_dagster.clinic.bookings.unverified import Answer
from polydesk_dagster.told import teller
from tests import world
from tests.bookings.world import HOUR, START, count, held_by_another, status, unverified
from tests.waiting import PATIENCE
from tests.world import AS_OF


@pytest.mark.parametrize("bring_back", [bookings.verify, bookings.restore])
def test_an_expired_booking_comes_back_while_its_slot_is_free(engine: sa.Engine, bring_back: Any) -> None:
    with engine.begin() as connection:
        practice = world.practice(connection)
        booking = unverified(connection, practice)
    bookings.expire_unverified(engine, AS_OF)
    with engine.begin() as connection:
        reply = bring_back(connection, appointment_id=booking, patient_id=practice.patient, as_of=AS_OF + HOUR)
        again = bring_back(connection, appointment_id=booking, patient_id=practice.patient, as_of=AS_OF + HOUR)
    assert (reply.answer, again.answer) == (Answer.BOOKED, Answer.BOOKED)
    assert status(engine, booking) == ("booked", True)


def test_an_expired_booking_whose_slot_was_taken_is_offered_others(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        practice = world.practice(connection)
        booking = unverified(connection, practice, 0)
        near = world.slot(connection, practice.agenda, START + HOUR)
        far = world.slot(connection, practice.agenda, START + 24 * HOUR)
        slot = connection.scalar(sa.text("SELECT slot_id FROM appointment WHERE id = :id"), {"id": booking})
    bookings.expire_unverified(engine, AS_OF)
    with engine.begin() as connection:
        held_by_another(connection, slot, AS_OF)
    with engine.begin() as connection:
        reply = bookings.verify(connection, appointment_id=booking, patient_id=practice.patient, as_of=AS_OF)
    assert (reply.answer, reply.alternatives) == (Answer.TAKEN, (near, far))
    assert status(engine, booking) == ("expired", False)
    with engine.begin() as connection:
        later = AS_OF + HOUR
        reply = bookings.verify(connection, appointment_id=booking, patient_id=practice.patient, as_of=later)
    assert reply.answer is Answer.BOOKED, "the hold in its way has expired"


def test_only_where_the_whole_visit_finds_its_place_is_an_alternative(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        practice = world.practice(connection)
        connection.execute(sa.text("UPDATE service SET duration_minutes = 60"))
        half, after = (START + n * timedelta(minutes=30) for n in (1, 2))
        booking = unverified(connection, practice, 0, ends_at=after)
        world.slot(connection, practice.agenda, half)
        starts = [world.slot(connection, practice.agenda, START + n * HOUR) for n in (2, 4)]
        world.slot(connection, practice.agenda, START + 4.5 * HOUR)
    bookings.expire_unverified(engine, AS_OF)
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE slot SET state = 'retired' WHERE starts_at = :half"), {"half": half})
        reply = bookings.verify(connection, appointment_id=booking, patient_id=practice.patient, as_of=AS_OF)
    assert (reply.answer, reply.alternatives) == (Answer.TAKEN, (starts[1],))


@pytest.mark.parametrize("bring_back", [bookings.verify, bookings.restore])
@pytest.mark.parametrize("expired", [False, True])
def test_no_booking_stands_for_a_patient_who_is_elsewhere_then(
    engine: sa.Engine, bring_back: Any, expired: bool
) -> None:
    with engine.begin() as connection:
        practice, other = world.practice(connection), world.practice(connection, "RE01")
        booking = unverified(connection, practice, verification_expires_at=AS_OF + HOUR)
        given = {"slot_id": world.slot(connection, other.agenda, START), "service_id": other.service}
        assert appointments.book(connection, **given, patient_id=practice.patient, as_of=AS_OF).done
    as_of = AS_OF + 2 * HOUR if expired else AS_OF
    bookings.expire_unverified(engine, as_of)
    before = status(engine, booking)
    with engine.begin() as connection:
        asked = {"appointment_id": booking, "as_of": as_of}
        assert bring_back(connection, patient_id=practice.patient, **asked).answer is Answer.ELSEWHERE
    assert status(engine, booking) == before == (("expired", False) if expired else ("unverified", True))
    with engine.begin() as connection:
        assert bring_back(connection, patient_id=world.patient(connection), **asked).answer is Answer.BOOKED


def test_a_booking_whose_slot_was_closed_is_told_so(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        practice = world.practice(connection)
        booking = unverified(connection, practice)
    bookings.expire_unverified(engine, AS_OF)
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE slot SET state = 'retired'"))
        reply = bookings.restore(connection, appointment_id=booking, patient_id=practice.patient, as_of=AS_OF)
    assert reply.answer is Answer.CLOSED
    assert "ha chiuso quell'orario" in teller("it").text(f"answer.booking.{reply.answer}")


GONE = (
    "UPDATE clinic SET active = false",
    "UPDATE agenda SET active = false",
    "UPDATE specialist SET active = false",
    "UPDATE specialist SET deleted_at = now()",
    "UPDATE service SET active = false",
    "UPDATE service SET deleted_at = now()",
    "DELETE FROM agenda_service",
)
"""Ways for what was booked to go while the booking is expired."""


OFFLINE = ("UPDATE agenda SET online = false", "UPDATE service SET bookable_online = false")


@pytest.mark.parametrize("bring_back", [bookings.verify, bookings.restore])
@pytest.mark.parametrize("change", GONE)
def test_no_booking_comes_back_to_who_or_what_is_gone(engine: sa.Engine, bring_back: Any, change: str) -> None:
    with engine.begin() as connection:
        practice = world.practice(connection)
        booking = unverified(connection, practice)
        world.slot(connection, practice.agenda, START + HOUR)
    bookings.expire_unverified(engine, AS_OF)
    with engine.begin() as connection:
        connection.execute(sa.text(change))
        reply = bring_back(connection, appointment_id=booking, patient_id=practice.patient, as_of=AS_OF)
    assert (reply.answer, reply.alternatives) == (Answer.CLOSED, ()), "nothing of it can be booked, also at other times"
    assert "non vi offre più questa prestazione" in teller("it").text(f"answer.booking.{reply.answer}")
    assert status(engine, booking) == ("expired", False)


@pytest.mark.parametrize("change", OFFLINE)
def test_only_the_desk_brings_back_what_is_no_longer_booked_online(engine: sa.Engine, change: str) -> None:
    with engine.begin() as connection:
        practice = world.practice(connection)
        booking = unverified(connection, practice)
    bookings.expire_unverified(engine, AS_OF)
    with engine.begin() as connection:
        connection.execute(sa.text(change))
        asked = {"appointment_id": booking, "patient_id": practice.patient, "as_of": AS_OF}
        assert bookings.verify(connection, **asked).answer is Answer.CLOSED  # type: ignore[arg-type]
        assert bookings.restore(connection, **asked).answer is Answer.BOOKED  # type: ignore[arg-type]


def test_an_agenda_of_one_service_takes_its_bookings_back(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        practice = world.practice(connection)
        booking = unverified(connection, practice)
        connection.execute(sa.text("DELETE FROM agenda_service"))
        connection.execute(
            sa.text("UPDATE agenda SET service_id = :service, specialist_id = NULL"), {"service": practice.service}
        )
    bookings.expire_unverified(engine, AS_OF)
    with engine.begin() as connection:
        reply = bookings.verify(connection, appointment_id=booking, patient_id=practice.patient, as_of=AS_OF)
    assert reply.answer is Answer.BOOKED


@pytest.mark.parametrize("change", GONE)
def test_an_undone_expiry_leaves_out_what_is_gone(engine: sa.Engine, change: str) -> None:
    with engine.begin() as connection:
        practice = world.practice(connection)
        booking = unverified(connection, practice)
    plan = bookings.expire_unverified(engine, AS_OF).plan_id
    assert plan is not None
    with engine.begin() as connection:
        connection.execute(sa.text(change))
        report = changes.undo(connection, plan, as_of=AS_OF, actor="desk:anna", reason="il gateway era fermo")
    assert (report.counts.updated, report.counts.skipped) == (0, 1)
    assert status(engine, booking) == ("expired", False)


def test_who_takes_a_service_away_is_waited_for_before_a_booking_comes_back_to_it(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        practice = world.practice(connection)
        booking = unverified(connection, practice)
    bookings.expire_unverified(engine, AS_OF)

    def verify() -> Answer:
        with engine.begin() as connection:
            asked = {"appointment_id": booking, "patient_id": practice.patient, "as_of": AS_OF}
            return bookings.verify(connection, **asked).answer  # type: ignore[arg-type]

    waiting = sa.text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
    with ThreadPoolExecutor(1) as pool, engine.connect() as connection:
        connection.execute(sa.text("SELECT FROM service FOR UPDATE"))
        verifying = pool.submit(verify)
        while not verifying.done() and not count(engine, waiting):
            time.sleep(0.01)
        connection.execute(sa.text("UPDATE service SET active = false"))
        connection.commit()
        assert verifying.result(PATIENCE) is Answer.CLOSED


def test_only_what_can_be_booked_online_is_an_alternative(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        practice = world.practice(connection, min_notice_minutes=60)
        booking = unverified(connection, practice)
        connection.execute(sa.text("UPDATE slot SET state = 'retired'"))
        world.slot(connection, practice.agenda, AS_OF + timedelta(minutes=5))
        later = world.slot(connection, practice.agenda, AS_OF + 2 * HOUR)
    bookings.expire_unverified(engine, AS_OF)

    def alternatives(connection: sa.Connection) -> tuple[int, ...]:
        asked = {"appointment_id": booking, "patient_id": practice.patient, "as_of": AS_OF}
        return bookings.verify(connection, **asked).alternatives  # type: ignore[arg-type]

    with engine.begin() as connection:
        assert alternatives(connection) == (later,)
        connection.execute(sa.text("UPDATE agenda SET online = false"))
        assert alternatives(connection) == ()
