"""What a run's process does: say who it is, execute the run, and end with whoever answers for it."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dagster._core.storage.tags import HIDDEN_TAG_PREFIX

if TYPE_CHECKING:
    from dagster import DagsterEvent, DagsterInstance, DagsterRun
    from dagster._core.remote_origin import CodeLocationOrigin

WORKER_TAG = f"{HIDDEN_TAG_PREFIX}polydesk_worker"
_GRACE_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class Worker:
    """The process that executes a run; ``start`` (clock ticks since boot) tells it from a later one with its id."""

    run_id: str
    host: str
    pid: int
    start: int

    @classmethod
    def of_process(cls, run_id: str, pid: int) -> Worker:
        """Raises ProcessLookupError if there is no such process."""
        return cls(run_id, socket.gethostname(), pid, _start_of(pid))

    @classmethod
    def of_run(cls, run: DagsterRun) -> Worker | None:
        """The worker that took this run; a retried run bears its parent's tags, which say nothing of it."""
        text = run.tags.get(WORKER_TAG)
        worker = cls(**json.loads(text)) if text else None
        return worker if worker is not None and worker.run_id == run.run_id else None

    def tag(self) -> dict[str, str]:
        return {WORKER_TAG: json.dumps(asdict(self))}

    @property
    def local(self) -> bool:
        return self.host == socket.gethostname()

    def alive(self) -> bool:
        """Whether it still runs; only a process of its own machine can tell."""
        try:
            return _start_of(self.pid) == self.start
        except ProcessLookupError:
            return False


def _start_of(pid: int) -> int:
    """When a process started, in clock ticks since boot; a dead one that nobody has waited for yet counts as gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        raise ProcessLookupError(pid) from None
    if fields[0] in "ZX":
        raise ProcessLookupError(pid)
    return int(fields[19])


def execute(instance: DagsterInstance, run_id: str, on_event: Callable[[DagsterEvent], object]) -> bool:
    """Execute a run that exists, in this process. Returns whether it succeeded; its history says why not.

    A run that another process has taken is left to it: a launch that went unanswered is asked for again.
    """
    from dagster._cli.api import _execute_run_command_body

    run = instance.get_run_by_id(run_id)
    if run is None or Worker.of_run(run) is not None:
        return True
    instance.add_run_tags(run_id, Worker.of_process(run_id, os.getpid()).tag())
    return _execute_run_command_body(run_id, instance, on_event, set_exit_code_on_failure=True) == 0


def create(
    instance: DagsterInstance,
    *,
    code: Any,
    job_name: str,
    run_config: Mapping[str, object],
    tags: Mapping[str, str],
    location: CodeLocationOrigin,
    run_id: str | None,
) -> DagsterRun:
    """Record a new run of a job as the UI does: with its job's own tags, and the origins that link it to its location.

    ``code`` is the ``ReconstructableRepository`` that the job comes from.

    Raises:
        dagster.DagsterInvalidConfigError: if the job does not take this config.
        dagster.DagsterInvariantViolationError: if the location has no such job.
    """
    from dagster._core.remote_origin import RemoteJobOrigin, RemoteRepositoryOrigin

    repository = code.get_definition()
    job = repository.get_job(job_name)
    remote = RemoteRepositoryOrigin(location, repository.name)
    return instance.create_run_for_job(
        job,
        run_id=run_id,
        run_config=run_config,
        tags={**job.run_tags, **tags},
        remote_job_origin=RemoteJobOrigin(remote, job_name),
        job_code_origin=code.get_reconstructable_job(job_name).get_python_origin(),
        repository_load_data=repository.repository_load_data,
    )


def end_with(owner: int) -> None:
    """End this process when process ``owner`` ends: asked first, so that its run is recorded as ended, then killed."""

    def watch() -> None:
        try:
            descriptor = os.pidfd_open(owner)
        except ProcessLookupError:
            pass
        else:
            poller = select.poll()
            poller.register(descriptor, select.POLLIN)
            poller.poll()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_GRACE_SECONDS)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="end-with-owner", daemon=True).start()
