"""A practice's workbook on the page of its plans: what stops it is seen there, and the whole goes past it."""

from __future__ import annotations

from datetime import UTC, datetime
from html import unescape
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

from polydesk_dagster import changes
from polydesk_dagster.clinic.calendar import slots
from polydesk_dagster.database.engine import plain_url
from polydesk_dagster.jobs.plans import apply_plan, undo_plan
from polydesk_dagster.resources.polydesk import PolydeskResource
from polydesk_dagster.runtime.names import PERSON_TAG
from polydesk_dagster.sources.practice import problems, undoing
from polydesk_dagster.sources.practice.importing import Import
from tests.sources.test_practice_workbook import LOCATIONS, TURNS, WHOLE, all_of, applied, book, planned
from tests.web.world import Served
from tests.world import AS_OF

WHY = "turni letti con la direzione sanitaria"


def _stopped(engine: sa.Engine) -> Import:
    """A new place and more turns than before, a third of which nobody can read."""
    applied(engine, book(WHOLE))
    turns = [["BO01", "Cardiologia", "martedì", f"{n}:00", f"{n}:45"] for n in range(22)]
    turns[4:10] = [[*turn[:3], "di mattina", "di sera"] for turn in turns[4:10]]
    return planned(engine, book({"Turni": [TURNS[0], *turns], "Sedi": [*LOCATIONS, ["BO01", "Nuova"]]}))


def test_each_of_its_plans_shows_what_stops_the_file_to_who_may_import_it(door: Served) -> None:
    found = _stopped(door.door.engine)
    places, turns = (each.id for each in found.plans)
    with door.signed_in("manager") as browser:
        pages = {each: unescape(browser.get(f"/piani/{each}").text) for each in (places, turns)}
    for page in pages.values():
        assert "foglio Turni: 6 record illeggibili su 22" in page
        assert f"Guarda le righe del piano {turns}" in page
        assert f'href="/piani/{places}"' in page
        assert f'href="/piani/{turns}"' in page
        assert page.count('name="guard" value="source_shape"') == 1
        assert "Importa tutto il file" in page
    with door.signed_in("desk") as browser:
        page = unescape(browser.get(f"/piani/{turns}").text)
    assert "6 record illeggibili su 22" in page
    assert "Importa tutto il file" not in page


