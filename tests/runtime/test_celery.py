"""Runs on Celery workers with a real Redis: one is killed in the middle of a run, and the others go on."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from dagster import DagsterInstance, DagsterRunStatus, RunsFilter
from dagster._core.launcher.base import WorkerStatus
from dagster._core.remote_origin import InProcessCodeLocationOrigin
from dagster._core.test_utils import InProcessTestWorkspaceLoadTarget, create_test_daemon_workspace_context
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
from dagster._daemon.auto_run_reexecution.auto_run_reexecution import consume_new_runs_for_automatic_reexecution
from dagster._daemon.monitoring.run_monitoring import execute_run_monitoring_iteration
from pydantic import SecretStr
from sqlalchemy.engine import URL

from polydesk_dagster.database.engine import dagster_url
from polydesk_dagster.runtime import instance
from polydesk_dagster.settings import Settings
from tests.postgres import dagster_storage
from tests.runtime.world import ROOT, TINY, finished, recorded
from tests.waiting import until

pytest.importorskip("dagster_celery", reason="NOT PROVEN: the extra `celery` is not installed")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("redis-server") is None, reason="NOT PROVEN: there is no redis-server"),
]


@dataclass
class Fleet:
    settings: Settings
    dagster: DagsterInstance
    workers: dict[str, subprocess.Popen[bytes]]

    def launch(self, **how: object) -> str:
        run_id = recorded(self.dagster, self.settings, how)
        self.dagster.launch_run(run_id, None)  # type: ignore[arg-type] - no workspace is needed
        return run_id

    def health(self, run_id: str) -> WorkerStatus:
        run = self.dagster.get_run_by_id(run_id)
        assert run is not None
        return self.dagster.run_launcher.check_run_worker_health(run).status


@pytest.fixture
def fleet(server: URL, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fleet]:
    """Two workers, each with a home of its own."""
    folder = Path(tempfile.mkdtemp(prefix="polydesk-fleet-", dir="/tmp"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    redis = subprocess.Popen(
        ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)],
        stdout=subprocess.DEVNULL,
    )
    url = server.set(database=f"celery_{uuid.uuid4().hex[:8]}").render_as_string(hide_password=False)
    settings = Settings(home=folder / "door", database_url=SecretStr(url))
    dagster_storage(dagster_url(settings))
    monkeypatch.setenv("REDIS_URL", f"redis://127.0.0.1:{port}/0")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    for name, value in instance.environment(settings).items():
        monkeypatch.setenv(name, value)
    homes = {name: _own_instance(folder / name) for name in ("one", "two", "daemon")}
    monkeypatch.setenv("DAGSTER_HOME", str(homes["daemon"]))
    workers = {name: _worker(name, homes[name]) for name in ("one", "two")}
    try:
        with DagsterInstance.get() as dagster:
            inspect = dagster.run_launcher.celery.control.inspect(timeout=1.0)  # type: ignore[attr-defined]
            until(lambda: len(inspect.ping() or {}) == 2, "both workers never came")
            yield Fleet(settings, dagster, workers)
    finally:
        for worker in workers.values():
            if worker.poll() is None:
                os.killpg(worker.pid, signal.SIGKILL)
            worker.wait()
        redis.terminate()
        redis.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _own_instance(home: Path) -> Path:
    """The deployment's configuration with Celery's launcher in it."""
    home.mkdir(parents=True)
    config = yaml.safe_load((ROOT / "deploy" / "production.yaml").read_text())
    config |= yaml.safe_load((ROOT / "deploy" / "celery" / "launcher.yaml").read_text())
    (home / "dagster.yaml").write_text(yaml.safe_dump(config))
    return home


def _worker(name: str, home: Path) -> subprocess.Popen[bytes]:
    broker = os.environ["REDIS_URL"]
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "celery", "--app", "dagster_celery.app", "--broker", broker),
            *("--result-backend", broker, "worker", "--queues", "dagster", "--hostname", f"{name}@here"),
            *("--concurrency", "1", "--prefetch-multiplier", "1", "--loglevel", "warning"),
        ],
        env={**os.environ, "DAGSTER_HOME": str(home)},
        start_new_session=True,
    )


def test_a_killed_worker_fails_its_run_which_is_tried_once_more_and_the_other_goes_on(fleet: Fleet) -> None:
    long = fleet.launch(seconds=600)

    def working() -> str | None:
        inspect = fleet.dagster.run_launcher.celery.control.inspect(timeout=1.0)  # type: ignore[attr-defined]
        busy = [name for name, tasks in (inspect.active() or {}).items() if tasks]
        run = fleet.dagster.get_run_by_id(long)
        assert run is not None
        return busy[0] if busy and run.status is DagsterRunStatus.STARTED else None

    worker = until(working, "the run never started")
    assert fleet.health(long) is WorkerStatus.RUNNING
    os.killpg(fleet.workers[worker.partition("@")[0]].pid, signal.SIGKILL)
    until(lambda: fleet.health(long) is WorkerStatus.FAILED, "nobody noticed that the worker died")
    assert finished(fleet.dagster, fleet.launch()).status is DagsterRunStatus.SUCCESS
    again = _by_the_daemon(fleet.dagster, long)
    assert finished(fleet.dagster, long).status is DagsterRunStatus.FAILURE
    fleet.dagster.launch_run(again, None)  # type: ignore[arg-type] - no workspace is needed
    until(lambda: fleet.health(again) is WorkerStatus.RUNNING, "the second attempt never started")


def _by_the_daemon(dagster: DagsterInstance, run_id: str) -> str:
    """What Dagster's daemon does, a look at a time: it records that a run's worker died, and has the run tried once
    more, whose id this returns; looking again changes nothing."""
    log = logging.getLogger("tests.celery")
    target = LoadableTargetOrigin(module_name=TINY.module)
    load = InProcessTestWorkspaceLoadTarget(InProcessCodeLocationOrigin(target, location_name=TINY.name))
    with create_test_daemon_workspace_context(load, dagster) as workspace:
        for _ in range(2):
            list(execute_run_monitoring_iteration(workspace, log))
            records = dagster.get_run_records(RunsFilter(run_ids=[run_id]))
            list(consume_new_runs_for_automatic_reexecution(workspace, records, log))
    (again,) = (run for run in dagster.get_runs() if run.parent_run_id == run_id)
    return again.run_id
