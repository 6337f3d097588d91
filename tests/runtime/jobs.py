"""A tiny code location for the tests of the runtime: one job whose config says how it goes."""

import logging
import os
import signal
import threading
import time
from pathlib import Path

import dagster as dg
import sqlalchemy as sa

from polydesk_dagster import running
from polydesk_dagster.outcome import Outcome, Report
from polydesk_dagster.resources.polydesk import PolydeskResource


class How(dg.Config):
    seconds: float = 0.0
    """How long it works."""
    end: str = "well"
    """``well``, ``fails``, ``killed`` or ``stubborn``: deaf to being asked to stop."""
    note: str = ""
    """A file to write what the process looks like to."""


def _look(path: Path) -> None:
    links = []
    for descriptor in sorted(Path("/proc/self/fd").iterdir()):
        try:
            links.append(f"{descriptor.name} {descriptor.readlink()}")
        except OSError:
            continue
    threads = [thread.name for thread in threading.enumerate()]
    path.write_text("\n".join([f"pid {os.getpid()} parent {os.getppid()}", *threads, *links]))


@dg.op
def work(context: dg.OpExecutionContext, config: How) -> None:
    if config.note:
        _look(Path(config.note))
    print("stampato da un passo")
    logging.getLogger("tests").warning("avviso da un passo")
    if config.end == "stubborn":
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    deadline = time.monotonic() + config.seconds
    while time.monotonic() < deadline:
        time.sleep(0.05)
    if config.end == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if config.end == "fails":
        raise dg.Failure("non va", allow_retries=False)
    context.log.info("fatto")


@dg.job(executor_def=dg.in_process_executor, tags={"polydesk/service": "tiny"})
def tiny() -> None:
    work()


class Counting(running.ServiceConfig):
    deaf: bool = False
    """Whether nobody can interrupt it."""


def _count(run: running.Run, *, deaf: bool) -> Report:
    """Commit a line every few moments, for a minute."""
    if deaf:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with run.engine.begin() as connection:
            connection.execute(sa.text("INSERT INTO counted DEFAULT VALUES"))
        time.sleep(0.05)
    return Report(Outcome.OK)


@dg.op
def count(context: dg.OpExecutionContext, config: Counting, polydesk: PolydeskResource) -> None:
    running.serve(context, polydesk, "generate_slots", config, lambda run: _count(run, deaf=config.deaf))


@dg.job(executor_def=dg.in_process_executor)
def counting() -> None:
    count()


defs = dg.Definitions(jobs=[tiny, counting], resources={"polydesk": PolydeskResource()})
