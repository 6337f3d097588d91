"""Whose fault it is that a message did not go, and what is done about it: one item, one channel, one person."""

from __future__ import annotations

import asyncio
import time
from datetime import date, timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from polydesk_dagster import changes
from polydesk_dagster.clinic.messages import blocks, calls, custom, due, planning, preferences, receipts, service, story
from polydesk_dagster.clinic.messages.kinds import Channel
from polydesk_dagster.clinic.messages.links import NOWHERE, Reach
from polydesk_dagster.clinic.messages.provider import Answer, Fate, Outgoing, Provider
from polydesk_dagster.clinic.messages.templates import Text
from polydesk_dagster.demo.simulators.server import DEMO_TOKEN
from polydesk_dagster.errors import PermanentError
from polydesk_dagster.outcome import Outcome
from polydesk_dagster.providers.sms import SmsGateway, became
from polydesk_dagster.providers.smtp import MailRelay
from polydesk_dagster.told import teller
from tests import world
from tests.messages.relay import Relay
from tests.messages.world import AS_OF, booked, gateway, move, states, texted

SENDER = "no-reply@clinica.example"


def by_mail(url: str) -> dict[Channel, Provider]:
    return {"email": MailRelay(url, SENDER, patience=5)}


def mailed(connection: sa.Connection, address: str) -> int:
    return world.patient(connection, mobile=None, email=address)


def crowd(connection: sa.Connection, count: int, *, mail: bool = True) -> None:
    """So many patients with an e-mail or a telephone, each with an appointment tomorrow, ten in a clinic."""
    for number in range(count):
        if number % 10 == 0:
            practice = world.practice(connection, f"C{number // 10}")
        patient = mailed(connection, f"p{number}@example.org") if mail else world.patient(connection)
        booked(connection, practice, f"{9 + number % 10}:00".zfill(5), patient_id=patient)


def blocked(engine: sa.Engine) -> dict[str, Any]:
    with engine.connect() as connection:
        rows = connection.execute(sa.text("SELECT address, until IS NULL AS hard, strikes FROM message_block"))
        return {row.address: (row.hard, row.strikes) for row in rows}


def customise(connection: sa.Connection, clinic: int, body: str) -> None:
    connection.execute(
        sa.text("""INSERT INTO message_template (layer, clinic_id, kind, variant, channel, language, body)
                   VALUES ('clinic', :clinic, 'reminder', 'plain', 'sms', 'it', :body)"""),
        {"clinic": clinic, "body": body},
    )


# One item ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        "{{ clinica }}: {{ nome|dictsort }}",
        "{{ clinica }} {{ 'x'*300000000 }}",
        "{{ clinica }}" + "{% for a in appuntamenti %}" * 12 + "x" + "{% endfor %}" * 12,
        "{{ clinica }} {% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
    ],
)
def test_a_text_that_harms_is_that_clinic_s_alone_and_costs_no_time(engine: sa.Engine, body: str) -> None:
    with engine.begin() as connection:
        harmed, sound = world.practice(connection, "BO01"), world.practice(connection, "MI01")
        for practice in (harmed, sound):
            for hour in range(9, 12):
                booked(connection, practice, f"{hour:02d}:00")
        customise(connection, harmed.clinic, body)
    with gateway() as (simulator, providers):
        began = time.process_time()
        report = service.send(engine, AS_OF, "reminder", providers)
        assert time.process_time() - began < 20
        assert len(simulator.sent) == 3
    assert sorted(set(states(engine))) == [("failed", "template"), ("sent", None)]
    assert (report.outcome, report.counts.failed, report.counts.waiting) == (Outcome.PARTIAL, 3, 3)
    (broken,) = (reason for reason in report.reasons if reason.code == "message_broken_text")
    assert (broken.clinic, broken.count) == ("BO01", 3)
    assert "«promemoria, completo, SMS, italiano»" in teller("it").reason(broken).casefold().replace("sms", "SMS")


