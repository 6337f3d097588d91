"""Where nobody can be: beside an overlap that was let pass, in a service's pause, on the way between sites."""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import timedelta

import pytest
import sqlalchemy as sa

from polydesk_dagster.clinic.bookings import appointments, checks, confirming, holds
from polydesk_dagster.clinic.bookings.answers import Answer
from polydesk_dagster.clinic.bookings.confirming import Booking
from tests import world
from tests.world import AS_OF, rome

MINUTE = timedelta(minutes=1)
START = rome("2026-03-11", "09:00")
REASON = "li accompagna la figlia, sono nello stesso piano"


@pytest.fixture
def here(connection: sa.Connection) -> world.Practice:
    return world.practice(connection, slot_minutes=20)


@pytest.fixture
def there(connection: sa.Connection, here: world.Practice) -> world.Practice:
    """A second clinic of the same doctor, whose visits last a slot too."""
    there = world.practice(connection, "RE01", slot_minutes=20)
    connection.execute(sa.text("UPDATE specialist SET fiscal_code = 'BNCLNE70A41A944X'"))
    connection.execute(sa.text("UPDATE service SET duration_minutes = 20"))
    return there


def slots(connection: sa.Connection, agenda: int, many: int = 6, capacity: int = 1) -> list[int]:
    step = 20 * MINUTE
    return [
        world.slot(connection, agenda, START + n * step, ends_at=START + (n + 1) * step, capacity=capacity)
        for n in range(many)
    ]


def place(connection: sa.Connection, slot: int, service: int, who: str) -> Answer:
    return holds.place(connection, slot_id=slot, service_id=service, token=who, visitor=who, as_of=AS_OF).answer


def confirm(connection: sa.Connection, service: int, patient: int, who: str) -> Answer:
    return confirming.confirm(connection, token=who, booking=Booking(service, patient), as_of=AS_OF).answer


def pause(connection: sa.Connection, service: int, before: int, after: int) -> None:
    connection.execute(
        sa.text("UPDATE service SET pause_before_minutes = :b, pause_after_minutes = :a WHERE id = :id"),
        {"id": service, "b": before, "a": after},
    )


def travel(connection: sa.Connection, one: int, other: int, minutes: int) -> None:
    connection.execute(
        sa.text("INSERT INTO travel VALUES (least(:a, :b), greatest(:a, :b), :minutes)"),
        {"a": one, "b": other, "minutes": minutes},
    )


def test_nothing_is_booked_on_top_of_an_overlap_that_the_desk_allowed(
    connection: sa.Connection, here: world.Practice
) -> None:
    other, third = (world.practice(connection, code, slot_minutes=20) for code in ("RE01", "PR01"))
    connection.execute(sa.text("UPDATE service SET duration_minutes = 20"))
    first = world.slot(connection, here.agenda, START, ends_at=START + 20 * MINUTE)
    over = world.slot(connection, other.agenda, START + 10 * MINUTE, ends_at=START + 30 * MINUTE)
    after = world.slot(connection, third.agenda, START + 20 * MINUTE, ends_at=START + 40 * MINUTE)
    wanted = {"patient_id": here.patient, "as_of": AS_OF}
    assert appointments.book(connection, slot_id=first, service_id=here.service, **wanted).done
    allowed = appointments.book(
        connection, slot_id=over, service_id=other.service, **wanted, overlap_reason=REASON
    ).appointment_id
    assert allowed is not None
    busy = appointments.book(connection, slot_id=after, service_id=third.service, **wanted)
    assert busy.answer is appointments.Answer.PATIENT_BUSY
    assert place(connection, after, third.service, "ada") is Answer.PLACED
    assert confirm(connection, third.service, here.patient, "ada") is Answer.ELSEWHERE
    assert checks.collisions(connection, AS_OF).count == 0, "allowed, with a reason"
    appointments.cancel(connection, appointment_id=allowed, as_of=AS_OF)
    assert confirm(connection, third.service, here.patient, "ada") is Answer.CONFIRMED


def test_nothing_is_booked_on_top_of_what_collided_from_outside(
    connection: sa.Connection, here: world.Practice, there: world.Practice
) -> None:
    third = world.agenda(connection, here.clinic, here.location, specialist_id=here.specialist, services=[here.service])
    ours, theirs = slots(connection, here.agenda), slots(connection, there.agenda)
    late = world.slot(connection, third, START + 20 * MINUTE, ends_at=START + 40 * MINUTE)
    world.appointment(connection, ours[0], service_id=here.service, patient_id=here.patient)
    world.appointment(
        connection, theirs[0], service_id=there.service, patient_id=there.patient, channel="studiolab",
        ends_at=START + 40 * MINUTE,
    )  # fmt: skip
    assert checks.collisions(connection, AS_OF).count == 1
    assert place(connection, late, here.service, "ada") is Answer.FULL, "she is at the second clinic until 9:40"
    assert place(connection, ours[1], here.service, "bice") is Answer.FULL
    assert place(connection, ours[2], here.service, "cleo") is Answer.PLACED


