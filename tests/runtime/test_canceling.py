"""A run that is ended from another machine ends, commits nothing more, and stays recorded as canceled."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from dagster import DagsterInstance, DagsterRunStatus
from pydantic import SecretStr
from sqlalchemy.engine import URL

from polydesk_dagster.database.engine import dagster_url, plain_url
from polydesk_dagster.runtime import canceling, instance
from polydesk_dagster.runtime.dagster_inside import runs
from polydesk_dagster.settings import Settings
from tests.postgres import dagster_storage, dropped
from tests.runtime.world import ROOT, TINY, finished
from tests.waiting import PATIENCE, until

WORKER = """
import socket, sys
socket.gethostname = lambda: "altrove"
from polydesk_dagster.runtime.dagster_inside import runs
with runs.interruptible(), runs.opened(None) as dagster:
    runs.execute(dagster, sys.argv[1], lambda event: None)
"""


@pytest.fixture
def home() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="polydesk-apart-", dir="/tmp") as folder:
        yield Path(folder)


def _lines(engine: sa.Engine) -> int:
    with engine.connect() as connection:
        return int(connection.scalar(sa.text("SELECT count(*) FROM counted")) or 0)


@pytest.mark.slow
@pytest.mark.parametrize("deaf", [False, True])
def test_a_run_that_is_ended_from_another_machine_ends_and_commits_nothing_more(
    database: URL, engine: sa.Engine, home: Path, monkeypatch: pytest.MonkeyPatch, deaf: bool
) -> None:
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE counted (id bigint GENERATED ALWAYS AS IDENTITY)"))
    here, there = (
        Settings(home=home / name, database_url=SecretStr(plain_url(database))) for name in ("here", "there")
    )
    storage = dagster_url(here).set(drivername="postgresql+psycopg")
    dagster_storage(storage)
    with dropped(storage):
        for settings in (here, there):
            instance.prepare(settings, (TINY,))
        elsewhere = {**instance.environment(there), "POLYDESK_DATABASE_URL": plain_url(database)}
        for name, value in instance.environment(here).items():
            monkeypatch.setenv(name, value)
        with DagsterInstance.get() as dagster:
            run_id = runs.create(
                dagster,
                code=runs.code(TINY.pointer),
                job_name="counting",
                run_config={"ops": {"count": {"config": {"deaf": deaf}}}},
                tags={},
                location=runs.origin(instance.code_socket(here.home, TINY.name), TINY.name),
                run_id=None,
            ).run_id
            worker = subprocess.Popen(
                [sys.executable, "-c", WORKER, run_id], env={**elsewhere, "PYTHONPATH": str(ROOT)}, cwd=ROOT
            )
            try:
                until(lambda: _lines(engine) > 3)
                assert dagster.run_launcher.terminate(run_id)
                assert finished(dagster, run_id).status is DagsterRunStatus.CANCELED
                worker.wait(PATIENCE)
            finally:
                worker.kill()
                worker.wait()
            lines = _lines(engine)
            run = dagster.get_run_by_id(run_id)
            assert run is not None
            assert run.status is DagsterRunStatus.CANCELED
            assert _lines(engine) == lines


def test_a_status_that_was_seen_long_ago_is_looked_at_before_a_commit(
    engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while whoever looks is held up; and a storage that does not answer ends nothing."""
    monkeypatch.setattr(canceling, "STALE_SECONDS", 0.0)
    with DagsterInstance.ephemeral() as dagster, engine.begin() as connection:
        ended = dagster.create_run_for_job(_job(), status=DagsterRunStatus.CANCELED)
        with pytest.raises(canceling.DagsterExecutionInterruptedError):
            canceling.Watch(dagster, ended.run_id).fence(connection)
        goes_on = dagster.create_run_for_job(_job(), status=DagsterRunStatus.STARTED)
        watch = canceling.Watch(dagster, goes_on.run_id)
        watch.fence(connection)
        monkeypatch.setattr(DagsterInstance, "get_run_by_id", _away)
        time.sleep(0.001)
        watch.fence(connection)
        assert not watch.ended


def _away(*_: object) -> None:
    raise ConnectionError


def _job() -> object:
    from tests.runtime.jobs import counting

    return counting
