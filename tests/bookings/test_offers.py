"""A place is kept for whoever has lost hers: shown, offered by a plan, taken once, over in time, and given back."""

from __future__ import annotations

from dataclasses import replace
from datetime import date, datetime, timedelta

import pytest
import sqlalchemy as sa

from polydesk_dagster import changes
from polydesk_dagster.clinic.bookings import appointments, confirming, holds, offers, places, releasing, sweeping
from polydesk_dagster.clinic.bookings.answers import Answer
from polydesk_dagster.clinic.bookings.checks import collisions
from polydesk_dagster.clinic.bookings.emergency import Press
from polydesk_dagster.clinic.bookings.holds import Booking
from polydesk_dagster.clinic.bookings.offers import Taken
from polydesk_dagster.clinic.calendar import desk, desk_closures, replacing, slots
from polydesk_dagster.clinic.calendar.desk_closures import Closure
from polydesk_dagster.clinic.messages import closed
from polydesk_dagster.outcome import Outcome, Reason, Report
from tests import world
from tests.world import AS_OF, rome

MONDAY = date(2026, 3, 16)
FAIR = Closure("Fiera", MONDAY, MONDAY)
PATIENT_BUSY = appointments.Answer.PATIENT_BUSY
NEAREST, NEXT, ELSEWHERE = (rome("2026-03-17", at) for at in ("09:00", "09:30", "12:00"))


def at(connection: sa.Connection, agenda: int, start: datetime) -> int:
    found = connection.scalar(
        sa.text("SELECT id FROM slot WHERE agenda_id = :agenda AND starts_at = :start"),
        {"agenda": agenda, "start": start},
    )
    assert found is not None
    return int(found)


def lost(engine: sa.Engine, practice: world.Practice, *times: str, closure: Closure = FAIR) -> list[int]:
    """Bookings of a day that is then closed."""
    bookings = []
    with engine.begin() as connection:
        for time in times:
            slot = at(connection, practice.agenda, rome(MONDAY, time))
            patient = world.patient(connection)
            reply = appointments.book(
                connection, slot_id=slot, service_id=practice.service, patient_id=patient, as_of=AS_OF
            )
            assert reply.appointment_id is not None
            bookings.append(reply.appointment_id)
    desk_closures.add(engine, closure, as_of=AS_OF, actor="desk:anna")
    return bookings


def offered(engine: sa.Engine, as_of: datetime = AS_OF) -> Report:
    with engine.begin() as connection:
        shown, _ = offers.propose(connection, as_of)
    assert shown.plan_id is not None
    with engine.begin() as connection:
        return changes.apply(connection, shown.plan_id, as_of=as_of, actor="desk:anna")


def take(engine: sa.Engine, booking: int, as_of: datetime = AS_OF) -> Taken:
    with engine.begin() as connection:
        return offers.take(connection, appointment_id=booking, as_of=as_of)


def start_of(engine: sa.Engine, booking: int) -> datetime:
    with engine.connect() as connection:
        found = connection.scalar(sa.text("SELECT starts_at FROM appointment WHERE id = :id"), {"id": booking})
    assert isinstance(found, datetime)
    return found


def kept(engine: sa.Engine) -> dict[int, datetime]:
    with engine.connect() as connection:
        rows = connection.execute(
            sa.text("""SELECT h.offered_to, s.starts_at FROM hold h JOIN slot s ON s.id = h.slot_id
                       JOIN seat t ON t.hold_id = h.id AND t.slot_id = s.id WHERE h.ended_at IS NULL""")
        )
        return {int(booking): start for booking, start in rows}


def test_each_is_kept_a_place_that_she_takes_once_and_nobody_else_can(
    engine: sa.Engine, practice: world.Practice
) -> None:
    first, second = lost(engine, practice, "09:00", "09:30")
    with engine.begin() as connection:
        shown, touched = offers.propose(connection, AS_OF)
    assert [each.appointment_id for each in touched] == [first, second]
    assert (shown.counts.updated, shown.preview, kept(engine)) == (2, True, {})
    assert "Rossi" not in str(shown)
    assert offered(engine).counts.updated == 2
    assert kept(engine) == {first: NEAREST, second: NEXT}
    with engine.begin() as connection:
        place = {"slot_id": at(connection, practice.agenda, NEAREST), "service_id": practice.service}
        reply = holds.place(connection, **place, token="t", visitor="v", as_of=AS_OF)
        assert reply.answer is Answer.FULL
        assert [each.offer for each in desk.orphans(connection, AS_OF, 10)] == ["waiting", "waiting"]
    assert [take(engine, first), take(engine, first)] == [Taken.TAKEN, Taken.TAKEN]
    assert start_of(engine, first) == NEAREST
    with engine.begin() as connection:
        assert [each.appointment_id for each in desk.orphans(connection, AS_OF, 10)] == [second]
        assert appointments.cancel(connection, appointment_id=first, as_of=AS_OF).done


