"""One process of an installation: started with a mark, read as it writes, asked whether it answers, ended.

What it writes goes to a log file of its own, ``logs/NAME.log`` under the home.
"""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
import os
import re
import selectors
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from polydesk_dagster.runtime import guardian
from polydesk_dagster.runtime.forks.becoming import Forked, NoForkError, end_with_parent, forked
from polydesk_dagster.runtime.logs import Structured
from polydesk_dagster.runtime.work import processor_seconds

LOG_FORMAT = "POLYDESK_LOG_FORMAT"
_MOST_DOUBLINGS = 4
_LEAST_WORK = 1.0
"""Seconds of the processor that are progress, in one span of patience: what waits for ever uses next to none."""
_LONGEST = 3600.0
"""No start is any progress after so long, whatever it does."""
_LOG_BYTES = 5_000_000
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True, slots=True)
class Child:
    """A process to keep alive."""

    name: str
    """Names its log file; what the operator reads."""
    command: Sequence[str]
    environment: Mapping[str, str]
    """The whole environment, not additions to ours."""
    ready: Callable[[], bool] | None = None
    """Whether it answers; None: as soon as it runs. Called often, so it must be quick."""
    after: tuple[str, ...] = ()
    """Children that must answer before this one starts; they are stopped after it."""
    sockets: tuple[Path, ...] = ()
    """Unix sockets of a dead predecessor, removed before it starts."""
    start_seconds: float = 180.0
    """How long it may go without answering and without working: it has longer while it uses the processor, and twice
    as long after each death. One that dies is seen at once."""
    stop_seconds: float = 10.0
    """How long it may take to stop before it is killed."""
    listens: tuple[str, int] | None = None
    """A TCP address that must be free before it starts."""
    fork_of: Path | None = None
    """The socket of a fork server of the same supervisor: it is started as a fork of that where that can be had."""
    by_the_clock: bool = False
    """Whether it waits by the time of day: a clock that is set back by an hour would have it wait for an hour, so it
    begins anew then."""


@dataclass(slots=True)
class Running:
    """A child as it runs now."""

    child: Child
    process: subprocess.Popen[bytes] | Forked | None = None
    started: float = 0.0
    moved: float = 0.0
    """When it was last known to work towards its answer; seconds of the monotonic clock."""
    worked: float = 0.0
    """Seconds of the processor that it had used by then."""
    answering: bool = False
    retry_at: float = 0.0
    asked_to_stop: float | None = None
    deaths: deque[float] = field(default_factory=deque)
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=5))
    unfinished: bytes = b""
    log: logging.Logger | None = None

    def start(self, home: Path, token: str, selector: selectors.BaseSelector) -> int:
        """Start the process, marked with its supervisor's ``token``; ``selector`` tells when it has written. Returns
        its id."""
        child = self.child
        for path in child.sockets:
            path.unlink(missing_ok=True)
        self.log = self.log or logger(home, child.name, structured=child.environment.get(LOG_FORMAT) == "json")
        self.process = self._forked(token) or subprocess.Popen(
            list(child.command),
            env={**child.environment, guardian.MARK: token},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=end_with_parent,  # noqa: PLW1509 - this process starts children from its main thread only
        )
        self.started = self.moved = time.monotonic()
        self.worked = 0.0
        self.answering = False
        stream = self.process.stdout
        assert stream is not None
        os.set_blocking(stream.fileno(), False)
        selector.register(stream, selectors.EVENT_READ, self)
        return self.process.pid

    def _forked(self, token: str) -> Forked | None:
        child = self.child
        if child.fork_of is None:
            return None
        try:
            return forked(child.fork_of, child.name, child.command, {**child.environment, guardian.MARK: token})
        except NoForkError as reason:
            assert self.log is not None
            self.log.info("started as a process of its own: %s", reason)
            return None

    def answers(self) -> bool:
        """Whether it answers now, as far as the child can tell."""
        try:
            return self.child.ready is None or self.child.ready()
        except OSError:
            return False

    def patience(self) -> float:
        """Seconds that it may go without a sign of progress."""
        return self.child.start_seconds * 2.0 ** min(len(self.deaths), _MOST_DOUBLINGS)

    def moves(self) -> bool:
        """Whether it has used the processor since it was asked last: a slow machine is no reason to kill it."""
        assert self.process is not None
        used = processor_seconds(self.process.pid)
        moved = used - self.worked >= min(_LEAST_WORK, 0.01 * self.patience())
        self.worked = used
        return moved and time.monotonic() - self.started < _LONGEST

    def copy(self, selector: selectors.BaseSelector, stream: object) -> bool:
        """Copy what it has written to its log; False once there is nothing more for now."""
        try:
            data = os.read(stream.fileno(), 65536)  # pyrefly: ignore[missing-attribute]
        except BlockingIOError:
            return False
        if not data:
            self._forget(selector, stream)
            return False
        *lines, self.unfinished = (self.unfinished + data).split(b"\n")
        assert self.log is not None
        for line in lines:
            text = _COLOUR.sub("", line.decode(errors="replace")).rstrip()
            self.tail.append(text)
            self.log.info(text)
        return True

    def _forget(self, selector: selectors.BaseSelector, stream: object) -> None:
        with contextlib.suppress(KeyError, ValueError):
            selector.unregister(stream)  # pyrefly: ignore[bad-argument-type]
        if self.unfinished and self.log is not None:
            self.log.info(self.unfinished.decode(errors="replace"))
            self.unfinished = b""

    def read_rest(self, selector: selectors.BaseSelector) -> None:
        """Copy the last of what it wrote; for a process that has ended."""
        process = self.process
        if process is not None and process.stdout is not None and not process.stdout.closed:
            while self.copy(selector, process.stdout):
                pass
            self._forget(selector, process.stdout)
            process.stdout.close()

    def end(self, number: signal.Signals) -> None:
        """Send the process a signal, if there is one."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(number)


def log_file(home: Path, name: str) -> Path:
    return home / "logs" / f"{name}.log"


def logger(home: Path, name: str, *, structured: bool = False) -> logging.Logger:
    """A logger of our own, outside the tree, so that no other configuration doubles its lines."""
    path = log_file(home, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.handlers.RotatingFileHandler(path, maxBytes=_LOG_BYTES, backupCount=3, encoding="utf-8")
    handler.setFormatter(Structured(name) if structured else _Prefixed(name))
    logger = logging.Logger(name)  # noqa: LOG001
    logger.addHandler(handler)
    return logger


class _Prefixed(logging.Formatter):
    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    def format(self, record: logging.LogRecord) -> str:
        instant = datetime.fromtimestamp(record.created, UTC).astimezone()
        return f"{instant:%Y-%m-%d %H:%M:%S} {self._name} | {record.getMessage()}"