def test_a_pause_keeps_the_doctor_at_the_same_agenda_too(connection: sa.Connection, here: world.Practice) -> None:
    connection.execute(sa.text("UPDATE service SET duration_minutes = 20"))
    pause(connection, here.service, before=5, after=10)
    grid = slots(connection, here.agenda)
    assert place(connection, grid[2], here.service, "ada") is Answer.PLACED
    assert place(connection, grid[3], here.service, "bice") is Answer.FULL
    assert place(connection, grid[1], here.service, "cleo") is Answer.FULL
    assert place(connection, grid[4], here.service, "dora") is Answer.PLACED
    assert confirm(connection, here.service, here.patient, "ada") is Answer.CONFIRMED
    assert holds.release(connection, token="dora", as_of=AS_OF).answer is Answer.RELEASED
    assert place(connection, grid[3], here.service, "elsa") is Answer.FULL, "a booking's pause stays"


def test_who_is_seen_together_pauses_together(connection: sa.Connection, here: world.Practice) -> None:
    connection.execute(sa.text("UPDATE service SET duration_minutes = 20"))
    pause(connection, here.service, before=0, after=10)
    grid = slots(connection, here.agenda, capacity=2)
    assert place(connection, grid[0], here.service, "ada") is Answer.PLACED
    assert place(connection, grid[0], here.service, "bice") is Answer.PLACED
    assert place(connection, grid[1], here.service, "cleo") is Answer.FULL


def test_a_patient_needs_no_pause(connection: sa.Connection, here: world.Practice) -> None:
    other = world.practice(connection, "RE01", slot_minutes=20)
    connection.execute(sa.text("UPDATE service SET duration_minutes = 20, pause_after_minutes = 20"))
    ours, theirs = slots(connection, here.agenda), slots(connection, other.agenda)
    wanted = {"patient_id": here.patient, "as_of": AS_OF}
    assert appointments.book(connection, slot_id=ours[0], service_id=here.service, **wanted).done
    assert appointments.book(connection, slot_id=theirs[1], service_id=other.service, **wanted).done


def test_a_doctor_needs_the_way_between_two_sites(
    connection: sa.Connection, here: world.Practice, there: world.Practice
) -> None:
    travel(connection, here.location, there.location, 40)
    ours, theirs = slots(connection, here.agenda), slots(connection, there.agenda)
    assert place(connection, ours[0], here.service, "ada") is Answer.PLACED
    assert place(connection, theirs[2], there.service, "bice") is Answer.FULL, "forty minutes from 9:20 are not over"
    assert place(connection, theirs[3], there.service, "bice") is Answer.PLACED
    assert place(connection, ours[1], here.service, "cleo") is Answer.FULL, "nor the way back"
    late = world.appointment(
        connection, theirs[1], service_id=there.service, patient_id=there.patient, channel="studiolab", updated_at=AS_OF
    )
    finding = checks.collisions(connection, AS_OF)
    assert finding.count == 1, "what comes from outside is kept, and found"
    appointments.cancel(connection, appointment_id=late, as_of=AS_OF)
    assert checks.collisions(connection, AS_OF).count == 0


@dataclass(frozen=True)
class Taken:
    site: int
    starts: int
    before: int
    after: int

    def fits(self, other: Taken, way: int) -> bool:
        """In minutes from nine; all last twenty."""
        mine = (self.starts - self.before, self.starts + 20 + self.after)
        theirs = (other.starts - other.before, other.starts + 20 + other.after)
        if self.site != other.site:
            return mine[1] + way <= theirs[0] or theirs[1] + way <= mine[0]
        return not (
            max(self.starts, theirs[0]) < min(self.starts + 20, theirs[1])
            or max(other.starts, mine[0]) < min(other.starts + 20, mine[1])
        )


@pytest.mark.parametrize("seed", range(6))
def test_pauses_and_ways_against_an_oracle(
    connection: sa.Connection, here: world.Practice, there: world.Practice, seed: int
) -> None:
    draw = random.Random(seed)
    way = draw.choice((0, 15, 40))
    if way:
        travel(connection, here.location, there.location, way)
    services: list[list[tuple[int, int, int]]] = []
    for practice in (here, there):
        offered = []
        for _ in range(3):
            before, after = draw.choice((0, 0, 5, 20)), draw.choice((0, 10, 25))
            service = world.service(connection, practice.clinic, duration_minutes=20)
            pause(connection, service, before, after)
            offer = {"clinic_id": practice.clinic, "agenda_id": practice.agenda, "service_id": service}
            world.insert(connection, "agenda_service", [offer])
            offered.append((service, before, after))
        services.append(offered)
    grids = [slots(connection, practice.agenda, 24) for practice in (here, there)]
    taken: list[Taken] = []
    placed = 0
    for n in range(70):
        site, number = draw.randrange(2), draw.randrange(24)
        service, before, after = draw.choice(services[site])
        wanted = Taken(site, 20 * number, before, after)
        free = all(wanted.fits(each, way) for each in taken)
        answer = place(connection, grids[site][number], service, f"visitor {n}")
        assert (answer is Answer.PLACED) == free, f"{wanted} among {taken}: {answer}"
        if free:
            taken.append(wanted)
            placed += 1
    assert placed > 5