def test_such_a_text_is_refused_when_it_is_saved_and_a_good_one_is_a_plan(engine: sa.Engine) -> None:
    in_force = sa.text("SELECT body FROM message_template WHERE retired_at IS NULL")
    which: tuple[Any, ...] = ("BO01", "reminder", "plain", "sms", "it")
    with engine.begin() as connection:
        world.clinic(connection)
        with pytest.raises(PermanentError) as refused:
            custom.propose(connection, *which, Text(None, "{{ nome|dictsort }}"), as_of=AS_OF)
        said = teller("it").reason(refused.value.reason)
        assert said == "Il testo non è stato salvato: «| dictsort» non si può usare in un testo."
        bodies = ["{{ clinica }} {{ nome }}", "{{ clinica }}: {{ nome }}, {{ giorno }}"]
        for body in bodies:
            plan, _ = custom.propose(connection, *which, Text(None, body), as_of=AS_OF)
            done = changes.apply(connection, plan.id, as_of=AS_OF, actor="Ada", reason="più chiaro")
            assert done.outcome is Outcome.OK
            assert connection.scalars(in_force).all() == [body]
        same, _ = custom.propose(connection, *which, Text(None, bodies[1]), as_of=AS_OF)
        assert same.counts.changed == 0
        back = changes.undo(connection, plan.id, as_of=AS_OF, actor="Ada", reason="era meglio prima")
        assert (back.outcome, connection.scalars(in_force).all()) == (Outcome.OK, bodies[:1])


class Clumsy(SmsGateway):
    """A carrier with a fault of its own: it does not expect one of the numbers."""

    async def send(self, outgoing: Outgoing) -> Answer:
        if outgoing.address.endswith("5"):
            raise UnicodeError("not expected")
        return await super().send(outgoing)

    async def look_up(self, key: str) -> Answer:
        if self.asked_once:
            return await super().look_up(key)
        self.asked_once = True
        raise ValueError("not expected either")

    asked_once = False


