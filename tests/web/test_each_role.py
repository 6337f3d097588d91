"""Each role at her work in a real browser: she logs in with her password and presses what is hers, with real runs.

One installation and one browser for the module: a run's first start imports the definitions, the next ones are quick.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from playwright.sync_api import Browser, Page, expect
from sqlalchemy.engine import URL

from polydesk_dagster.clinic.messages.kinds import TO_CALL
from polydesk_dagster.database.engine import business_url, create_engine, dagster_url
from polydesk_dagster.database.migrate import create_database
from polydesk_dagster.runtime import instance
from tests import postgres, world
from tests.web.browser import chromium, opened
from tests.web.world import PASSWORD, Served, person, served

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("browser")]

"""Milliseconds for a run: the machine may be busy with something else."""


@dataclass(frozen=True, slots=True)
class Practice:
    door: Served
    browser: Browser

    def page(self, role: str) -> Page:
        """The page of somebody of a role, who logs in as people do."""
        context = opened(self.browser, base_url=self.door.origin, locale="it-IT")
        page = context.new_page()
        page.goto("/")
        page.fill("#email", f"{role}@example.org")
        page.fill("#password", PASSWORD)
        page.keyboard.press("Enter")
        page.wait_for_url(f"{self.door.origin}/")
        return page

    def rows(self, query: str) -> list[tuple[object, ...]]:
        with self.door.door.engine.connect() as connection:
            return [tuple(row) for row in connection.execute(sa.text(query))]


@pytest.fixture(scope="module")
def practice(server: URL, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Practice]:
    home: Path = tmp_path_factory.mktemp("home")
    home.chmod(0o700)
    patch = pytest.MonkeyPatch()
    with (
        postgres.copied(server, postgres.EMPTY) as url,
        served(create_engine(url), home) as door,
        chromium() as browser,
    ):
        settings = door.door.settings
        patch.setenv("POLYDESK_HOME", str(home))  # a run reads them itself
        patch.setenv("POLYDESK_DATABASE_URL", business_url(settings).render_as_string(hide_password=False))
        create_database(dagster_url(settings).set(drivername="postgresql+psycopg"))
        instance.prepare(settings)
        with door.door.engine.begin() as connection:
            _furnish(connection)
        yield Practice(door, browser)
        door.door.engine.dispose()
    patch.undo()


def _furnish(connection: sa.Connection) -> None:
    """Two doctors under wrong letters, a patient to call, two visitors who are booking."""
    now = datetime.now(UTC)
    there = world.practice(connection, "BO01")
    for last, wrong in (("Rossi", "x"), ("La Rosa", "y")):
        world.specialist(connection, there.clinic, last_name=last, first_name="Anna", sort_name=wrong)
    visit = world.appointment(
        connection,
        world.slot(connection, there.agenda, now + timedelta(days=2)),
        service_id=there.service,
        patient_id=world.patient(connection),
    )
    world.insert(
        connection,
        "call_list",
        [{"clinic_id": there.clinic, "appointment_id": visit, "start_version": 1, "kind": "reminder",
          "reason": TO_CALL["reminder"][0], "starts_at": now + timedelta(days=2), "created_at": now}],
    )  # fmt: skip
    for day in (3, 4):
        times = {"created_at": now - timedelta(minutes=5), "last_activity_at": now - timedelta(minutes=5)}
        slot = world.slot(connection, there.agenda, now + timedelta(days=day))
        world.hold(connection, there.clinic, slot, expires_at=now + timedelta(minutes=15), **times)
    for role in ("desk", "specialist", "manager", "superuser"):
        person(connection, role, password=True, email=f"{role}@example.org", clinic=None)


def _ended(page: Page) -> str:
    """How the press that the page shows ended."""
    page.wait_for_url("**/premute/**")
    expect(page.locator("#press .outcome:not(.running)").first).to_be_visible()
    return page.inner_text("#press")


def test_the_desk_works_the_call_list_and_presses_nothing(practice: Practice) -> None:
    page = practice.page("desk")
    assert page.locator(".service").count() >= 23
    assert page.locator("form[action$='/esegui']").count() == 0
    page.click("text=Da fare")
    call = page.locator("form[action^='/da-fare/telefonate/']")
    call.locator("select").select_option("reached")
    call.locator("button").click()
    page.wait_for_url("**/da-fare*")
    assert page.locator("form[action^='/da-fare/telefonate/']").count() == 0
    assert practice.rows("SELECT state, done_by, outcome FROM call_list") == [
        ("done", "desk:desk@example.org", "reached")
    ]
    page.context.close()


def test_the_specialist_looks_and_meets_no_patient(practice: Practice) -> None:
    page = practice.page("specialist")
    assert page.locator("form[action$='/esegui']").count() == 0
    assert page.locator("nav a", has_text="Da fare").count() == 0
    answer = page.goto("/da-fare")
    assert answer is not None
    assert answer.status == 403
    assert page.locator("h1").count() == 1
    page.context.close()


def test_the_manager_looks_holds_a_row_back_applies_takes_back_and_pauses(practice: Practice) -> None:
    names = "SELECT sort_name FROM specialist WHERE last_name IN ('Rossi', 'La Rosa') ORDER BY last_name"
    page = practice.page("manager")
    page.locator("#refresh_sort_names button.eye").click()
    assert "niente è cambiato" in _ended(page)
    assert practice.rows(names) == [("y",), ("x",)]
    page.click("text=Guarda tutte le righe e applica")
    page.locator("tr", has_text="Rossi").locator("input[name=hold]").check()
    page.click("text=Trattieni le righe spuntate")
    assert "trattenuta da manager:manager@example.org" in page.locator("tr.held").inner_text()
    plan = page.url.partition("?")[0]
    page.locator("section[aria-labelledby=apply] button").click()
    assert "2 modifiche" in _ended(page)
    written, held = practice.rows(names)
    assert (written != ("y",), held) == (True, ("x",))
    page.goto(plan)
    page.fill("#reason", "Era giusto come prima")
    page.locator("form[action$='/annulla'] button").first.click()
    assert "2 modifiche" in _ended(page)
    assert practice.rows(names) == [("y",), ("x",)]
    assert practice.rows("SELECT actor, action FROM audit WHERE plan_id IS NOT NULL ORDER BY id") == [
        ("manager:manager@example.org", action) for action in ("hold", "apply", "undo")
    ]
    page.goto("/servizi/refresh_statistics")
    for verb, choice in (("avvia", None), ("sospendi", "week"), ("riprendi", None)):
        form = page.locator(f"form[action$='/{verb}']")
        if choice:
            form.locator("select").select_option(choice)
        form.locator("input[name=reason]").fill("Prova della direzione")
        form.locator("button").click()
        expect(page.locator(f"form[action$='/{verb}']")).to_have_count(0)
    assert page.locator(".red").count() == 0
    answer = page.goto("/rossa/release_all_holds")
    assert answer is not None
    assert answer.status == 403
    page.context.close()


def test_the_superuser_presses_the_red_button_wrongly_and_rightly(practice: Practice) -> None:
    live = "SELECT count(*) FROM hold WHERE state = 'live'"
    page = practice.page("superuser")

    def looked() -> tuple[str, str]:
        page.goto("/rossa/release_all_holds")
        page.locator("form[action$='/guarda'] button").click()
        said = re.search(r"«(LIBERA \d+ \w+)»", _ended(page))
        assert said is not None
        return said[1], page.url

    def typed(address: str, phrase: str) -> str:
        page.goto(address)
        page.fill("#reason", "Guasto della prenotazione online")
        page.fill("#phrase", phrase)
        page.locator("form[action$='/premi'] button").click()
        return _ended(page)

    phrase, address = looked()
    for _ in range(3):
        assert "rifiutato" in typed(address, "LIBERA 2 qualcosa")
    assert practice.rows(live) == [(2,)]
    assert "rifiutato" in typed(address, phrase)  # three wrong ones have voided it
    assert practice.rows(live) == [(2,)]
    phrase, address = looked()
    assert "riuscito" in typed(address, phrase)
    assert practice.rows(live) == [(0,)]
    assert practice.rows("SELECT actor FROM audit WHERE service = 'release_all_holds' AND action = 'apply'") == [
        ("superuser:superuser@example.org",)
    ]
    page.context.close()
