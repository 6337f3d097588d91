"""What waits in *Da fare* beside bookings: records that could not be read, patients who may be somebody else."""

from __future__ import annotations

from datetime import UTC, datetime
from html import unescape

import pytest
import sqlalchemy as sa

from polydesk_dagster.changes import quarantine
from polydesk_dagster.changes.stage import Unreadable
from polydesk_dagster.changes.why import kept as kept_reason
from polydesk_dagster.clinic.patients import seen
from polydesk_dagster.values import Reason
from tests import world
from tests.web.world import Served

WHY = {"reason": "parlato con la fonte"}
RECORD = {
    "id": "P7",
    "last_name": "<b>Neri</b>",
    "birth_date": "1953-11-07",
    "residence": {"postal_code": "40121"},
    "mobile": None,
}


def kept(door: Served, clinic: int | None, kind: str, record: object = RECORD) -> int:
    """A record that the source wrote and nobody could read; its number."""
    unreadable = [Unreadable("P7", "invalid", Reason("field_wrong", {"field": "sex", "what": "?"}), record)]
    with door.door.engine.begin() as connection:
        quarantine.keep(connection, "import_patients", kind, clinic, unreadable)
        return quarantine.set_aside(connection, limit=10)[-1].number


def linked(connection: sa.Connection, clinic: int, external: str, patient: int, suspended: str | None = None) -> None:
    connection.execute(
        sa.text("""
            INSERT INTO patient_link (clinic_id, external_id, patient_id, made_by, made_at, suspended_at,
                                      suspended_reason)
            VALUES (:clinic, :external, :patient, 'person', :at,
                    CASE WHEN CAST(:why AS text) IS NOT NULL THEN :at END, :why)"""),
        {"clinic": clinic, "external": external, "patient": patient, "at": world.AS_OF, "why": suspended},
    )


def test_a_record_that_cannot_be_read_is_shown_in_words_and_every_look_is_logged(door: Served) -> None:
    with door.door.engine.begin() as connection:
        mine, other = world.clinic(connection, "MI01"), world.clinic(connection, "NA01")
        patient = world.patient(connection)
        linked(connection, mine, "P7", patient)
    number = kept(door, mine, "patient")
    with door.signed_in("desk", clinic=mine) as desk:
        assert f'href="/da-fare/scarti/{number}"' in desk.get("/da-fare").text
        answer = desk.get(f"/da-fare/scarti/{number}")
        page = unescape(answer.text)
        for said in ("07/11/1953", "cognome", "residenza › CAP", "&lt;b&gt;Neri"):
            assert said in (answer.text if "&" in said else page), said
        assert "Lascialo fuori" not in page
        assert desk.post(f"/da-fare/scarti/{number}", data=door.form(desk, verdict="settle", **WHY)).status_code == 403
    with door.signed_in("manager", clinic=other) as elsewhere:
        assert f"scarti/{number}" not in elsewhere.get("/da-fare").text
        assert elsewhere.get(f"/da-fare/scarti/{number}").status_code == 403
        assert elsewhere.get(f"/da-fare/scarti/{number + 1}").status_code == 404
    with door.signed_in("specialist", clinic=mine) as nobody:
        assert nobody.get(f"/da-fare/scarti/{number}").status_code == 403
    with door.door.engine.connect() as connection:
        assert [look.page for look in seen.of(connection, patient)] == ["quarantine"]
        assert connection.scalar(sa.text("SELECT array_agg(record_id) FROM patient_look WHERE record_id > 0")) == [
            number
        ]


def test_a_record_is_left_out_until_the_source_sends_it_otherwise(door: Served) -> None:
    with door.door.engine.begin() as connection:
        mine = world.clinic(connection, "MI01")
        world.integration(connection, mine, "https://studiolab.example/api/v1")
    number = kept(door, mine, "price")
    address = f"/da-fare/scarti/{number}"
    with door.signed_in("manager", clinic=mine) as manager:
        page = manager.get(address).text
        assert 'action="/servizi/import_patients/anteprima"' in page
        assert "resta scritto" not in page
        assert manager.post(address, data=door.form(manager, verdict="settle", reason="no")).status_code == 409
        assert manager.post(address, data=door.form(manager, verdict="?", **WHY)).status_code == 400
        assert manager.post(address, data=door.form(manager, verdict="settle", **WHY)).status_code == 303
        assert manager.post(address, data=door.form(manager, verdict="settle", **WHY)).status_code == 409
        assert f"scarti/{number}" not in manager.get("/da-fare").text
        kept(door, mine, "price", {**RECORD, "last_name": "Neri"})
        assert "scarti/" in manager.get("/da-fare").text
        assert manager.get(address).status_code == 404
    with door.door.engine.connect() as connection:
        said = connection.execute(sa.text("SELECT action, clinic, detail FROM audit ORDER BY id DESC LIMIT 1")).one()
    assert tuple(said) == ("quarantine_settle", "MI01", {"record": number, "reason": WHY["reason"]})


