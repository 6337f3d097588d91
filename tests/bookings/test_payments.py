"""Payments: they keep a slot for a while and no longer, and money that comes too late is never lost."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
import sqlalchemy as sa

from polydesk_dagster.clinic.bookings import confirming, holds, payments, releasing, sweeping
from polydesk_dagster.clinic.bookings.answers import Answer, Reply
from polydesk_dagster.clinic.bookings.emergency import Press
from polydesk_dagster.clinic.bookings.holds import Booking, Terms
from polydesk_dagster.outcome import Outcome
from polydesk_dagster.told import teller
from tests import world
from tests.world import AS_OF, rome

MINUTE = timedelta(minutes=1)
START = rome("2026-03-11", "09:00")
CAP = Terms().payment
WHY = "prova di un pagamento fermo"


@pytest.fixture
def practice(connection: sa.Connection) -> world.Practice:
    return world.practice(connection)


@pytest.fixture
def slot(connection: sa.Connection, practice: world.Practice) -> int:
    return world.slot(connection, practice.agenda, START)


def place(connection: sa.Connection, slot: int, who: str, as_of: datetime = AS_OF) -> Reply:
    service = world.offered(connection, slot)
    return holds.place(connection, slot_id=slot, service_id=service, token=who, visitor=who, as_of=as_of)


def pay(connection: sa.Connection, practice: world.Practice, who: str, as_of: datetime) -> Reply:
    booking = Booking(practice.service, practice.patient, paid=True)
    return confirming.confirm(connection, token=who, booking=booking, as_of=as_of)


def begin(connection: sa.Connection, who: str, as_of: datetime = AS_OF) -> Reply:
    return confirming.begin_confirming(connection, token=who, as_of=as_of, payment_reference=f"PAY-{who}")


def cases(connection: sa.Connection) -> list[tuple[str, str | None]]:
    found = connection.execute(sa.text("SELECT kind, resolution FROM payment_case ORDER BY id"))
    return [(row.kind, row.resolution) for row in found]


def test_a_payment_that_nobody_ends_keeps_its_slot_no_longer_than_its_time(
    connection: sa.Connection, slot: int
) -> None:
    place(connection, slot, "ada")
    assert begin(connection, "ada").expires_at == AS_OF + CAP
    assert begin(connection, "ada", AS_OF + 10 * MINUTE).expires_at == AS_OF + CAP, "beginning again gives no more"
    assert place(connection, slot, "bice", AS_OF + CAP - MINUTE).answer is Answer.FULL
    assert place(connection, slot, "bice", AS_OF + CAP).answer is Answer.PLACED, "no sweeper is needed"
    assert connection.scalar(sa.text("SELECT count(*) FROM seat WHERE NOT isfinite(held_until)")) == 0


def test_a_payment_without_an_answer_is_told_once_and_waits(connection: sa.Connection, slot: int) -> None:
    place(connection, slot, "ada")
    begin(connection, "ada")
    first = sweeping.release_expired(connection, AS_OF + 3 * MINUTE)
    assert (first.outcome, first.counts.waiting, first.counts.updated) == (Outcome.REFUSED, 1, 0)
    again = sweeping.release_expired(connection, AS_OF + 8 * MINUTE)
    assert (again.outcome, again.counts.waiting) == (Outcome.NOTHING_TO_DO, 1)
    over = sweeping.release_expired(connection, AS_OF + CAP)
    assert (over.outcome, over.counts.waiting, over.counts.updated) == (Outcome.PARTIAL, 1, 1)
    assert cases(connection) == [("unanswered", None)]
    assert connection.scalar(sa.text("SELECT payment_reference FROM payment_case")) == "PAY-ada"
    later = sweeping.release_expired(connection, AS_OF + CAP + 5 * MINUTE)
    assert (later.outcome, later.counts.waiting) == (Outcome.NOTHING_TO_DO, 1)
    case = connection.scalar(sa.text("SELECT id FROM payment_case")) or 0
    assert payments.settle(connection, case, resolution="unpaid", actor="desk:anna", as_of=AS_OF + CAP)
    assert not payments.settle(connection, case, resolution="unpaid", actor="desk:anna", as_of=AS_OF + CAP)
    assert payments.waiting(connection) == 0


def test_a_payment_without_a_reference_is_told_without_one(connection: sa.Connection, slot: int) -> None:
    place(connection, slot, "ada")
    confirming.begin_confirming(connection, token="ada", as_of=AS_OF)
    for at in (AS_OF + 3 * MINUTE, AS_OF + CAP):
        (reason,) = sweeping.release_expired(connection, at).reasons
        said = teller("it").reason(reason)
        assert ("senza riferimento" in said, "—" in said) == (True, False), said


def test_the_emergency_reaches_payments_that_are_stuck_and_keeps_them_as_cases(
    connection: sa.Connection, practice: world.Practice, slot: int
) -> None:
    other = world.slot(connection, practice.agenda, START + timedelta(hours=1))
    place(connection, slot, "ada")
    begin(connection, "ada")
    place(connection, other, "bice")
    begin(connection, "bice", AS_OF + 9 * MINUTE)
    at = AS_OF + 10 * MINUTE
    releasing.release_all(connection, at, Press(), preview=True)
    report = releasing.release_all(connection, at, world.typed(connection, Press(WHY, "LIBERA 1"), None))
    assert report.counts.updated == 1, "the one that has only just begun stays"
    assert cases(connection) == [("unanswered", None)]
    assert place(connection, slot, "cleo", at).answer is Answer.PLACED
    assert pay(connection, practice, "bice", at).answer is Answer.CONFIRMED


def test_paid_too_late_is_booked_again_where_the_slot_is_free(
    connection: sa.Connection, practice: world.Practice, slot: int
) -> None:
    place(connection, slot, "ada")
    late = AS_OF + 11 * MINUTE
    for _ in range(2):
        reply = pay(connection, practice, "ada", late)
        assert reply.answer is Answer.CONFIRMED
    assert connection.scalar(sa.text("SELECT count(*) FROM appointment WHERE paid_at IS NOT NULL")) == 1
    assert connection.scalar(sa.text("SELECT count(*) FROM seat WHERE appointment_id IS NOT NULL")) == 1
    assert place(connection, slot, "bice", late).answer is Answer.FULL
    assert cases(connection) == []


@pytest.mark.parametrize("first", ["paid too late", "another"])
def test_paid_too_late_stands_beside_another_but_nothing_is_booked_beside_it(
    connection: sa.Connection, practice: world.Practice, slot: int, first: str
) -> None:
    other = world.practice(connection, "RE01")
    late = AS_OF + 11 * MINUTE
    place(connection, slot, "ada")
    place(connection, world.slot(connection, other.agenda, START), "ada2", late)

    def another() -> Reply:
        booking = Booking(other.service, practice.patient)
        return confirming.confirm(connection, token="ada2", booking=booking, as_of=late)

    if first == "another":
        assert another().answer is Answer.CONFIRMED
    assert pay(connection, practice, "ada", late).answer is Answer.CONFIRMED
    assert another().answer is (Answer.CONFIRMED if first == "another" else Answer.ELSEWHERE)
    reason = connection.scalar(sa.text("SELECT overlap_reason FROM appointment WHERE paid_at IS NOT NULL"))
    assert reason == (payments.OVERLAP if first == "another" else None)


def test_paid_too_late_for_a_taken_slot_is_an_open_case(
    connection: sa.Connection, practice: world.Practice, slot: int
) -> None:
    place(connection, slot, "ada")
    late = AS_OF + 11 * MINUTE
    assert place(connection, slot, "bice", late).answer is Answer.PLACED
    for _ in range(2):
        assert pay(connection, practice, "ada", late).answer is Answer.PAID_TOO_LATE
    assert cases(connection) == [("paid_too_late", None)]
    unpaid = Booking(practice.service, practice.patient)
    assert confirming.confirm(connection, token="ada", booking=unpaid, as_of=late).answer is Answer.EXPIRED


def test_a_late_answer_closes_the_case_by_a_booking(
    connection: sa.Connection, practice: world.Practice, slot: int
) -> None:
    place(connection, slot, "ada")
    begin(connection, "ada")
    sweeping.release_expired(connection, AS_OF + CAP)
    assert pay(connection, practice, "ada", AS_OF + CAP + MINUTE).answer is Answer.CONFIRMED
    assert cases(connection) == [("unanswered", "booked")]


def test_many_visitors_cannot_pin_an_agenda(connection: sa.Connection, practice: world.Practice) -> None:
    slots = [world.slot(connection, practice.agenda, START + n * 30 * MINUTE) for n in range(8)]
    for number, slot in enumerate(slots):
        place(connection, slot, str(number))
        begin(connection, str(number))
    ten_hours = AS_OF + timedelta(hours=10)
    report = sweeping.release_expired(connection, ten_hours)
    assert (report.outcome, report.counts.updated, report.counts.waiting) == (Outcome.PARTIAL, 8, 8)
    assert connection.scalar(sa.text("SELECT count(*) FROM seat")) == 0


def test_an_unverified_booking_frees_its_seat_at_its_deadline_in_every_read(
    connection: sa.Connection, practice: world.Practice, slot: int
) -> None:
    place(connection, slot, "ada")
    booking = Booking(practice.service, contact_email="chi@example.org")
    booked = confirming.confirm(connection, token="ada", booking=booking, as_of=AS_OF).appointment_id
    deadline = AS_OF + timedelta(hours=2)
    assert place(connection, slot, "bice", deadline - MINUTE).answer is Answer.FULL
    assert place(connection, slot, "bice", deadline).answer is Answer.PLACED, "no sweeper is needed"
    status = connection.scalar(sa.text("SELECT status FROM appointment WHERE id = :id"), {"id": booked})
    assert status == "expired"


def test_a_verified_booking_keeps_its_seat_past_the_deadline(
    connection: sa.Connection, practice: world.Practice, slot: int
) -> None:
    place(connection, slot, "ada")
    booking = Booking(practice.service, contact_email="chi@example.org")
    booked = confirming.confirm(connection, token="ada", booking=booking, as_of=AS_OF).appointment_id
    connection.execute(sa.text("UPDATE appointment SET confirmed_by_staff_at = :at WHERE id = :id"),
                       {"at": AS_OF, "id": booked})  # fmt: skip
    assert place(connection, slot, "bice", AS_OF + timedelta(hours=3)).answer is Answer.FULL
