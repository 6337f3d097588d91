"""What is read from Dagster's tables is what real Dagster wrote there: its scheduler, its sensors, its switches."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from dagster import DagsterInstance
from dagster._core.storage.tags import HIDDEN_TAG_PREFIX
from dagster._core.test_utils import create_test_daemon_workspace_context
from dagster._core.workspace.load_target import ModuleTarget
from dagster._daemon.sensor import execute_sensor_iteration
from dagster._scheduler.scheduler import launch_scheduled_runs
from pydantic import SecretStr
from sqlalchemy.engine import URL

from polydesk_dagster.runtime.dagster_inside import names, rows
from polydesk_dagster.settings import Settings
from tests.runtime import written


@dataclass(frozen=True)
class Written:
    dagster: DagsterInstance
    storage: sa.Engine
    began: datetime


@pytest.fixture(scope="module")
def world(server: URL, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Written]:
    """An instance after a minute of its scheduler and its sensors, with some switched by hand."""
    url = server.set(database="written_by_dagster").render_as_string(hide_password=False)
    settings = Settings(home=tmp_path_factory.mktemp("home"), database_url=SecretStr(url))
    log, began = logging.getLogger("written"), datetime.now(UTC)
    target = ModuleTarget(
        "tests.runtime.ticking", attribute="defs", working_directory=str(Path.cwd()), location_name="ticking"
    )
    with (
        written.storage(settings) as (dagster, storage),
        create_test_daemon_workspace_context(target, dagster) as process,
    ):
        times: dict[str, object] = {}
        for at in (began, began + timedelta(seconds=61)):
            list(launch_scheduled_runs(process, log, at, iteration_times=times))  # type: ignore[arg-type]
        list(execute_sensor_iteration(process, log, threadpool_executor=None, submit_threadpool_executor=None))
        repository = process.create_request_context().get_code_location("ticking").get_repository("__repository__")
        dagster.start_schedule(repository.get_schedule("stopped"))
        quiet = repository.get_schedule("quiet")
        dagster.stop_schedule(quiet.get_remote_origin_id(), quiet.selector_id, quiet)
        looker = repository.get_sensor("looker")
        dagster.stop_sensor(looker.get_remote_origin_id(), looker.selector_id, looker)
        dagster.start_sensor(repository.get_sensor("looker"))
        written.beats(dagster, "SENSOR", began)
        yield Written(dagster, storage, began)


def test_ticks_are_read_by_their_schedule_with_how_they_ended(world: Written) -> None:
    with world.storage.connect() as connection:
        found = {tick.name: tick for tick in rows.last_ticks(connection, world.began - timedelta(hours=1))}
        later = list(rows.last_ticks(connection, world.began + timedelta(hours=1)))
    assert {name: (tick.status, tick.skip_reason, tick.runs) for name, tick in found.items()} == {
        "quiet": ("SKIPPED", "Niente è cambiato.", 0),
        "busy": ("SUCCESS", None, 1),
        "broken": ("FAILURE", None, 0),
        "looker": ("SKIPPED", "Nessuna novità.", 0),
    }
    assert all(abs(tick.at - world.began) < timedelta(minutes=2) for tick in found.values())
    assert later == []


def test_only_the_newest_tick_of_each_is_read(world: Written) -> None:
    with world.storage.connect() as connection:
        everything = connection.scalar(sa.text("SELECT count(*) FROM job_ticks"))
        for minutes in (3, 2):
            written.ticked(world.dagster, "twice", world.began - timedelta(minutes=minutes), why=f"{minutes}")
        (twice,) = (t for t in rows.last_ticks(connection, world.began - timedelta(hours=1)) if t.name == "twice")
    assert everything
    assert twice.skip_reason == "2"


def test_only_what_somebody_switched_is_a_switch(world: Written) -> None:
    with world.storage.connect() as connection:
        assert rows.switches(connection) == {"stopped": True, "quiet": False, "looker": True}


def test_a_run_that_waits_is_unfinished_since_it_was_recorded(world: Written) -> None:
    with world.storage.connect() as connection:
        (run,) = rows.unfinished(connection, ["QUEUED", "STARTED"])
        assert (run.job, run.status) == ("tiny", "QUEUED")
        assert abs(run.since - datetime.now(UTC)) < timedelta(minutes=10)
        assert rows.unfinished(connection, ["STARTED"]) == []
        assert rows.status_of(connection, run.run_id) == "QUEUED"
        assert rows.status_of(connection, "nobody") is None


def test_heartbeats_and_growth_are_read(world: Written) -> None:
    with world.storage.connect() as connection:
        assert rows.heartbeats(connection) == {"SENSOR": world.began}
        size, days = rows.growth(connection)
    assert size > 1_000_000
    assert 0 <= days < 1


def test_the_prefix_that_hides_a_tag_is_dagsters_own() -> None:
    assert names.HIDDEN_TAG_PREFIX == HIDDEN_TAG_PREFIX
