"""The pages beside the services: clinics, messages, knowledge, statistics, health, to do, plans."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from html import unescape

import pytest
import sqlalchemy as sa

from polydesk_dagster.clinic.patients import seen
from polydesk_dagster.told import LANGUAGES
from polydesk_dagster.web.roles import May, Role
from polydesk_dagster.web.words import PLACES
from tests import world
from tests.web.world import Served


@pytest.fixture
def served(door: Served) -> Served:
    with door.door.engine.begin() as connection:
        world.clinic(connection)
    return door


@pytest.mark.slow
@pytest.mark.parametrize("role", list(Role))
@pytest.mark.parametrize("language", LANGUAGES)
def test_every_place_of_the_navigation_answers_who_may_see_it(served: Served, role: Role, language: str) -> None:
    with served.signed_in(role) as browser:
        nav = browser.get("/", headers={"accept-language": language}).text
        for address, name, may in PLACES:
            if address == "/dagster/":
                continue
            allowed = may is not May.PATIENTS or role is not Role.SPECIALIST
            answer = browser.get(address, headers={"accept-language": language})
            assert answer.status_code == (200 if allowed else 403), (address, answer.text)
            assert (f'href="{address}"' in nav) is allowed
            if allowed:
                assert f'<html lang="{language}">' in answer.text
                assert f"web.{name}" not in answer.text
                assert not [line for line in unescape(answer.text).splitlines() if "web." in line]


def test_a_clinic_s_studiolab_is_switched_by_who_acts_for_it(served: Served) -> None:
    with served.door.engine.begin() as connection:
        mine, other = world.clinic(connection, code="MI01"), world.clinic(connection, code="NA01")
        for clinic in (mine, other):
            world.integration(connection, clinic, "https://studiolab.example/api/v1")
    with served.signed_in("manager", clinic=mine) as browser:
        page = browser.get("/cliniche").text
        assert "MI01" in page
        assert "NA01" not in page
        form = served.form(browser, on="0")
        assert browser.post("/cliniche/NA01/studiolab", data=form).status_code == 403
        assert browser.post("/cliniche/MI01/studiolab", data=form).status_code == 303
        assert "spento" in browser.get("/cliniche").text
    with served.door.engine.connect() as connection:
        state = connection.execute(
            sa.text("SELECT c.code, i.active FROM integration i JOIN clinic c ON c.id = i.clinic_id ORDER BY 1")
        ).all()
        said = connection.execute(sa.text("SELECT actor, action, clinic FROM audit ORDER BY id DESC LIMIT 1")).one()
    assert [tuple(row) for row in state] == [("MI01", False), ("NA01", True)]
    assert said.actor.startswith("manager:")
    assert (said.action, said.clinic) == ("integration_off", "MI01")


def test_a_source_with_another_address_is_asked_about_on_the_page(served: Served) -> None:
    with served.door.engine.begin() as connection:
        mine = world.clinic(connection, code="MI01")
        world.integration(connection, mine, "https://new.example/api/v1", source="studiolab https://old.example/api/v1")
    with served.signed_in("manager", clinic=mine) as browser:
        assert "altro indirizzo" in browser.get("/cliniche").text
        asked = "/cliniche/MI01/fonte"
        assert browser.post(asked, data=served.form(browser, same="1", reason="sì")).status_code == 422
        assert browser.post(asked, data=served.form(browser, same="?", reason="nuovo server")).status_code == 422
        assert browser.post(asked, data=served.form(browser, same="1", reason="nuovo server")).status_code == 303
        assert "altro indirizzo" not in browser.get("/cliniche").text
    with served.door.engine.connect() as connection:
        said = connection.execute(sa.text("SELECT actor, action, clinic FROM audit ORDER BY id DESC LIMIT 1")).one()
    assert said.actor.startswith("manager:")
    assert (said.action, said.clinic) == ("source_same", "MI01")


def test_a_period_that_makes_no_sense_is_said(served: Served) -> None:
    with served.signed_in("manager") as browser:
        for query in ("dal=ieri", "dal=2026-02-01&al=2026-01-01", "dal=2000-01-01&al=2026-01-01"):
            assert browser.get(f"/statistiche?{query}").status_code == 400
        assert "«Aggiornamento statistiche»" in unescape(browser.get("/statistiche").text)


def test_who_looks_at_a_patient_is_written_down(served: Served) -> None:
    now = datetime.now(UTC)
    with served.door.engine.begin() as connection:
        practice = world.practice(connection, "MI01")
        slot = world.slot(connection, practice.agenda, now + timedelta(days=3))
        patient = world.patient(connection)
        visit = world.appointment(connection, slot, service_id=practice.service, patient_id=patient)
    with served.signed_in("desk", clinic=practice.clinic) as browser:
        assert browser.get(f"/messaggi/perche?di=appointment&numero={visit}").status_code == 200
        for wrong in ("di=appointment&numero=x", "di=anybody&numero=1", f"di=patient&numero={10**30}"):
            assert browser.get(f"/messaggi/perche?{wrong}").status_code == 400
        assert browser.get("/messaggi/perche?di=patient&numero=999999").status_code == 404
    with served.signed_in("specialist", clinic=practice.clinic) as browser:
        assert browser.get(f"/messaggi/perche?di=patient&numero={patient}").status_code == 403
    with served.door.engine.connect() as connection:
        (look,) = seen.of(connection, patient)
    assert look.person.startswith("desk:")
    assert look.page == "messaggi"


def test_what_no_record_can_hold_is_refused_before_anybody_looks(served: Served) -> None:
    many = "9" * 5000
    with served.signed_in("superuser") as browser:
        for path, status in {
            "/messaggi?clinica=%00": 400,
            "/statistiche?clinica=%00": 400,
            "/messaggi/testi?clinica=%00": 400,
            f"/messaggi/perche?numero={many}": 400,
            "/conoscenza/99999999999999999999": 404,
            "/servizi/%00": 400,
        }.items():
            assert browser.get(path).status_code == status, path
        pause = "/servizi/sync_prices/sospendi"
        form = served.form(browser, **{"for": "day"})
        answer = browser.post(pause, data=form, files={"reason": b"un motivo qualunque"})
        assert (answer.status_code, "non si può leggere" in answer.text) == (400, True)
        assert browser.post(pause, data={**form, "reason": "un motivo \0 qualunque"}).status_code == 400
        press = served.form(browser, reason="un motivo qualunque", phrase="LIBERA 1", plan=many)
        assert browser.post("/rossa/release_all_holds/premi", data=press).status_code == 400
    with served.client() as nobody:
        assert nobody.post("/entra", data={"email": "\0", "password": "x"}).status_code == 400
        code = {"codice": "\0", "password": "abcdefghi 123", "again": "abcdefghi 123"}
        assert nobody.post("/attiva", data=code).status_code == 400


def test_a_booking_without_its_place_is_shown_with_one_that_is_free(served: Served) -> None:
    now = datetime.now(UTC)
    with served.door.engine.begin() as connection:
        practice = world.practice(connection, "MI01")
        lost = world.slot(connection, practice.agenda, now + timedelta(days=3))
        world.appointment(connection, lost, service_id=practice.service, patient_id=practice.patient)
        connection.execute(sa.text("UPDATE slot SET state = 'orphan' WHERE id = :slot"), {"slot": lost})
        connection.execute(
            sa.text("INSERT INTO orphan (slot_id, cause, detected_at) VALUES (:slot, 'rule_changed', :at)"),
            {"slot": lost, "at": now},
        )
    with served.signed_in("desk", clinic=practice.clinic) as browser:
        assert "Nessun posto libero adatto" in browser.get("/da-fare").text
        with served.door.engine.begin() as connection:
            world.slot(connection, practice.agenda, now + timedelta(days=4))
        assert "Posto libero: " in browser.get("/da-fare").text


def test_a_doubtful_patient_is_shown_with_the_doubt_and_days_as_people_write_them(served: Served) -> None:
    with served.door.engine.begin() as connection:
        clinic = world.clinic(connection, "MI01")
        world.patient(connection, birth_date=date(1953, 11, 7), last_name="Neri", first_name="Giulia")
        connection.execute(
            sa.text("""INSERT INTO patient_review (clinic_id, external_id, cause, candidates, record, found_at)
                       VALUES (:clinic, 'P1', 'namesake_of_patient', '{}', CAST(:record AS jsonb), :at)"""),
            {
                "clinic": clinic,
                "record": '{"last_name": "Neri", "first_name": "Giulia", "birth_date": "1953-11-07"}',
                "at": datetime.now(UTC),
            },
        )
    with served.signed_in("desk", clinic=clinic) as browser:
        page = unescape(browser.get("/da-fare").text)
    assert page.count("07/11/1953") == 2
    assert "<ins>07/11/1953" not in page
    assert "1953-11-07" not in page


def test_what_a_patient_may_ask_by_law_is_one_press_away_for_who_acts_for_the_chain(served: Served) -> None:
    with served.door.engine.begin() as connection:
        practice = world.practice(connection, "MI01")
        slot = world.slot(connection, practice.agenda, datetime.now(UTC) + timedelta(days=3))
        patient = world.patient(connection, last_name="Quetzalpioggia")
        world.appointment(connection, slot, service_id=practice.service, patient_id=patient)
    story = f"/messaggi/perche?di=patient&numero={patient}"
    with served.signed_in("manager", clinic=practice.clinic) as hers:
        assert f"/pazienti/{patient}/dati" not in hers.get(story).text
        for what in ("dati", "cancella"):
            assert hers.post(f"/pazienti/{patient}/{what}", data=served.form(hers)).status_code == 403
    with served.signed_in("manager") as chain:
        assert f'action="/pazienti/{patient}/cancella"' in chain.get(story).text
        assert chain.post("/pazienti/999999/dati", data=served.form(chain)).status_code == 404
        assert chain.post("/pazienti/999999/cancella", data=served.form(chain)).status_code == 404
        copy = chain.post(f"/pazienti/{patient}/dati", data=served.form(chain))
        assert copy.headers["content-disposition"].startswith("attachment")
        assert "Quetzalpioggia" in copy.text
        planned = chain.post(f"/pazienti/{patient}/cancella", data=served.form(chain))
        assert (planned.status_code, "/piani/" in planned.headers["location"]) == (303, True)
        assert chain.get(planned.headers["location"]).status_code == 200
    with served.door.engine.connect() as connection:
        assert "export" in {look.page for look in seen.of(connection, patient)}
        kept = connection.scalar(sa.text("SELECT erased_at IS NULL FROM patient WHERE id = :id"), {"id": patient})
        assert kept is True