def test_who_does_not_answer_is_on_the_desks_list_and_the_place_is_free(
    engine: sa.Engine, practice: world.Practice
) -> None:
    (booking,) = lost(engine, practice, "09:00")
    offered(engine)
    later = AS_OF + places.TERM
    assert take(engine, booking, later) is Taken.OVER
    with engine.begin() as connection:
        (waiting,) = desk.orphans(connection, later, 10)
        assert (waiting.appointment_id, waiting.offer) == (booking, "unanswered")
        slot = at(connection, practice.agenda, NEAREST)
        given = {"slot_id": slot, "service_id": practice.service, "token": "t", "visitor": "v"}
        assert holds.place(connection, **given, as_of=later).answer is Answer.PLACED
    with engine.begin() as connection:
        assert sweeping.release_expired(connection, later).counts.updated == 1
        shown, touched = offers.propose(connection, later)
        assert (touched, shown.outcome) == ([], Outcome.NOTHING_TO_DO)


def test_what_was_taken_meanwhile_is_skipped_by_name_and_the_others_are_offered(
    engine: sa.Engine, practice: world.Practice
) -> None:
    first, second, third = lost(engine, practice, "09:00", "09:30", "10:00")
    with engine.begin() as connection:
        shown, _ = offers.propose(connection, AS_OF)
        slot = at(connection, practice.agenda, NEAREST)
        patient = world.patient(connection)
        given = {"slot_id": slot, "service_id": practice.service, "patient_id": patient}
        assert appointments.book(connection, **given, as_of=AS_OF).done
        assert appointments.cancel(connection, appointment_id=third, as_of=AS_OF).done
    assert shown.plan_id is not None
    with engine.begin() as connection:
        report = changes.apply(connection, shown.plan_id, as_of=AS_OF, actor="desk:anna")
    assert (report.outcome, report.counts.updated, report.counts.skipped) == (Outcome.OK, 1, 2)
    whys = [each.values["why"] for each in report.reasons if each.code == "moved"]
    assert sorted(why.code for why in whys if isinstance(why, Reason)) == ["changed_since_preview", "place_gone"]
    assert set(kept(engine)) == {second}
    assert offered(engine).counts.updated == 1
    assert set(kept(engine)) == {first, second}


def test_a_plan_of_offers_is_taken_back_but_for_what_was_taken(engine: sa.Engine, practice: world.Practice) -> None:
    first, second = lost(engine, practice, "09:00", "09:30")
    plan = offered(engine).plan_id
    assert plan is not None
    assert take(engine, first) is Taken.TAKEN
    with engine.begin() as connection:
        report = changes.undo(connection, plan, as_of=AS_OF, actor="desk:anna")
    assert (report.counts.updated, kept(engine)) == (1, {})
    assert take(engine, second) is Taken.OVER
    assert start_of(engine, first) == NEAREST
    assert offered(engine).counts.updated == 1


@pytest.mark.parametrize("end", ["cancel", "move", "lift", "keep"])
def test_an_offer_ends_with_what_it_was_made_for(engine: sa.Engine, practice: world.Practice, end: str) -> None:
    (booking,) = lost(engine, practice, "09:00")
    offered(engine)
    with engine.begin() as connection:
        if end == "cancel":
            assert appointments.cancel(connection, appointment_id=booking, as_of=AS_OF).done
        elif end == "move":
            slot = at(connection, practice.agenda, ELSEWHERE)
            assert appointments.move(connection, appointment_id=booking, slot_id=slot, as_of=AS_OF, by_staff=True).done
        elif end == "keep":
            (orphan,) = desk.orphans(connection, AS_OF, 10)
            assert desk.note(connection, orphan.id, booking, "kept", clinic="BO01", actor="desk:anna", as_of=AS_OF)
    if end == "lift":
        with engine.connect() as connection:
            closure = connection.scalar(sa.text("SELECT id FROM closure"))
        assert closure is not None
        desk_closures.lift(engine, closure, as_of=AS_OF, actor="desk:anna")
    assert kept(engine) == {}
    assert take(engine, booking) is Taken.OVER


