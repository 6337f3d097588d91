"""The texts of messages on their pages: tried while written, changed as a plan, brought back from a version."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from html import unescape

import pytest
import sqlalchemy as sa

from polydesk_dagster import changes
from tests import world
from tests.web.world import Served

SMS = "/messaggi/testi/reminder/plain/sms/it"
BODY = "{{ clinica }}: la aspettiamo {{ giorno }}. {{ telefono }}"


@pytest.fixture
def served(door: Served) -> Served:
    now = datetime.now(UTC)
    with door.door.engine.begin() as connection:
        practice = world.practice(connection, "MI01")
        for day in range(3, 6):
            slot = world.slot(connection, practice.agenda, now + timedelta(days=day))
            patient = world.patient(connection)
            world.appointment(connection, slot, service_id=practice.service, patient_id=patient)
        world.clinic(connection, code="NA01")
    return door


def _apply(served: Served, address: str) -> None:
    plan = int(address.rsplit("/", 1)[1])
    with served.door.engine.begin() as connection:
        report = changes.apply(connection, plan, as_of=datetime.now(UTC), actor="manager:anna@example.org")
    assert report.counts.changed == 1


def test_a_text_is_changed_as_a_plan_kept_as_a_version_and_brought_back(served: Served) -> None:
    with served.signed_in("manager") as browser:
        assert "di fabbrica" in browser.get("/messaggi/testi").text
        page = unescape(browser.get(f"{SMS}?clinica=MI01").text)
        assert "Nessuno ha ancora cambiato" in page
        assert page.count("Paziente ") == 3
        for body in (BODY, BODY.replace("la aspettiamo", "a presto,")):
            answer = browser.post(f"{SMS}/salva", data=served.form(browser, clinica="MI01", body=body))
            assert answer.status_code == 303, answer.text
            plan = unescape(browser.get(answer.headers["location"]).text)
            assert ("tipo: Promemoria" in plan) is (body == BODY), "a new one is shown whole, in words"
            _apply(served, answer.headers["location"])
        again = browser.post(f"{SMS}/salva", data=served.form(browser, clinica="MI01", body=body))
        assert again.status_code == 409
        page = unescape(browser.get(f"{SMS}?clinica=MI01").text)
        assert "della clinica" in page
        with served.door.engine.connect() as connection:
            first = connection.scalar(sa.text("SELECT min(id) FROM message_template_version"))
        answer = browser.post(f"/messaggi/testi/versioni/{first}", data=served.form(browser))
        _apply(served, answer.headers["location"])
        answer = browser.post(f"{SMS}/togli", data=served.form(browser, clinica="MI01"))
        _apply(served, answer.headers["location"])
        assert "Tolto: vale il testo sottostante." in unescape(browser.get(f"{SMS}?clinica=MI01").text)


def test_a_draft_is_tried_whole_without_script_and_in_part_with_it(served: Served) -> None:
    with served.signed_in("manager") as browser:
        form = served.form(browser, clinica="MI01", body="{{ nobody }} <b>x</b>")
        whole = unescape(browser.post(f"{SMS}/prova", data=form).text)
        assert "<html" in whole
        assert "nobody" in whole
        assert "<b>x</b></textarea>" in whole  # as text: unescaped by this test alone
        part = browser.post(f"{SMS}/prova", data={**form, "body": BODY}, headers={"x-part": "1"}).text
        assert "<html" not in part
        assert "Il testo va bene." in part
        assert part.count("Paziente ") == 3
        refused = browser.post(f"{SMS}/salva", data=form)
        assert refused.status_code == 409
    with served.door.engine.connect() as connection:
        assert not connection.scalar(sa.text("SELECT count(*) FROM plan"))


def test_a_clinic_s_manager_changes_her_clinic_s_texts_only(served: Served) -> None:
    with served.door.engine.connect() as connection:
        hers = connection.scalar(sa.text("SELECT id FROM clinic WHERE code = 'MI01'"))
    with served.signed_in("superuser") as chain:
        answer = chain.post(f"{SMS}/salva", data=served.form(chain, body=BODY))
        _apply(served, answer.headers["location"])
    with served.door.engine.connect() as connection:
        version = connection.scalar(sa.text("SELECT max(id) FROM message_template_version"))
    with served.signed_in("manager", clinic=hers) as browser:
        assert browser.get(SMS).status_code == 200
        assert browser.get(f"{SMS}?clinica=NA01").status_code == 403
        assert browser.get("/messaggi/testi/reminder/plain/sms/xx").status_code == 404
        for clinic in ("", "NA01"):
            form = served.form(browser, clinica=clinic, body=BODY + " A presto")
            assert browser.post(f"{SMS}/salva", data=form).status_code == 403
        assert browser.post(f"/messaggi/testi/versioni/{version}", data=served.form(browser)).status_code in {403, 409}
    with served.signed_in("desk") as desk:
        assert "<textarea" not in desk.get(SMS).text
        assert desk.post(f"{SMS}/prova", data=served.form(desk, body=BODY)).status_code == 403
