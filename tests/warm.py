"""Processes of a test's own that start warm: forked from one server that has imported already what they need.

Each is a program as ``python -c`` takes it, with arguments, an environment and a standard output of its own; it is
read, killed and waited for like any other.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.connection import Connection

from tests.waiting import PATIENCE

_FORKING = multiprocessing.get_context("forkserver")
_FORKING.set_forkserver_preload(
    [
        "polydesk_dagster.cli",
        "polydesk_dagster.clinic.calendar.slots",
        "polydesk_dagster.clinic.messages.dispatch",
        "polydesk_dagster.commands.plan",
        "polydesk_dagster.definitions",
        "polydesk_dagster.knowledge.indexing",
        "polydesk_dagster.clinic.caches.documents",
        "polydesk_dagster.clinic.statistics.refresh",
        "polydesk_dagster.providers.sms",
        "polydesk_dagster.providers.smtp",
        "polydesk_dagster.runtime.supervisor",
        "lance_namespace",
        "pandas",
        "psycopg",
        "pyarrow",
        "pyarrow.dataset",
        "tests.changes.worker",
        "tests.messages.dispatcher",
        "tests.runtime.world",
        "tests.warmed",
    ]
)  # not LanceDB itself, whose threads do not live through a fork: most of what it imports


def share() -> None:
    """Start the server for this process and all its forks, each of which would start one: it imports for seconds, and
    keeps 250 MB."""
    forkserver.ensure_running()
    # Whether it lives is asked by waiting for it, which only its parent can.
    forkserver._forkserver.ensure_running = lambda: None  # type: ignore[attr-defined]


POLYDESK = "from polydesk_dagster.cli import main; main()"
"""The program that is the command."""


class Program:
    """A program that runs; without ``environment``, in ours."""

    def __init__(self, code: str, *arguments: str, environment: Mapping[str, str] | None = None) -> None:
        reader, writer = _FORKING.Pipe(duplex=False)
        given = dict(os.environ if environment is None else environment)
        self._process = _FORKING.Process(target=_run, args=(writer, code, arguments, given))
        self._process.start()
        writer.close()
        self.stdout = os.fdopen(os.dup(reader.fileno()))
        reader.close()

    @property
    def pid(self) -> int:
        return int(self._process.pid or 0)

    @property
    def running(self) -> bool:
        return self._process.is_alive()

    def kill(self) -> None:
        self._process.kill()

    def wait(self) -> int:
        """How it ended: its exit status, or the negative number of the signal."""
        self._process.join(PATIENCE)
        assert self._process.exitcode is not None, "it never ended"
        return self._process.exitcode

    def read(self) -> tuple[int, str]:
        """How it ended, and all that it had still to say."""
        said = self.stdout.read()
        return self.wait(), said


@contextmanager
def program(code: str, *arguments: str, environment: Mapping[str, str] | None = None) -> Iterator[Program]:
    """A program that does not outlive the block."""
    running = Program(code, *arguments, environment=environment)
    try:
        yield running
    finally:
        running.kill()
        running.wait()
        running.stdout.close()


def completed(code: str, *arguments: str, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """How a program ended that is left to its end, and what it said on its two outputs."""
    with tempfile.NamedTemporaryFile("r") as errors:
        apart = f"import os; os.dup2(os.open({errors.name!r}, os.O_WRONLY), 2); {code}"
        with program(apart, *arguments, environment=environment) as running:
            status, said = running.read()
        return subprocess.CompletedProcess(arguments, status, said, errors.read())


def _run(out: Connection, code: str, arguments: tuple[str, ...], environment: dict[str, str]) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.dup2(out.fileno(), 1)
    out.close()
    sys.stdout = os.fdopen(1, "w", closefd=False)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["-c", *arguments]
    exec(compile(code, "<program>", "exec"), {"__name__": "__main__"})
    sys.stdout.flush()
