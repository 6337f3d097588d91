"""A plan taken back from the web page: the same undo as the terminal's, refused with what to fill in."""

from __future__ import annotations

import getpass
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

from polydesk_dagster.database.engine import plain_url
from polydesk_dagster.database.locks import exclusive
from polydesk_dagster.jobs.plans import undo_plan
from polydesk_dagster.resources.polydesk import PolydeskResource
from polydesk_dagster.runtime.names import PERSON_TAG
from tests.patients.world import MARIO, Import, person

WHY = "importati dal listino sbagliato"


class Page:
    """What an operator starts on the web page."""

    def __init__(self, run: Import, instance: dg.DagsterInstance) -> None:
        self.run, self.instance = run, instance

    def undo(self, person: str | None = None, **config: Any) -> dg.ExecuteInProcessResult:
        return undo_plan.execute_in_process(
            run_config={"ops": {"take_back": {"config": config}}} if config else None,
            resources={"polydesk": PolydeskResource()},
            instance=self.instance,
            tags={PERSON_TAG: person} if person else None,
            raise_on_error=False,
        )

    def last(self) -> tuple[str, str | None, str, bool]:
        """Outcome, clinic, first reason's code and whether it was a preview, of the newest run."""
        (row,) = self.run.rows("""
            SELECT r.outcome, c.code, r.reasons -> 0 ->> 'code', r.preview FROM service_run r
            LEFT JOIN clinic c ON c.id = r.clinic_id WHERE service = 'undo_plan' ORDER BY r.id DESC LIMIT 1""")
        return row  # type: ignore[return-value]

    def patients(self) -> int:
        return int(self.run.rows("SELECT count(*) FROM patient")[0][0])


@pytest.fixture
def page(engine: sa.Engine, database: URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("POLYDESK_HOME", str(tmp_path))
    monkeypatch.setenv("POLYDESK_DATABASE_URL", plain_url(database))
    with dg.DagsterInstance.ephemeral(tempdir=str(tmp_path)) as instance:
        yield Page(Import(engine), instance)


def test_the_defaults_do_nothing_and_say_what_to_fill_in(page: Page) -> None:
    done = page.undo()
    assert not done.success
    assert page.last() == ("refused", None, "which_plan", False)
    assert "«plan»" in str(done.failure_data_for_node("take_back"))
    page.undo(plan=999, reason=WHY)
    assert page.last()[2] == "unknown_plan"


def test_a_plan_is_looked_at_and_taken_back(page: Page) -> None:
    plan = page.run(MARIO, person("P2", fiscal_code=None, last_name="Verdi")).plan_id
    assert page.undo(plan=plan, preview=True).success
    assert page.last() == ("ok", "BO01", None, True)
    assert page.patients() == 2
    assert not page.undo(plan=plan, reason="boh").success
    assert page.last()[2] == "reason_missing"
    done = page.undo(plan=plan, reason=WHY)
    assert done.success
    assert page.last() == ("ok", "BO01", None, False)
    assert page.patients() == 0
    shown = str([event.event_specific_data for event in done.all_node_events])
    assert "eliminazione" in shown
    assert "Rossi" not in shown
    ((actor, detail),) = page.run.rows("SELECT actor, detail FROM audit WHERE action = 'undo'")
    assert (actor, detail["reason"], detail["undoes"]) == (f"desk:{getpass.getuser()}", WHY, plan)
    assert not page.undo(plan=plan, reason=WHY).success
    assert page.last()[2] == "not_undoable"


def test_what_was_edited_since_stays_and_is_told(page: Page) -> None:
    plan = page.run(MARIO, person("P2", fiscal_code=None, last_name="Verdi")).plan_id
    with page.run.engine.begin() as connection:
        connection.execute(sa.text("UPDATE patient SET mobile = '+393400000000' WHERE last_name = 'Verdi'"))
    assert page.undo(plan=plan, reason=WHY, person="manager:anna@example.org").success
    assert page.last()[::2] == ("partial", "changed_since")
    assert page.patients() == 1
    assert page.run.rows("SELECT actor FROM audit WHERE action = 'undo'") == [("manager:anna@example.org",)]


def test_a_running_service_is_not_disturbed(page: Page) -> None:
    plan = page.run(MARIO).plan_id
    with exclusive(page.run.engine, "import_patients", "BO01") as alone:
        assert alone
        assert page.undo(plan=plan, reason=WHY).success
    assert page.last()[::2] == ("skipped", "service_busy")
    assert page.patients() == 1


def test_an_emergency_plan_is_not_taken_back_from_the_ordinary_location(page: Page) -> None:
    with page.run.engine.begin() as connection:
        plan = connection.execute(
            sa.text("""
                INSERT INTO plan (service, kind, fingerprint, tally, state, as_of, expires_at, applied_at)
                VALUES ('release_all_holds', 'revoked_hold', '', '{}', 'applied', now(), now(), now()) RETURNING id""")
        ).scalar_one()
    assert not page.undo(plan=plan, reason=WHY).success
    assert page.last()[2] == "emergency_plan"
