"""A fork server's own life: it listens, forks, looks after its children, and executes itself anew when it must.

It stays fit to be forked: one thread, no connection, nothing executed. It executes itself anew, with its sockets and
its children, when the code has changed on disk or it has grown; a child that dies without recording its run's end has
that recorded for it.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import logging
import os
import select
import selectors
import signal
import socket
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from polydesk_dagster.home import keep_to_ourselves
from polydesk_dagster.runtime.forks import child as life
from polydesk_dagster.runtime.forks import ready
from polydesk_dagster.runtime.forks.becoming import Become
from polydesk_dagster.runtime.forks.fitness import own_files, resident, seen, staying, unfit, why_not_loaded

_STATE = "POLYDESK_FORKS_STATE"
_LOG_BYTES = 10_000_000
_STOP_SECONDS = 8.0
_TRY_AGAIN_SECONDS = 30.0
"""Code that did not load is loaded again for a request after so long, whether we saw it change or not."""
_LAUNCHES_PER_LIFE = 2000
_GROWTH = 1.3
"""Grown by this factor since it loaded the code, it executes itself anew at the next quiet moment."""
log = logging.getLogger("polydesk.forks")


@dataclass(slots=True)
class _Child:
    run_id: str
    instance: str | None
    """The serialized reference of the instance that the run is recorded in (no secret is in it); None: our own."""
    reporter: bool = False
    """Whether it only records the end of a run whose process died."""
    kill_at: float | None = None
    """When it is killed, having been asked to stop; seconds of the monotonic clock."""


class ForkServer:
    """Serves ``socket_path`` until its parent ends or it is told to stop."""

    def __init__(
        self, socket_path: Path, location: str, pointer: str, output: Path, idle_seconds: float | None
    ) -> None:
        self._path = socket_path
        self._location = location
        self._pointer = pointer
        self._output = output
        self._idle_seconds = idle_seconds
        self._children: dict[int, _Child] = {}
        self._launches = 0
        self._last_use = time.monotonic()
        self._stop_at: float | None = None
        self._listener: socket.socket | None = None
        self._lock = self._take_over() or self._begin()
        self._selector = selectors.DefaultSelector()
        self._owner = os.getppid()
        self._owner_alive = -1
        self._problem: str | None = None
        self._unloadable: str | None = None
        self._loaded_at = 0.0
        self._wake = socket.socketpair()
        self._files: dict[Path, tuple[int, int]] = {}
        self._size = 0

    # Birth, and birth again.
    def _begin(self) -> int:
        """Take the location for ourselves; a second server of the same one waits here in reserve."""
        lock = os.open(self._path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.pwrite(lock, f"{os.getpid():<20}".encode(), 0)
        return lock

    def _listen(self) -> socket.socket:
        self._path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(self._path))
        listener.listen(128)
        return listener

    def _take_over(self) -> int | None:
        """The lock, the socket and the children of this process's former life, if it had one."""
        text = os.environ.pop(_STATE, None)
        if text is None:
            return None
        state = json.loads(text)
        self._children = {int(pid): _Child(**child) for pid, child in state["children"].items()}
        self._listener = socket.socket(fileno=state["listener"])
        return int(state["lock"])

    def _be_born_again(self, why: str) -> None:
        assert self._listener is not None
        log.info("starting anew: %s", why)
        for descriptor in (self._lock, self._listener.fileno()):
            os.set_inheritable(descriptor, True)
        state = {
            "lock": self._lock,
            "listener": self._listener.fileno(),
            "children": {pid: asdict(child) for pid, child in self._children.items()},
        }
        os.environ[_STATE] = json.dumps(state)
        os.execv(sys.executable, sys.orig_argv)  # noqa: S606

    def _load(self) -> None:
        """Import the code location; what went wrong is kept and told to whoever wants a run."""
        import importlib

        try:
            with staying():
                ready.make()
                runs = importlib.import_module("polydesk_dagster.runtime.dagster_inside.runs")
                repository = runs.code(self._pointer).get_definition()
                repository.load_all_definitions()
        except Exception as error:
            log.exception("the code location does not load")
            self._unloadable = why_not_loaded(error)
            self._problem = f"il codice non si carica: {self._unloadable}"
        else:
            self._problem = unfit(2 if self._listener is None else 3)
        if self._problem:
            log.error("%s", self._problem)
        self._files = own_files(self._pointer)
        self._size = resident()
        self._loaded_at = time.monotonic()

    # The loop.

    def serve(self) -> None:
        wake_read, wake_write = self._wake
        for end in self._wake:
            end.setblocking(False)
        signal.set_wakeup_fd(wake_write.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: self._stop())
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._load()
        self._listener = self._listener or self._listen()
        self._selector.register(wake_read, selectors.EVENT_READ, lambda: _drain(wake_read))
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self._owner_alive = os.pidfd_open(self._owner)
        self._selector.register(self._owner_alive, selectors.EVENT_READ, self._stop)
        log.info("ready, process %d, %d MB", os.getpid(), self._size // 1_000_000)
        self._reap()
        while self._stop_at is None or self._children:
            events = self._selector.select(self._pause())
            for key, _ in events:
                key.data()
            self._reap()
            self._kill_late()
            if not events:
                self._when_quiet()
        self._path.unlink(missing_ok=True)

    def _pause(self) -> float:
        deadlines = [child.kill_at for child in self._children.values() if child.kill_at is not None]
        return max(0.0, min(deadlines, default=time.monotonic() + 30.0) - time.monotonic())

    def _when_quiet(self) -> None:
        if self._children or self._stop_at is not None:
            return
        if self._launches >= _LAUNCHES_PER_LIFE or resident() > _GROWTH * self._size:
            self._be_born_again("it has grown")
        if self._idle_seconds is not None and time.monotonic() - self._last_use > self._idle_seconds:
            self._stop()

    def _stop(self) -> None:
        """Take no more runs, ask those that run to end, and kill them if they do not."""
        if self._stop_at is not None:
            return
        self._stop_at = time.monotonic()
        if self._listener is not None:
            with contextlib.suppress(KeyError):
                self._selector.unregister(self._listener)
            self._listener.close()
        self._selector.unregister(self._owner_alive)
        for pid, child in self._children.items():
            if child.reporter:
                child.kill_at = self._stop_at + _STOP_SECONDS
            else:
                self._ask_to_end(pid, _STOP_SECONDS)

    def _ask_to_end(self, pid: int, grace: float) -> None:
        self._children[pid].kill_at = time.monotonic() + grace
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)

    def _kill_late(self) -> None:
        now = time.monotonic()
        for pid, child in self._children.items():
            if child.kill_at is not None and now >= child.kill_at:
                child.kill_at = now + 5.0
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            child = self._children.pop(pid, None)
            code = os.waitstatus_to_exitcode(status)
            if child is None or child.reporter or code == 0:
                continue
            how = f"segnale {signal.Signals(-code).name}" if code < 0 else f"uscita {code}"
            log.warning("the process %d of run %s ended: %s", pid, child.run_id, how)
            reporter = _Child(child.run_id, child.instance, reporter=True)
            if self._stop_at is not None:
                reporter.kill_at = time.monotonic() + _STOP_SECONDS
            self._fork(partial(life.report_dead, child.instance, child.run_id, how), reporter)

    # Requests.

    def _accept(self) -> None:
        assert self._listener is not None
        self._last_use = time.monotonic()
        client, _ = self._listener.accept()
        with client:
            client.settimeout(5.0)
            try:
                with _request(client) as (line, output):
                    if not line:  # only to see whether we are there
                        return
                    answer = self._answer(json.loads(line), client, output)
                if answer is not None:
                    client.sendall(json.dumps(answer).encode() + b"\n")
            except (OSError, ValueError) as error:
                log.warning("a request was not served: %s", type(error).__name__)

    def _answer(self, request: Mapping[str, Any], client: socket.socket, output: int) -> Mapping[str, object] | None:
        match request["do"]:
            case "status":
                runs = {child.run_id: pid for pid, child in self._children.items() if not child.reporter}
                problems = {"problem": self._problem, "unloadable": self._unloadable}
                return {"pid": os.getpid(), **problems, "runs": runs, "bytes": resident()}
            case "terminate":
                for pid, child in self._children.items():
                    if child.run_id == request["run_id"] and not child.reporter:
                        self._ask_to_end(pid, request["grace"])
                        return {"pid": pid}
                return {"pid": None}
            case "launch" | "execute" | "become":
                if self._outdated():
                    client.close()  # unanswered: the client asks again, and waits for the new life
                    self._be_born_again("the code changed on disk")
                if self._problem:
                    return {"problem": self._problem}
                if _left(client):  # it has given us up, and has the run started elsewhere
                    return None
                if request["do"] == "launch":
                    return self._launch(request, client)
                work = self._become if request["do"] == "become" else self._execute
                work(request, client, output)
                return None
            case other:
                raise ValueError(other)

    def _outdated(self) -> bool:
        if self._problem and time.monotonic() - self._loaded_at > _TRY_AGAIN_SECONDS:
            return True
        return seen(self._files) != self._files

    def _launch(self, request: Mapping[str, Any], client: socket.socket) -> Mapping[str, object]:
        run_id, instance = request["run_id"], request["instance"]
        work = partial(life.run, instance, run_id, self._owner)
        return {"pid": self._fork(work, _Child(run_id, instance), client)}

    def _become(self, request: Mapping[str, Any], client: socket.socket, output: int) -> None:
        """Fork one of our processes for our own parent, whose child it is from its first moment on."""
        work = Become(request["name"], request["command"], request["environment"], self._owner, client)
        middle = os.fork()
        if middle:
            os.waitpid(middle, 0)
            return
        if os.fork():
            os._exit(0)
        life.live(work, output, self._inherited())

    def _inherited(self, *more: socket.socket | None) -> list[int]:
        """Our own descriptors, which no child has any business with."""
        holders = [self._listener, self._selector, *self._wake, *more]
        return [self._lock, self._owner_alive, *(each.fileno() for each in holders if each is not None)]

    def _execute(self, request: Mapping[str, Any], client: socket.socket, _output: int) -> None:
        run_id = str(uuid.uuid4())
        client.sendall(b'{"kind": "taken"}\n')
        order = life.Executed(run_id, request["order"], self._location, self._pointer, self._owner, client)
        self._fork(order, _Child(run_id, None))

    def _fork(self, work: Callable[[], bool], child: _Child, client: socket.socket | None = None) -> int:
        """Run ``work`` in a child of its own session, its output in the log of runs. Returns its process id.

        ``client`` is a connection that the child has no business with.
        """
        self._launches += 1
        with _opened(self._output) as output:
            pid = os.fork()
            if pid:
                self._children[pid] = child
                return pid
            life.live(work, output, self._inherited(client))
        raise AssertionError("unreachable")


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    """The log of the runs' output, set aside once it is long."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.stat().st_size > _LOG_BYTES:
        path.replace(path.with_suffix(path.suffix + ".1"))
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _drain(wake: socket.socket) -> None:
    with contextlib.suppress(BlockingIOError):
        wake.recv(4096)


def _left(client: socket.socket) -> bool:
    """Whether whoever asked has gone."""
    said, _, _ = select.select([client], [], [], 0)
    return bool(said) and not client.recv(1, socket.MSG_PEEK)


@contextlib.contextmanager
def _request(client: socket.socket) -> Iterator[tuple[bytes, int]]:
    """The line that a client sends, and the descriptor that came with it, or -1: closed after the block."""
    received, descriptors = bytearray(), list[int]()
    try:
        while not received.endswith(b"\n"):
            part, came, _, _ = socket.recv_fds(client, 65536, 1)
            descriptors += came
            if not part:
                break
            received += part
        yield bytes(received), descriptors[0] if descriptors else -1
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def main() -> None:
    keep_to_ourselves()
    parser = argparse.ArgumentParser()
    parser.add_argument("--socket", type=Path, required=True)
    parser.add_argument("--location", required=True)
    parser.add_argument("--pointer", required=True, help="the serialized code pointer of the location's definitions")
    parser.add_argument("--output", type=Path, required=True, help="where the runs' own output goes")
    parser.add_argument("--idle-seconds", type=float, help="end after so long without a request")
    given = parser.parse_args()
    logging.basicConfig(format="%(levelname)s %(message)s")
    log.setLevel(logging.INFO)
    sys.stdin.close()
    sys.stdin = open(os.devnull)  # noqa: SIM115, PTH123 - it stays open as long as the process
    ForkServer(given.socket, given.location, given.pointer, given.output, given.idle_seconds).serve()


if __name__ == "__main__":
    main()
