"""Which process executes a run, and how it ends with whoever answers for it."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from polydesk_dagster.runtime.dagster_inside.names import HIDDEN_TAG_PREFIX

if TYPE_CHECKING:
    from dagster import DagsterRun

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
    fields = _stat(pid)
    if not fields or fields[0] in "ZX":
        raise ProcessLookupError(pid)
    return int(fields[19])


def processor_seconds(pid: int) -> float:
    """What a process has used of the processor; 0 where that cannot be known."""
    fields = _stat(pid)
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") if fields else 0.0


def held_up(pid: int) -> bool:
    """Whether a process would go on at once if the machine let it: it waits for the processor, or for a disk."""
    fields = _stat(pid)
    return bool(fields) and fields[0] in "RD"


class Effort:
    """Whether process ``pid`` works, from look to look: one that waits for ever uses nothing of the processor."""

    def __init__(self, pid: int) -> None:
        self.pid, self._worked = pid, processor_seconds(pid)

    def goes_on(self) -> bool:
        """Whether it has worked since it was looked at last, or would if the machine let it."""
        before, self._worked = self._worked, processor_seconds(self.pid)
        return self._worked > before or held_up(self.pid)


def _stat(pid: int) -> list[str]:
    """What the kernel says of a process from its state on; nothing where there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


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
