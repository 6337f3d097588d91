"""One place at a time: services longer than a slot, doctors of several clinics, patients, rooms and instruments."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta

import pytest
import sqlalchemy as sa

from polydesk_dagster.clinic.bookings import appointments, checks, confirming, holds
from polydesk_dagster.clinic.bookings.answers import Answer
from polydesk_dagster.clinic.bookings.answers import Reply as HoldReply
from polydesk_dagster.clinic.bookings.confirming import Booking
from tests import world
from tests.waiting import until
from tests.world import AS_OF, rome

MINUTE = timedelta(minutes=1)
START = rome("2026-03-11", "09:00")
TWENTY = 20 * MINUTE


@pytest.fixture
def practice(connection: sa.Connection) -> world.Practice:
    """A doctor whose visits last an hour on a grid of twenty minutes."""
    practice = world.practice(connection, slot_minutes=20)
    connection.execute(sa.text("UPDATE service SET duration_minutes = 60"))
    return practice


@pytest.fixture
def grid(connection: sa.Connection, practice: world.Practice) -> list[int]:
    """Six slots from 9:00 to 11:00."""
    return slots(connection, practice.agenda, 6)


def slots(connection: sa.Connection, agenda: int, many: int, first: datetime = START) -> list[int]:
    return [world.slot(connection, agenda, first + n * TWENTY, ends_at=first + (n + 1) * TWENTY) for n in range(many)]


def place(connection: sa.Connection, slot: int, service: int, who: str, as_of: datetime = AS_OF) -> HoldReply:
    return holds.place(connection, slot_id=slot, service_id=service, token=who, visitor=who, as_of=as_of)


def confirm(
    connection: sa.Connection, service: int, patient: int | None, who: str, as_of: datetime = AS_OF, paid: bool = False
) -> HoldReply:
    booking = Booking(service, patient, "chi@example.org", paid=paid)
    return confirming.confirm(connection, token=who, booking=booking, as_of=as_of)


def seats(connection: sa.Connection) -> int:
    return int(connection.scalar(sa.text("SELECT count(*) FROM seat")) or 0)


def occupied(connection: sa.Connection) -> dict[str, int]:
    found = connection.execute(sa.text("SELECT kind, count(*) AS rows FROM occupancy WHERE exclusive GROUP BY kind"))
    return {row.kind: row.rows for row in found}


def test_an_hour_takes_three_slots_of_twenty_minutes(
    connection: sa.Connection, practice: world.Practice, grid: list[int]
) -> None:
    assert place(connection, grid[0], practice.service, "ada").done
    assert seats(connection) == 3
    for slot in grid[1:3]:
        assert place(connection, slot, practice.service, "bice").answer is Answer.FULL
    assert place(connection, grid[3], practice.service, "cleo").done
    booked = confirm(connection, practice.service, practice.patient, "ada")
    assert booked.answer is Answer.CONFIRMED
    row = connection.execute(
        sa.text("SELECT starts_at, ends_at FROM appointment WHERE id = :id"), {"id": booked.appointment_id}
    ).one()
    assert row.ends_at - row.starts_at == timedelta(hours=1)
    assert connection.scalar(sa.text("SELECT count(*) FROM seat WHERE appointment_id IS NOT NULL")) == 3


@pytest.mark.parametrize(
    "broken",
    [
        "UPDATE slot SET state = 'retired' WHERE id = :middle",
        "UPDATE slot SET state = 'orphan' WHERE id = :last",
        "UPDATE slot SET ends_at = ends_at - interval '5 minutes' WHERE id = :middle",
        "DELETE FROM slot WHERE id > :middle",
    ],
    ids=["retired", "orphan", "gap", "end of the turn"],
)
def test_all_slots_or_none(connection: sa.Connection, practice: world.Practice, grid: list[int], broken: str) -> None:
    connection.execute(sa.text(broken), {"middle": grid[1], "last": grid[2]})
    assert place(connection, grid[0], practice.service, "ada").answer is Answer.FULL
    assert seats(connection) == 0


def test_a_long_hold_is_renewed_released_and_taken_over_as_one(
    connection: sa.Connection, practice: world.Practice, grid: list[int]
) -> None:
    place(connection, grid[0], practice.service, "ada")
    renewed = holds.renew(connection, token="ada", as_of=AS_OF + 9 * MINUTE)
    assert renewed.expires_at == AS_OF + 19 * MINUTE
    assert place(connection, grid[2], practice.service, "bice", AS_OF + 18 * MINUTE).answer is Answer.FULL
    taken = place(connection, grid[2], practice.service, "bice", AS_OF + 19 * MINUTE)
    assert taken.done, "expired in every slot at once"
    assert confirm(connection, practice.service, practice.patient, "ada", AS_OF + 18 * MINUTE).answer is Answer.EXPIRED
    assert holds.release(connection, token="bice", as_of=AS_OF + 20 * MINUTE).answer is Answer.RELEASED
    assert connection.scalar(sa.text("SELECT count(*) FROM seat WHERE hold_id = :hold"), {"hold": taken.hold_id}) == 0
    assert place(connection, grid[2], practice.service, "cleo", AS_OF + 20 * MINUTE).done


def test_placing_again_after_a_slot_was_closed_does_not_say_placed(
    connection: sa.Connection, practice: world.Practice, grid: list[int]
) -> None:
    place(connection, grid[0], practice.service, "ada")
    connection.execute(sa.text("UPDATE slot SET state = 'orphan' WHERE id = :slot"), {"slot": grid[2]})
    assert place(connection, grid[0], practice.service, "ada").answer is Answer.SLOT_CLOSED
    assert confirm(connection, practice.service, practice.patient, "ada").answer is Answer.SLOT_CLOSED


def test_a_hold_is_for_its_service(connection: sa.Connection, practice: world.Practice, grid: list[int]) -> None:
    short = world.service(connection, practice.clinic, duration_minutes=20)
    connection.execute(
        sa.text("INSERT INTO agenda_service VALUES (:clinic, :agenda, :short)"),
        {"clinic": practice.clinic, "agenda": practice.agenda, "short": short},
    )
    place(connection, grid[0], short, "ada")
    assert confirm(connection, practice.service, practice.patient, "ada").answer is Answer.SERVICE_NOT_OFFERED
    assert confirm(connection, short, practice.patient, "ada").answer is Answer.CONFIRMED


def test_one_doctor_is_not_at_two_clinics_at_once(
    connection: sa.Connection, practice: world.Practice, grid: list[int]
) -> None:
    elsewhere = world.practice(connection, "RE01", slot_minutes=20)
    connection.execute(sa.text("UPDATE specialist SET fiscal_code = 'BNCLNE70A41A944X'"))
    connection.execute(sa.text("UPDATE service SET duration_minutes = 60"))
    there = slots(connection, elsewhere.agenda, 6)
    assert place(connection, grid[0], practice.service, "ada").done
    assert place(connection, there[2], elsewhere.service, "bice").answer is Answer.FULL
    assert place(connection, there[3], elsewhere.service, "bice").done, "she is back by then"
    later = AS_OF + 10 * MINUTE
    assert place(connection, there[0], elsewhere.service, "cleo", later).done, "an expired hold keeps no doctor"


@pytest.mark.parametrize("here_first", [True, False])
def test_a_doctor_is_one_as_soon_as_her_code_says_so(
    connection: sa.Connection, practice: world.Practice, grid: list[int], here_first: bool
) -> None:
    other = world.practice(connection, "RE01", slot_minutes=20)
    connection.execute(sa.text("UPDATE service SET duration_minutes = 60"))
    clinics = [(practice, grid), (other, slots(connection, other.agenda, 6))]
    (first, early), (second, late) = clinics if here_first else reversed(clinics)

    def book(where: world.Practice, slot: int) -> appointments.Answer:
        given = {"slot_id": slot, "service_id": where.service, "patient_id": world.patient(connection)}
        return appointments.book(connection, **given, as_of=AS_OF).answer

    assert book(first, early[0]) is appointments.Answer.BOOKED
    assert place(connection, early[3], first.service, "t").done
    connection.execute(sa.text("UPDATE specialist SET fiscal_code = 'BNCLNE70A41A944X'"))
    assert [book(second, late[n]) for n in (0, 3)] == [appointments.Answer.DOCTOR_BUSY] * 2
    assert book(first, early[3]) is appointments.Answer.FULL
    connection.execute(sa.text("UPDATE specialist SET fiscal_code = NULL WHERE id = :id"), {"id": second.specialist})
    assert book(second, late[0]) is appointments.Answer.BOOKED
    connection.execute(sa.text("UPDATE specialist SET fiscal_code = 'BNCLNE70A41A944X'"))
    assert checks.collisions(connection, AS_OF).count > 0, "what stands in two places by that is found"


def test_one_patient_is_not_with_two_doctors_at_once_but_the_desk_may_say_so(
    connection: sa.Connection, practice: world.Practice, grid: list[int]
) -> None:
    other = world.practice(connection, "RE01")
    there = world.slot(connection, other.agenda, START + TWENTY)
    place(connection, grid[0], practice.service, "ada")
    assert confirm(connection, practice.service, practice.patient, "ada").answer is Answer.CONFIRMED
    place(connection, there, other.service, "ada2")
    assert confirm(connection, other.service, practice.patient, "ada2").answer is Answer.ELSEWHERE
    assert confirm(connection, other.service, other.patient, "ada2").answer is Answer.CONFIRMED
    more = world.slot(connection, other.agenda, START + 50 * MINUTE, ends_at=START + 80 * MINUTE)
    wanted = {"slot_id": more, "service_id": other.service, "patient_id": practice.patient, "as_of": AS_OF}
    assert appointments.book(connection, **wanted).answer is appointments.Answer.PATIENT_BUSY
    short = appointments.book(connection, **wanted, overlap_reason="sì")
    assert short.answer is appointments.Answer.REASON_MISSING
    allowed = appointments.book(connection, **wanted, overlap_reason="li accompagna la figlia, sono nello stesso piano")
    assert allowed.answer is appointments.Answer.BOOKED


def test_a_payment_under_way_puts_no_patient_in_two_places_and_what_is_paid_is_kept_and_found(
    connection: sa.Connection, practice: world.Practice, grid: list[int]
) -> None:
    other = world.practice(connection, "RE01")
    there = world.slot(connection, other.agenda, START + TWENTY)
    place(connection, grid[0], practice.service, "ada")
    confirm(connection, practice.service, practice.patient, "ada")
    place(connection, there, other.service, "ada2")
    confirming.begin_confirming(connection, token="ada2", as_of=AS_OF)
    assert confirm(connection, other.service, practice.patient, "ada2").answer is Answer.ELSEWHERE
    assert confirming.begin_confirming(connection, token="ada2", as_of=AS_OF).answer is Answer.CONFIRMING, "it stays"
    assert checks.collisions(connection, AS_OF).count == 0
    assert confirm(connection, other.service, practice.patient, "ada2", paid=True).answer is Answer.CONFIRMED
    assert checks.collisions(connection, AS_OF).count == 1


def test_who_books_a_patient_waits_for_what_is_being_paid_for_her(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        here, other = world.practice(connection), world.practice(connection, "RE01")
        place(connection, world.slot(connection, here.agenda, START), here.service, "ada")
        place(connection, world.slot(connection, other.agenda, START), other.service, "ada2")

    def unpaid() -> Answer:
        with engine.begin() as connection:
            return confirm(connection, other.service, here.patient, "ada2").answer

    waiting = sa.text("""SELECT count(*) FROM pg_stat_activity
                         WHERE datname = current_database() AND wait_event_type = 'Lock'""")
    alone = engine.execution_options(isolation_level="AUTOCOMMIT")
    with ThreadPoolExecutor(1) as pool, alone.connect() as watcher:
        with engine.begin() as connection:
            assert confirm(connection, here.service, here.patient, "ada", paid=True).answer is Answer.CONFIRMED
            answer = pool.submit(unpaid)
            until(lambda: watcher.scalar(waiting), "it did not wait")
        assert answer.result() is Answer.ELSEWHERE


def test_one_instrument_serves_one_at_a_time_and_a_free_one_is_chosen(
    connection: sa.Connection, practice: world.Practice, grid: list[int]
) -> None:
    doctor = world.specialist(connection, practice.clinic)
    agenda = world.agenda(
        connection, practice.clinic, practice.location, specialist_id=doctor, services=[practice.service]
    )
    beside = slots(connection, agenda, 6)
    resource = {"clinic_id": practice.clinic, "location_id": practice.location, "kind": "instrument"}
    (first,) = world.insert(connection, "resource", [{**resource, "name": "Ecografo 1"}])
    needed = {"clinic_id": practice.clinic, "service_id": practice.service}
    world.insert(connection, "service_resource", [{**needed, "resource_id": first}])
    assert place(connection, grid[0], practice.service, "ada").done
    assert place(connection, beside[1], practice.service, "bice").answer is Answer.FULL
    (second,) = world.insert(connection, "resource", [{**resource, "name": "Ecografo 2"}])
    world.insert(connection, "service_resource", [{**needed, "resource_id": second}])
    assert place(connection, beside[1], practice.service, "bice").done
    assert occupied(connection) == {"doctor": 2, "instrument": 2}
    confirm(connection, practice.service, practice.patient, "ada")
    assert occupied(connection) == {"doctor": 2, "instrument": 2, "patient": 1}


def test_what_comes_from_outside_and_collides_is_kept_and_found(
    connection: sa.Connection, practice: world.Practice, grid: list[int]
) -> None:
    other = world.practice(connection, "RE01")
    there = world.slot(connection, other.agenda, START)
    world.appointment(connection, grid[0], service_id=practice.service, patient_id=practice.patient)
    collided = world.appointment(
        connection, there, service_id=other.service, patient_id=practice.patient, channel="studiolab"
    )
    rows = connection.execute(sa.text("SELECT kind, appointment_id FROM occupancy WHERE NOT exclusive")).all()
    assert [tuple(row) for row in rows] == [("patient", collided)]
    finding = checks.collisions(connection, AS_OF)
    assert finding.count == 1
    assert "RE01" in finding.examples
    appointments.cancel(connection, appointment_id=collided, as_of=AS_OF)
    assert checks.collisions(connection, AS_OF).count == 0


def test_a_cancelled_booking_frees_all_it_had(
    connection: sa.Connection, practice: world.Practice, grid: list[int]
) -> None:
    place(connection, grid[0], practice.service, "ada")
    booked = confirm(connection, practice.service, practice.patient, "ada").appointment_id or 0
    for _ in range(2):
        reply = appointments.cancel(connection, appointment_id=booked, as_of=AS_OF)
        assert reply.answer is appointments.Answer.CANCELLED
    assert (seats(connection), occupied(connection)) == (0, {})
    assert place(connection, grid[1], practice.service, "bice").done
    assert confirm(connection, practice.service, practice.patient, "ada").answer is Answer.NO_LONGER_BOOKED


def test_a_status_written_by_anybody_frees_the_seat(
    connection: sa.Connection, practice: world.Practice, grid: list[int]
) -> None:
    world.appointment(connection, grid[0], service_id=practice.service, patient_id=practice.patient)
    connection.execute(sa.text("UPDATE appointment SET status = 'cancelled', cancelled_at = now()"))
    assert (seats(connection), occupied(connection)) == (0, {})


def test_no_seat_for_what_does_not_stand(connection: sa.Connection, practice: world.Practice, grid: list[int]) -> None:
    gone = world.appointment(
        connection, grid[0], service_id=practice.service, patient_id=practice.patient, status="cancelled",
        cancelled_at=AS_OF,
    )  # fmt: skip
    world.insert(connection, "seat", [{"slot_id": grid[0], "unit": 1, "appointment_id": gone}])
    with pytest.raises(sa.exc.IntegrityError, match="does not stand and can have no seat"):
        connection.execute(sa.text("SET CONSTRAINTS ALL IMMEDIATE"))


def test_a_visit_under_way_is_neither_cancelled_nor_moved(
    connection: sa.Connection, practice: world.Practice, grid: list[int]
) -> None:
    here = world.appointment(
        connection, grid[0], service_id=practice.service, patient_id=practice.patient, status="accepted",
        accepted_at=AS_OF,
    )  # fmt: skip
    assert appointments.cancel(connection, appointment_id=here, as_of=AS_OF).answer is appointments.Answer.UNDER_WAY
    moved = appointments.move(connection, appointment_id=here, slot_id=grid[3], as_of=AS_OF)
    assert moved.answer is appointments.Answer.UNDER_WAY
    assert appointments.cancel(connection, appointment_id=0, as_of=AS_OF).answer is appointments.Answer.UNKNOWN


def test_a_booking_moves_past_itself_and_never_loses_its_place_for_nothing(
    connection: sa.Connection, practice: world.Practice, grid: list[int]
) -> None:
    other = world.patient(connection)
    booked = appointments.book(
        connection, slot_id=grid[0], service_id=practice.service, patient_id=practice.patient, as_of=AS_OF
    ).appointment_id
    assert booked is not None
    moved = appointments.move(connection, appointment_id=booked, slot_id=grid[1], as_of=AS_OF)
    assert moved.answer is appointments.Answer.MOVED, "its own seats are not in its way"
    row = connection.execute(sa.text("SELECT starts_at, ends_at, start_version, slot_id FROM appointment")).one()
    assert (row.starts_at, row.ends_at) == (START + TWENTY, START + 4 * TWENTY)
    assert (row.start_version, row.slot_id) == (2, grid[1])
    assert list(connection.scalars(sa.text("SELECT slot_id FROM seat ORDER BY slot_id"))) == grid[1:4]
    during = connection.scalar(sa.text("SELECT DISTINCT lower(during) FROM occupancy"))
    assert during == START + TWENTY
    connection.execute(sa.text("UPDATE service SET duration_minutes = 20"))
    assert appointments.book(
        connection, slot_id=grid[5], service_id=practice.service, patient_id=other, as_of=AS_OF
    ).done
    connection.execute(sa.text("UPDATE service SET duration_minutes = 60"))
    refused = appointments.move(connection, appointment_id=booked, slot_id=grid[3], as_of=AS_OF)
    assert refused.answer is appointments.Answer.FULL
    assert list(connection.scalars(sa.text("SELECT slot_id FROM seat WHERE appointment_id = :id ORDER BY slot_id"),
                                   {"id": booked})) == grid[1:4]  # fmt: skip


def test_what_was_not_verified_in_time_moves_nowhere(
    connection: sa.Connection, practice: world.Practice, grid: list[int]
) -> None:
    """Swept or not: to another agenda of its doctor, at a time over its own, where it would stand in its own way."""
    room = world.agenda(
        connection, practice.clinic, practice.location, specialist_id=practice.specialist, services=[practice.service]
    )
    (elsewhere, *_) = slots(connection, room, 3, START + TWENTY)
    place(connection, grid[0], practice.service, "ada")
    booked = confirm(connection, practice.service, None, "ada").appointment_id
    assert booked is not None
    due = connection.scalar(sa.text("SELECT verification_expires_at FROM appointment"))
    assert due is not None
    asked = {"appointment_id": booked, "slot_id": elsewhere, "by_staff": True}
    late = appointments.move(connection, **asked, as_of=due)
    assert late.answer is appointments.Answer.NO_LONGER_BOOKED
    connection.execute(sa.text("SET CONSTRAINTS ALL IMMEDIATE"))
    assert appointments.move(connection, **asked, as_of=due - timedelta(seconds=1)).done, "a moment before it still may"
    connection.execute(sa.text("SET CONSTRAINTS ALL IMMEDIATE"))


def test_the_desk_books_what_is_not_online_but_not_what_is_taken_or_past(
    connection: sa.Connection, practice: world.Practice, grid: list[int]
) -> None:
    connection.execute(sa.text("UPDATE agenda SET online = false"))
    wanted = {"service_id": practice.service, "patient_id": practice.patient, "as_of": AS_OF}
    assert appointments.book(connection, slot_id=grid[0], **wanted).answer is appointments.Answer.BOOKED
    assert appointments.book(connection, slot_id=grid[2], **wanted).answer is appointments.Answer.FULL
    late = {**wanted, "as_of": START + timedelta(days=1)}
    assert appointments.book(connection, slot_id=grid[3], **late).answer is appointments.Answer.TOO_LATE
    connection.execute(sa.text("UPDATE service SET active = false"))
    assert appointments.book(connection, slot_id=grid[3], **wanted).answer is appointments.Answer.NOT_OFFERED
