"""Whose fault it is that a message did not go, and what is done about it: one item, one channel, one person."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from polydesk_dagster import changes
from polydesk_dagster.clinic.messages import blocks, custom, receipts, service
from polydesk_dagster.clinic.messages.kinds import Channel
from polydesk_dagster.clinic.messages.provider import Answer, Fate, Outgoing, Provider
from polydesk_dagster.clinic.messages.templates import Text
from polydesk_dagster.demo.simulators.server import DEMO_TOKEN
from polydesk_dagster.errors import PermanentError
from polydesk_dagster.outcome import Outcome
from polydesk_dagster.providers.sms import SmsGateway, became
from polydesk_dagster.told import teller
from tests import world
from tests.messages.relay import Relay
from tests.messages.world import AS_OF, booked, by_mail, gateway, mailed, states, texted


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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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
