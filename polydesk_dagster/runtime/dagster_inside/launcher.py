"""Dagster's run launcher that forks each run from a process which has the code loaded already.

Any process may launch, terminate or look after any run: what it needs is in the run's tags and behind the location's
socket. Where a warm start is not possible Dagster's own launcher takes the run, with a word in its log.

``dagster._core.launcher.base`` holds the types that a launcher takes and returns, and the serialisation names instance
and code to another process; a launcher of one's own is supported, but ``dagster`` exports only its default one.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from dagster import DagsterRun, DefaultRunLauncher
from dagster._core.launcher.base import CheckRunHealthResult, LaunchRunContext, WorkerStatus
from dagster._core.storage.tags import GRPC_INFO_TAG
from dagster._serdes import ConfigurableClassData, serialize_value

from polydesk_dagster.runtime.forks import client as forks
from polydesk_dagster.runtime.instance import runs_socket
from polydesk_dagster.runtime.work import Effort, Worker

_START_SECONDS = 20.0
"""How long a run waits for a server that is not there, and does not work towards being there."""
_LONGEST_SECONDS = 150.0
"""And for one that does: a cold start, with Dagster's own launcher, must still fit into the time that run monitoring
gives a run to begin."""
_IDLE_SECONDS = 900.0
_KILL_SECONDS = 45.0
"""A run that was asked to end and did not is killed after so long; below the cancel timeout of run monitoring."""

log = logging.getLogger("polydesk.launcher")


class ColdStartError(Exception):
    """Why a run cannot be started warm; Italian."""


class WarmRunLauncher(DefaultRunLauncher):
    """One fork server per code location and Dagster home, started by the supervisor or else with the first run."""

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData, config_value: Mapping[str, Any]) -> WarmRunLauncher:
        return cls(inst_data=inst_data, **config_value)

    def launch_run(self, context: LaunchRunContext) -> None:
        run = context.dagster_run
        try:
            self._launch_warm(run)
        except ColdStartError as reason:
            self._instance.report_engine_event(
                f"Avvio rapido non disponibile ({reason}): uso quello di Dagster.", run, cls=self.__class__
            )
            super().launch_run(context)
        else:
            self._run_ids.add(run.run_id)

    def _launch_warm(self, run: DagsterRun) -> None:
        if sys.platform != "linux":
            raise ColdStartError(f"serve Linux, questo è {sys.platform}")
        if run.remote_job_origin is None or run.job_code_origin is None:
            raise ColdStartError("l'esecuzione non dice da quale codice viene")
        location = run.remote_job_origin.location_name
        repository = run.job_code_origin.repository_origin
        if repository.executable_path != sys.executable or repository.container_image:
            raise ColdStartError("il codice usa un altro Python o un container")
        path = runs_socket(Path(self._instance.root_directory), location)
        request = {"do": "launch", "run_id": run.run_id, "instance": serialize_value(self._instance.get_ref())}
        answer = self._ask_started(path, location, serialize_value(cast("Any", repository.code_pointer)), request)
        if "problem" in answer:
            raise ColdStartError(answer["problem"])
        log.debug("run %s is process %s", run.run_id, answer["pid"])

    def _ask_started(self, path: Path, location: str, pointer: str, request: Mapping[str, object]) -> Mapping[str, Any]:
        """Ask the fork server, starting it if there is none; asked again when it goes before it has answered."""
        begun = time.monotonic()
        deadline, effort, ours = begun + _START_SECONDS, Effort(0), None
        while True:
            try:
                return forks.ask(path, request)
            except TimeoutError:
                raise ColdStartError("il processo di avvio non risponde") from None
            except OSError:
                now = time.monotonic()
                dead = ours is not None and ours.poll() is not None
                if not forks.being_served(path) and (ours is None or (dead and now < begun + _START_SECONDS)):
                    ours, dead = self._start_server(path, location, pointer), False
                if now > deadline:
                    pid = forks.holder(path) or (ours.pid if ours is not None and not dead else 0)
                    working = effort.goes_on() if effort.pid == pid else pid != 0
                    effort = effort if effort.pid == pid else Effort(pid)
                    if not working or now > begun + _LONGEST_SECONDS:
                        raise ColdStartError("il processo di avvio non parte") from None
                    deadline = now + forks.MUTE_SECONDS
            time.sleep(0.05)

    def _start_server(self, path: Path, location: str, pointer: str) -> subprocess.Popen[bytes]:
        log.info("starting the fork server of %s", location)
        output = Path(self._instance.root_directory) / "logs"
        output.mkdir(exist_ok=True)
        with (output / f"launcher-{location}.log").open("ab") as messages:
            return subprocess.Popen(
                forks.command(path, location, pointer, output / f"runs-{location}.log", _IDLE_SECONDS),
                stdin=subprocess.DEVNULL,
                stdout=messages,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def terminate(self, run_id: str) -> bool:
        run = self._instance.get_run_by_id(run_id) if self.has_instance else None
        if run is None or run.is_finished:
            return False
        if GRPC_INFO_TAG in run.tags:
            return bool(super().terminate(run_id))
        self._instance.report_run_canceling(run)
        location = run.remote_job_origin.location_name if run.remote_job_origin else ""
        path = runs_socket(Path(self._instance.root_directory), location)
        with contextlib.suppress(OSError):
            if forks.ask(path, {"do": "terminate", "run_id": run_id, "grace": _KILL_SECONDS})["pid"]:
                return True
        worker = Worker.of_run(run)
        if worker is not None and not worker.local:
            return True  # it looks at its own status
        if worker is None or not worker.alive():
            return False
        os.kill(worker.pid, signal.SIGTERM)
        return True

    @property
    def supports_check_run_worker_health(self) -> bool:
        return True

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        worker = Worker.of_run(run)
        if worker is None:
            return CheckRunHealthResult(WorkerStatus.RUNNING, "nessun processo noto: non si può dire")
        if not worker.local:
            return CheckRunHealthResult(WorkerStatus.RUNNING, f"processo di un'altra macchina ({worker.host})")
        if worker.alive():
            return CheckRunHealthResult(WorkerStatus.RUNNING, run_worker_id=str(worker.pid))
        return CheckRunHealthResult(
            WorkerStatus.FAILED, f"il processo {worker.pid} dell'esecuzione non c'è più", run_worker_id=str(worker.pid)
        )
