"""How the command executes a job so that its run is in the history like any other, and waits for it.

Where `polydesk up` is alive, its fork server runs the job at once and tells each event; this side then imports neither
Dagster nor the definitions. Elsewhere the job is executed in this process.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace

import sqlalchemy as sa

from polydesk_dagster.database import refusals
from polydesk_dagster.database.engine import create_engine, dagster_url
from polydesk_dagster.database.refusals import Phase
from polydesk_dagster.errors import PermanentError
from polydesk_dagster.runtime import instance as instances
from polydesk_dagster.runtime import supervisor
from polydesk_dagster.runtime.dagster_inside import rows
from polydesk_dagster.runtime.forks.client import await_answer
from polydesk_dagster.runtime.orders import Message, Order, carry_out
from polydesk_dagster.settings import Settings

_RESTART_SECONDS = 15.0
_FINISHED = ("SUCCESS", "FAILURE", "CANCELED")
_NOWHERE = logging.NullHandler()


class _UnansweredError(Exception):
    """The fork server went before it took the order, to load new code: ask again."""


class _UnableError(Exception):
    """The fork server cannot run anything, or does not answer."""


@dataclass(frozen=True, slots=True)
class Finished:
    """How a run ended: ``SUCCESS``, ``FAILURE`` or ``CANCELED``."""

    run_id: str
    status: str
    interrupted: bool = False
    """Whether whoever waits for it has asked it to end, by Ctrl-C."""


def execute(settings: Settings, location: str, order: Order, on_message: Callable[[Message], object]) -> Finished:
    """Run a job of a code location and wait for its end; Ctrl-C ends the run as canceled. The database must be up.

    Raises:
        PermanentError: if the location has no such job, the job does not take this config, or the database is lost.
    """
    while (connection := _connect(settings, location)) is not None:
        with connection:
            try:
                return _there(settings, connection, order, on_message)
            except _UnansweredError:
                continue
            except _UnableError:
                break
    return _here(settings, location, order, on_message)


def _connect(settings: Settings, location: str) -> socket.socket | None:
    """A connection to the location's fork server; None where there is none to wait for."""
    path = instances.runs_socket(instances.dagster_home(settings.home), location)
    deadline = time.monotonic() + _RESTART_SECONDS
    while True:
        client = socket.socket(socket.AF_UNIX)
        try:
            client.connect(str(path))
        except OSError:
            client.close()
            coming = path.with_suffix(".lock").exists() and supervisor.running(settings.home)
            if not coming or time.monotonic() > deadline:
                return None
            time.sleep(0.1)
        else:
            return client


def _there(
    settings: Settings, connection: socket.socket, order: Order, on_message: Callable[[Message], object]
) -> Finished:
    connection.sendall(json.dumps({"do": "execute", "order": asdict(order)}).encode() + b"\n")
    try:
        await_answer(connection)
    except TimeoutError:
        raise _UnableError from None
    run_id = ""
    with contextlib.ExitStack() as held, connection.makefile("rb") as stream, _passing_on_interrupts() as interrupts:
        for line in stream:
            message = json.loads(line)
            match message:
                case {"problem": _}:
                    raise _UnableError
                case {"kind": "taken"}:
                    continue
                case {"kind": "refused", "message": why}:
                    raise PermanentError(why)
                case {"kind": "run"}:
                    run_id = message["run_id"]
                    with contextlib.suppress(ProcessLookupError):
                        interrupts.go_to(held.enter_context(_held(message["pid"])))
                case {"kind": "end", "status": status}:
                    return Finished(run_id, status, interrupts.came)
            on_message(message)
    if not run_id:
        raise _UnansweredError
    return Finished(run_id, _status_of_the_dead(settings, run_id), interrupts.came)


@contextlib.contextmanager
def _held(pid: int) -> Iterator[int]:
    """A descriptor of a process that lives: its number may be another's once it has ended, this is never."""
    descriptor = os.pidfd_open(pid)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@dataclass(slots=True)
class _Interrupts:
    """Whether one came, and the process that it goes to, which may be known only later."""

    came: bool = False
    descriptor: int | None = None

    def go_to(self, descriptor: int) -> None:
        self.descriptor = descriptor
        if self.came:
            self.go()

    def go(self) -> None:
        self.came = True
        if self.descriptor is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.descriptor, signal.SIGTERM)


@contextlib.contextmanager
def _passing_on_interrupts() -> Iterator[_Interrupts]:
    """Ctrl-C and SIGTERM go to the run's process, whose end we then still wait for; a second one ends us.

    Only the main thread is told of signals: elsewhere they are somebody else's.
    """
    if threading.current_thread() is not threading.main_thread():
        yield _Interrupts()
        return
    interrupts = _Interrupts()

    def pass_on(number: int, _frame: object) -> None:
        signal.signal(number, before[signal.Signals(number)])
        interrupts.go()

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interrupts
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _status_of_the_dead(settings: Settings, run_id: str) -> str:
    """The status of a run whose process went without a word; its end is recorded within moments."""
    engine = create_engine(dagster_url(settings).set(drivername="postgresql+psycopg"), pool_size=1)
    deadline = time.monotonic() + _RESTART_SECONDS
    try:
        while time.monotonic() < deadline:
            with contextlib.suppress(sa.exc.OperationalError), engine.connect() as connection:
                status = rows.status_of(connection, run_id)
                if status in _FINISHED:
                    return str(status)
            time.sleep(0.2)
    finally:
        engine.dispose()
    return "FAILURE"


def _here(settings: Settings, location: str, order: Order, on_message: Callable[[Message], object]) -> Finished:
    from dagster_postgres.utils import DagsterPostgresException

    from polydesk_dagster.runtime.dagster_inside.runs import interruptible, loaded

    pointer = next(each for each in instances.LOCATIONS if each.name == location).pointer
    ended: dict[str, str] = {}

    def tell(message: Message) -> None:
        match message:
            case {"kind": "refused", "message": why}:
                raise PermanentError(why)
            case {"kind": "run", "run_id": run_id}:
                ended["run_id"] = run_id
            case {"kind": "end", "status": status}:
                ended["status"] = status
                return
        on_message(message)

    quiet = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}  # a terminal is for the desk
    order = replace(order, run_config={**order.run_config, **quiet})
    logging.getLogger().addHandler(_NOWHERE)  # likewise: Dagster warns there of each try to connect
    try:
        with interruptible(), instances.open_instance(settings) as instance:
            carry_out(instance, order, tell, code=loaded(pointer), location=location)
    except (DagsterPostgresException, sa.exc.OperationalError) as error:  # its own where it has tried for long
        url = dagster_url(settings).set(drivername="postgresql+psycopg")
        lost = error if isinstance(error, sa.exc.OperationalError) else error.__cause__ or error
        raise refusals.refused(lost, url, Phase.WORK) from None
    return Finished(ended["run_id"], ended["status"], interrupted=ended["status"] == "CANCELED")
