"""Unverified online bookings: what expires and what never does, the broken gateway, and coming back."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from datetime import datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from polydesk_dagster import changes
from polydesk_dagster.clinic.bookings import unverified as bookings
from polydesk_dagster.clinic.bookings.unverified import Answer
from polydesk_dagster.errors import PermanentError
from polydesk_dagster.outcome import Outcome
from polydesk_dagster.told import teller
from tests import world
from tests.bookings.world import HOUR, START, count, held_by_another, status, unverified
from tests.waiting import PATIENCE
from tests.world import AS_OF


def test_an_unverified_booking_gives_its_seat_back_and_keeps_its_row(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        practice = world.practice(connection)
        late = unverified(connection, practice, 0)
        in_time = unverified(connection, practice, 1, verification_expires_at=AS_OF + HOUR)
    report = bookings.expire_unverified(engine, AS_OF)
    assert (report.outcome, report.counts.updated) == (Outcome.OK, 1)
    assert status(engine, late) == ("expired", False)
    assert status(engine, in_time) == ("unverified", True)
    assert bookings.expire_unverified(engine, AS_OF).outcome is Outcome.NOTHING_TO_DO
    with engine.connect() as connection:
        assert bookings.nothing_unverified(connection, AS_OF)
        assert connection.scalar(sa.text("SELECT count(*) FROM audit")) == 1


def test_a_preview_changes_nothing(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        booking = unverified(connection, world.practice(connection))
    report = bookings.expire_unverified(engine, AS_OF, preview=True)
    assert report.counts.updated == 1
    assert status(engine, booking) == ("unverified", True)
    assert not any("example.org" in str(cell) for table in report.tables for row in table.rows for cell in row)


@pytest.mark.parametrize(
    "exempt",
    [
        {"confirmed_by_staff_at": AS_OF - HOUR},
        {"paid_at": AS_OF - HOUR},
        {"accepted_at": AS_OF - HOUR},
        {"external_id": "studiolab-1"},
        {"verified_at": AS_OF - HOUR},
        {"verification_expires_at": AS_OF + timedelta(seconds=1)},
    ],
    ids=lambda exempt: next(iter(exempt)),
)
def test_what_somebody_vouches_for_is_never_touched(engine: sa.Engine, exempt: dict[str, Any]) -> None:
    with engine.begin() as connection:
        booking = unverified(connection, world.practice(connection), **exempt)
    assert bookings.expire_unverified(engine, AS_OF).outcome is Outcome.NOTHING_TO_DO
    assert status(engine, booking) == ("unverified", True)


def test_what_has_started_is_never_touched(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        booking = unverified(connection, world.practice(connection))
    assert bookings.expire_unverified(engine, START).outcome is Outcome.NOTHING_TO_DO
    assert status(engine, booking) == ("unverified", True)


def test_a_broken_gateway_stops_its_clinic_and_no_other(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        broken = world.practice(connection, "BO01")
        sound = world.practice(connection, "RE01")
        stuck = [unverified(connection, broken, number) for number in range(6)]
        for number in range(6, 11):
            unverified(connection, broken, number, status="booked", patient_id=broken.patient, verified_at=AS_OF - HOUR)
        fine = unverified(connection, sound)
    report = bookings.expire_unverified(engine, AS_OF)
    assert report.outcome is Outcome.PARTIAL
    assert [reason.clinic for reason in report.reasons if reason.code == "guard"] == ["BO01"]
    assert "gateway" in teller("it").reason(report.reasons[0])
    assert status(engine, stuck[0]) == ("unverified", True)
    assert status(engine, fine) == ("expired", False)

    passed = bookings.expire_unverified(
        engine, AS_OF, clinic="BO01", past_guard="many_unverified", reason="gateway verificato con il fornitore"
    )
    assert (passed.outcome, passed.counts.updated) == (Outcome.OK, 6)


@pytest.mark.parametrize(("state", "told"), [("disk_full", False), ("cannot_coerce", True)])
def test_a_full_disk_is_no_clinics_fault(engine: sa.Engine, state: str, told: bool) -> None:
    with engine.begin() as connection:
        booking = unverified(connection, world.practice(connection))
        connection.execute(
            sa.text(f"""CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
                        $$ BEGIN RAISE EXCEPTION 'refused' USING ERRCODE = '{state}'; END $$""")
        )
        connection.execute(
            sa.text("CREATE TRIGGER refuse BEFORE UPDATE OR DELETE ON appointment EXECUTE FUNCTION refuse()")
        )
    with nullcontext() if told else pytest.raises(sa.exc.OperationalError, match="refused"):
        (said,) = bookings.expire_unverified(engine, AS_OF).reasons
        assert said.code == "clinic_bookings_failed"
    assert status(engine, booking) == ("unverified", True)


def test_a_guard_by_another_name_is_refused_whether_or_not_anything_is_due(engine: sa.Engine) -> None:
    report = bookings.expire_unverified(engine, AS_OF, past_guard="many_unverifed", reason="gateway verificato oggi")
    assert (report.outcome, teller().reason(report.reasons[0])) == (
        Outcome.REFUSED,
        "Nessun controllo si chiama così: many_unverifed. Oltre questi si può passare: many_unverified.",
    )


def test_what_was_let_go_past_the_guard_does_not_stop_the_next_hour(engine: sa.Engine) -> None:
    def online(practice: world.Practice, number: int, late: bool) -> None:
        stands = {} if late else {"status": "booked", "patient_id": practice.patient, "verified_at": AS_OF}
        unverified(connection, practice, number, verification_expires_at=AS_OF + HOUR, **stands)

    with engine.begin() as connection:
        practice = world.practice(connection)
        for number in range(10):
            unverified(connection, practice, number)
    assert bookings.expire_unverified(engine, AS_OF).outcome is Outcome.REFUSED
    passed = {"past_guard": "many_unverified", "reason": "gateway riparato stamattina"}
    assert bookings.expire_unverified(engine, AS_OF, **passed).outcome is Outcome.OK
    with engine.begin() as connection:
        online(practice, 20, late=True)
        for number in range(21, 31):
            online(practice, number, late=False)
    assert bookings.expire_unverified(engine, AS_OF + 2 * HOUR).counts.updated == 1
    with engine.begin() as connection:
        for number in range(31, 51):
            online(practice, number, late=True)
    assert bookings.expire_unverified(engine, AS_OF + 2 * HOUR).outcome is Outcome.REFUSED, "broken again"


def test_half_of_ten_is_not_more_than_half(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        practice = world.practice(connection)
        for number in range(5):
            unverified(connection, practice, number)
        for number in range(5, 10):
            unverified(connection, practice, number, status="booked", patient_id=practice.patient)
    assert bookings.expire_unverified(engine, AS_OF).outcome is Outcome.OK


def test_nine_of_nine_are_too_few_to_blame_the_gateway(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        practice = world.practice(connection)
        for number in range(9):
            unverified(connection, practice, number)
    assert bookings.expire_unverified(engine, AS_OF).counts.updated == 9


def test_undoing_an_expiry_waits_for_who_verifies_and_never_deadlocks(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        practice = world.practice(connection)
        booking = unverified(connection, practice)
    plan = bookings.expire_unverified(engine, AS_OF).plan_id
    assert plan is not None

    def undo() -> Outcome:
        with engine.begin() as connection:
            return changes.undo(connection, plan, as_of=AS_OF, actor="desk:anna", reason="il gateway era fermo").outcome

    waiting = sa.text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
    with ThreadPoolExecutor(1) as pool, engine.connect() as connection:
        connection.execute(sa.text("SELECT FROM appointment WHERE id = :id FOR NO KEY UPDATE"), {"id": booking})
        undoing = pool.submit(undo)
        while not undoing.done() and not count(engine, waiting):
            time.sleep(0.01)
        reply = bookings.verify(connection, appointment_id=booking, patient_id=practice.patient, as_of=AS_OF)
        connection.commit()
        assert undoing.result(PATIENCE) is not Outcome.OK
    assert reply.answer is Answer.BOOKED
    assert status(engine, booking) == ("booked", True)


@pytest.mark.parametrize(("when", "answer"), [(START, Answer.TOO_LATE), (START - timedelta(minutes=1), Answer.BOOKED)])
def test_a_booking_is_verified_until_it_starts(engine: sa.Engine, when: datetime, answer: Answer) -> None:
    with engine.begin() as connection:
        practice = world.practice(connection)
        booking = unverified(connection, practice)
        reply = bookings.verify(connection, appointment_id=booking, patient_id=practice.patient, as_of=when)
        assert reply.answer is answer
        unknown = bookings.verify(connection, appointment_id=99_999, patient_id=practice.patient, as_of=when)
        assert unknown.answer is Answer.GONE


def test_a_wrong_expiry_is_undone_where_the_slot_is_still_free(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        practice = world.practice(connection)
        first, second = unverified(connection, practice, 0), unverified(connection, practice, 1)
        slot = connection.scalar(sa.text("SELECT slot_id FROM appointment WHERE id = :id"), {"id": second})
    plan = bookings.expire_unverified(engine, AS_OF).plan_id
    assert plan is not None
    with engine.begin() as connection:
        held_by_another(connection, slot, AS_OF)
    with engine.begin() as connection:
        report = changes.undo(connection, plan, as_of=AS_OF, actor="desk:anna", reason="il gateway era fermo")
    assert (report.outcome, report.counts.updated, report.counts.skipped) == (Outcome.PARTIAL, 1, 1)
    assert "l'orario non è più libero" in teller("it").reason(report.reasons[0])
    assert status(engine, first) == ("unverified", True)
    assert status(engine, second) == ("expired", False)
    assert bookings.expire_unverified(engine, AS_OF).outcome is Outcome.NOTHING_TO_DO, "with a new window"


@pytest.mark.parametrize(("minutes", "window"), [(300, 120), (130, 70), (50, 10), (10, 10), (4, 4)])
def test_an_undone_expiry_gives_time_also_shortly_before_the_visit(
    engine: sa.Engine, minutes: int, window: int
) -> None:
    minute = timedelta(minutes=1)
    with engine.begin() as connection:
        practice = world.practice(connection)
        slot = world.slot(connection, practice.agenda, AS_OF + minutes * minute)
        booking = world.appointment(
            connection, slot, service_id=practice.service, patient_id=None, status="unverified", channel="online",
            verification_expires_at=AS_OF - minute, contact_email="chi@example.org",
        )  # fmt: skip
    plan = bookings.expire_unverified(engine, AS_OF).plan_id
    assert plan is not None
    with engine.begin() as connection:
        changes.undo(connection, plan, as_of=AS_OF, actor="desk:anna", reason="il gateway era fermo")
        until = connection.scalar(sa.text("SELECT verification_expires_at FROM appointment"))
    assert until == AS_OF + window * minute
    bookings.expire_unverified(engine, AS_OF + 3 * minute)
    assert status(engine, booking) == ("unverified", True)


def test_an_unknown_clinic_is_refused_by_name(engine: sa.Engine) -> None:
    with pytest.raises(PermanentError, match="XX99"):
        bookings.expire_unverified(engine, AS_OF, clinic="XX99")
