from __future__ import annotations

from datetime import date, timedelta

import pytest
import sqlalchemy as sa

from polydesk_dagster.clinic.messages import due, hours, planning, preferences, service, volume
from polydesk_dagster.errors import PermanentError
from polydesk_dagster.outcome import Outcome
from tests import world
from tests.messages.world import AS_OF, booked, gateway, move, states, texted


def test_a_reminder_goes_out_once_and_a_second_run_does_nothing(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        practice = world.practice(connection)
        booked(connection, practice, "09:30")
        booked(connection, practice, "10:00", day="2026-03-12")
    with gateway() as (simulator, providers):
        report = service.send(engine, AS_OF, "reminder", providers)
        assert (report.outcome, report.counts.created, report.counts.updated) == (Outcome.OK, 1, 1)
        (message,) = simulator.sent
        assert message.text == (
            "Poliambulatorio BO01: Mario Rossi, le ricordiamo l'appuntamento di mercoledì 11 marzo, "
            "ore 09:30 Prima visita cardiologica. Per disdire: +39 051 000 0000"
        )
        again = service.send(engine, AS_OF + timedelta(minutes=20), "reminder", providers)
        assert (again.outcome, again.counts.changed, len(simulator.sent)) == (Outcome.NOTHING_TO_DO, 0, 1)
    with engine.connect() as connection:
        assert due.nothing_due(["reminder"], connection, AS_OF) is not None


def test_each_run_looks_only_at_what_came_within_reach_or_changed(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        practice = world.practice(connection)
        appointment = booked(connection, practice, "09:30", day="2026-03-12")
    with gateway() as (simulator, providers):
        service.send(engine, AS_OF, "reminder", providers)
        assert simulator.sent == []
        with engine.begin() as connection:
            assert due.nothing_due(["reminder"], connection, AS_OF)
            move(connection, appointment, world.rome("2026-03-11", "12:00"))
            assert due.nothing_due(["reminder"], connection, AS_OF) is None
        service.send(engine, AS_OF, "reminder", providers)
        assert len(simulator.sent) == 1
        service.send(engine, AS_OF + timedelta(days=1), "reminder", providers)
        assert len(simulator.sent) == 1


@pytest.mark.parametrize("also_at_b", [False, True])
def test_moved_away_and_back_is_told_again_only_if_the_other_start_was_told(engine: sa.Engine, also_at_b: bool) -> None:
    a, b = world.rome("2026-03-11", "09:30"), world.rome("2026-03-11", "11:00")
    with engine.begin() as connection:
        practice = world.practice(connection)
        appointment = booked(connection, practice, "09:30")
    with gateway() as (simulator, providers):
        service.send(engine, AS_OF, "reminder", providers)
        with engine.begin() as connection:
            move(connection, appointment, b)
        if also_at_b:
            service.send(engine, AS_OF + timedelta(minutes=20), "reminder", providers)
        with engine.begin() as connection:
            move(connection, appointment, a)
        service.send(engine, AS_OF + timedelta(minutes=40), "reminder", providers)
        assert len(simulator.sent) == (3 if also_at_b else 1)
    assert states(engine)[-1] == (("sent", None) if also_at_b else ("withheld", "already_told"))


def test_what_is_moved_or_cancelled_between_planning_and_sending_is_not_sent(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        practice = world.practice(connection)
        moved, cancelled, kept = (booked(connection, practice, at) for at in ("09:00", "10:00", "11:00"))
    with engine.begin() as connection:
        clinics = hours.load(connection, AS_OF)
        assert planning.plan(connection, "reminder", AS_OF, clinics).messages == 3
    with engine.begin() as connection:
        move(connection, moved, world.rome("2026-03-20", "09:00"))
        connection.execute(
            sa.text("UPDATE appointment SET status = 'cancelled', cancelled_at = :now WHERE id = :id"),
            {"now": AS_OF, "id": cancelled},
        )
    with gateway() as (simulator, providers):
        service.send(engine, AS_OF, "reminder", providers)
        assert len(simulator.sent) == 1
    assert states(engine) == [("withheld", "moved"), ("withheld", "cancelled"), ("sent", None)]
    assert kept


def test_one_person_one_day_one_message(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        practice = world.practice(connection)
        booked(connection, practice, "09:00", patient_id=practice.patient)
        later = booked(connection, practice, "11:00", patient_id=practice.patient)
    with gateway() as (simulator, providers):
        with engine.begin() as connection:
            planning.plan(connection, "reminder", AS_OF, hours.load(connection, AS_OF))
            connection.execute(
                sa.text("UPDATE appointment SET status = 'cancelled', cancelled_at = now() WHERE id = :id"),
                {"id": later},
            )
            booked(connection, practice, "12:00", patient_id=practice.patient)
        service.send(engine, AS_OF, "reminder", providers)
        service.send(engine, AS_OF, "reminder", providers)
        texts = sorted(message.text for message in simulator.sent)
    assert len(texts) == 2
    assert "ore 09:00 Prima" in texts[0]
    assert "11:00" not in texts[0]
    assert "ore 12:00 Prima" in texts[1]
    assert states(engine) == [("sent", None), ("withheld", "cancelled"), ("sent", None)]


def test_families_guardians_and_sensitive_services(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        practice = world.practice(connection)
        sensitive = world.service(connection, practice.clinic, name="Colloquio SerD", sensitive=True)
        shared = {"mobile": "+393470009991"}
        first = world.patient(connection, first_name="Anna", last_name="Verdi", **shared)
        second = world.patient(connection, first_name="Luca", last_name="Verdi", **shared)
        parent = world.patient(connection, first_name="Ada", last_name="Neri")
        child = world.patient(
            connection, first_name="Ugo", last_name="Neri", birth_date=date(2018, 5, 1), guardian_id=parent
        )
        dead = world.patient(connection, deceased_on=date(2026, 3, 1))
        for at, patient in (("09:00", first), ("09:30", second), ("10:00", child), ("10:30", dead)):
            booked(connection, practice, at, patient_id=patient)
        booked(connection, practice, "11:00", service_id=sensitive)
    with gateway() as (simulator, providers):
        service.send(engine, AS_OF, "reminder", providers)
        texts = sorted(message.text for message in simulator.sent)
    assert len(texts) == 4
    family = [text for text in texts if "A. V." in text or "L. V." in text]
    assert len(family) == 2
    assert not any("Verdi" in text or "Anna" in text for text in texts)
    assert [text for text in texts if "Ada Neri" in text and "(U. N.)" in text]
    assert not any("SerD" in text or "Colloquio" in text for text in texts)
    assert ("withheld", "deceased") in states(engine)


def test_addresses_and_wishes(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        practice = world.practice(connection)
        nowhere = world.patient(connection, mobile=None, email=None)
        landline = world.patient(connection, mobile="+390514444444", email=None)
        unwilling = world.patient(connection, email=None)
        stopped = world.patient(connection, mobile="+393471112223", email=None)
        refused = world.patient(connection, mobile="+393471110000", email=None)
        for number, patient in enumerate((nowhere, landline, unwilling, stopped, refused, practice.patient)):
            booked(connection, practice, f"{9 + number // 2:02d}:{number % 2 * 30:02d}", patient_id=patient)
        preferences.opt_out(connection, unwilling, "sms", "reminder", source="sito", as_of=AS_OF)
        assert texted(connection, "+393471112223", " Stop.", AS_OF) == "stopped"
        assert texted(connection, "+393471112223", "grazie", AS_OF) == "desk"
    with gateway() as (simulator, providers):
        report = service.send(engine, AS_OF, "reminder", providers)
        assert len(simulator.sent) == 1
    assert states(engine) == [
        ("withheld", "no_address"),
        ("withheld", "no_address"),
        ("withheld", "opted_out"),
        ("withheld", "opted_out"),
        ("failed", "refused"),
        ("sent", None),
    ]
    assert report.outcome is Outcome.PARTIAL
    assert {reason.code: reason.count for reason in report.reasons} == {
        "message_no_address": 2, "message_opted_out": 2, "message_refused": 1, "message_calls": 3,
    }  # fmt: skip
    assert report.counts.waiting == 3


def test_a_broken_template_fails_its_own_rows_only(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        broken, sound = world.practice(connection, "BO01"), world.practice(connection, "MI01")
        for practice in (broken, sound):
            booked(connection, practice)
        connection.execute(
            sa.text("""INSERT INTO message_template (layer, clinic_id, kind, variant, channel, language, body)
                       VALUES ('clinic', :clinic, 'reminder', 'plain', 'sms', 'it', '{{ clinica }} {{ ignota }}')"""),
            {"clinic": broken.clinic},
        )
    with gateway() as (simulator, providers):
        report = service.send(engine, AS_OF, "reminder", providers)
        assert len(simulator.sent) == 1
    assert sorted(states(engine)) == [("failed", "template"), ("sent", None)]
    assert report.outcome is Outcome.PARTIAL


def test_a_text_that_breaks_for_one_patient_is_written_to_the_next(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        practice = world.practice(connection)
        booked(connection, practice, "08:30")
        twice = world.patient(connection)
        for at in ("09:00", "09:30"):
            booked(connection, practice, at, patient_id=twice)
        connection.execute(
            sa.text("""INSERT INTO message_template (layer, kind, variant, channel, language, body)
                       VALUES ('chain', 'reminder', 'plain', 'sms', 'it', '{{ clinica }} {{ appuntamenti[1].ora }}')""")
        )
    with gateway() as (simulator, providers):
        service.send(engine, AS_OF, "reminder", providers)
        assert [message.text for message in simulator.sent] == ["Poliambulatorio BO01 09:30"]
    assert sorted(states(engine)) == [("failed", "template"), ("sent", None), ("sent", None)]


def test_a_queued_message_keeps_the_text_it_was_planned_with(engine: sa.Engine) -> None:
    customise = sa.text("""
        INSERT INTO message_template (layer, kind, variant, channel, language, body)
        VALUES ('chain', 'reminder', 'plain', 'sms', 'it', :body)
        ON CONFLICT (layer, clinic_id, kind, variant, channel, language) DO UPDATE SET body = excluded.body""")
    with engine.begin() as connection:
        practice = world.practice(connection)
        booked(connection, practice)
        connection.execute(customise, {"body": "{{ clinica }} primo"})
        planning.plan(connection, "reminder", AS_OF, hours.load(connection, AS_OF))
        connection.execute(customise, {"body": "{{ clinica }} secondo"})
    with gateway() as (simulator, providers):
        service.send(engine, AS_OF, "reminder", providers)
        assert [message.text for message in simulator.sent] == ["Poliambulatorio BO01 primo"]


def test_preparation_is_told_in_time_or_the_desk_calls(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        practice = world.practice(connection)
        fasting = world.service(
            connection,
            practice.clinic,
            preparation="A digiuno da 8 ore.",
            preparation_lead_days=1,
            preparation_last_hours=12,
        )
        colon = world.service(
            connection,
            practice.clinic,
            preparation="Dieta senza scorie.",
            preparation_lead_days=3,
            preparation_last_hours=48,
        )
        booked(connection, practice, "11:00", service_id=fasting)
        booked(connection, practice, "10:00", day="2026-03-13", service_id=colon)
        late = booked(connection, practice, "12:00", service_id=colon)
        booked(connection, practice, "09:00", day="2026-03-12", service_id=fasting)
        booked(connection, practice, "09:30")
    with gateway() as (simulator, providers):
        report = service.send(engine, AS_OF, "preparation", providers)
        texts = sorted(message.text for message in simulator.sent)
    assert ["A digiuno" in texts[0] or "A digiuno" in texts[1], "Dieta" in texts[0] + texts[1], len(texts)] == [
        True,
        True,
        2,
    ]
    assert report.counts.skipped == 1
    with engine.connect() as connection:
        calls = connection.execute(sa.text("SELECT appointment_id, reason FROM call_list")).all()
    assert [tuple(call) for call in calls] == [(late, "too_late")]


def test_too_late_and_quiet_hours(engine: sa.Engine) -> None:
    night = world.rome("2026-03-10", "22:30")
    with engine.begin() as connection:
        practice = world.practice(connection)
        booked(connection, practice, "09:00")
        booked(connection, practice, "12:00")
    with gateway() as (simulator, providers):
        report = service.send(engine, night, "reminder", providers)
        assert simulator.sent == []
        assert (report.outcome, report.counts.skipped, report.counts.waiting) == (Outcome.PARTIAL, 1, 1)
        assert states(engine) == [("withheld", "quiet_hours"), ("planned", None)]
        service.send(engine, world.rome("2026-03-11", "08:01"), "reminder", providers)
        assert len(simulator.sent) == 1


def test_an_unusual_day_waits_for_a_person(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        practice = world.practice(connection)
        world.insert(
            connection,
            "message",
            [
                {
                    "clinic_id": practice.clinic,
                    "kind": "reminder",
                    "recipient_type": "patient",
                    "recipient_id": practice.patient,
                    "state": "sent" if day else "planned",
                    "sent_at": AS_OF - timedelta(days=day) if day else None,
                    "send_after": AS_OF,
                    "expires_at": AS_OF + timedelta(hours=8),
                    "template_revision": 0,
                    "created_at": AS_OF,
                    "changed_at": AS_OF - timedelta(days=day),
                }
                for day in range(8)
                for _ in range(10 if day else 201)
            ],
        )
    with gateway() as (_, providers):
        report = service.send(engine, AS_OF, "reminder", providers)
        assert (report.outcome, report.reasons[0].code) == (Outcome.REFUSED, "unusual_volume")
        with engine.begin() as connection:
            ((wanted, _),) = [volume.unusual(connection, "reminder", AS_OF) or (0, 0)]
            with pytest.raises(PermanentError):
                volume.allow(connection, "reminder", wanted - 1, who="Ada", why="campagna vaccini", as_of=AS_OF)
            with pytest.raises(PermanentError):
                volume.allow(connection, "preparation", wanted, who="Ada", why="campagna vaccini", as_of=AS_OF)
            volume.allow(connection, "reminder", wanted, who="Ada", why="campagna vaccini", as_of=AS_OF)
            assert volume.hold(connection, "reminder", AS_OF + timedelta(minutes=1)) is None
            assert volume.hold(connection, "reminder", AS_OF + timedelta(days=1)) is not None
        allowed = service.send(engine, AS_OF, "reminder", providers)
        assert "unusual_volume" not in {reason.code for reason in allowed.reasons}
    with engine.connect() as connection:
        assert connection.scalar(sa.text("SELECT wanted FROM message_approval")) == 201


def test_a_preview_changes_nothing(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        practice = world.practice(connection)
        booked(connection, practice)
        booked(connection, practice, "10:00", patient_id=world.patient(connection, mobile=None, email=None))
    report = service.send(engine, AS_OF, "reminder", {}, preview=True)
    assert (report.counts.created, report.counts.skipped) == (1, 1)
    assert states(engine) == []
    missing = service.send(engine, AS_OF, "reminder", {})
    assert missing.outcome is Outcome.PARTIAL
    assert missing.reasons[0].code == "message_carrier_missing"
    assert ("planned", None) in states(engine)


_NEWS = """SELECT clinic_id, 'report' AS subject, id AS subject_id, version, 'patient' AS recipient_type,
                  patient_id AS recipient_id, CAST(:as_of AS timestamptz) + interval '2 days' AS expires_at,
                  CAST(NULL AS jsonb) AS context
           FROM report"""


def report(connection: sa.Connection, practice: world.Practice, number: str, **fields: object) -> None:
    row = {"clinic_id": practice.clinic, "external_id": number, "patient_id": practice.patient, "title": "Referto"}
    world.insert(connection, "report", [{**row, "published_at": AS_OF, "updated_at": AS_OF, **fields}])


def test_other_parts_put_messages_in_the_ledger_once(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        report(connection, world.practice(connection), "R1")
        assert planning.enqueue(connection, "report_ready", _NEWS, {}, AS_OF) == 1
        assert planning.enqueue(connection, "report_ready", _NEWS, {}, AS_OF) == 0
    with gateway() as (simulator, providers):
        service.send(engine, AS_OF, "preparation", providers)
        assert ["documento è pronto" in message.text for message in simulator.sent] == [True]


def test_nobody_is_told_of_a_report_that_was_withdrawn_replaced_or_is_gone(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        practice = world.practice(connection)
        for number in ("R1", "R2", "R3", "R4"):
            report(connection, practice, number)
        planning.enqueue(connection, "report_ready", _NEWS, {}, AS_OF)
        connection.execute(sa.text("UPDATE report SET withdrawn_at = now() WHERE external_id = 'R1'"))
        connection.execute(sa.text("UPDATE report SET version = 2 WHERE external_id = 'R2'"))
        connection.execute(sa.text("DELETE FROM report WHERE external_id = 'R3'"))
    with gateway() as (simulator, providers):
        service.send(engine, AS_OF, "reminder", providers)
        assert len(simulator.sent) == 1
    assert states(engine) == [
        ("withheld", "report_withdrawn"), ("withheld", "report_withdrawn"), ("withheld", "gone"), ("sent", None),
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["reminder", "preparation"])
def test_an_unverified_booking_is_nudged_once_at_half_time(engine: sa.Engine, kind: str) -> None:
    night = world.rome("2026-03-10", "22:00")
    with engine.begin() as connection:
        practice = world.practice(connection)

        def online(at: str, phone: str | None, **fields: object) -> int:
            return booked(
                connection, practice, at, day="2026-03-12", channel="online", contact_phone=phone, created_at=night,
                **{"status": "unverified", "verification_expires_at": night + timedelta(hours=2), **fields},
            )  # fmt: skip

        nudged = online("09:00", "+393471234567")
        online("09:30", None)
        online("10:00", "+393471234568", paid_at=night)
        in_time = online("10:30", "+393471234569")
        connection.execute(sa.text("UPDATE appointment SET patient_id = NULL"))
    half = night + timedelta(hours=1)
    with gateway() as (simulator, providers):
        with engine.begin() as connection:
            clinics = hours.load(connection, half)
            assert due.nothing_to_nudge(connection, half - timedelta(minutes=1), clinics)
            assert due.nothing_due([kind], connection, half) is None
            assert planning.nudge(connection, half, clinics) == 2
            connection.execute(
                sa.text("UPDATE appointment SET status = 'booked', patient_id = :patient WHERE id = :id"),
                {"id": in_time, "patient": practice.patient},
            )
        service.send(engine, half, kind, providers)
        service.send(engine, half + timedelta(minutes=20), kind, providers)
        (message,) = simulator.sent
    assert message.to == "+393471234567"
    assert message.text == (
        "Poliambulatorio BO01: la prenotazione di giovedì 12 marzo non è ancora confermata. La confermi entro le 00:00 "
        "dal messaggio ricevuto, o l'orario tornerà libero."
    )
    assert states(engine) == [("sent", None), ("withheld", "verified")]
    assert nudged < in_time