@pytest.mark.parametrize("record", [None, "x", [], {}, {"a": {"b": {"c": {"d": {"e": {"f": {"g": {}}}}}}}}, [[1], [2]]])
def test_a_record_of_any_shape_is_shown(door: Served, record: object) -> None:
    with door.door.engine.begin() as connection:
        mine = world.clinic(connection, "MI01")
    number = kept(door, mine, "price", record)
    with door.signed_in("manager") as manager:
        assert manager.get(f"/da-fare/scarti/{number}").status_code == 200


def test_patients_who_may_be_somebody_else_have_a_heading_of_their_own(door: Served) -> None:
    with door.door.engine.begin() as connection:
        mine = world.clinic(connection, "MI01")
        review = {"clinic_id": mine, "cause": "link_dissolved", "found_at": datetime.now(UTC), "record": "{}"}
        for external in ("P1", "P2"):
            patient = world.patient(connection)
            connection.execute(
                sa.text("""INSERT INTO patient_review (clinic_id, external_id, cause, candidates, record, found_at)
                           VALUES (:clinic_id, :external, :cause, ARRAY[CAST(:patient AS bigint)],
                                   CAST(:record AS jsonb), :found_at)"""),
                {**review, "external": external, "patient": patient},
            )
        linked(connection, mine, "P2", patient, suspended="link_dissolved")
    with door.signed_in("desk", clinic=mine) as desk:
        page = desk.get("/da-fare").text
    headings = [page.index(mark) for mark in ('id="suspended"', "P2", 'id="reviews"', "P1")]
    assert headings == sorted(headings)


def test_a_type_of_event_that_nobody_knows_is_decided_for_every_clinic_by_who_acts_for_all(door: Served) -> None:
    with door.door.engine.begin() as connection:
        clinic = world.clinic(connection, "BO01")
        connection.execute(
            sa.text("INSERT INTO event_type (type, clinic_id, asked_at) VALUES ('fee.<b>', :clinic, :at)"),
            {"clinic": clinic, "at": world.AS_OF},
        )
        connection.execute(
            sa.text("""
                INSERT INTO event_inbox (clinic_id, event_id, sequence, type, version, state, reason, attempts, payload,
                                         received_at, changed_at)
                SELECT :clinic, CAST(lpad(n::text, 32, '0') AS uuid), n, 'fee.<b>', 1, state, :why, 1, '{}', :at, :at
                FROM unnest(ARRAY['unknown', 'unknown', 'dead']) WITH ORDINALITY AS kept (state, n)"""),
            {"clinic": clinic, "at": world.AS_OF, "why": kept_reason(Reason("event_type_unknown", {"type": "fee"}))},
        )
    given = {"type": "fee.<b>", "verdict": "ignore", "back": "types", **WHY}
    with door.signed_in("manager", clinic=clinic) as browser:
        page = browser.get("/da-fare").text
        assert "/da-fare/tipi" not in page
        assert "tipo di evento sconosciuto: fee" in page
        assert browser.post("/da-fare/tipi", data=door.form(browser, **given)).status_code == 403
    with door.signed_in("manager") as browser:
        page = browser.get("/da-fare").text
        assert "fee.&lt;b&gt; · 2 eventi messi da parte" in page
        assert "Lasciali senza effetto" in page
        for wrong, status in (({"reason": "boh"}, 400), ({"verdict": "x"}, 400), ({"type": "?"}, 409)):
            answer = browser.post("/da-fare/tipi", data=door.form(browser, **given | wrong))
            assert answer.status_code == status
        assert browser.post("/da-fare/tipi", data=door.form(browser, **given)).status_code == 303
        page = browser.get("/da-fare").text
        assert "Lasciali senza effetto" not in page
        assert "Torna a chiedere" in page
        assert browser.post("/da-fare/tipi", data=door.form(browser, **given)).status_code == 409
        answer = browser.post("/da-fare/tipi", data=door.form(browser, **given | {"verdict": "ask"}))
        assert (answer.status_code, answer.headers["location"]) == (303, "/da-fare#types")
        assert "Lasciali senza effetto" in browser.get("/da-fare").text
    with door.door.engine.connect() as connection:
        done = connection.execute(sa.text("SELECT action, split_part(actor, ':', 1) FROM audit ORDER BY id")).all()
    assert [tuple(each) for each in done] == [("event_type", "manager"), ("event_type_again", "manager")]