def elsewhere(engine: sa.Engine, practice: world.Practice, code: str = "RE01") -> tuple[world.Practice, int]:
    """Another clinic of the chain, and its slot at the time of the nearest place."""
    with engine.begin() as connection:
        other = world.practice(connection, code, horizon_days=14)
    slots.generate(engine, AS_OF)
    with engine.begin() as connection:
        return other, at(connection, other.agenda, NEAREST)


def patient_of(connection: sa.Connection, booking: int) -> int:
    patient = connection.scalar(sa.text("SELECT patient_id FROM appointment WHERE id = :id"), {"id": booking})
    assert isinstance(patient, int)
    return patient


def test_while_a_place_is_kept_for_her_nobody_books_her_elsewhere_at_that_time(
    engine: sa.Engine, practice: world.Practice
) -> None:
    (booking,) = lost(engine, practice, "09:00")
    offered(engine)
    other, slot = elsewhere(engine, practice)
    with engine.begin() as connection:
        patient = patient_of(connection, booking)
        wanted = {"slot_id": slot, "service_id": other.service, "as_of": AS_OF}
        assert appointments.book(connection, **wanted, patient_id=patient).answer is PATIENT_BUSY
        placed = holds.place(connection, **wanted, token="t", visitor="v")
        assert placed.answer is Answer.PLACED
        hers = Booking(other.service, patient)
        assert confirming.confirm(connection, token="t", booking=hers, as_of=AS_OF).answer is Answer.ELSEWHERE
        over = AS_OF + places.TERM
        assert appointments.book(connection, **{**wanted, "as_of": over}, patient_id=patient).done


def test_her_own_lost_appointment_hinders_no_place_of_its_own_time(engine: sa.Engine, practice: world.Practice) -> None:
    with engine.begin() as connection:
        other = world.agenda(connection, practice.clinic, practice.location, service_id=practice.service)
        closed = replace(FAIR, agenda=practice.agenda)
    slots.generate(engine, AS_OF)
    (booking,) = lost(engine, practice, "09:00", closure=closed)
    same = rome(MONDAY, "09:00")
    with engine.begin() as connection:
        place = at(connection, other, same)
        until = same - timedelta(hours=12)
        offer = sa.text("SELECT offer_place(:booking, :slot, :as_of, :until)")
        given = {"booking": booking, "slot": place, "as_of": AS_OF, "until": until}
        assert connection.scalar(offer, given) is not None
        assert collisions(connection, AS_OF).count == 0
    assert take(engine, booking) is Taken.TAKEN


def test_the_desk_moves_her_to_the_place_that_is_kept_for_her_or_beside_it(
    engine: sa.Engine, practice: world.Practice
) -> None:
    first, second = lost(engine, practice, "09:00", "09:30")
    offered(engine)
    with engine.begin() as connection:
        for start, answer in ((NEXT, appointments.Answer.FULL), (NEAREST, appointments.Answer.MOVED)):
            slot = at(connection, practice.agenda, start)
            reply = appointments.move(connection, appointment_id=first, slot_id=slot, as_of=AS_OF, by_staff=True)
            assert reply.answer is answer
    assert (start_of(engine, first), kept(engine)) == (NEAREST, {second: NEXT})


def test_the_place_is_kept_for_the_right_patient_once_her_booking_is_put_right(
    engine: sa.Engine, practice: world.Practice
) -> None:
    (booking,) = lost(engine, practice, "09:00")
    offered(engine)
    other, slot = elsewhere(engine, practice)
    with engine.begin() as connection:
        taken_for, right = patient_of(connection, booking), world.patient(connection)
        connection.execute(
            sa.text("UPDATE appointment SET patient_id = :right WHERE id = :id"), {"right": right, "id": booking}
        )
        wanted = {"slot_id": slot, "service_id": other.service, "as_of": AS_OF}
        assert appointments.book(connection, **wanted, patient_id=right).answer is PATIENT_BUSY
        assert appointments.book(connection, **wanted, patient_id=taken_for).done


