"""*Impostazioni → Servizi*: what each role sees and may press, in each language, and what a press does."""

from __future__ import annotations

import re
import threading
from datetime import UTC, datetime, timedelta
from html import unescape

import httpx
import pytest
import sqlalchemy as sa

from polydesk_dagster.catalog import SERVICES, Place
from polydesk_dagster.database.engine import business_url, dagster_url
from polydesk_dagster.database.migrate import create_database
from polydesk_dagster.database.service_runs import record
from polydesk_dagster.outcome import Counts, Outcome, Reason, Report
from polydesk_dagster.runtime import instance
from polydesk_dagster.runtime.pressing import Told
from polydesk_dagster.runtime.state import activity, restored
from polydesk_dagster.told import teller
from tests import world
from tests.runtime import written
from tests.waiting import PATIENCE
from tests.web.world import Served


@pytest.fixture
def served(door: Served) -> Served:
    with door.door.engine.begin() as connection:
        world.clinic(connection)
    return door


def ran(engine: sa.Engine, service: str, report: Report, clinic: str | None = None) -> None:
    """Record that a service ran an hour and nine minutes ago."""
    now = datetime.now(UTC) - timedelta(minutes=69)
    with engine.begin() as connection:
        record(
            connection, service, report, clinic=clinic, preview=report.preview, dagster_run="r", as_of=now, started=now,
            seconds=1.0,
        )  # fmt: skip


def test_every_service_stands_in_its_group_with_its_name_and_sentence(served: Served) -> None:
    for language, heading in (("it", "Impostazioni → Servizi"), ("en", "Settings → Services"), ("de", "Einstellungen")):
        text = unescape(served.signed_in("superuser").get("/", headers={"accept-language": language}).text)
        assert heading in text
        for service in SERVICES:
            assert teller(language).service(service.key) in text, service.key


@pytest.mark.parametrize(
    ("role", "runs", "red"),
    [("desk", False, False), ("specialist", False, False), ("manager", True, False), ("superuser", True, True)],
)
def test_a_role_sees_only_the_buttons_that_it_may_press(served: Served, role: str, runs: bool, red: bool) -> None:
    text = served.signed_in(role).get("/").text
    assert ("/servizi/clear_caches/esegui" in text) is runs
    assert all((f"/rossa/{s.key}" in text) is red for s in SERVICES if s.place is Place.EMERGENCY)


@pytest.mark.parametrize(
    ("path", "role", "status"),
    [
        ("/servizi/clear_caches/esegui", "desk", 403),
        ("/servizi/clear_caches/anteprima", "specialist", 403),
        ("/servizi/release_all_holds/esegui", "superuser", 403),
        ("/rossa/release_all_holds/guarda", "manager", 403),
        ("/rossa/release_all_holds/premi", "manager", 403),
        ("/rossa/clear_caches/guarda", "superuser", 404),
        ("/servizi/nobody/esegui", "manager", 404),
        ("/servizi/send_reminders/sospendi", "desk", 403),
    ],
)
def test_what_a_role_may_not_press_is_refused(served: Served, path: str, role: str, status: int) -> None:
    with served.signed_in(role) as browser:
        assert browser.post(path, data=served.form(browser)).status_code == status


def test_the_last_outcome_is_told_in_words_with_its_reason(served: Served) -> None:
    reason = Reason("no_instant", {"given": "<script>alert(1)</script>"})
    ran(served.door.engine, "clear_caches", Report(Outcome.PARTIAL, Counts(updated=2, failed=1), (reason,)))
    ran(served.door.engine, "clear_caches", Report(Outcome.OK, Counts(updated=9), preview=True))
    with served.signed_in("desk") as browser:
        row = re.search(r'<li class="service" id="clear_caches">.*?</li>', browser.get("/").text, re.DOTALL)
        assert row is not None
        assert "riuscito in parte" in row[0]
        assert "1 ora e 9 minuti fa" in row[0]
        page = browser.get("/servizi/clear_caches").text
    assert "2 modifiche, 1 errore" in page
    assert "anteprima: niente è cambiato" in page
    assert "9 da modificare" in page
    assert "<script>alert" not in page
    assert "&lt;script&gt;" in page


def _beside_one_that_failed(served: Served) -> int:
    """A clinic, MI01, beside another, NA01, where a run failed."""
    with served.door.engine.begin() as connection:
        hers, other = world.clinic(connection, code="MI01"), world.clinic(connection, code="NA01")
    assert other
    ran(served.door.engine, "refresh_sort_names", Report(Outcome.FAILED, Counts(failed=1)), "NA01")
    return hers


def test_a_manager_of_one_clinic_acts_and_looks_only_there(served: Served) -> None:
    hers = _beside_one_that_failed(served)
    with served.signed_in("manager", clinic=hers) as browser:
        assert "NA01" not in browser.get("/servizi/refresh_sort_names").text
        for clinic in ("NA01", ""):
            form = served.form(browser, clinic=clinic)
            assert browser.post("/servizi/refresh_sort_names/esegui", data=form).status_code == 403
        form = served.form(browser, reason="Festa del paese", **{"for": "day"})
        assert browser.post("/servizi/send_reminders/sospendi", data=form).status_code == 403


