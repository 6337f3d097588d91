"""What a person decides of messages on their pages: when people are reminded, whom a closure is told, what goes again,
what goes at all, and to whom nothing goes."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from html import unescape

import pytest
import sqlalchemy as sa

from polydesk_dagster import changes
from polydesk_dagster.clinic.messages import blocks
from tests import world
from tests.web.world import Served

REASON = {"reason": "lo chiede la paziente"}
REMINDERS, NOTICES, WHY = "/messaggi/promemoria", "/messaggi/chiusure", "/messaggi/perche"
TO_DO = "/da-fare"


def rows(door: Served, query: str) -> list[tuple[object, ...]]:
    with door.door.engine.connect() as connection:
        return [tuple(row) for row in connection.execute(sa.text(query))]


@pytest.fixture
def clinics(door: Served) -> tuple[world.Practice, int]:
    """A practice at MI01, and NA01."""
    with door.door.engine.begin() as connection:
        return world.practice(connection, "MI01"), world.clinic(connection, code="NA01")


Clinics = tuple[world.Practice, int]


def booked(door: Served, practice: world.Practice, days: int = 2, **patient: object) -> tuple[int, int]:
    """(appointment in so many days, its patient)."""
    with door.door.engine.begin() as connection:
        who = world.patient(connection, **patient)
        slot = world.slot(connection, practice.agenda, datetime.now(UTC) + timedelta(days=days), manual=True)
        return world.appointment(connection, slot, service_id=practice.service, patient_id=who), who


def test_when_people_are_reminded_is_changed_and_taken_away_as_a_plan(door: Served, clinics: Clinics) -> None:
    with door.signed_in("manager") as manager:
        assert "Nessun piano" in unescape(manager.get(REMINDERS).text)
        form = door.form(manager, clinica="MI01", prestazione="") | {
            "number": ["7", "3", ""],
            "unit": ["d", "h", "d"],
        }
        answer = manager.post(REMINDERS, data=form)
        assert answer.status_code == 303, answer.text
        plan = unescape(manager.get(answer.headers["location"]).text)
        assert "quanto prima: 7 giorni e 3 ore" in plan
        assert rows(door, "SELECT * FROM reminder_plan") == []
        with door.door.engine.begin() as connection:
            number = int(answer.headers["location"].rsplit("/", 1)[1])
            changes.apply(connection, number, as_of=datetime.now(UTC), actor="manager:anna@example.org")
        page = unescape(manager.get(f"{REMINDERS}?clinica=MI01").text)
        assert "7 giorni e 3 ore" in page
        assert rows(door, "SELECT lead_days, lead_minutes FROM reminder_step ORDER BY 1") == [(0, 180), (7, 0)]
        assert manager.post(REMINDERS, data=form).status_code == 409
        assert manager.post(f"{REMINDERS}/togli", data=door.form(manager, clinica="MI01")).status_code == 303
        for wrong in ({"number": ["61"], "unit": ["d"]}, {"number": [""], "unit": ["d"]}):
            assert manager.post(REMINDERS, data=door.form(manager) | wrong).status_code == 409
        assert manager.post(REMINDERS, data=door.form(manager) | {"number": "1", "unit": "x"}).status_code == 400


def test_a_clinic_s_manager_decides_for_her_clinic_and_the_desk_looks_on(door: Served, clinics: Clinics) -> None:
    steps = {"number": "2", "unit": "d"}
    with door.signed_in("manager", clinic=clinics[0].clinic) as manager:
        for clinic, status in (("MI01", 303), ("NA01", 403), ("", 403)):
            for address in (REMINDERS, f"{REMINDERS}/togli"):
                answer = manager.post(address, data=door.form(manager, clinica=clinic) | steps)
                assert answer.status_code == (409 if (clinic, address) == ("MI01", f"{REMINDERS}/togli") else status)
    with door.signed_in("desk", clinic=clinics[0].clinic) as desk:
        assert '<form method="post" action="/messaggi' not in desk.get(REMINDERS).text
        assert desk.post(REMINDERS, data=door.form(desk, clinica="MI01") | steps).status_code == 403


def test_who_loses_the_appointment_is_told_what_somebody_has_read(door: Served, clinics: Clinics) -> None:
    practice, other = clinics
    for days, name in enumerate(("Anna", "Zeno"), 2):
        booked(door, practice, days, first_name=name)
    with door.door.engine.begin() as connection:
        connection.execute(
            sa.text("""
                WITH lost AS (UPDATE slot SET state = 'orphan' WHERE id IN (SELECT slot_id FROM seat) RETURNING id)
                INSERT INTO orphan (slot_id, cause, detected_at) SELECT id, 'closure', now() FROM lost""")
        )
    with door.signed_in("desk", clinic=practice.clinic) as desk, door.signed_in("desk", clinic=other) as elsewhere:
        to_do = unescape(desk.get(TO_DO).text)
        assert f'<a href="{NOTICES}?clinica=MI01">2 pazienti di MI01 da avvisare</a>' in to_do
        assert NOTICES not in elsewhere.get(TO_DO).text
        page = unescape(desk.get(NOTICES).text)
        assert "Avvisa questi 2 pazienti" in page
        assert page.count("non può tenersi: saremo chiusi.") == 2
        assert "Nessuno da avvisare" in unescape(elsewhere.get(NOTICES).text)
        assert elsewhere.get(f"{NOTICES}?clinica=MI01").status_code == 403
        found = re.search(r'name="seal" value="(\w+)"', page)
        assert found
        form = door.form(desk, clinica="MI01", seal=found[1])
        assert elsewhere.post(NOTICES, data=door.form(elsewhere, clinica="MI01", seal=found[1])).status_code == 403
        assert desk.post(NOTICES, data={**form, "seal": "0"}).status_code == 409
        assert rows(door, "SELECT * FROM message_ledger") == []
        told = desk.post(NOTICES, data=form, follow_redirects=True)
        assert "2 pazienti riceveranno il messaggio" in unescape(told.text)
        assert NOTICES not in desk.get(TO_DO).text
        assert desk.post(NOTICES, data=form).status_code == 409
    assert rows(door, "SELECT kind, count(*) FROM message_ledger GROUP BY kind") == [("service_notice", 2)]
    with door.door.engine.connect() as connection:
        assert connection.scalar(sa.text("SELECT count(*) FROM patient_look WHERE page = 'chiusure'")) == 2


def _message(door: Served, practice: world.Practice, appointment: int, patient: int) -> int:
    """A reminder that was sent."""
    with door.door.engine.begin() as connection:
        return int(
            connection.scalar(
                sa.text("""
                    WITH sent AS (
                        INSERT INTO message (clinic_id, kind, recipient_type, recipient_id, about_day, send_after,
                                             expires_at, template_revision, created_at, changed_at, state, channel,
                                             address, sent_at)
                        VALUES (:clinic, 'reminder', 'patient', :patient, current_date, now(), now() + interval '1 day',
                                0, now(), now(), 'sent', 'sms', '+393471112223', now()) RETURNING id)
                    INSERT INTO message_ledger (subject, subject_id, version, kind, recipient_type, recipient_id,
                                                clinic_id, message_id, starts_at, useful_until, planned_at)
                    SELECT 'appointment', :appointment, 1, 'reminder', 'patient', :patient, :clinic, sent.id, now(),
                           now() + interval '1 day', now() FROM sent RETURNING message_id"""),
                {"clinic": practice.clinic, "patient": patient, "appointment": appointment},
            )
            or 0
        )


def test_from_a_call_and_from_a_doubt_the_patient_s_story_is_one_press_away(door: Served, clinics: Clinics) -> None:
    practice, other = clinics
    called, first = booked(door, practice)
    doubted, second = booked(door, practice, 3)
    message = _message(door, practice, doubted, second)
    with door.door.engine.begin() as connection:
        connection.execute(
            sa.text("UPDATE message SET state = 'unknown', sent_at = NULL WHERE id = :id"), {"id": message}
        )
        connection.execute(
            sa.text("""
                INSERT INTO call_list (clinic_id, appointment_id, start_version, kind, reason, starts_at, created_at)
                SELECT clinic_id, id, start_version, 'reminder', 'no_address', starts_at, now() FROM appointment
                WHERE id = :called"""),
            {"called": called},
        )
    stories = [f"{WHY}?di=patient&numero={patient}" for patient in (first, second)]
    with door.signed_in("desk", clinic=practice.clinic) as desk, door.signed_in("desk", clinic=other) as elsewhere:
        page = unescape(desk.get(TO_DO).text)
        assert re.findall(r'href="(/messaggi/[^"]+)"', page) == stories
        assert [desk.get(story).status_code for story in stories] == [200, 200]
        assert WHY not in elsewhere.get(TO_DO).text


def test_a_message_goes_again_with_a_reason_and_once(door: Served, clinics: Clinics) -> None:
    practice, other = clinics
    appointment, patient = booked(door, practice, mobile="+393471112223")
    message = _message(door, practice, appointment, patient)
    here, again = f"{WHY}?di=appointment&numero={appointment}", f"/messaggi/{message}/ancora"
    with door.signed_in("desk", clinic=practice.clinic) as desk, door.signed_in("desk", clinic=other) as elsewhere:
        assert again in desk.get(here).text
        form = door.form(desk, di="appointment", numero=str(appointment))
        assert desk.post(again, data={**form, "reason": "boh"}).status_code == 409
        assert elsewhere.post(again, data={**door.form(elsewhere), **REASON}).status_code == 403
        answer = desk.post(again, data={**form, **REASON})
        assert answer.headers["location"] == here
        page = unescape(desk.get(here).text)
        assert again not in page
        assert "lo chiede la paziente" in page
        assert desk.post(again, data={**form, **REASON}).status_code == 409
    ((who, why),) = rows(door, "SELECT resent_by, resent_why FROM message WHERE resent_of IS NOT NULL")
    assert (str(who)[:5], why) == ("desk:", REASON["reason"])


def test_a_block_of_her_patient_is_lifted_with_a_reason(door: Served, clinics: Clinics) -> None:
    practice, other = clinics
    appointment, _ = booked(door, practice, mobile="+393471112223", email="anna@example.org")
    with door.door.engine.begin() as connection:
        blocks.stop(connection, "sms", ["+393471112223", "+393479999999"], datetime.now(UTC) - timedelta(hours=1))
    here = {"di": "appointment", "numero": str(appointment)}
    with door.signed_in("desk", clinic=practice.clinic) as desk, door.signed_in("desk", clinic=other) as elsewhere:
        page = unescape(desk.get(WHY, params=here).text)
        assert "non vuole messaggi" in page
        assert "+393479999999" not in page
        form = {**here, **REASON, "channel": "sms", "address": "+393471112223"}
        lift = f"{WHY}/sblocca"
        assert elsewhere.post(lift, data={**door.form(elsewhere), **form}).status_code == 404
        assert desk.post(lift, data={**door.form(desk), **form, "address": "+393479999999"}).status_code == 409
        assert desk.post(lift, data={**door.form(desk), **form, "reason": " "}).status_code == 409
        assert desk.post(lift, data={**door.form(desk), **form, "numero": "x"}).status_code == 400
        assert desk.post(lift, data={**door.form(desk), **form}).status_code == 303
        assert "Recapiti a cui non si scrive" not in unescape(desk.get(WHY, params=here).text)
        assert desk.post(lift, data={**door.form(desk), **form}).status_code == 409
    with door.signed_in("specialist", clinic=practice.clinic) as specialist:
        assert specialist.post(lift, data={**door.form(specialist), **form}).status_code == 403
    lifted = rows(
        door, "SELECT address, lifted_by LIKE 'desk:%', lift_reason FROM message_block WHERE lifted_at > since"
    )
    assert lifted == [("+393471112223", True, REASON["reason"])]


def test_an_unusual_day_is_let_go_by_who_saw_its_number(door: Served, clinics: Clinics) -> None:
    practice, _ = clinics
    with door.door.engine.begin() as connection:
        connection.execute(
            sa.text("""
                INSERT INTO message (clinic_id, kind, recipient_type, recipient_id, about_day, send_after, expires_at,
                                     template_revision, created_at, changed_at, state, channel, address, sent_at)
                SELECT :clinic, 'reminder', 'patient', day * 1000 + n, current_date, now() - interval '1 minute',
                       now() + interval '8 hours', 0, now(), now() - make_interval(days => day),
                       CASE day WHEN 0 THEN 'planned' ELSE 'sent' END, CASE WHEN day > 0 THEN 'sms' END,
                       CASE WHEN day > 0 THEN '+393471112223' END,
                       CASE WHEN day > 0 THEN now() - make_interval(days => day) END
                FROM generate_series(0, 7) day
                CROSS JOIN LATERAL generate_series(1, CASE day WHEN 0 THEN 201 ELSE 2 END) n"""),
            {"clinic": practice.clinic},
        )
    with door.signed_in("manager", clinic=practice.clinic) as manager:
        page = unescape(manager.get("/messaggi").text)
        assert "Oggi sarebbero 201, di solito sono 2" in page
        assert "decide chi agisce per tutte le cliniche" in page
        form = {**door.form(manager), **REASON, "seen": "201"}
        assert manager.post("/messaggi/fermi/reminder", data=form).status_code == 403
    with door.signed_in("manager") as chain:
        assert "Lascia partire questi 201 messaggi" in unescape(chain.get("/messaggi").text)
        for seen, reason, status in (
            ("200", "campagna vaccini", 409),
            ("201", "boh", 409),
            ("201", "campagna vaccini", 303),
        ):
            form = {**door.form(chain), "seen": seen, "reason": reason}
            assert chain.post("/messaggi/fermi/reminder", data=form).status_code == status
        assert chain.post("/messaggi/fermi/activation", data=form).status_code == 404
        assert "Oggi sarebbero" not in unescape(chain.get("/messaggi").text)
    assert rows(door, "SELECT wanted, why, who LIKE 'manager:%' FROM message_approval") == [
        (201, "campagna vaccini", True)
    ]


@pytest.mark.parametrize("language", ["it", "en", "de"])
def test_the_pages_speak_the_reader_s_language(door: Served, clinics: Clinics, language: str) -> None:
    appointment, _ = booked(door, clinics[0], mobile="+393471112223")
    with door.signed_in("manager") as manager:
        for address in ("/messaggi", REMINDERS, NOTICES, f"{WHY}?di=appointment&numero={appointment}"):
            answer = manager.get(address, headers={"Accept-Language": language})
            assert answer.status_code == 200
            assert f'<html lang="{language}">' in answer.text
            assert "web." not in re.sub(r"<[^>]*>", "", answer.text)
