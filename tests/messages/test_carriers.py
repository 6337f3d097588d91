from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from polydesk_dagster.clinic.messages import hours, planning, service
from polydesk_dagster.clinic.messages.kinds import Channel
from polydesk_dagster.clinic.messages.provider import Provider
from polydesk_dagster.demo import mailbox
from polydesk_dagster.outcome import Outcome
from polydesk_dagster.providers.sms import SmsGateway
from polydesk_dagster.providers.smtp import MailRelay
from tests import world
from tests.messages.relay import Relay
from tests.messages.world import AS_OF, SENDER, booked, by_mail, gateway, states
from tests.waiting import PATIENCE


@pytest.fixture
def mail(tmp_path: Path) -> Iterator[tuple[Path, Provider]]:
    with mailbox.in_thread(tmp_path / "mail") as url:
        yield tmp_path / "mail", MailRelay(url, SENDER, patience=PATIENCE)


def addressed(folder: Path) -> list[str]:
    return sorted(str(message["To"]) for message in mailbox.received(folder))


def test_a_permanent_refusal_falls_back_and_is_remembered(engine: sa.Engine, mail: tuple[Path, Provider]) -> None:
    folder, relay = mail
    with engine.begin() as connection:
        practice = world.practice(connection)
        unborn = world.patient(connection, mobile="+393470010001", email="a@example.org")
        refused = world.patient(connection, mobile="+393470010000", email="b@example.org")
        nowhere = world.patient(connection, mobile="+393470020000", email="rifiutata@example.org")
        for at, patient in (("09:00", unborn), ("10:00", refused), ("11:00", nowhere)):
            booked(connection, practice, at, patient_id=patient)
    with gateway() as (_, providers):
        report = service.send(engine, AS_OF, "reminder", {**providers, "email": relay})
    assert (report.counts.updated, report.counts.failed) == (2, 1)
    assert addressed(folder) == ["a@example.org", "b@example.org"]
    assert states(engine) == [("sent", None), ("sent", None), ("failed", "refused")]
    with engine.connect() as connection:
        blocked = connection.execute(
            sa.text("SELECT address, cause, strikes FROM message_block ORDER BY address")
        ).all()
    assert [tuple(row) for row in blocked] == [
        ("+393470010000", "refused", 1), ("+393470010001", "refused", 0), ("+393470020000", "refused", 1),
        ("rifiutata@example.org", "bounced", 0),
    ]  # fmt: skip


def test_a_text_that_never_arrives_falls_back_while_the_appointment_is_ahead(
    engine: sa.Engine, mail: tuple[Path, Provider]
) -> None:
    folder, relay = mail
    with engine.begin() as connection:
        practice = world.practice(connection)
        lost = world.patient(connection, mobile="+393470010002", email="a@example.org")
        nowhere = world.patient(connection, mobile="+393470020002", email=None)
        for at, patient in (("12:00", lost), ("12:30", nowhere), ("13:00", practice.patient)):
            booked(connection, practice, at, patient_id=patient)
    with gateway() as (simulator, providers):
        carriers: dict[Channel, Provider] = {**providers, "email": relay}
        assert service.send(engine, AS_OF, "reminder", carriers).counts.updated == 3
        service.send(engine, AS_OF + timedelta(minutes=5), "reminder", carriers)
        assert [request["method"] for request in simulator.requests] == ["POST"] * 3
        report = service.send(engine, AS_OF + timedelta(minutes=20), "reminder", carriers)
        assert (report.figures["messages_delivered"], report.figures["messages_undelivered"]) == (1, 2)
        assert (report.counts.updated, report.counts.failed) == (1, 1)
        asked = len(simulator.requests)
        service.send(engine, AS_OF + timedelta(hours=3), "reminder", carriers)
        assert len(simulator.requests) == asked == 6
    assert addressed(folder) == ["a@example.org"]
    assert states(engine) == [("sent", None), ("failed", "refused"), ("sent", None)]
    with engine.connect() as connection:
        rows = connection.execute(sa.text("SELECT channel, delivery, refused_channels FROM message ORDER BY id")).all()
        blocked = connection.scalars(sa.text("SELECT address FROM message_block ORDER BY 1")).all()
    assert sorted((r.channel, r.delivery or "", len(r.refused_channels)) for r in rows) == [
        ("email", "", 1), ("sms", "delivered", 0), ("sms", "undelivered", 1),
    ]  # fmt: skip
    assert blocked == ["+393470010002", "+393470020002"]


@pytest.mark.parametrize(("kind", "after", "called"), [("reminder", 30, []), ("preparation", 8, ["too_late"])])
def test_what_never_arrived_and_is_of_no_use_any_more_is_not_sent_again(
    engine: sa.Engine, mail: tuple[Path, Provider], kind: str, after: int, called: list[str]
) -> None:
    folder, relay = mail
    with engine.begin() as connection:
        practice = world.practice(connection)
        service_id = world.service(connection, practice.clinic, preparation="A digiuno.", preparation_last_hours=20)
        lost = world.patient(connection, mobile="+393470010002", email="a@example.org")
        booked(connection, practice, "12:00", patient_id=lost, service_id=service_id)
    with gateway() as (simulator, providers):
        carriers: dict[Channel, Provider] = {**providers, "email": relay}
        service.send(engine, AS_OF, kind, carriers)
        later = AS_OF + timedelta(hours=after)
        report = service.send(engine, later, "reminder", {"sms": providers["sms"]})
        assert report.figures["messages_undelivered"] == 1
        service.send(engine, later, kind, carriers)
        assert len(simulator.sent) >= 1
    assert addressed(folder) == []
    with engine.connect() as connection:
        assert connection.scalars(sa.text("SELECT reason FROM call_list")).all() == called


