"""What the tests of the runtime share: an installation with its own Dagster storage, and waiting for things."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from pathlib import Path

from dagster import DagsterInstance, DagsterRun, DagsterRunStatus

from polydesk_dagster.runtime import instance, work
from polydesk_dagster.runtime.dagster_inside import runs
from polydesk_dagster.runtime.forks import client as forks
from polydesk_dagster.settings import Settings
from tests.waiting import until

ROOT = Path(__file__).resolve().parents[2]
TINY = instance.Location("tiny", "tests.runtime.jobs")


def gone(pid: int) -> bool:
    """Whether a process has ended; one that nobody has waited for counts as ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def finished(dagster: DagsterInstance, run_id: str) -> DagsterRun:
    def look() -> DagsterRun | None:
        run = dagster.get_run_by_id(run_id)
        return run if run is not None and run.is_finished else None

    return until(look)


def started(dagster: DagsterInstance, run_id: str) -> int:
    """The process of a run, once it executes its step."""

    def look() -> int | None:
        run = dagster.get_run_by_id(run_id)
        assert run is not None
        worker = work.Worker.of_run(run)
        return worker.pid if worker is not None and run.status is DagsterRunStatus.STARTED else None

    return until(look)


def messages(dagster: DagsterInstance, run_id: str) -> str:
    return "\n".join(
        str(entry.user_message or (entry.dagster_event and entry.dagster_event.message) or "")
        for entry in dagster.all_logs(run_id)
    )


def recorded(
    dagster: DagsterInstance, settings: Settings, config: Mapping[str, object], location: instance.Location = TINY
) -> str:
    """The id of a new run of the tiny job, not launched yet."""
    return runs.create(
        dagster,
        code=runs.code(location.pointer),
        job_name="tiny",
        run_config={"ops": {"work": {"config": dict(config)}}},
        tags={},
        location=runs.origin(instance.code_socket(settings.home, location.name), location.name),
        run_id=None,
    ).run_id


def server_of(settings: Settings, location: str = "tiny") -> int:
    """The process id of a location's fork server."""
    path = instance.runs_socket(instance.dagster_home(settings.home), location)
    return int(forks.ask(path, {"do": "status"})["pid"])


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