def test_its_rows_that_cannot_be_read_are_listed_with_what_to_do_about_them(
    door: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = _stopped(door.door.engine)
    with door.signed_in("desk") as browser:
        page = unescape(browser.get(f"/piani/{found.plans[0].id}").text)
        monkeypatch.setattr(problems, "SHOWN_ROWS", 2)
        short = unescape(browser.get(f"/piani/{found.plans[0].id}").text)
    assert page.count("«di mattina» non è un'ora: scriverla come 09:30") == 6
    assert [f'<td data-label="Riga">{line}</td>' in page for line in range(5, 13)] == [False, *[True] * 6, False]
    assert ("altre 4 righe" in short, f"dal piano {found.number}" in short) == (True, True)
    assert "Qui ci sono le prime" not in page


def test_one_that_nothing_stops_is_imported_whole_too(door: Served) -> None:
    found = planned(door.door.engine, book(WHOLE))
    with door.signed_in("manager") as browser:
        page = unescape(browser.get(f"/piani/{found.number}").text)
    assert "Guarda le righe di ogni foglio" in page
    assert "Importa tutto il file" in page
    assert 'name="guard"' not in page


def test_one_that_is_in_is_taken_back_whole_or_sheet_by_sheet_by_who_may(door: Served) -> None:
    found, _ = applied(door.door.engine, book(WHOLE))
    places = found.plans[1].id
    with door.signed_in("manager") as browser:
        page = unescape(browser.get(f"/piani/{places}").text)
        assert page.count(f'action="/piani/{places}/annulla"') == 2
        assert page.count('name="whole" value="1"') == 1
        assert page.index("Annulla tutto il file") < page.index("Annulla solo questo foglio")
        with door.door.engine.begin() as connection:
            changes.undo(connection, found.number or 0, as_of=AS_OF, actor="desk:test", reason=WHY)
        page = unescape(browser.get(f"/piani/{found.number}").text)
        assert ("Annulla tutto il file" in page, "Annulla solo questo foglio" in page) == (True, False)
        more, _ = applied(door.door.engine, book({"Sedi": [*LOCATIONS, ["BO01", "Nuova"]]}))
        assert "Annulla tutto il file" in unescape(browser.get(f"/piani/{more.number}").text)
        with door.door.engine.begin() as connection:
            undoing.undo(connection, more, as_of=AS_OF, actor="desk:test", reason=WHY)
        assert "Annulla tutto il file" not in unescape(browser.get(f"/piani/{more.number}").text)
    with door.signed_in("desk") as browser:
        assert "/annulla" not in browser.get(f"/piani/{places}").text


class Tool:
    """What the button starts."""

    def __init__(self, engine: sa.Engine, instance: dg.DagsterInstance) -> None:
        self.engine, self.instance = engine, instance

    def press(self, **config: Any) -> tuple[str, list[str]]:
        """Outcome and the reasons' codes."""
        return self._press(apply_plan, "apply", config)

    def take_back(self, **config: Any) -> tuple[str, list[str]]:
        return self._press(undo_plan, "take_back", config | {"whole": True})

    def _press(self, job: dg.JobDefinition, step: str, config: dict[str, Any]) -> tuple[str, list[str]]:
        job.execute_in_process(
            run_config={"ops": {step: {"config": config}}},
            resources={"polydesk": PolydeskResource()},
            instance=self.instance,
            tags={PERSON_TAG: "manager:anna@example.org"},
            raise_on_error=False,
        )
        newest = f"SELECT outcome, reasons FROM service_run WHERE service = '{job.name}' ORDER BY id DESC LIMIT 1"
        ((outcome, reasons),) = all_of(self.engine, newest)
        return outcome, [each["code"] for each in reasons]


@pytest.fixture
def tool(engine: sa.Engine, database: URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("POLYDESK_HOME", str(tmp_path))
    monkeypatch.setenv("POLYDESK_DATABASE_URL", plain_url(database))
    with dg.DagsterInstance.ephemeral(tempdir=str(tmp_path)) as instance:
        yield Tool(engine, instance)


def test_the_whole_goes_or_nothing_and_past_a_check_only_with_its_name_and_a_reason(tool: Tool) -> None:
    """Pressed on the page of the sheet that nothing stops."""
    found = _stopped(tool.engine)
    places, turns = (each.id for each in found.plans)
    assert tool.press(plan=places) == ("refused", ["sheet_stopped", "what_to_do"])
    assert tool.press(plan=places, guards=["source_shape"])[0] == "refused"
    assert tool.press(plan=places, preview=True)[0] == "partial"
    assert all_of(tool.engine, "SELECT count(*) FROM location") == [(1,)]
    outcome, reasons = tool.press(plan=places, guards=["source_shape"], reason=WHY)
    assert (outcome, reasons[-1]) == ("partial", "slots_wait")
    assert all_of(tool.engine, "SELECT count(*) FROM location") == [(2,)]
    assert all_of(tool.engine, "SELECT count(*) FROM agenda_rule") == [(18,)]
    who = "SELECT DISTINCT actor, detail ->> 'reason' FROM audit WHERE plan_id = :turns".replace(":turns", str(turns))
    assert all_of(tool.engine, who) == [("manager:anna@example.org", WHY)]
    assert tool.press(plan=turns)[0] == "nothing_to_do"


SLOTS = "SELECT agenda_id, starts_at, ends_at FROM slot WHERE state = 'free' ORDER BY 1, 2"
TABLES = ("location", "specialist", "service", "agenda", "agenda_rule")


def test_it_is_taken_back_whole_with_its_slots_and_a_preview_of_that_takes_nothing(tool: Tool) -> None:
    """Pressed on the page of its first sheet, whose clinic the slots keep in use."""
    now = datetime.now(UTC)
    first, _ = applied(tool.engine, book(WHOLE), as_of=now)
    slots.generate(tool.engine, now)
    before = all_of(tool.engine, SLOTS)
    more = [*TURNS, ["BO01", "Cardiologia", "venerdì", "8", "10"]]
    second, _ = applied(tool.engine, book({"Turni": more}), as_of=now)
    slots.generate(tool.engine, now)
    assert len(all_of(tool.engine, SLOTS)) > 1.2 * len(before), "so many that generation alone would leave them"
    assert tool.take_back(plan=second.number, reason="boh") == ("refused", ["reason_missing"])
    assert tool.take_back(plan=second.number, preview=True)[0] == "ok"
    assert all_of(tool.engine, "SELECT count(*) FROM agenda_rule") == [(3,)]
    assert tool.take_back(plan=second.number, reason=WHY) == ("ok", ["slots_made"])
    assert all_of(tool.engine, SLOTS) == before

    count = "SELECT " + ", ".join(f"(SELECT count(*) FROM {table})" for table in TABLES)
    whole, plans = all_of(tool.engine, count), all_of(tool.engine, "SELECT id, state FROM plan ORDER BY id")
    seen = tool.take_back(plan=first.plans[0].id, preview=True)
    assert (seen[0], set(seen[1])) == ("partial", {"changed_since"}), "the clinic stays"
    assert all_of(tool.engine, count) == whole
    assert all_of(tool.engine, "SELECT id, state FROM plan ORDER BY id") == plans
    places, _ = applied(tool.engine, book({"Sedi": [*LOCATIONS, ["BO01", "Nuova"]]}), as_of=now)
    assert tool.take_back(plan=places.number, reason=WHY) == ("ok", []), "no slots are made of places"
    outcome, reasons = tool.take_back(plan=first.plans[0].id, reason=WHY)
    assert (outcome, set(reasons)) == ("partial", {"changed_since", "other_plans", "slots_made"})
    assert all_of(tool.engine, count) == [(0,) * len(TABLES)]
    assert tool.take_back(plan=first.plans[0].id, reason=WHY)[0] == "refused"
    who = "SELECT DISTINCT actor, detail ->> 'reason' FROM audit WHERE action = 'undo'"
    assert all_of(tool.engine, who) == [("manager:anna@example.org", WHY)]