def test_a_patient_who_is_elsewhere_on_purpose_keeps_her_offer_and_is_told(
    engine: sa.Engine, practice: world.Practice
) -> None:
    (booking,) = lost(engine, practice, "09:00")
    offered(engine)
    other, slot = elsewhere(engine, practice)
    with engine.begin() as connection:
        given = {"slot_id": slot, "service_id": other.service, "patient_id": patient_of(connection, booking)}
        assert appointments.book(connection, **given, as_of=AS_OF, overlap_reason="l'accompagna la figlia").done
    assert take(engine, booking) is Taken.GONE
    assert kept(engine) == {booking: NEAREST}


def test_release_all_leaves_what_patients_were_offered(engine: sa.Engine, practice: world.Practice) -> None:
    (booking,) = lost(engine, practice, "09:00")
    offered(engine)
    with engine.begin() as connection:
        shown = releasing.release_all(connection, AS_OF, Press(), preview=True)
    assert shown.counts.changed == 0
    assert set(kept(engine)) == {booking}


def test_a_long_service_is_offered_all_its_slots_and_two_never_the_same(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        practice = world.practice(connection, horizon_days=14, slot_minutes=20)
        long = world.service(connection, practice.clinic, duration_minutes=60)
        offer = {"clinic_id": practice.clinic, "agenda_id": practice.agenda, "service_id": long}
        world.insert(connection, "agenda_service", [offer])
    slots.generate(engine, AS_OF)
    bookings = lost(engine, replace(practice, service=long), "09:00", "10:00", "11:00")
    assert offered(engine).counts.updated == 3
    with engine.connect() as connection:
        runs = connection.execute(
            sa.text("""SELECT h.offered_to, array_agg(s.starts_at ORDER BY s.starts_at) FROM hold h
                       JOIN seat t ON t.hold_id = h.id JOIN slot s ON s.id = t.slot_id GROUP BY 1""")
        ).all()
    assert {booking for booking, _ in runs} == set(bookings)
    taken = [start for _, starts in runs for start in starts]
    assert len(taken) == len(set(taken)) == 9
    for booking in bookings:
        assert take(engine, booking) is Taken.TAKEN


def test_with_too_little_time_to_answer_nothing_is_offered(engine: sa.Engine, practice: world.Practice) -> None:
    lost(engine, practice, "09:00")
    soon = rome(MONDAY, "09:00") - timedelta(hours=1)
    with engine.begin() as connection:
        shown, touched = offers.propose(connection, soon)
    assert (shown.counts.updated, len(touched)) == (0, 1)


def test_what_she_says_on_the_telephone_moves_her_or_frees_the_place(
    engine: sa.Engine, practice: world.Practice
) -> None:
    first, second, third = lost(engine, practice, "09:00", "09:30", "10:00")
    offered(engine)

    def told(booking: int, wanted: bool, clinic: str | None = None, as_of: datetime = AS_OF) -> Taken:
        with engine.begin() as connection:
            return offers.answer(connection, booking, wanted, clinic=clinic, actor="desk:anna", as_of=as_of)

    assert [told(first, True, "NA01"), told(999_999, True)] == [Taken.NONE, Taken.NONE]
    assert [told(first, True, "BO01"), told(first, True), told(first, False)] == [Taken.TAKEN] * 3
    assert start_of(engine, first) == NEAREST
    assert [told(second, False), told(second, False), told(second, True)] == [Taken.DECLINED, Taken.OVER, Taken.OVER]
    assert set(kept(engine)) == {third}
    over = AS_OF + timedelta(days=3)
    assert [told(third, wanted, as_of=over) for wanted in (True, False)] == [Taken.OVER] * 2
    with engine.begin() as connection:
        (found,) = replacing.proposals(connection, 0, AS_OF, [second])
        assert found.place is not None
        assert found.place.starts_at != NEXT, "what she does not want is not proposed to her again"
        place = {"slot_id": at(connection, practice.agenda, NEXT), "service_id": practice.service}
        assert holds.place(connection, **place, token="t", visitor="v", as_of=AS_OF).answer is Answer.PLACED
        left = {each.appointment_id: (each.state, each.offer) for each in desk.orphans(connection, AS_OF, 10)}
        assert left == {second: ("contacted", "declined"), third: ("open", "waiting")}
        assert [each.appointment_id for each in closed.untold(connection, AS_OF)] == [third]
        assert offers.propose(connection, AS_OF)[1] == []
        assert connection.scalar(sa.text("SELECT count(*) FROM audit WHERE action = 'offer'")) == 2
        assert collisions(connection, AS_OF).count == 0
