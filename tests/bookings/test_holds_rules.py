"""Holds one at a time: what each request answers, and what it leaves behind."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
import sqlalchemy as sa

from polydesk_dagster.clinic.bookings import answers, confirming, holds, releasing, sweeping
from polydesk_dagster.clinic.bookings.answers import Answer
from polydesk_dagster.clinic.bookings.confirming import Booking
from polydesk_dagster.clinic.bookings.emergency import Press
from polydesk_dagster.clinic.bookings.holds import Terms
from polydesk_dagster.outcome import Outcome, Report
from polydesk_dagster.told import LANGUAGES, teller
from polydesk_dagster.values import Term
from tests import world
from tests.world import AS_OF, rome

MINUTE = timedelta(minutes=1)
START = rome("2026-03-11", "09:00")


@pytest.fixture
def practice(connection: sa.Connection) -> world.Practice:
    return world.practice(connection)


@pytest.fixture
def slot(connection: sa.Connection, practice: world.Practice) -> int:
    return world.slot(connection, practice.agenda, START)


def place(connection: sa.Connection, slot: int, who: str, as_of: datetime = AS_OF) -> answers.Reply:
    """Each visitor's token is made of the visitor's name."""
    return holds.place(
        connection,
        slot_id=slot,
        service_id=world.offered(connection, slot),
        token=f"token {who}",
        visitor=who,
        as_of=as_of,
    )


def confirm(
    connection: sa.Connection, practice: world.Practice, who: str, as_of: datetime = AS_OF, known: bool = True
) -> answers.Reply:
    booking = Booking(practice.service, practice.patient if known else None, contact_email="chi@example.org")
    return confirming.confirm(connection, token=f"token {who}", booking=booking, as_of=as_of)


def state(connection: sa.Connection, hold: int | None) -> str:
    return str(connection.scalar(sa.text("SELECT state FROM hold WHERE id = :hold"), {"hold": hold}))


def test_a_slot_is_kept_for_one_visitor_until_its_hold_expires(connection: sa.Connection, slot: int) -> None:
    first = place(connection, slot, "ada")
    assert first.answer is Answer.PLACED
    assert first.expires_at == AS_OF + 10 * MINUTE
    assert place(connection, slot, "bice", AS_OF + 9 * MINUTE).answer is Answer.FULL
    taken_over = place(connection, slot, "bice", AS_OF + 10 * MINUTE)
    assert taken_over.answer is Answer.PLACED, "an expired hold blocks nobody, swept or not"
    late = holds.renew(connection, token="token ada", as_of=AS_OF + 10 * MINUTE)
    assert late.answer is Answer.EXPIRED
    assert "scaduto" in teller("it").text(f"answer.hold.{late.answer}")


def test_capacity_counts_bookings_and_holds_together(connection: sa.Connection, practice: world.Practice) -> None:
    slot = world.slot(connection, practice.agenda, START, capacity=3)
    world.appointment(connection, slot, service_id=practice.service, patient_id=practice.patient)
    assert place(connection, slot, "ada").done
    assert place(connection, slot, "bice").done
    assert place(connection, slot, "cleo").answer is Answer.FULL


def test_placing_again_with_the_same_token_is_the_same_hold(
    connection: sa.Connection, practice: world.Practice
) -> None:
    slot = world.slot(connection, practice.agenda, START, capacity=3)
    first = place(connection, slot, "ada")
    again = place(connection, slot, "ada", AS_OF + MINUTE)
    assert (again.answer, again.hold_id, again.expires_at) == (Answer.PLACED, first.hold_id, first.expires_at)
    assert connection.scalar(sa.text("SELECT count(*) FROM seat")) == 1


def test_a_visitor_keeps_two_slots_at_most(connection: sa.Connection, practice: world.Practice) -> None:
    slots = [world.slot(connection, practice.agenda, START + n * timedelta(hours=1)) for n in range(4)]
    answers = [
        holds.place(
            connection,
            slot_id=slot,
            service_id=world.offered(connection, slot),
            token=f"t{slot}",
            visitor="ada",
            as_of=AS_OF,
        ).answer
        for slot in slots[:3]
    ]
    assert answers == [Answer.PLACED, Answer.PLACED, Answer.TOO_MANY]
    later = holds.place(
        connection,
        slot_id=slots[3],
        service_id=world.offered(connection, slots[3]),
        token="t",
        visitor="ada",
        as_of=AS_OF + 10 * MINUTE,
    )
    assert later.answer is Answer.PLACED, "expired holds do not count"


@pytest.mark.parametrize(
    ("change", "answer"),
    [
        ("UPDATE slot SET state = 'retired'", Answer.NOT_OFFERED),
        ("UPDATE slot SET state = 'orphan'", Answer.NOT_OFFERED),
        ("UPDATE agenda SET online = false", Answer.NOT_OFFERED),
        ("UPDATE agenda SET active = false", Answer.NOT_OFFERED),
        ("UPDATE clinic SET active = false", Answer.NOT_OFFERED),
        ("UPDATE agenda SET min_notice_minutes = 60 * 24", Answer.TOO_SOON),
    ],
)
def test_only_what_is_offered_online_can_be_kept(
    connection: sa.Connection, slot: int, change: str, answer: Answer
) -> None:
    connection.execute(sa.text(change))
    assert place(connection, slot, "ada").answer is answer
    assert connection.scalar(sa.text("SELECT count(*) FROM hold")) == 0


def test_an_unknown_slot_or_token_is_an_answer(connection: sa.Connection, practice: world.Practice) -> None:
    assert place(connection, 12345, "ada").answer is Answer.NOT_OFFERED
    assert holds.renew(connection, token="nessuno", as_of=AS_OF).answer is Answer.UNKNOWN
    assert confirming.begin_confirming(connection, token="nessuno", as_of=AS_OF).answer is Answer.UNKNOWN
    assert holds.release(connection, token="nessuno", as_of=AS_OF).answer is Answer.UNKNOWN
    assert confirm(connection, practice, "nessuno").answer is Answer.UNKNOWN


def test_two_renewals_and_thirty_minutes_in_all(connection: sa.Connection, slot: int) -> None:
    place(connection, slot, "ada")
    assert holds.renew(connection, token="token ada", as_of=AS_OF + 9 * MINUTE).expires_at == AS_OF + 19 * MINUTE
    assert holds.renew(connection, token="token ada", as_of=AS_OF + 18 * MINUTE).expires_at == AS_OF + 28 * MINUTE
    refused = holds.renew(connection, token="token ada", as_of=AS_OF + 27 * MINUTE)
    assert refused.answer is Answer.NO_MORE_RENEWALS
    assert refused.expires_at == AS_OF + 28 * MINUTE, "a refusal moves nothing"
    assert place(connection, slot, "bice", AS_OF + 27 * MINUTE).answer is Answer.FULL
    assert place(connection, slot, "bice", AS_OF + 28 * MINUTE).answer is Answer.PLACED


def test_a_known_patients_booking_stands_and_answers_the_same_for_ever(
    connection: sa.Connection, practice: world.Practice, slot: int
) -> None:
    place(connection, slot, "ada")
    booked = confirm(connection, practice, "ada", AS_OF + MINUTE)
    assert booked.answer is Answer.CONFIRMED
    again = confirm(connection, practice, "ada", AS_OF + timedelta(days=2))
    assert (again.answer, again.appointment_id) == (Answer.CONFIRMED, booked.appointment_id)
    row = connection.execute(
        sa.text("""
            SELECT a.status, a.channel, a.starts_at, a.verification_expires_at, s.hold_id
            FROM appointment a JOIN seat s ON s.appointment_id = a.id WHERE a.id = :id"""),
        {"id": booked.appointment_id},
    ).one()
    assert tuple(row) == ("booked", "online", START, None, None)
    assert holds.release(connection, token="token ada", as_of=AS_OF).answer is Answer.CONFIRMED
    assert place(connection, slot, "bice", AS_OF + timedelta(hours=1)).answer is Answer.FULL


@pytest.mark.parametrize("ended", ["cancelled", "expired"])
def test_a_booking_that_has_ended_since_is_not_said_to_stand(
    connection: sa.Connection, practice: world.Practice, slot: int, ended: str
) -> None:
    place(connection, slot, "ada")
    booked = confirm(connection, practice, "ada", known=False)
    connection.execute(sa.text("DELETE FROM seat"))
    connection.execute(
        sa.text(f"UPDATE appointment SET status = '{ended}', {ended}_at = :as_of, patient_id = :patient"),
        {"as_of": AS_OF, "patient": practice.patient},
    )
    replies = [
        confirm(connection, practice, "ada", AS_OF + MINUTE),
        place(connection, slot, "ada", AS_OF + MINUTE),
        holds.release(connection, token="token ada", as_of=AS_OF + MINUTE),
    ]
    for reply in replies:
        assert (reply.answer, reply.appointment_id) == (Answer.NO_LONGER_BOOKED, booked.appointment_id)
        assert not reply.done
        assert "non è più in programma" in teller("it").text(f"answer.hold.{reply.answer}")
    connection.execute(sa.text("UPDATE appointment SET status = 'completed'"))
    assert confirm(connection, practice, "ada", AS_OF + MINUTE).answer is Answer.CONFIRMED


def test_every_answer_has_a_sentence() -> None:
    for language in LANGUAGES:
        assert all(teller(language).knows(f"answer.hold.{answer}") for answer in Answer)


def test_a_strangers_booking_is_unverified_until_the_earlier_of_two_hours_and_an_hour_before(
    connection: sa.Connection, practice: world.Practice
) -> None:
    verify_by = sa.text("SELECT verification_expires_at FROM appointment WHERE id = :id AND status = 'unverified'")
    for start, expected in (
        (AS_OF + timedelta(hours=20), AS_OF + timedelta(hours=2)),
        (AS_OF + timedelta(hours=2), AS_OF + timedelta(hours=1)),
    ):
        slot = world.slot(connection, practice.agenda, start)
        place(connection, slot, f"ada {start}")
        reply = confirm(connection, practice, f"ada {start}", known=False)
        assert connection.scalar(verify_by, {"id": reply.appointment_id}) == expected
    soon = world.slot(connection, practice.agenda, AS_OF + timedelta(hours=1))
    place(connection, soon, "bice")
    assert confirm(connection, practice, "bice", known=False).answer is Answer.TOO_LATE_TO_VERIFY
    assert confirm(connection, practice, "bice", known=True).answer is Answer.CONFIRMED


def test_a_booking_that_nobody_could_ever_verify_is_refused(
    connection: sa.Connection, practice: world.Practice, slot: int
) -> None:
    placed = place(connection, slot, "ada")
    given = {"token": "token ada", "as_of": AS_OF}
    for blank in ("", "  ", "\t"):
        booking = Booking(practice.service, contact_email=blank, contact_phone=blank)
        nobody = confirming.confirm(connection, booking=booking, **given)  # type: ignore[arg-type]
        assert nobody.answer is Answer.NO_CONTACT
        assert "recapito" in teller("it").text(f"answer.hold.{nobody.answer}")
    assert state(connection, placed.hold_id) == "live"
    paid = confirming.confirm(connection, booking=Booking(practice.service, paid=True), **given)  # type: ignore[arg-type]
    assert paid.answer is Answer.CONFIRMED


def test_a_contact_is_stored_without_what_surrounds_it(
    connection: sa.Connection, practice: world.Practice, slot: int
) -> None:
    place(connection, slot, "ada")
    booking = Booking(practice.service, contact_email=" chi@example.org ", contact_phone="  ")
    assert confirming.confirm(connection, token="token ada", booking=booking, as_of=AS_OF).answer is Answer.CONFIRMED
    stored = connection.execute(sa.text("SELECT contact_email, contact_phone FROM appointment")).one()
    assert tuple(stored) == ("chi@example.org", None)


@pytest.mark.parametrize("number", [99999999999999999999, -(2**63) - 1, 2**63 - 1, 0])
def test_a_number_that_no_hold_can_have_is_refused_by_name(
    connection: sa.Connection, practice: world.Practice, slot: int, number: int
) -> None:
    placed = place(connection, slot, "ada").hold_id or 0
    confirming.begin_confirming(connection, token="token ada", as_of=AS_OF)
    report = sweeping.release_expired(connection, AS_OF + 5 * MINUTE, unpaid=[placed, number])
    assert report.outcome is Outcome.REFUSED
    assert [f"Il blocco {number} non esiste" in teller("it").reason(reason) for reason in report.reasons] == [True]
    assert state(connection, placed) == "confirming"


def test_a_payment_under_way_keeps_its_seat_past_the_expiry(
    connection: sa.Connection, practice: world.Practice, slot: int
) -> None:
    place(connection, slot, "ada")
    assert (
        confirming.begin_confirming(connection, token="token ada", as_of=AS_OF + 9 * MINUTE).answer is Answer.CONFIRMING
    )
    assert place(connection, slot, "bice", AS_OF + 28 * MINUTE).answer is Answer.FULL
    connection.execute(sa.text("UPDATE slot SET state = 'orphan'"))
    late = confirm(connection, practice, "ada", AS_OF + 28 * MINUTE)
    assert late.answer is Answer.CONFIRMED, "who has paid is not told that the agenda closed meanwhile"


def test_a_failed_payment_gives_the_slot_back(connection: sa.Connection, practice: world.Practice, slot: int) -> None:
    place(connection, slot, "ada")
    confirming.begin_confirming(connection, token="token ada", as_of=AS_OF)
    assert holds.release(connection, token="token ada", as_of=AS_OF).answer is Answer.RELEASED
    assert confirm(connection, practice, "ada").answer is Answer.RELEASED
    assert place(connection, slot, "bice").answer is Answer.PLACED


def test_a_closure_that_came_meanwhile_is_told(connection: sa.Connection, practice: world.Practice, slot: int) -> None:
    place(connection, slot, "ada")
    connection.execute(sa.text("UPDATE slot SET state = 'orphan'"))
    assert confirm(connection, practice, "ada").answer is Answer.SLOT_CLOSED
    assert confirming.begin_confirming(connection, token="token ada", as_of=AS_OF).answer is Answer.SLOT_CLOSED
    assert connection.scalar(sa.text("SELECT count(*) FROM appointment")) == 0


@pytest.mark.parametrize("change", ["UPDATE agenda SET active = false", "UPDATE clinic SET active = false"])
def test_an_agenda_or_a_clinic_that_was_switched_off_books_nothing_more(
    connection: sa.Connection, practice: world.Practice, slot: int, change: str
) -> None:
    placed = place(connection, slot, "ada")
    connection.execute(sa.text(change))
    assert confirm(connection, practice, "ada").answer is Answer.SLOT_CLOSED
    assert confirm(connection, practice, "ada", known=False).answer is Answer.SLOT_CLOSED
    assert confirming.begin_confirming(connection, token="token ada", as_of=AS_OF).answer is Answer.SLOT_CLOSED
    assert state(connection, placed.hold_id) == "live"
    assert connection.scalar(sa.text("SELECT count(*) FROM appointment")) == 0


WITHDRAWN = (
    "UPDATE service SET bookable_online = false",
    "UPDATE service SET active = false",
    "UPDATE service SET deleted_at = now()",
    "DELETE FROM agenda_service",
)
"""Ways for a service to go that a visitor is booking."""


@pytest.mark.parametrize("change", [*WITHDRAWN, "UPDATE agenda SET active = false", "UPDATE clinic SET active = false"])
def test_who_has_paid_is_booked_whatever_the_clinic_takes_off_its_offer_meanwhile(
    connection: sa.Connection, practice: world.Practice, slot: int, change: str
) -> None:
    placed = place(connection, slot, "ada")
    assert confirming.begin_confirming(connection, token="token ada", as_of=AS_OF).answer is Answer.CONFIRMING
    connection.execute(sa.text(change))
    assert confirming.begin_confirming(connection, token="token ada", as_of=AS_OF).answer is Answer.CONFIRMING
    booking = Booking(practice.service, practice.patient, paid=True)
    paid = confirming.confirm(connection, token="token ada", booking=booking, as_of=AS_OF + MINUTE)
    assert (paid.answer, state(connection, placed.hold_id)) == (Answer.CONFIRMED, "confirmed")


def test_who_has_paid_is_not_booked_for_the_service_of_another_clinic(
    connection: sa.Connection, practice: world.Practice, slot: int
) -> None:
    elsewhere = world.practice(connection, "RE01")
    place(connection, slot, "ada")
    confirming.begin_confirming(connection, token="token ada", as_of=AS_OF)
    booking = Booking(elsewhere.service, practice.patient, paid=True)
    reply = confirming.confirm(connection, token="token ada", booking=booking, as_of=AS_OF)
    assert reply.answer is Answer.SERVICE_NOT_OFFERED


@pytest.mark.parametrize("change", WITHDRAWN)
def test_a_service_that_is_not_offered_there_is_refused_and_the_hold_stays(
    connection: sa.Connection, practice: world.Practice, slot: int, change: str
) -> None:
    placed = place(connection, slot, "ada")
    connection.execute(sa.text(change))
    assert confirm(connection, practice, "ada").answer is Answer.SERVICE_NOT_OFFERED
    assert state(connection, placed.hold_id) == "live"
    assert connection.scalar(sa.text("SELECT count(*) FROM seat WHERE hold_id IS NOT NULL")) == 1


def test_what_is_left_alone_is_shown_as_it_is(connection: sa.Connection, practice: world.Practice, slot: int) -> None:
    """In both previews a payment under way has no other state to come."""

    def shown(report: Report) -> set[str]:
        table = report.tables[-1]
        where = table.columns.index("difference")
        return {teller("it").value(row[where]) for row in table.rows if row[1] == Term("action", "conflict")}

    place(connection, slot, "ada")
    confirming.begin_confirming(connection, token="token ada", as_of=AS_OF)
    later = AS_OF + 15 * MINUTE
    swept = sweeping.release_expired(connection, later, preview=True)
    pressed = releasing.release_all(connection, AS_OF + MINUTE, Press(), preview=True)
    for report in (swept, pressed):
        (cells,) = shown(report)
        assert "in pagamento" in cells
        assert not any(word in cells for word in ("lasciato", "liberato", "scaduto", str(later.year) + "-"))


@pytest.mark.parametrize(
    ("payments", "said"),
    [
        (0, []),
        (1, ["1 pagamento appena iniziato: lasciato stare"]),
        (2, ["2 pagamenti appena iniziati: lasciati stare"]),
    ],
)
def test_release_all_says_how_many_payments_it_left_alone(
    connection: sa.Connection, practice: world.Practice, payments: int, said: list[str]
) -> None:
    for number in range(payments + 1):
        slot = world.slot(connection, practice.agenda, START + number * timedelta(hours=1))
        place(connection, slot, f"{number}")
        if number:
            confirming.begin_confirming(connection, token=f"token {number}", as_of=AS_OF)
    releasing.release_all(connection, AS_OF, Press(), preview=True)
    typed = world.typed(connection, Press("prova dei pagamenti", "LIBERA 1"))
    report = releasing.release_all(connection, AS_OF, typed)
    assert (report.outcome, report.counts.updated) == (Outcome.OK, 1)
    assert [teller("it").reason(reason) for reason in report.reasons] == said


def test_only_hashes_are_stored(connection: sa.Connection, slot: int) -> None:
    place(connection, slot, "ada")
    stored = connection.execute(sa.text("SELECT token_hash, visitor_hash FROM hold")).one()
    assert [bytes(value) for value in stored] == [holds.hashed("token ada"), holds.hashed("ada")]
    assert holds.new_token() != holds.new_token()
    assert len(holds.new_token()) >= 40


@pytest.mark.parametrize(
    "terms",
    [
        {"lifetime": timedelta(minutes=4)},
        {"lifetime": timedelta(minutes=16)},
        {"longest": timedelta(minutes=31)},
        {"renewals": 3},
    ],
)
def test_terms_outside_the_schema_are_refused(terms: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="blocco"):
        Terms(**terms)  # type: ignore[arg-type]