def test_a_gateway_that_cannot_say_is_asked_less_and_less_and_fails_no_run(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        practice = world.practice(connection)
        for hour in range(20):
            booked(connection, practice, f"{9 + hour // 2:02d}:{hour % 2 * 30:02d}")
    with gateway() as (simulator, providers):
        service.send(engine, AS_OF, "reminder", providers)
        asked = []
        for minutes, fault in ((20, {"status": 429}), (40, {"status": 500}), (50, {}), (60, {}), (125, {}), (500, {})):
            before = len(simulator.requests)
            kind = "status" if fault else "set"
            simulator.fail(kind, "/messages", times=None, **(fault or {"field": "status", "value": "accepted"}))
            report = service.send(engine, AS_OF + timedelta(minutes=minutes), "reminder", providers)
            assert (report.outcome, report.counts.failed) == (Outcome.NOTHING_TO_DO, 0)
            asked.append(len(simulator.requests) - before)
            simulator.faults.clear()
    assert asked[0] < 20
    assert asked[1] < 20
    assert asked[2:] == [20, 0, 20, 20]
    with engine.connect() as connection:
        rows = connection.execute(sa.text("SELECT DISTINCT state, delivery, delivery_asked FROM message")).all()
    assert [tuple(row) for row in rows] == [("sent", None, 3)]


def test_a_temporary_refusal_never_falls_back(engine: sa.Engine, mail: tuple[Path, Provider]) -> None:
    folder, relay = mail
    with engine.begin() as connection:
        booked(connection, world.practice(connection))
    with gateway() as (simulator, providers):
        carriers: dict[Channel, Provider] = {**providers, "email": relay}
        simulator.fail("status", "/messages", status=408, times=2)
        for minutes in (0, 3, 4, 12):
            service.send(engine, AS_OF + timedelta(minutes=minutes), "reminder", carriers)
        assert len(simulator.sent) == 1
    assert addressed(folder) == []


def test_a_doubt_is_settled_by_asking_in_the_same_run(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        practice = world.practice(connection)
        booked(connection, practice, "09:00")
        booked(connection, practice, "10:00")
    with gateway() as (simulator, providers):
        simulator.fail("cut", "/messages")
        simulator.fail("status", "/messages", status=503, after=1)
        report = service.send(engine, AS_OF, "reminder", providers)
        assert report.figures["messages_unknown"] == 0
        service.send(engine, AS_OF + timedelta(minutes=2), "reminder", providers)
        assert sorted(message.times for message in simulator.sent) == [1, 1]
    assert states(engine) == [("sent", None), ("sent", None)]


def test_a_gateway_that_is_down_costs_nobody_an_attempt(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        practice = world.practice(connection)
        for minute in range(9):
            booked(connection, practice, f"{9 + minute // 2:02d}:{minute % 2 * 30:02d}")
    dead: dict[Channel, Provider] = {"sms": SmsGateway("http://127.0.0.1:9", "x", "Polydesk")}
    report = service.send(engine, AS_OF, "reminder", dead)
    assert (report.outcome, report.reasons[0].code) == (Outcome.FAILED, "message_carrier_closed")
    with gateway() as (simulator, providers):
        assert service.send(engine, AS_OF + timedelta(hours=2), "reminder", providers).counts.updated == 9
        assert len(simulator.sent) == 9
    with engine.connect() as connection:
        assert set(connection.scalars(sa.text("SELECT attempts FROM message"))) == {1}


def test_silence_over_smtp_stays_a_doubt_for_a_person(engine: sa.Engine) -> None:
    from polydesk_dagster.clinic.messages import health, ledger

    relay = Relay(leaves_after_data=True)
    with engine.begin() as connection:
        practice = world.practice(connection)
        mute = world.patient(connection, mobile=None, email="anna@example.org")
        booked(connection, practice, patient_id=mute)
    with relay.listening() as url:
        report = service.send(engine, AS_OF, "reminder", by_mail(url))
        assert (report.counts.waiting, report.figures["messages_unknown"]) == (1, 1)
        assert report.outcome is Outcome.REFUSED
        service.send(engine, AS_OF + timedelta(hours=1), "reminder", by_mail(url))
    assert len(relay.got) == 1
    with engine.begin() as connection:
        (doubt,) = health.unknown(connection)
        assert ledger.settle(connection, doubt.id, arrived=True, who="desk", at=AS_OF)
        assert not ledger.settle(connection, doubt.id, arrived=False, who="desk", at=AS_OF)
    assert states(engine) == [("sent", None)]


def test_two_planners_at_once_plan_each_appointment_once(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        practice = world.practice(connection)
        for hour in range(9, 13):
            booked(connection, practice, f"{hour:02d}:00")
    start = threading.Barrier(3)
    planned = []

    def plan(clinic: str | None) -> None:
        with engine.begin() as connection:
            clinics = hours.load(connection, AS_OF, clinic)
            start.wait(PATIENCE)
            planned.append(planning.plan(connection, "reminder", AS_OF, clinics).messages)

    threads = [threading.Thread(target=plan, args=(clinic,)) for clinic in (None, "BO01", None)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert sorted(planned) == [0, 0, 4]