def test_the_strip_counts_the_runs_that_she_sees(served: Served) -> None:
    """The word beside it is of her clinics: «mai eseguito» beside «ultime 3 esecuzioni» speaks of others."""
    hers = _beside_one_that_failed(served)
    with served.signed_in("manager", clinic=hers) as browser:
        row = _row(browser, "refresh_sort_names")
        assert "mai eseguito" in row
        assert "esecuzion" not in row
        ran(served.door.engine, "refresh_sort_names", Report(Outcome.OK, Counts(updated=1)), "MI01")
        ran(served.door.engine, "refresh_sort_names", Report(Outcome.NOTHING_TO_DO, Counts()))
        row = _row(browser, "refresh_sort_names")
        assert "ultime 2 esecuzioni: riuscito 1, niente da fare 1" in row
    with served.signed_in("superuser") as browser:
        assert "ultime 3 esecuzioni" in _row(browser, "refresh_sort_names")


def _row(browser: httpx.Client, service: str) -> str:
    found = re.search(rf'<li class="service" id="{service}">.*?</li>', browser.get("/").text, re.DOTALL)
    assert found is not None
    return found[0]


def test_a_queue_that_moves_on_no_more_is_told_with_what_waits_in_it(served: Served) -> None:
    now = datetime.now(UTC)
    with written.storage(served.door.settings) as (dagster, storage):
        for _ in range(3):
            written.ran(dagster, storage, "sync_events", "STARTED", now - timedelta(minutes=30))
        written.ran(dagster, storage, "generate_slots", "QUEUED", now - timedelta(hours=2))
        page = unescape(served.signed_in("manager").get("/").text)
        row = _row(served.signed_in("manager"), "generate_slots")
        served.door.dagster.dispose()
    assert re.search(r"La coda è piena: 1 esecuzione aspetta, la prima da 2 ore.*, mentre 3 sono in corso\.", page)
    assert ("in coda da 2 ore" in row, "in esecuzione" in row) == (True, False)


def test_a_pause_says_who_why_and_until_when_and_ends_by_a_word(served: Served) -> None:
    with served.signed_in("superuser") as browser:
        assert "non ancora attivato" in browser.get("/servizi/send_reminders").text
        form = served.form(browser, reason="Tutto è stato provato")
        assert browser.post("/servizi/send_reminders/avvia", data=form).status_code == 303
        form = served.form(browser, reason="La posta è rotta", **{"for": "day"})
        assert browser.post("/servizi/send_reminders/sospendi", data=form).status_code == 303
        page = browser.get("/servizi/send_reminders").text
        assert "messo in pausa da superuser:" in page
        assert "La posta è rotta" in page
        with served.door.engine.connect() as connection:
            said = activity.activity(connection, "send_reminders", datetime.now(UTC), live=True)
        assert said.mode == "paused"
        short = served.form(browser, reason="sì")
        assert browser.post("/servizi/send_reminders/riprendi", data=short).status_code == 400
        form = served.form(browser, reason="La posta va di nuovo")
        assert browser.post("/servizi/send_reminders/riprendi", data=form).status_code == 303
        assert "messo in pausa da" not in browser.get("/servizi/send_reminders").text.split("<details>")[0]


def test_a_clinic_s_manager_pauses_what_runs_clinic_by_clinic_at_hers_alone(served: Served) -> None:
    with served.door.engine.begin() as connection:
        hers = world.clinic(connection, code="MI01")
        world.clinic(connection, code="NA01")
        world.clinic(connection, code="RM01")
        activity.go_live(connection, activity.STANDING, actor="desk:a", reason="Provato tutto", as_of=world.AS_OF)
        until = datetime.now(UTC) + timedelta(days=1)
        given = {"until": until, "actor": "manager:napoli", "reason": "Un motivo loro", "as_of": world.AS_OF}
        activity.pause(connection, "sync_prices", clinic="NA01", **given)
    with served.signed_in("manager", clinic=hers) as browser:

        def say(verb: str, service: str = "sync_prices", **more: str) -> int:
            form = served.form(browser, reason="Listino in revisione", **{"for": "day"}, **more)
            return browser.post(f"/servizi/{service}/{verb}", data=form).status_code

        assert [say("sospendi", clinic=code) for code in ("", "NA01", "NOPE")] == [403, 403, 403]
        assert say("sospendi", "generate_slots", clinic="MI01") == 400
        assert "lo sospende chi agisce per tutta la catena" in browser.get("/servizi/generate_slots").text
        assert 'action="/servizi/sync_prices/avvia"' not in browser.get("/servizi/sync_prices").text
        assert say("sospendi", clinic="MI01") == 303
        page = unescape(browser.get("/servizi/sync_prices").text)
        assert "<b>MI01</b>: messo in pausa da manager:" in page
        assert "napoli" not in page
        assert "in pausa: MI01" in browser.get("/").text
        assert say("riprendi", clinic="NA01") == 403
        assert say("riprendi", clinic="MI01") == 303
        assert "in pausa: MI01" not in browser.get("/").text
    with served.signed_in("superuser") as browser:
        assert "in pausa: NA01" in browser.get("/").text
        chain = served.form(browser, reason="Listino in revisione", clinic="NOPE", **{"for": "day"})
        assert browser.post("/servizi/sync_prices/sospendi", data=chain).status_code == 400
    with served.door.engine.connect() as connection:
        said = connection.execute(sa.text("SELECT action, clinic FROM audit WHERE clinic IS NOT NULL ORDER BY id"))
        assert [tuple(row) for row in said] == [("pause", "NA01"), ("pause", "MI01"), ("resume", "MI01")]