def test_what_a_carrier_does_not_expect_is_one_message_s(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        practice = world.practice(connection)
        for number in range(6):
            patient = world.patient(connection, mobile=f"+39347111222{number}")
            booked(connection, practice, f"{9 + number:02d}:00", patient_id=patient)
    with gateway() as (simulator, providers):
        clumsy: dict[Channel, Provider] = {"sms": Clumsy(simulator_url(providers), DEMO_TOKEN, "Polydesk")}
        report = service.send(engine, AS_OF, "reminder", clumsy)
        assert (len(simulator.sent), report.figures["messages_unknown"]) == (5, 1)
        # asked again, the gateway knows nothing of the sixth, so that it may be tried again
        later = service.send(engine, AS_OF + timedelta(minutes=20), "reminder", clumsy)
        assert later.figures["messages_settled"] == 1
    assert {state for state, _ in states(engine)} <= {"retry", "unknown", "sent"}


def simulator_url(providers: dict[Channel, Provider]) -> str:
    carrier = providers["sms"]
    assert isinstance(carrier, SmsGateway)
    return carrier._messages.removesuffix("/messages")


def test_an_address_beyond_ascii_stops_nobody(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        practice = world.practice(connection)
        for at, address in (("09:00", "a@example.org"), ("10:00", "mario@società.example"), ("11:00", "è@x.example")):
            booked(connection, practice, at, patient_id=mailed(connection, address))
    relay = Relay()
    with relay.listening() as url:
        report = service.send(engine, AS_OF, "reminder", by_mail(url))
    assert len(relay.got) == 2
    assert states(engine) == [("sent", None), ("sent", None), ("failed", "refused")]
    assert report.counts.waiting == 1


# One channel ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("said", ["550 5.7.1 policy", "550 relay not permitted", "550 5.1.1 no such user"])
def test_a_relay_that_refuses_everybody_brands_nobody(engine: sa.Engine, said: str) -> None:
    with engine.begin() as connection:
        crowd(connection, 40)
    relay = Relay(recipient=lambda _: said)
    with relay.listening() as url:
        report = service.send(engine, AS_OF, "reminder", by_mail(url))
        assert (report.outcome, report.reasons[0].code) == (Outcome.FAILED, "message_carrier_closed")
        assert report.counts.updated == 0
        assert blocked(engine) == {}
        assert {state for state, _ in states(engine)} <= {"planned", "retry"}
        relay.recipient = lambda _: "250 ok"
        well = service.send(engine, AS_OF + timedelta(minutes=20), "reminder", by_mail(url))
    assert (well.counts.updated, len(relay.got)) == (40, 40)


@pytest.mark.parametrize(("count", "said"), [(30, "451 4.3.0 later"), (6, "451 4.3.0 later"), (1, "451 later")])
def test_an_outage_of_hours_is_nobody_s_last_attempt(engine: sa.Engine, count: int, said: str) -> None:
    with engine.begin() as connection:
        crowd(connection, count)
    relay = Relay(recipient=lambda _: said)
    with relay.listening() as url:
        for turn in range(9):
            report = service.send(engine, AS_OF + timedelta(minutes=20 * turn), "reminder", by_mail(url))
            assert report.reasons[:1] == () or report.reasons[0].code == "message_carrier_closed"
            assert turn or (len(report.reasons) == 1) is (count > 1)
            assert {state for state, _ in states(engine)} <= {"planned", "retry"}
            assert report.counts.waiting == 0
        relay.recipient = lambda _: "250 ok"
        for more in (0, 20):
            service.send(engine, AS_OF + timedelta(hours=3, minutes=more), "reminder", by_mail(url))
    assert (len(relay.got), set(states(engine))) == (count, {("sent", None)})


def test_texts_that_a_gateway_with_a_fault_never_took_have_no_last_attempt(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        crowd(connection, 6, mail=False)
    with gateway() as (simulator, providers):
        carrier: dict[Channel, Provider] = {"sms": Down(simulator_url(providers), DEMO_TOKEN, "Polydesk")}
        for turn in range(8):
            report = service.send(engine, AS_OF + timedelta(minutes=20 * turn), "reminder", carrier)
            assert report.counts.failed == 0
            assert turn or report.reasons[0].code == "message_carrier_closed"
        service.send(engine, AS_OF + timedelta(hours=4), "reminder", providers)
        assert len(simulator.sent) == 6
    assert set(states(engine)) == {("sent", None)}


class Down(SmsGateway):
    """Answers questions, and takes nothing."""

    async def send(self, _: Outgoing) -> Answer:
        return Answer(Fate.DOUBTFUL, code="503")


def test_what_is_put_off_while_others_are_taken_is_its_own_and_ends(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        practice = world.practice(connection)
        booked(connection, practice, "09:00", patient_id=mailed(connection, "later@example.org"))
    with Relay(recipient=lambda a: "452 4.2.2 full" if a.startswith("later") else "250 ok").listening() as url:
        for number in range(6):
            with engine.begin() as connection:
                other = mailed(connection, f"p{number}@example.org")
                booked(connection, practice, f"{10 + number}:00", patient_id=other)
            service.send(engine, AS_OF + timedelta(minutes=75 * number), "reminder", by_mail(url))
    assert states(engine)[0] == ("failed", "exhausted")


def test_a_few_bad_addresses_among_many_are_their_own_fault(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        crowd(connection, 30)
    bad = {"p3@example.org": "550 5.1.1 no such user", "p7@example.org": "550 5.7.1 your message looks odd"}
    with Relay(recipient=lambda address: bad.get(address, "250 ok")).listening() as url:
        report = service.send(engine, AS_OF, "reminder", by_mail(url))
    assert (report.outcome, report.counts.updated, report.counts.failed) == (Outcome.PARTIAL, 28, 2)
    assert blocked(engine) == {"p3@example.org": (True, 0)}


def test_a_soft_refusal_takes_two_and_ends_by_itself(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        practice = world.practice(connection)
        patient = mailed(connection, "p@example.org")
    relay = Relay(recipient=lambda _: "550 5.2.1 mailbox disabled")

    def day(number: int) -> list[tuple[str, str | None]]:
        as_of = AS_OF + timedelta(days=number)
        with engine.begin() as connection:
            booked(connection, practice, "12:00", day=str((as_of + timedelta(days=1)).date()), patient_id=patient)
        service.send(engine, as_of, "reminder", by_mail(url))
        return states(engine)

    with relay.listening() as url:
        assert day(0)[-1] == ("failed", "refused")
        assert blocked(engine) == {"p@example.org": (False, 1)}
        assert day(1)[-1] == ("failed", "refused")
        assert blocked(engine) == {"p@example.org": (False, 2)}
        relay.recipient = lambda _: "250 ok"
        assert day(2)[-1] == ("withheld", "no_address")
        assert day(34)[-1] == ("sent", None)


@pytest.mark.parametrize(
    ("why", "strikes"), [("unknown_number", (True, 0)), ("absent", (False, 1)), ("network", None), ("new", None)]
)
def test_a_text_that_cannot_be_delivered_blames_the_number_only_where_it_says_so(
    engine: sa.Engine, why: str, strikes: tuple[bool, int] | None
) -> None:
    with engine.begin() as connection:
        practice = world.practice(connection)
        booked(connection, practice, "12:00", patient_id=world.patient(connection, mobile="+393471112223"))
    with gateway() as (simulator, providers):
        service.send(engine, AS_OF, "reminder", providers)
        (message,) = simulator.sent
        message.status, message.reason = "undeliverable", why
        service.send(engine, AS_OF + timedelta(minutes=20), "reminder", providers)
    assert blocked(engine).get("+393471112223") == strikes


def lost_texts(engine: sa.Engine, simulator: Any, count: int) -> list[Any]:
    """Texts of which the gateway says, wrongly, that their numbers do not exist."""
    for message in simulator.sent[:count]:
        message.status, message.reason = "undeliverable", "unknown_number"
    return list(simulator.sent[:count])


@pytest.mark.parametrize(("count", "at_fault"), [(30, True), (12, False)])
def test_a_gateway_that_knows_nobody_s_number_brands_nobody(engine: sa.Engine, count: int, at_fault: bool) -> None:
    with engine.begin() as connection:
        crowd(connection, 30, mail=False)
    with gateway() as (simulator, providers):
        service.send(engine, AS_OF, "reminder", providers)
        lost_texts(engine, simulator, count)
        for message in simulator.sent[count:]:
            message.end()
        report = service.send(engine, AS_OF + timedelta(minutes=20), "reminder", providers)
    assert len(blocked(engine)) == (0 if at_fault else count)
    assert (report.reasons[0].code == "message_receipts_alike") is at_fault
    assert at_fault is not any(reason.code == "message_undelivered" for reason in report.reasons)


def test_the_same_told_one_by_one_lifts_what_was_blocked_before_it_was_known(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        crowd(connection, 30, mail=False)
    with gateway() as (simulator, providers):
        service.send(engine, AS_OF, "reminder", providers)
        for minute, message in enumerate(lost_texts(engine, simulator, 30)):
            at = AS_OF + timedelta(minutes=1, seconds=minute)
            told = receipts.Told(message.id, became(message.id, message.status, message.reason), at)
            with engine.begin() as connection:
                receipts.keep(connection, [told], at)
                receipts.settle(connection, at)
        report = service.send(engine, AS_OF + timedelta(minutes=20), "reminder", providers)
    assert report.reasons[0].code == "message_receipts_alike"
    with engine.connect() as connection:
        in_force = connection.scalar(
            sa.text(f"SELECT count(*) FROM message_block b WHERE {blocks.IN_FORCE}"), {"at": AS_OF + timedelta(hours=1)}
        )
    assert in_force == 0


def test_lifting_a_block_says_who_and_why_and_a_new_stop_blocks_again(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        practice = world.practice(connection)
        patient = world.patient(connection, mobile="+393471112223", email=None)
        assert texted(connection, "0039 347 1112223", "STOP", AS_OF) == "stopped"
        later = AS_OF + timedelta(minutes=1)
        lifted = {"who": "Ada", "why": "lo chiede lei", "as_of": later}
        assert blocks.lift(connection, "sms", ["+393471112223"], **lifted)
        assert not blocks.lift(connection, "sms", ["+393471112223"], **lifted)
        booked(connection, practice, "12:00", patient_id=patient)
    with gateway() as (simulator, providers):
        service.send(engine, later, "reminder", providers)
        assert len(simulator.sent) == 1
        with engine.begin() as connection:
            assert texted(connection, "+393471112223", "Stop", AS_OF + timedelta(hours=1)) == "stopped"
            booked(connection, practice, "13:00", patient_id=patient)
            row = connection.execute(sa.text("SELECT cause, lifted_by, lift_reason FROM message_block")).one()
        service.send(engine, AS_OF + timedelta(hours=2), "reminder", providers)
    assert tuple(row) == ("stop", "Ada", "lo chiede lei")
    assert states(engine)[-1] == ("withheld", "opted_out")


# One person ----------------------------------------------------------------------------------------------------------


class Slow(SmsGateway):
    """A gateway that takes its time, and tells when it has a text."""

    def __init__(self, *given: Any, first: Any, **options: Any) -> None:
        super().__init__(*given, **options)
        self.first = first

    async def send(self, outgoing: Outgoing) -> Answer:
        if self.first is not None:
            first, self.first = self.first, None
            await asyncio.to_thread(first)
        return await super().send(outgoing)


def test_texts_that_wait_their_turn_are_tested_again_as_they_leave(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        crowd(connection, 40, mail=False)
        connection.execute(sa.text("UPDATE message_policy SET sms_per_second = 4 WHERE clinic_id IS NULL"))

    def cancel() -> None:
        with engine.begin() as connection:
            connection.execute(sa.text("UPDATE appointment SET status = 'cancelled', cancelled_at = now()"))

    with gateway() as (simulator, providers):
        slow: dict[Channel, Provider] = {"sms": Slow(simulator_url(providers), DEMO_TOKEN, "Polydesk", first=cancel)}
        service.send(engine, AS_OF, "reminder", slow)
        # the one whose sending had begun, and those that were asked about together with it
        assert len(simulator.sent) <= 20
    assert {state for state, _ in states(engine)} <= {"sent", "withheld"}
    assert ("withheld", "cancelled") in states(engine)


def test_a_doubt_about_one_time_does_not_silence_another(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        practice = world.practice(connection)
        moved = booked(connection, practice, "09:00", patient_id=mailed(connection, "a@example.org"))
        back = booked(connection, practice, "10:00", patient_id=mailed(connection, "b@example.org"))
    relay = Relay(leaves_after_data=True)
    with relay.listening() as url:
        service.send(engine, AS_OF, "reminder", by_mail(url))
        assert states(engine) == [("unknown", None)] * 2
        relay.leaves_after_data = False
        with engine.begin() as connection:
            move(connection, moved, world.rome("2026-03-11", "15:00"))
            move(connection, back, world.rome("2026-03-11", "16:00"))
            move(connection, back, world.rome("2026-03-11", "10:00"))
        report = service.send(engine, AS_OF + timedelta(minutes=20), "reminder", by_mail(url))
        (told,) = relay.got[2:]
    assert b"15:00" in told
    assert [(r.clinic, r.count) for r in report.reasons if r.code == "message_behind_doubt"] == [("BO01", 1)]
    assert report.counts.waiting == 3


def test_whose_patient_is_unsure_waits_and_the_run_says_for_what(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        practice = world.practice(connection)
        patient = world.patient(connection)
        booked(connection, practice, patient_id=patient)
        connection.execute(
            sa.text("""
                INSERT INTO patient_link (clinic_id, external_id, patient_id, made_by, made_at, suspended_at,
                                          suspended_reason)
                VALUES (:clinic, 'P1', :patient, 'person', :at, :at, 'fiscal_code')"""),
            {"clinic": practice.clinic, "patient": patient, "at": AS_OF},
        )
    with gateway() as (simulator, providers):
        report = service.send(engine, AS_OF, "reminder", providers)
        assert simulator.sent == []
    assert report.counts.waiting == 1
    assert [reason.code for reason in report.reasons] == ["message_suspended"]


def test_three_people_on_one_telephone_are_initials_whichever_field_it_is_in(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        practice = world.practice(connection)
        for number, at in enumerate(("09:00", "10:00", "11:00")):
            fields = (
                {"mobile": "+393470009991", "phone": None}
                if number == 2
                else {"mobile": None, "phone": "+393470009991"}
            )
            patient = world.patient(connection, first_name="Anna", last_name="Verdi", email=None, **fields)
            booked(connection, practice, at, patient_id=patient)
        at_home = {"mobile": None, "email": "Casa@Example.org"}
        for at in ("12:00", "13:00"):
            booked(connection, practice, at, patient_id=world.patient(connection, last_name="Verdi", **at_home))
    relay = Relay()
    with gateway() as (simulator, providers), relay.listening() as url:
        service.send(engine, AS_OF, "reminder", {**providers, **by_mail(url)})
        texts = [message.text for message in simulator.sent]
    assert (len(texts), len(relay.got)) == (3, 2)
    assert all("A. V." in text for text in texts)
    assert not [text for text in [*texts, *(raw.decode() for raw in relay.got)] if "Verdi" in text or "cardio" in text]


def test_a_name_that_tells_of_health_is_not_told_until_somebody_has_decided(engine: sa.Engine) -> None:
    from polydesk_dagster.clinic.messages import sensitivity

    with engine.begin() as connection:
        practice = world.practice(connection)
        proposed = world.service(connection, practice.clinic, code="S1", name="Colloquio psichiatrico")
        booked(connection, practice, "09:00", service_id=proposed)
        assert [service.code for service in sensitivity.undecided(connection)] == ["S1"]
    with gateway() as (simulator, providers):
        service.send(engine, AS_OF, "reminder", providers)
        with engine.begin() as connection:
            assert sensitivity.decide(connection, "BO01", "S1", sensitive=False, who="Ada", at=AS_OF)
            assert sensitivity.undecided(connection) == []
            booked(connection, practice, "10:00", service_id=proposed)
        service.send(engine, AS_OF, "reminder", providers)
        assert ["psichiatrico" in message.text for message in simulator.sent] == [False, True]


def test_siblings_with_the_same_initials_are_told_apart_and_a_report_goes_to_the_guardian(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        practice = world.practice(connection)
        parent = world.patient(connection, first_name="Ada", last_name="Neri")
        child = {"last_name": "Neri", "birth_date": date(2018, 5, 1), "guardian_id": parent, "mobile": None}
        ugo, ulla = (world.patient(connection, first_name=name, **child) for name in ("Ugo", "Ulla"))
        booked(connection, practice, "10:00", patient_id=ugo)
        booked(connection, practice, "11:00", patient_id=ulla)
        row = {"clinic_id": practice.clinic, "external_id": "R1", "patient_id": ugo, "title": "Referto"}
        world.insert(connection, "report", [{**row, "published_at": AS_OF, "updated_at": AS_OF}])
        planning.enqueue(
            connection,
            "report_ready",
            """SELECT clinic_id, 'report' AS subject, id AS subject_id, version, 'patient' AS recipient_type,
                      patient_id AS recipient_id, CAST(:as_of AS timestamptz) + interval '2 days' AS expires_at,
                      CAST(NULL AS jsonb) AS context FROM report""",
            {},
            AS_OF,
        )
    with gateway() as (simulator, providers):
        service.send(engine, AS_OF, "reminder", providers)
        texts = sorted(message.text for message in simulator.sent)
    assert len(texts) == 2
    assert "(Ugo N.)" in texts[0]
    assert "(Ulla N.)" in texts[0]
    assert "Ada Neri, un documento di U. N. è pronto" in texts[1]


def test_a_clinic_without_a_telephone_does_not_offer_one(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        practice = world.practice(connection)
        connection.execute(sa.text("UPDATE clinic SET phone = NULL"))
        booked(connection, practice)
    with gateway() as (simulator, providers):
        service.send(engine, AS_OF, "reminder", providers)
        assert simulator.sent[0].text.endswith("Prima visita cardiologica")


def test_who_booked_days_ago_is_reminded_and_who_was_just_told_is_not(engine: sa.Engine) -> None:
    noon = world.rome("2026-03-11", "12:00")
    with engine.begin() as connection:
        practice = world.practice(connection)
        confirmed = booked(connection, practice, "12:00", created_at=noon - timedelta(hours=23))
        booked(connection, practice, "12:30", created_at=noon - timedelta(hours=23))
        booked(connection, practice, "13:00", created_at=noon - timedelta(hours=72))
        connection.execute(sa.text("UPDATE message_policy SET just_booked_hours = 24, confirmations = true"))
        connection.execute(sa.text("DELETE FROM message_recheck WHERE appointment_id = :id"), {"id": confirmed})
    with gateway() as (simulator, providers):
        with engine.begin() as connection:
            connection.execute(sa.text("UPDATE message_policy SET confirmations = false"))
        service.send(engine, AS_OF + timedelta(hours=3), "reminder", providers)
        assert len(simulator.sent) == 3


def test_a_confirmation_that_went_out_is_reminder_enough(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        practice = world.practice(connection)
        connection.execute(sa.text("UPDATE message_policy SET confirmations = true"))
        booked(connection, practice, "09:00", day="2026-03-11", created_at=world.rome("2026-03-10", "09:30"))
        booked(connection, practice, "09:30", day="2026-03-20", created_at=world.rome("2026-03-10", "09:30"))
    early = world.rome("2026-03-10", "09:40")
    with gateway() as (simulator, providers):
        service.send(engine, early, "reminder", providers)
        assert [message.text.count("abbiamo prenotato per lei") for message in simulator.sent] == [1, 1]
        service.send(engine, early + timedelta(hours=2), "reminder", providers)
        assert len(simulator.sent) == 2
        service.send(engine, world.rome("2026-03-19", "11:00"), "reminder", providers)
        assert len(simulator.sent) == 3
    assert ("withheld", "just_booked") in states(engine)


def test_what_reached_nobody_is_called_and_never_inside_an_ok(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        practice = world.practice(connection)
        dead = world.patient(connection, first_name="Ada", last_name="Neri", deceased_on=date(2026, 3, 1))
        child = {"birth_date": date(2018, 5, 1), "guardian_id": dead, "mobile": None, "email": None}
        orphan = booked(connection, practice, "09:00", patient_id=world.patient(connection, **child))
        nowhere = booked(
            connection,
            practice,
            "10:00",
            patient_id=world.patient(connection, mobile=None, email=None, phone="+39051444"),
        )
        booked(connection, practice, "11:00", patient_id=dead)
        booked(connection, practice, "12:00", patient_id=practice.patient)
    with gateway() as (_, providers):
        report = service.send(engine, AS_OF, "reminder", providers)
        assert (report.outcome, report.counts.updated, report.counts.waiting) == (Outcome.PARTIAL, 1, 2)
        again = service.send(engine, AS_OF + timedelta(minutes=20), "reminder", providers)
        assert (again.outcome, again.counts.waiting) == (Outcome.NOTHING_TO_DO, 2)
    with engine.begin() as connection:
        found = calls.to_make(connection, AS_OF)
        assert [(call.appointment_id, call.reason) for call in found] == [(orphan, "deceased"), (nowhere, "no_address")]
        assert teller("it").value(found[0].start) == "11/03/2026 09:00"
        assert found[1].phones == ("+39051444",)
        assert calls.done(connection, found[0].id, who="Ada", outcome="avvisata la zia", at=AS_OF + timedelta(hours=1))
        steps = [step.what for step in story.of(connection, "appointment", orphan)]
        assert steps == ["planned", "withheld", "to_call", "called"]
    with gateway() as (_, providers):
        after = service.send(engine, AS_OF + timedelta(days=1), "reminder", providers)
        assert after.counts.waiting == 0
    with engine.connect() as connection:
        assert set(connection.scalars(sa.text("SELECT outcome FROM call_list"))) == {"avvisata la zia", "past"}


def test_an_outage_until_the_visit_is_no_ok(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        booked(connection, world.practice(connection), "09:00")
    dead: dict[Channel, Provider] = {"sms": SmsGateway("http://127.0.0.1:9", "x", "Polydesk")}
    service.send(engine, AS_OF, "reminder", dead)
    with gateway() as (simulator, providers):
        report = service.send(engine, world.rome("2026-03-11", "09:05"), "reminder", providers)
        assert simulator.sent == []
    assert report.outcome not in {Outcome.OK, Outcome.NOTHING_TO_DO}
    assert report.counts.updated == 0


@pytest.mark.parametrize(
    ("reach", "language", "told", "pieces"),
    [
        (NOWHERE, "it", "Ci chiami per le istruzioni", 1),
        (Reach("https://polydesk.example"), "it", "Conferma o disdetta: https://polydesk.example/v/", 2),
        (Reach("https://polydesk.example"), "de", "Zusagen oder absagen: https://polydesk.example/v/", 2),
    ],
)
def test_one_sign_does_not_make_thirty_three_texts_and_a_long_one_goes_by_mail(
    engine: sa.Engine, reach: Reach, language: str, told: str, pieces: int
) -> None:
    long = "Bere l´acqua a 37° • " + "niente cibo solido. " * 100
    with engine.begin() as connection:
        practice = world.practice(connection)
        service_id = world.service(
            connection, practice.clinic, preparation=long, preparation_lead_days=1, preparation_last_hours=12
        )
        both = world.patient(connection, email="a@example.org")
        for at, patient in (("11:00", both), ("12:00", world.patient(connection, email=None))):
            booked(connection, practice, at, patient_id=patient, service_id=service_id)
        connection.execute(sa.text("UPDATE patient SET language = :language"), {"language": language})
        connection.execute(sa.text("UPDATE message_policy SET sms_segment_cost = 0.05 WHERE clinic_id IS NULL"))
    relay = Relay()
    with gateway() as (simulator, providers), relay.listening() as url:
        preview = service.send(engine, AS_OF, "preparation", {**providers, **by_mail(url)}, preview=True, reach=reach)
        report = service.send(engine, AS_OF, "preparation", {**providers, **by_mail(url)}, reach=reach)
        (text,) = simulator.sent
    assert told in text.text
    assert len(relay.got) == 1
    assert report.figures["messages_segments"] == pieces
    assert teller("it").value(report.figures["messages_cost"]).startswith("0,05" if pieces == 1 else "0,10")
    assert preview.figures["messages_cost"] == report.figures["messages_cost"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("STOP", "stop"), (" Stop.", "stop"), ("STOPALL", "stop"), ("Buongiorno, STOP", "stop"),
        ("stop grazie", "stop"),
        ("Basta SMS!", "stop"), ("Cancellami, per favore", "stop"), ("Non scrivetemi più", "stop"),
        ("Cancella l'appuntamento di domani", None), ("cancella", None),
        ("Annulla", None),
        ("non posso stop domani", None),
        ("Stop, ma confermo la visita", None), ("", None), ("START", "start"),
        ("1", "confirm"), ("1.", "confirm"), ("1 grazie", "confirm"), ("Confermo!", "confirm"), ("2", "cancel"),
        ("disdico", "cancel"), ("si", None), ("ok", None), ("12", None), ("1 2", None), ("alle 2", None),
        ("riprendi grazie", "start"),
    ],
)  # fmt: skip
def test_the_grammar_of_stop_is_closed(text: str, said: str | None) -> None:
    assert preferences.read(text) == said


@pytest.mark.parametrize(
    "typed", ["+39 347 111 2223", "00393471112223", "393471112223", "347 1112223", "+393471112223"]
)
def test_a_number_however_it_is_written_is_one_number(typed: str) -> None:
    assert preferences.read_address(typed) == ("sms", "+393471112223")


def test_an_activation_that_failed_for_now_is_retried_by_the_schedule(engine: sa.Engine) -> None:
    from polydesk_dagster.clinic.messages import activation

    with engine.begin() as connection:
        world.user(
            connection, world.clinic(connection), email="mai@example.org", state="never_invited", invited_at=None
        )
    relay = Relay(recipient=lambda _: "451 4.3.0 later")
    with relay.listening() as url:
        activation.resend(engine, AS_OF, by_mail(url))
        relay.recipient = lambda _: "250 ok"
        later = AS_OF + timedelta(minutes=20)
        with engine.connect() as connection:
            assert due.nothing_due(["reminder", "activation"], connection, later) is None
        assert service.send(engine, later, "reminder", by_mail(url)).counts.updated == 1
    assert len(relay.got) == 1
