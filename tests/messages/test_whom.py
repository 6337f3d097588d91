"""Who a message is for, what it tells her, and what is done where it reaches nobody."""

from __future__ import annotations

from datetime import date, timedelta

import pytest
import sqlalchemy as sa

from polydesk_dagster.clinic.messages import calls, due, planning, preferences, service, story
from polydesk_dagster.clinic.messages.kinds import Channel
from polydesk_dagster.clinic.messages.links import NOWHERE, Reach
from polydesk_dagster.clinic.messages.provider import Provider
from polydesk_dagster.outcome import Outcome
from polydesk_dagster.providers.sms import SmsGateway
from polydesk_dagster.told import teller
from tests import world
from tests.messages.relay import Relay
from tests.messages.world import AS_OF, booked, by_mail, gateway, mailed, move, states


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
