"""Previews, guards and applications as Dagster shows them, and plans from the command line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import dagster as dg
import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL
from typer.testing import CliRunner

from polydesk_dagster import build
from polydesk_dagster.assets.studiolab import BUILT_IN_GUARDS
from polydesk_dagster.catalog import Place
from polydesk_dagster.cli import app
from polydesk_dagster.database.engine import plain_url
from polydesk_dagster.demo.simulators.server import DEMO_TOKEN, in_thread
from polydesk_dagster.demo.simulators.studiolab import StudiolabSimulator
from polydesk_dagster.jobs.plans import apply_plan, undo_plan
from polydesk_dagster.resources.polydesk import PolydeskResource
from tests import world
from tests.sources.lab import AGREEMENTS, PRICES, SERVICES

PATIENTS = [
    {
        "id": f"P{n}",
        "last_name": f"Segretissimo{chr(97 + n) * 2}",
        "first_name": "Ermenegildo",
        "fiscal_code": None,
        "birth_date": f"19{50 + n}-03-04",
        "sex": "M",
        "mobile": f"34012345{n:02d}",
        "updated_at": "2026-01-01T00:00:00Z",
    }
    for n in range(20)
]
BASE = {"services": SERVICES, "agreements": AGREEMENTS, "prices": PRICES, "patients": PATIENTS}
PATIENTS[3] |= {"fiscal_code": "RSSMRA80A01H501U"}
PATIENTS[4] |= {"birth_date": "04/03/1950"}


class House:
    """A clinic with its studiolab, and Dagster's jobs over them."""

    def __init__(self, engine: sa.Engine, simulator: StudiolabSimulator, instance: dg.DagsterInstance) -> None:
        self.engine, self.simulator, self.instance = engine, simulator, instance
        self.definitions = build.definitions(Place.ORDINARY)

    def run(self, job: str, assets: list[str] | None = None, **config: Any) -> dg.ExecuteInProcessResult:
        self.instance.add_dynamic_partitions("clinic", ["BO01"])
        found = self.definitions.resolve_job_def(job)
        names = [node.name for node in found.nodes if node.name.startswith("studiolab__")]
        chosen = [name for name in names if assets is None or name.removeprefix("studiolab__") in assets]
        return found.execute_in_process(
            run_config={"ops": {name: {"config": config} for name in chosen}},
            instance=self.instance,
            partition_key=None if job == "import_municipalities" else "BO01",
            asset_selection=None if assets is None else [dg.AssetKey(["studiolab", name]) for name in assets],
            raise_on_error=False,
        )

    def decide(self, tool: dg.JobDefinition, step: str, **config: Any) -> dg.ExecuteInProcessResult:
        return tool.execute_in_process(
            run_config={"ops": {step: {"config": config}}},
            resources={"polydesk": PolydeskResource()},
            instance=self.instance,
            raise_on_error=False,
        )

    def recorded(self) -> list[tuple[str, str, bool]]:
        with self.engine.connect() as connection:
            rows = connection.execute(sa.text("SELECT service, outcome, preview FROM service_run ORDER BY id"))
            return [tuple(row) for row in rows]  # type: ignore[misc]

    def amounts(self) -> set[str]:
        with self.engine.connect() as connection:
            return {str(amount) for amount in connection.scalars(sa.text("SELECT amount FROM price"))}


