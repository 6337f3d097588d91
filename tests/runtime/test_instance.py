"""The instance's configuration: read by Dagster as it is meant, without secrets, the same for both deployments."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
import yaml
from dagster import DagsterInstance
from dagster._core.instance.config import dagster_instance_config
from pydantic import SecretStr
from sqlalchemy.engine import URL

from polydesk_dagster import nearby
from polydesk_dagster import settings as configuration
from polydesk_dagster.database.engine import dagster_url
from polydesk_dagster.database.migrate import create_database
from polydesk_dagster.errors import ConfigurationError, PermanentError
from polydesk_dagster.runtime import instance, orders, submit
from polydesk_dagster.runtime.dagster_inside.compute_logs import FileComputeLogManager
from polydesk_dagster.runtime.dagster_inside.launcher import WarmRunLauncher
from polydesk_dagster.runtime.dagster_inside.storage import PooledRunStorage
from polydesk_dagster.settings import Settings
from tests.runtime.world import ROOT, TINY

DEPLOY = ROOT / "deploy"
SECRET = "segretissima"


@pytest.fixture
def settings(server: URL, tmp_path: Path) -> Settings:
    url = server.set(password=SECRET, database=f"cfg_{os.getpid()}").render_as_string(hide_password=False)
    return Settings(home=tmp_path / "home", database_url=SecretStr(url))


def test_both_deployments_are_valid_and_differ_only_in_their_head() -> None:
    embedded, production = (
        yaml.safe_load((DEPLOY / f"{name}.yaml").read_text()) for name in ("embedded", "production")
    )
    assert embedded == production
    tails = [
        (DEPLOY / f"{name}.yaml").read_text().partition("\nrun_coordinator:")[2] for name in ("embedded", "production")
    ]
    assert tails[0] == tails[1] != ""
    assert dagster_instance_config(str(DEPLOY), "production.yaml")[0]["telemetry"] == {"enabled": False}


def test_the_locations_are_those_of_the_workspace() -> None:
    listed = yaml.safe_load((ROOT / "workspace.yaml").read_text())["load_from"]
    modules = {each["python_module"]["location_name"]: each["python_module"]["module_name"] for each in listed}
    assert modules == {location.name: location.module for location in instance.LOCATIONS}


def test_what_is_written_holds_no_secret_and_is_private(settings: Settings) -> None:
    folder = instance.prepare(settings)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(nearby.sockets(folder).stat().st_mode) == 0o700
    for path in (folder / "dagster.yaml", instance.workspace_file(settings.home)):
        assert SECRET not in path.read_text()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    instance.prepare(settings)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert SECRET in instance.environment(settings)["DAGSTER_POSTGRES_URL"]


def test_dagster_reads_it_as_it_is_meant(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    create_database(dagster_url(settings).set(drivername="postgresql+psycopg"))
    instance.prepare(settings)
    for name, value in instance.environment(settings).items():
        monkeypatch.setenv(name, value)
    with DagsterInstance.get() as dagster:
        assert isinstance(dagster.run_launcher, WarmRunLauncher)
        assert isinstance(dagster.run_storage, PooledRunStorage)
        assert isinstance(dagster.compute_log_manager, FileComputeLogManager)
        assert dagster.run_monitoring_enabled
        assert dagster.run_coordinator.dequeue_interval_seconds == 1  # type: ignore[attr-defined]
        assert dagster.run_retries_enabled
        assert not dagster.run_retries_retry_on_asset_or_op_failure
        assert not dagster.telemetry_enabled
        assert dagster.get_tick_retention_settings(_sensor())
        dagster.optimize_for_webserver(statement_timeout=5000, pool_recycle=60, max_overflow=5)
        assert dagster.get_runs() == []
        assert dagster.run_storage._engine is dagster.event_log_storage._engine  # type: ignore[attr-defined]


def _sensor() -> object:
    from dagster._core.definitions.run_request import InstigatorType

    return InstigatorType.SENSOR


def test_a_deployments_own_instance_is_taken_as_it_is(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home", database_url="postgresql://nobody@nowhere/x", instance=tmp_path / "own")
    with pytest.raises(ConfigurationError, match="no_instance"):
        instance.open_instance(settings)
    assert instance.workspace_of(settings) == tmp_path / "own" / "workspace.yaml"
    assert instance.environment(settings)["DAGSTER_HOME"] == str(tmp_path / "own")
    assert not (tmp_path / "home" / "dagster").exists()


def test_a_deployment_is_known_by_its_dagster_home_and_its_page_sees_the_logs_of_a_run_by_hand(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_database(dagster_url(settings).set(drivername="postgresql+psycopg"))
    deployment, others, logs = tmp_path / "deployment", tmp_path / "others", tmp_path / "logs"
    for folder, text in ((deployment, (ROOT / "deploy" / "production.yaml").read_text()), (others, "telemetry: {}")):
        folder.mkdir()
        (folder / "dagster.yaml").write_text(text)
    assert settings.database_url is not None
    monkeypatch.setenv("POLYDESK_HOME", str(settings.home))
    monkeypatch.setenv("POLYDESK_DATABASE_URL", settings.database_url.get_secret_value())
    for home in (others, tmp_path / "nowhere", instance.dagster_home(settings.home)):
        monkeypatch.setenv("DAGSTER_HOME", str(home))
        assert configuration.load().instance is None
    monkeypatch.setenv("DAGSTER_HOME", str(deployment))
    monkeypatch.setenv("DAGSTER_COMPUTE_LOGS", str(logs))
    monkeypatch.setattr(instance, "LOCATIONS", (TINY,))
    done = submit.execute(configuration.load(), TINY.name, orders.Order("tiny", {}), lambda _: None)
    assert done.status == "SUCCESS"
    assert os.environ["DAGSTER_HOME"] == str(deployment)
    assert [path for path in logs.rglob("*.out") if done.run_id in str(path)]
    assert not instance.dagster_home(settings.home).exists()


def test_a_run_whose_history_nobody_keeps_any_more_is_told_why_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = Settings(home=tmp_path, database_url=SecretStr("postgresql://nobody@127.0.0.1:1/x"))
    monkeypatch.setattr(instance, "LOCATIONS", (TINY,))
    with pytest.raises(PermanentError, match="database_unreachable"):
        submit.execute(settings, TINY.name, orders.Order("tiny", {}), lambda _: None)
    assert "Retrying" not in "".join(capfd.readouterr())
