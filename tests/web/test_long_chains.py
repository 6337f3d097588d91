"""Pages of a chain of more clinics than anybody scrolls through: lists are bounded, and each name stands once."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from html import unescape

import pytest
import sqlalchemy as sa

from polydesk_dagster.catalog import SERVICES, Place
from polydesk_dagster.runtime.state.integrations import asked_every, integration_state
from polydesk_dagster.told import teller
from polydesk_dagster.told.state import linked
from polydesk_dagster.values import Reason
from polydesk_dagster.web import clinics
from polydesk_dagster.web.words import CHOICES, NAMED
from tests import world
from tests.web.world import Served

MANY = 250


@pytest.fixture
def served(door: Served, monkeypatch: pytest.MonkeyPatch) -> Served:
    """Two hundred and fifty clinics, at each of which the night's prices were refused."""
    monkeypatch.setenv("POLYDESK_STUDIOLAB_TOKEN_TEST", "t")
    with door.door.engine.begin() as connection:
        connection.execute(
            sa.text("""INSERT INTO clinic (code, name, region, municipality_code)
                       SELECT 'C' || to_char(n, 'FM000'), 'Poliambulatorio', 'Lazio', 'H501'
                       FROM generate_series(1, :many) n"""), {"many": MANY}
        )  # fmt: skip
        connection.execute(
            sa.text("""INSERT INTO integration (clinic_id, base_url, token_env, active, updated_at)
                       SELECT id, 'https://studiolab.example/api/v1', 'POLYDESK_STUDIOLAB_TOKEN_TEST', true,
                              now() - interval '30 minutes' FROM clinic""")
        )
        connection.execute(
            sa.text("""INSERT INTO service_run
                              (service, clinic_id, outcome, counts, reasons, as_of, started_at, seconds)
                       SELECT 'sync_prices', id, 'refused', '{}', '[]', now(), now(), 1 FROM clinic""")
        )
    return door


def test_a_clinic_is_chosen_from_one_list_that_stands_once(served: Served) -> None:
    red = next(service.key for service in SERVICES if service.place is Place.EMERGENCY)
    with served.signed_in("superuser") as browser:
        for address in ("/", "/servizi/refresh_statistics", f"/rossa/{red}", "/chiusure"):
            page = browser.get(address).text
            assert page.count('<datalist id="clinics">') == 1
            assert '<input id="' in page
            assert 'list="clinics"' in page
        assert browser.get("/").text.count('value="C001"') == 1
    assert CHOICES < MANY


def test_of_a_few_clinics_each_is_in_the_list_to_choose_from(door: Served) -> None:
    with door.door.engine.begin() as connection:
        for code in ("MI01", "NA01"):
            world.clinic(connection, code)
    with door.signed_in("superuser") as browser:
        page = browser.get("/").text
    assert "<datalist" not in page
    assert page.count('<option value="MI01">') > 1


def test_who_is_behind_and_what_is_not_well_is_told_of_so_many(served: Served) -> None:
    with served.signed_in("superuser") as browser:
        page = browser.get("/").text
        assert f"+{MANY - NAMED}" in page
        health = unescape(browser.get("/salute").text)
        assert health.count("<code>service_failed</code>") == 1
        assert f"e altre {MANY - 5} cliniche" in health


def test_a_source_of_lists_alone_says_when_it_was_read_and_is_not_asked(served: Served) -> None:
    """One clinic's files, read yesterday and, as a preview, since."""
    at = datetime(2026, 3, 10, 8, 30, tzinfo=UTC)
    with served.door.engine.begin() as connection:
        connection.execute(
            sa.text("""
                WITH c AS (UPDATE integration SET vendor = 'files', base_url = NULL, token_env = NULL
                           WHERE clinic_id = (SELECT id FROM clinic WHERE code = 'C002') RETURNING clinic_id)
                INSERT INTO service_run
                       (service, clinic_id, outcome, preview, counts, reasons, as_of, started_at, seconds)
                SELECT 'sync_prices', clinic_id, 'nothing_to_do', preview, '{}', '[]', at, at, 1
                FROM c, (VALUES (false, CAST(:at AS timestamptz)), (true, now())) AS t(preview, at)"""),
            {"at": at},
        )
        state = integration_state(connection, "C002", lambda _: True)
        assert state is not None
        assert (state.link, state.listed_at, asked_every(state, datetime.now(UTC))) == ("well", at, None)
        assert linked(teller("it"), state) == "attivo, elenchi letti l'ultima volta 10/03/2026 09:30 (files)"
    with served.signed_in("superuser") as browser:
        page = unescape(browser.get("/cliniche").text)
    assert page.count("10/03/2026 09:30") == 1
    assert page.count("non ancora interrogato") == clinics.SHOWN - 1


def test_the_page_says_who_is_asked_less_often_and_why(served: Served) -> None:
    with served.door.engine.begin() as connection:
        slow = connection.scalar(sa.text("SELECT id FROM clinic WHERE code = 'C001'"))
        now = datetime.now(UTC)
        connection.execute(
            sa.text("INSERT INTO event_cursor (clinic_id, slowed, read_at) VALUES (:slow, 4, :now)"),
            {"slow": slow, "now": now - timedelta(minutes=1)},
        )
    with served.signed_in("superuser") as browser:
        page = unescape(browser.get("/cliniche").text)
    assert page.count("chiesta ogni 4 minuti: risponde lentamente") == 1
    assert page.count("chiesta ogni 2 minuti: da tempo non ha novità") == clinics.SHOWN - 1


def _listed(page: str) -> list[str]:
    return re.findall(r"<p>(C\d{3}) · Europe/Rome", page)


def test_clinics_that_somebody_must_look_at_come_first_and_each_is_found(served: Served) -> None:
    why = Reason("remote_unreachable", {"system": "studiolab", "error": "refused"})
    with served.door.engine.begin() as connection:
        connection.execute(
            sa.text("""INSERT INTO event_cursor (clinic_id, failures, down_since, down_reason, quiet_until)
                       SELECT id, 3, now(), :why, now() + interval '5 minutes' FROM clinic
                       WHERE code IN ('C111', 'C222')"""),
            {"why": json.dumps(why.as_dict())},
        )
    with served.signed_in("superuser") as browser:
        first = unescape(browser.get("/cliniche").text)
        last = browser.get("/cliniche?pagina=99").text
        found = browser.get("/cliniche?cerca=c22").text
        nobody = browser.get("/cliniche?cerca=Ospedale").text
        pressed = browser.post(
            "/cliniche/C030/studiolab", data=served.form(browser, on="0", cerca="c", pagina="2"), follow_redirects=False
        )
    assert _listed(first) == ["C111", "C222", *(f"C{n:03}" for n in range(1, clinics.SHOWN - 1))]
    assert "2 cliniche da guardare: stanno per prime." in first
    assert first.count("Studiolab: collegamento non riuscito (") == 2
    assert "pagina 1 di 10" in first
    assert (_listed(last)[0], _listed(last)[-1]) == ("C226", "C250")
    assert _listed(found) == ["C222", "C220", "C221", *(f"C{n}" for n in range(223, 230))]
    assert "Nessuna clinica si chiama così." in nobody
    assert (pressed.status_code, pressed.headers["location"]) == (303, "/cliniche?cerca=c&pagina=2")
