"""A practice's workbook on the page of its plans: what stops it is seen there, and the whole goes past it."""

from __future__ import annotations

from html import unescape
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

from polydesk_dagster.database.engine import plain_url
from polydesk_dagster.jobs.plans import apply_plan
from polydesk_dagster.resources.polydesk import PolydeskResource
from polydesk_dagster.runtime.names import PERSON_TAG
from polydesk_dagster.sources.practice.importing import Import
from tests.sources.test_practice_workbook import LOCATIONS, TURNS, WHOLE, all_of, applied, book, planned
from tests.web.world import Served

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


def test_one_that_nothing_stops_is_imported_whole_too(door: Served) -> None:
    found = planned(door.door.engine, book(WHOLE))
    with door.signed_in("manager") as browser:
        page = unescape(browser.get(f"/piani/{found.number}").text)
    assert "Guarda le righe di ogni foglio" in page
    assert "Importa tutto il file" in page
    assert 'name="guard"' not in page


class Tool:
    """What the button starts."""

    def __init__(self, engine: sa.Engine, instance: dg.DagsterInstance) -> None:
        self.engine, self.instance = engine, instance

    def press(self, **config: Any) -> tuple[str, list[str]]:
        """Outcome and the reasons' codes."""
        apply_plan.execute_in_process(
            run_config={"ops": {"apply": {"config": config}}},
            resources={"polydesk": PolydeskResource()},
            instance=self.instance,
            tags={PERSON_TAG: "manager:anna@example.org"},
            raise_on_error=False,
        )
        newest = "SELECT outcome, reasons FROM service_run WHERE service = 'apply_plan' ORDER BY id DESC LIMIT 1"
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