def test_a_second_press_is_told_whose_the_first_is_and_starts_nothing(served: Served) -> None:
    begun, free = threading.Event(), threading.Event()
    times: list[str] = []

    def work(*, told: Told) -> list[tuple[str | None, Report]]:
        times.append("begun")
        begun.set()
        assert free.wait(PATIENCE)
        return [(None, Report(Outcome.OK))]

    given = {"preview": False, "by": "Anna Bianchi", "at": datetime(2026, 3, 29, 8, tzinfo=UTC)}
    first, _ = served.door.presses.start("clear_caches", None, work, **given)
    try:
        assert begun.wait(PATIENCE)
        with served.signed_in("superuser") as browser:
            for clinic in ("", "BO01"):
                form = served.form(browser, clinic=clinic)
                answer = browser.post("/servizi/clear_caches/esegui", data=form)
                assert answer.headers["location"] == f"/premute/{first.id}?gia=1"
            page = unescape(browser.get(answer.headers["location"]).text)
            assert "Era già in esecuzione: avviato da Anna Bianchi il 29/03/2026 10:00" in page
            assert "Era già" not in unescape(browser.get(f"/premute/{first.id}").text)
    finally:
        free.set()
    assert times == ["begun"]


def test_the_language_that_was_chosen_stays(served: Served) -> None:
    with served.signed_in("desk") as browser:
        answer = browser.post("/lingua", data=served.form(browser, lingua="de", da="//evil.example"))
        assert answer.headers["location"] == "/"
        assert "Einstellungen → Dienste" in browser.get("/").text


@pytest.mark.slow
def test_a_press_runs_the_service_and_tells_how_it_ended(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = served.door.settings
    monkeypatch.setenv("POLYDESK_HOME", str(settings.home))  # the run reads them itself
    monkeypatch.setenv("POLYDESK_DATABASE_URL", business_url(settings).render_as_string(hide_password=False))
    create_database(dagster_url(settings).set(drivername="postgresql+psycopg"))
    instance.prepare(settings)
    with served.signed_in("manager") as browser:
        answer = browser.post("/servizi/refresh_sort_names/esegui", data=served.form(browser))
        assert answer.status_code == 303
        address = answer.headers["location"]
        with browser.stream("GET", f"{address}/stato", timeout=PATIENCE) as events:
            told = "".join(events.iter_text())
        assert "event: end" in told
        assert "niente da fare" in told
        assert "niente da fare" in browser.get(address).text
    with served.door.engine.connect() as connection:
        rows = connection.execute(sa.text("SELECT service, outcome FROM service_run")).all()
    assert [tuple(row) for row in rows] == [("refresh_sort_names", "nothing_to_do")]


def test_the_page_asks_the_database_as_often_for_fifty_clinics_as_for_two(door: Served) -> None:
    engine = door.door.engine
    asked: list[str] = []
    sa.event.listen(engine, "before_cursor_execute", lambda *given: asked.append(given[2]))

    def questions(browser: httpx.Client) -> int:
        asked.clear()
        assert browser.get("/").status_code == 200
        return len(asked)

    with engine.begin() as connection:
        for number in range(2):
            world.integration(
                connection, world.clinic(connection, f"A{number:03d}"), "https://studiolab.example/api/v1"
            )
    with door.signed_in("superuser") as browser:
        few = questions(browser)
        with engine.begin() as connection:
            for number in range(48):
                clinic = world.clinic(connection, f"B{number:03d}")
                world.integration(connection, clinic, "https://studiolab.example/api/v1")
        ran(engine, "sync_prices", Report(Outcome.PARTIAL, Counts(updated=1, failed=1)), "B001")
        assert questions(browser) == few
    assert few <= 10


def test_every_page_says_that_a_restored_copy_keeps_everything_in(served: Served) -> None:
    with served.door.engine.begin() as connection:
        restored.hold(connection, datetime(2026, 3, 10, 9, tzinfo=UTC))
    for page in ("/", "/da-fare"):
        assert "è una copia ripristinata: niente viene inviato" in served.signed_in("desk").get(page).text
