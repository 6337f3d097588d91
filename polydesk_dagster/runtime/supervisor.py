"""Keep an installation's processes alive in the foreground, and leave nothing running when it ends.

The supervisor starts its children in order, waits until each answers, restarts the one that dies, and when it is
stopped, or one child cannot be kept alive, stops them all. It knows nothing of what they do.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from polydesk_dagster.database import embedded
from polydesk_dagster.errors import PermanentError, PolydeskError, in_brief
from polydesk_dagster.failure import failure
from polydesk_dagster.home import make
from polydesk_dagster.runtime import guardian
from polydesk_dagster.runtime.child import Child, Running, log_file, logger
from polydesk_dagster.runtime.forks import becoming
from polydesk_dagster.runtime.watchdog import Watchdog
from polydesk_dagster.told import teller


def running(home: Path) -> int | None:
    """The process id of the supervisor that holds this home, or None."""
    try:
        with (home / "up.lock").open("rb") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return int(handle.read().strip() or b"0")
    except FileNotFoundError:
        return None
    return None


_SET_BACK = 5.0
"""Seconds by which the clock is set back before it matters: so long a look of the daemon may be late."""


class Supervisor:
    """Runs ``children`` for the home at ``home``; with ``database`` it keeps the embedded PostgreSQL alive too."""

    def __init__(
        self,
        home: Path,
        children: Sequence[Child],
        *,
        database: bool = False,
        structured: bool = False,
        max_deaths: int = 5,
        within_seconds: float = 300.0,
        say: Callable[[str], None] = print,
    ) -> None:
        self.home = home.absolute()
        self.token = secrets.token_hex(16)
        self._children = {child.name: Running(child) for child in children}
        self._database = database
        self._database_starts: deque[float] = deque()
        self._database_retry_at = 0.0
        self._clock = time.time() - time.monotonic()
        self._max_deaths = max_deaths
        self._within = within_seconds
        self._say_aloud = say
        self._selector = selectors.DefaultSelector()
        self._stopping = False
        self._watcher: subprocess.Popen[bytes] | None = None
        self._strangers: set[int] = set()
        self._reason: str | None = None
        self._log = logger(self.home, "supervisor", structured=structured)
        self._watchdog = Watchdog()

    def stop(self, reason: str | None = None) -> None:
        """Ask the supervisor to end; from any thread or signal handler. A reason makes it an end in failure."""
        self._reason = self._reason or reason
        self._stopping = True

    def run(self, once_ready: Callable[[], None] | None = None) -> str | None:
        """Run until Ctrl-C, SIGTERM, SIGHUP or a child that cannot be kept alive. Call it from the main thread.

        ``once_ready`` is called in a thread of its own when every child answers for the first time; if it raises,
        everything stops. Returns why everything was stopped, or None if somebody asked for it.

        Raises:
            PermanentError: if this home is already up, or an address is taken; nothing was started then.
        """
        with self._alone(), self._signals(), self._adopting():
            self._free_addresses()
            with self._guarded():
                try:
                    self._loop(once_ready)
                except BaseException:
                    self._reason = self._reason or "Errore interno del supervisore."
                    raise
                finally:
                    self._stop_all()
        if self._reason:
            self._say(self._reason)
        return self._reason

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        make(self.home)
        path = self.home / "up.lock"
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                other = os.read(handle, 32).decode().strip() or "?"
                raise PermanentError("already_up", home=str(self.home), process=other) from None
            os.ftruncate(handle, 0)
            os.write(handle, str(os.getpid()).encode())
            yield
        finally:
            os.close(handle)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        def ended(_number: int, _frame: object) -> None:
            self.stop()

        wanted = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = {number: signal.signal(number, ended) for number in wanted}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def _adopting(self) -> Iterator[None]:
        """What is forked for us by a child of ours is a child of ours, and so is what a dead one leaves behind."""
        becoming.adopt_orphans(yes=True)
        try:
            yield
        finally:
            becoming.adopt_orphans(yes=False)

    def _reap(self) -> None:
        known = {each.process.pid for each in self._children.values() if each.process is not None}
        if self._watcher is not None:
            known.add(self._watcher.pid)
        self._strangers = becoming.reap(known, self._strangers)

    def _free_addresses(self) -> None:
        for each in self._children.values():
            if (taken := _taken(each.child)) is not None:
                raise taken

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        """A small process that ends everything and stops PostgreSQL should this one be killed; another takes the place
        of one that dies."""
        self._watcher = self._watch()
        try:
            yield
        finally:
            with contextlib.suppress(BrokenPipeError):
                self._watcher.communicate(guardian.FAREWELL)

    def _watch(self) -> subprocess.Popen[bytes]:
        home = str(self.home) if self._database else ""
        return subprocess.Popen(
            [sys.executable, "-P", "-S", guardian.__file__, self.token, home],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _keep_watcher(self) -> None:
        if self._watcher is not None and self._watcher.poll() is not None:
            self._log.warning("the guardian died: %s", _spoken(self._watcher.returncode))
            if self._watcher.stdin is not None:
                self._watcher.stdin.close()
            self._watcher = self._watch()

    def _loop(self, once_ready: Callable[[], None] | None) -> None:
        waiting = True
        while not self._stopping:
            now = time.monotonic()
            if self._database:
                self._keep_database(now)
            self._look_at_clock()
            for each in self._children.values():
                self._keep(each, now)
            if waiting and all(each.answering for each in self._children.values()):
                waiting = False
                self._log.info("everything answers")
                self._watchdog.say("READY=1")
                if once_ready is not None:
                    threading.Thread(target=self._then, args=(once_ready,), daemon=True).start()
            self._watchdog.alive()
            self._keep_watcher()
            self._reap()
            self._read_output(0.1 if waiting else 1.0)

    def _then(self, once_ready: Callable[[], None]) -> None:
        try:
            once_ready()
        except Exception as error:  # noqa: BLE001 - whatever it was, the operator must read it and everything must stop
            self.stop(teller().reason(error.reason) if isinstance(error, PolydeskError) else in_brief(error))

    def _look_at_clock(self) -> None:
        """Have whoever waits by the time of day begin anew where somebody has set the clock back."""
        asked, told = time.monotonic(), time.time()
        if time.monotonic() - asked > 1.0:  # held up on the way, so the two may be of two moments
            return
        before, self._clock = self._clock, told - asked
        if (back := before - self._clock) < _SET_BACK:
            return
        for name, each in self._children.items():
            if each.child.by_the_clock and each.process is not None:
                self._say(f"L'orologio è stato portato indietro di {back:.0f} s: riavvio il processo {name}.")
                each.end(signal.SIGTERM)

    def _keep(self, each: Running, now: float) -> None:
        """One look at one child: start it, find it answering, or find it dead."""
        child = each.child
        if each.process is None:
            free = all(self._children[name].answering for name in child.after)
            if free and now >= each.retry_at:
                if (taken := _taken(child)) is not None:  # by somebody who came after the first look
                    self._say_taken(each, teller().reason(taken.reason))
                    return
                pid = each.start(self.home, self.token, self._selector)
                self._log.info("%s started, process %d", child.name, pid)
            return
        status = each.process.poll()
        if status is not None:
            each.read_rest(self._selector)
            self._died(each, _spoken(status))
        elif not each.answering:
            if each.answers():
                each.answering = True
                self._log.info("%s answers after %.1f s", child.name, now - each.started)
            elif now - each.moved > (patience := each.patience()):
                if each.moves():
                    each.moved = now
                    return
                each.end(signal.SIGKILL)
                each.process.wait()
                each.read_rest(self._selector)
                self._died(each, f"non ha risposto entro {patience:.0f} secondi")

    def _say_taken(self, each: Running, said: str) -> None:
        """Its own predecessor may take a moment to let go of an address; anybody else will not."""
        if each.started:
            self._died(each, said)
        else:
            self.stop(said)

    def _died(self, each: Running, how: str) -> None:
        name = each.child.name
        each.process = None
        each.answering = False
        if self._stopping:
            return
        now = time.monotonic()
        deaths = _recent(each.deaths, now, self._within)
        self._log.warning("%s died: %s", name, how)
        if len(deaths) >= self._max_deaths:
            last = "".join(f"\n  {line}" for line in each.tail)
            self.stop(
                f"Il processo {name} si è fermato {len(deaths)} volte in {self._within:.0f} secondi ({how}); fermo "
                f"tutto. Vedi {log_file(self.home, name)}.{' Ultime righe:' + last if last else ''}"
            )
            return
        pause = min(30.0, 0.25 * 2 ** len(deaths))
        each.retry_at = now + pause
        self._say(f"Il processo {name} si è fermato ({how}): lo riavvio tra {pause:.1f} s.")

    def _keep_database(self, now: float) -> None:
        if embedded.running(self.home) or now < self._database_retry_at:
            return
        attempts = _recent(self._database_starts, now, self._within)
        if len(attempts) > 2 * self._max_deaths:
            self.stop(
                f"Il database non resta avviato ({len(attempts)} tentativi in {self._within:.0f} secondi); "
                f"fermo tutto. Vedi {self.home / 'postgres' / 'log'}."
            )
            return
        self._database_retry_at = now + 1.0
        try:
            embedded.start(self.home)
        except Exception as error:  # noqa: BLE001 - pg_ctl may fail in any way while old backends leave; tried again
            self._log.warning("the database did not start: %s", type(error).__name__)
            return
        if any(each.started for each in self._children.values()):
            self._say("Il database si era fermato: riavviato.")

    def _read_output(self, timeout: float) -> None:
        if not self._selector.get_map():
            time.sleep(timeout)
            return
        for key, _ in self._selector.select(timeout):
            key.data.copy(self._selector, key.fileobj)

    def _stop_all(self) -> None:
        """Stop every child, those that depend on others first; then whatever they left; then the database."""
        self._stopping = True
        self._watchdog.say("STOPPING=1")
        while alive := {name: each for name, each in self._children.items() if each.process is not None}:
            now = time.monotonic()
            needed = {name for each in alive.values() for name in each.child.after}
            for name, each in alive.items():
                process = each.process
                assert process is not None
                if process.poll() is not None:
                    each.read_rest(self._selector)
                    each.process = None
                elif each.asked_to_stop is None:
                    if name not in needed:
                        each.asked_to_stop = now
                        each.end(signal.SIGTERM)
                elif now - each.asked_to_stop > each.child.stop_seconds:
                    self._log.warning("%s did not stop in time: killed", name)
                    each.end(signal.SIGKILL)
            self._read_output(0.05)
        if killed := guardian.sweep(self.token, 5.0):
            self._log.warning("%d processes that had been left behind were killed", killed)
        if self._database and not embedded.stop(self.home, patience=2.0):
            self._say("Il database resta avviato: lo usa un altro comando, che lo fermerà.")

    def _say(self, text: str) -> None:
        self._log.info(text)
        self._say_aloud(text)


def _taken(child: Child) -> PermanentError | None:
    """What there is to say if somebody has the address that the child is to listen at."""
    return None if child.listens is None else taken(child.name, *child.listens)


def taken(name: str, host: str, port: int) -> PermanentError | None:
    """What there is to say if ``name`` cannot listen at that address; the setting that names another is in it."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            why = failure(error, "unknown")
            return PermanentError("address_taken", child=name, address=f"{host}:{port}", why=why)
    return None


def _recent(instants: deque[float], now: float, within: float) -> deque[float]:
    """Add this instant and forget those of long ago."""
    instants.append(now)
    while instants[0] < now - within:
        instants.popleft()
    return instants


def _spoken(status: int) -> str:
    """A process's end in words."""
    if status < 0:
        return f"segnale {signal.Signals(-status).name}"
    return f"uscita {status}"