@pytest.fixture
def house(engine: sa.Engine, database: URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    monkeypatch.setenv("POLYDESK_HOME", str(tmp_path))
    monkeypatch.setenv("POLYDESK_DATABASE_URL", plain_url(database))
    monkeypatch.setenv("POLYDESK_STUDIOLAB_TOKEN_BO01", DEMO_TOKEN)
    simulator = StudiolabSimulator()
    simulator.hold("BO01", BASE)
    with in_thread(simulator) as url, dg.DagsterInstance.ephemeral(tempdir=str(tmp_path)) as instance:
        with engine.begin() as connection:
            clinic = world.clinic(connection)
            world.integration(
                connection,
                clinic,
                url.replace("/api/v1", "/BO01/api/v1"),
                token_env="POLYDESK_STUDIOLAB_TOKEN_BO01",
            )
        yield House(engine, simulator, instance)


def _metadata(result: dg.ExecuteInProcessResult, asset: str) -> dict[str, Any]:
    (event,) = result.asset_materializations_for_node(f"studiolab__{asset}")
    return {label: value.value for label, value in event.metadata.items()}


def _plan(result: dg.ExecuteInProcessResult, asset: str) -> int:
    return int(_metadata(result, asset)["Piano"])


@pytest.mark.slow
def test_a_night_previews_checks_applies_and_a_failed_guard_stops_it(house: House) -> None:
    assert house.run("sync_services").success
    night = house.run("sync_prices")
    assert night.success
    assert _metadata(night, "prices_preview")["Da aggiungere"] == 21  # the agreement came first
    assert _metadata(night, "prices")["Aggiunte"] == 21
    assert house.recorded()[-1] == ("sync_prices", "ok", False)

    dearer = [PRICES[0] | {"amount": "5.00"}, PRICES[1] | {"amount": "52.50"}]
    house.simulator.hold("BO01", BASE | {"prices": [*dearer, *PRICES[2:]]})
    assert house.run("sync_prices").success  # one jump holds nothing else back
    assert house.recorded()[-1] == ("sync_prices", "partial", False)
    assert house.amounts() >= {"50.00", "52.50"}

    house.simulator.hold("BO01", BASE | {"prices": [*dearer, *PRICES[2:8]]})
    stopped = house.run("sync_prices")
    assert not stopped.success
    failed = {e.asset_check_evaluation_data.check_name for e in _checks(stopped) if not _passed(e)}
    assert failed == {"source_short", "too_many_retired", "too_many_since_confirmed"}
    assert not stopped.asset_materializations_for_node("studiolab__prices")
    assert house.recorded()[-1] == ("sync_prices", "refused", False)

    plan = _plan(stopped, "prices_preview")
    guards = {"past_guard": ",".join((*failed, "price_jump", "code_reused")), "reason": "sconto deciso in direzione"}
    applied = house.run("sync_prices", ["prices"], plan=plan, **guards)
    assert applied.success
    assert "5.00" in house.amounts()


CHECKED = dg.AssetKey(["studiolab", "services_preview"])


def _red(house: House) -> dict[str, str]:
    """The checks of the preview of services that Dagster's page shows as failed, each with what it says."""
    keys = [dg.AssetCheckKey(CHECKED, name) for name in BUILT_IN_GUARDS]
    newest = house.instance.event_log_storage.get_latest_asset_check_execution_by_key(keys)
    said = {key.name: record.event.dagster_event for key, record in newest.items() if record.event}
    told = {name: event.asset_check_evaluation_data for name, event in said.items() if event}
    return {name: str(each.metadata["Che cosa ha trovato"].value) for name, each in told.items() if not each.passed}


def _stopped_elsewhere(house: House, plan: int) -> int:
    """The same plan of another clinic."""
    with house.engine.begin() as connection:
        clinic = world.clinic(connection, code="BZ01")
        copied = sa.text("""
            INSERT INTO plan (service, kind, volatile, clinic_id, scope, fingerprint, tally, guards, as_of, expires_at,
                              rows_kept)
            SELECT service, kind, volatile, :clinic, scope, fingerprint, tally, guards, as_of, expires_at, false
            FROM plan WHERE id = :plan RETURNING id""")
        return int(connection.execute(copied, {"clinic": clinic, "plan": plan}).scalar_one())


@pytest.mark.slow
def test_a_check_is_red_for_as_long_as_some_clinics_plan_is_stopped_by_it(house: House) -> None:
    """Decided on the page, where no preview runs again."""
    assert house.run("sync_services").success
    house.simulator.hold("BO01", BASE | {"services": SERVICES[:8]})
    plan = _plan(house.run("preview_services"), "services_preview")
    failed = {"source_short", "too_many_retired", "too_many_since_confirmed"}
    assert set(_red(house)) == failed
    other = _stopped_elsewhere(house, plan)
    past = {"guards": sorted(failed), "reason": "listino ridotto dalla direzione"}
    for refused in ({}, {"guards": ["source_short"], "reason": past["reason"]}, {**past, "preview": True}):
        house.decide(apply_plan, "apply", plan=plan, **refused)
        assert set(_red(house)) == failed
    assert house.decide(apply_plan, "apply", plan=plan, **past).success
    assert {each.partition(":")[0] for each in _red(house).values()} == {"BZ01"}
    with house.engine.begin() as connection:
        connection.execute(sa.text("UPDATE clinic SET active = false WHERE code = 'BZ01'"))
    assert other > plan
    assert house.decide(undo_plan, "take_back", plan=plan, reason=past["reason"]).success
    assert _red(house) == {}
    assert not house.run("preview_services").success, "the list is as short as it was"
    assert "too_many_retired" in _red(house)


def _checks(result: dg.ExecuteInProcessResult) -> list[dg.DagsterEvent]:
    return [event for event in result.all_events if event.event_type_value == "ASSET_CHECK_EVALUATION"]


def test_checks_are_of_what_their_own_run_has_just_looked_at_and_that_is_looked_up_once(house: House) -> None:
    with patch.object(
        dg.DagsterInstance,
        "fetch_materializations",
        autospec=True,
        side_effect=dg.DagsterInstance.fetch_materializations,
    ) as looked_up:
        runs = [house.run("preview_services") for _ in range(2)]
    assert looked_up.call_count == len(runs)
    for run in runs:
        targets = [event.asset_check_evaluation_data.target_materialization_data for event in _checks(run)]
        assert len(targets) > 1
        assert {target.run_id if target else None for target in targets} == {run.run_id}


def _passed(event: dg.DagsterEvent) -> bool:
    return event.asset_check_evaluation_data.passed


@pytest.mark.slow
def test_a_preview_changes_nothing_and_is_applied_undone_and_read_from_the_terminal(
    house: House, tmp_path: Path
) -> None:
    house.run("sync_services")
    house.run("sync_prices")
    house.simulator.hold("BO01", BASE | {"prices": [PRICES[0] | {"amount": "51.50"}, *PRICES[1:]]})
    seen = house.run("preview_prices")
    assert seen.success
    shown = _metadata(seen, "prices_preview")
    assert (shown["Da modificare"], "51,50" in str(shown)) == (1, True)
    assert "polydesk plan apply" in shown["Che cosa fare"]
    assert "51.50" not in house.amounts()
    plan = str(_plan(seen, "prices_preview"))

    runner = CliRunner()

    def polydesk(*arguments: str) -> tuple[int, Any]:
        done = runner.invoke(app, ["plan", *arguments, "--json"])
        return done.exit_code, json.loads(done.stdout)

    assert polydesk("list")[1][0]["plan_id"] == int(plan)
    file = tmp_path / "plan.csv"
    assert polydesk("show", plan, "--csv", str(file))[1]["written"] == 1
    assert len(file.read_text().splitlines()) == 2
    assert polydesk("show", plan)[1]["rows"][0]["after"] == {"amount": "51.50"}
    code, answer = polydesk("apply", plan)
    assert (code, answer["outcome"], answer["counts"]["updated"]) == (0, "ok", 1)
    assert "51.50" in house.amounts()
    assert polydesk("apply", plan)[0] == 3
    code, answer = polydesk("undo", plan)
    assert (code, answer["outcome"]) == (0, "ok")
    assert "51.50" not in house.amounts()
    assert runner.invoke(app, ["plan", "show", "999"]).exit_code == 2
    for arguments in (["list"], ["show", plan]):
        assert runner.invoke(app, ["plan", *arguments]).exit_code == 0


@pytest.mark.slow
def test_with_preview_a_sync_only_looks(house: House) -> None:
    result = house.run("sync_services", preview=True)
    assert result.success
    assert not result.asset_materializations_for_node("studiolab__services")
    assert house.recorded() == [("sync_services", "ok", True)]


@pytest.mark.slow
def test_a_source_that_fails_is_the_services_own_failure(house: House) -> None:
    house.simulator.fail("status", "/services", status=403, times=None)
    assert not house.run("sync_services").success
    assert house.recorded() == [("sync_services", "failed", True), ("sync_services", "failed", False)]
    with house.engine.connect() as connection:
        said = set(connection.scalars(sa.text("SELECT reasons -> 0 ->> 'code' FROM service_run")))
    assert len(said) == 1
    assert "fallito" not in said.pop()


@pytest.mark.slow
def test_a_guard_is_not_passed_without_the_plan_that_was_looked_at(house: House) -> None:
    house.run("sync_services")
    house.run("sync_prices")
    house.simulator.hold("BO01", BASE | {"prices": [PRICES[0] | {"amount": "5.00"}, *PRICES[1:]]})
    guards = {"past_guard": "price_jump,code_reused", "reason": "sconto deciso dalla direzione"}
    for assets in (None, ["prices"]):
        assert not house.run("sync_prices", assets, **guards).success
        assert house.recorded()[-1] == ("sync_prices", "refused", False)
    assert "5.00" not in house.amounts()


@pytest.mark.slow
@pytest.mark.parametrize("assets", [None, ["patients"]], ids=["after-its-preview", "alone"])
def test_a_night_compares_again_when_another_clinic_was_first(house: House, assets: list[str] | None) -> None:
    someone = {"fiscal_code": "RSSMRA80A01H501U", "birth_date": "1980-01-01", "birth_place": "H501"}
    both = PATIENTS[0] | someone | {"last_name": "Rossi", "first_name": "Mario"}
    house.simulator.hold("BO01", BASE | {"patients": [both, *PATIENTS[5:]]})
    with house.engine.begin() as connection:  # the other import commits as soon as the first comparison is made
        connection.execute(
            sa.text("""CREATE FUNCTION other_import() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                           INSERT INTO patient (last_name, first_name, birth_date, birth_place, sex, fiscal_code,
                                                fiscal_code_canonical, fiscal_code_kind)
                           SELECT 'Rossi', 'Mario', '1980-01-01', 'H501', 'M', code, code, 'CF'
                           FROM (VALUES ('RSSMRA80A01H501U')) v(code) WHERE NOT EXISTS (SELECT FROM patient);
                           RETURN NULL; END $$;
                       CREATE TRIGGER other_import AFTER INSERT ON plan EXECUTE FUNCTION other_import()""")
        )
    assert house.run("import_patients", assets).success
    assert house.recorded()[-1] == ("import_patients", "ok", False)
    with house.engine.connect() as connection:
        found = connection.execute(sa.text("SELECT made_by, count(*) FROM patient_link GROUP BY 1 ORDER BY 1"))
        assert [tuple(row) for row in found] == [("code", 1), ("created", 15)]
        assert connection.scalar(sa.text("SELECT count(*) FROM patient")) == 16


@pytest.mark.slow
def test_whom_the_source_no_longer_means_is_found_by_the_run_itself_and_not_by_a_look(house: House) -> None:
    people = PATIENTS[5:]
    house.simulator.hold("BO01", BASE | {"patients": people})
    assert house.run("import_patients").success
    another = people[0] | {"last_name": "Verdi", "first_name": "Anna", "sex": "F", "birth_date": "1999-05-02"}
    house.simulator.hold("BO01", BASE | {"patients": [another, people[1] | {"merged_into": "P7"}, *people[2:-1]]})
    noted = (
        "SELECT array_agg(external_id) FROM patient_link WHERE suspended_at IS NOT NULL OR missing_since IS NOT NULL"
    )
    told = "SELECT reasons FROM service_run ORDER BY id DESC LIMIT 1"
    said: list[tuple[Any, Any]] = []
    for preview in (True, False):
        assert house.run("import_patients", preview=preview).success
        with house.engine.connect() as connection:
            said.append((connection.scalar(sa.text(noted)), connection.scalar(sa.text(told))))
    (looked, (found, reasons)) = said
    assert looked == (None, [])
    assert sorted(found) == sorted([people[0]["id"], people[1]["id"], people[-1]["id"]])
    assert [(each["code"], each["count"]) for each in reasons] == [("links_suspended", 1), ("links_merged", 1)]
    assert house.recorded()[-1] == ("import_patients", "partial", False)
    assert house.run("import_patients").success
    assert house.recorded()[-1] == ("import_patients", "nothing_to_do", False)


@pytest.mark.slow
def test_nobody_reads_of_a_patient_in_dagster(house: House, tmp_path: Path) -> None:
    result = house.run("import_patients")
    assert result.success, house.recorded()
    with house.engine.connect() as connection:
        assert connection.scalar(sa.text("SELECT count(*) FROM patient")) == 18
        assert connection.scalar(sa.text("SELECT count(*) FROM quarantine")) == 1
    kept = "\n".join(
        str(record.event_log_entry.to_json() if hasattr(record, "event_log_entry") else record)
        for record in house.instance.all_logs(result.run_id)
    )
    run = house.instance.get_run_by_id(result.run_id)
    everything = (
        kept + str(run) + "".join(path.read_text(errors="ignore") for path in tmp_path.rglob("*") if path.is_file())
    )
    assert "import_patients" in everything
    for secret in ("Segretissimo", "Ermenegildo", "34012345", "RSSMRA80A01H501U"):
        assert secret.lower() not in everything.lower()
