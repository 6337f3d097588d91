"""The life of a fork server's child: a run executed, an order carried out, or the end of a dead run recorded."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_REPORT_SECONDS = 90.0

log = logging.getLogger("polydesk.forks")


def live(work: Callable[[], bool], output: int, inherited: Sequence[int]) -> None:
    """The child's whole life around ``work``; it never returns. ``inherited`` are the server's own descriptors."""
    status = 70
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        os.setsid()
        for descriptor in inherited:
            if descriptor >= 0:
                os.close(descriptor)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.close(output)
        random.seed()
        status = 0 if work() else 1
    except BaseException:
        log.exception("the run's process failed")
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        os._exit(status)


@dataclass(frozen=True, slots=True)
class Executed:
    """Record a run of a job, execute it, and tell the client each event; a client that went away changes nothing."""

    run_id: str
    order: Mapping[str, Any]
    location: str
    pointer: str
    owner: int
    client: socket.socket

    def __call__(self) -> bool:
        from polydesk_dagster.runtime import orders
        from polydesk_dagster.runtime.dagster_inside import runs

        self.client.settimeout(None)
        with _guarded_run(self.owner), runs.opened(None) as instance:
            order = orders.Order(**self.order)
            code = runs.code(self.pointer)
            return orders.carry_out(instance, order, self._tell, code=code, location=self.location, run_id=self.run_id)

    def _tell(self, message: Mapping[str, object]) -> None:
        with contextlib.suppress(OSError):
            self.client.sendall(json.dumps(message, ensure_ascii=False).encode() + b"\n")


def run(instance_ref: str, run_id: str, owner: int) -> bool:
    """Execute a run that is recorded already. Returns whether it succeeded."""
    from polydesk_dagster.runtime.dagster_inside import runs

    with _guarded_run(owner), runs.opened(instance_ref) as instance:
        return runs.execute(instance, run_id, lambda _event: None)


@contextlib.contextmanager
def _guarded_run(owner: int) -> Iterator[None]:
    from polydesk_dagster.runtime.dagster_inside.runs import interruptible
    from polydesk_dagster.runtime.work import end_with

    end_with(owner)
    with interruptible():
        yield


def report_dead(instance_ref: str | None, run_id: str, how: str) -> bool:
    """Record that a run's process is gone, unless its end is recorded already; tried for a while if the database is
    away, after which run monitoring is left to find out."""
    from dagster import DagsterRunStatus

    from polydesk_dagster.runtime.dagster_inside.runs import opened

    deadline = time.monotonic() + _REPORT_SECONDS
    while True:
        try:
            with opened(instance_ref) as instance:
                run = instance.get_run_by_id(run_id)
                if run is None or run.is_finished:
                    return True
                if run.status is DagsterRunStatus.CANCELING:
                    instance.report_run_canceled(run, f"Il processo dell'esecuzione è stato chiuso ({how}).")
                else:
                    instance.report_run_failed(
                        run,
                        f"Il processo dell'esecuzione è morto ({how}) prima di finire. Nessuna modifica a metà: ciò "
                        "che era in una transazione aperta è stato annullato.",
                    )
                return True
        except Exception:
            if time.monotonic() > deadline:
                raise
            time.sleep(2.0)
