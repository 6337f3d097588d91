"""How the command executes a job so that its run is in the history like any other, and waits for it.

Where `polydesk up` is alive, its fork server runs the job at once and tells each event; this side then imports neither
Dagster nor the definitions. Elsewhere the job is executed in this process.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from polydesk_dagster.database.engine import create_engine, dagster_url
from polydesk_dagster.errors import PermanentError
from polydesk_dagster.runtime import instance as instances
from polydesk_dagster.runtime import supervisor
from polydesk_dagster.settings import Settings

if TYPE_CHECKING:
    from dagster import DagsterEvent, DagsterInstance

Message = Mapping[str, Any]
"""What is told while a run goes on, by its ``kind``: ``run`` (``run_id``, ``pid``), ``event`` (``type``, ``step``,
``message``), ``progress`` (``done``, ``total``, ``what``), ``refused`` (``message``), ``end`` (``status``)."""

_RESTART_SECONDS = 15.0
_FINISHED = ("SUCCESS", "FAILURE", "CANCELED")


class _UnansweredError(Exception):
    """The fork server went before it took the order, to load new code: ask again."""


class _UnableError(Exception):
    """The fork server cannot run anything."""


@dataclass(frozen=True, slots=True)
class Order:
    """A job to run; ``partition`` is a key of its partitions."""

    job: str
    run_config: Mapping[str, object] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    partition: str | None = None


@dataclass(frozen=True, slots=True)
class Finished:
    """How a run ended: ``SUCCESS``, ``FAILURE`` or ``CANCELED``."""

    run_id: str
    status: str


def execute(settings: Settings, location: str, order: Order, on_message: Callable[[Message], object]) -> Finished:
    """Run a job of a code location and wait for its end; Ctrl-C ends the run as canceled. The database must be up.

    Raises:
        PermanentError: if the location has no such job, or the job does not take this config.
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
    run_id, pid = "", 0
    with connection.makefile("rb") as stream, _passing_on_interrupts(lambda: pid):
        for line in stream:
            message = json.loads(line)
            match message:
                case {"problem": _}:
                    raise _UnableError
                case {"kind": "refused", "message": why}:
                    raise PermanentError(why)
                case {"kind": "run"}:
                    run_id, pid = message["run_id"], message["pid"]
                case {"kind": "end", "status": status}:
                    return Finished(run_id, status)
            on_message(message)
    if not run_id:
        raise _UnansweredError
    return Finished(run_id, _status_of_the_dead(settings, run_id))


@contextlib.contextmanager
def _passing_on_interrupts(pid: Callable[[], int]) -> Iterator[None]:
    """Ctrl-C and SIGTERM go to the run's process, whose end we then still wait for; a second one ends us.

    Only the main thread is told of signals: elsewhere they are somebody else's.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def pass_on(number: int, _frame: object) -> None:
        signal.signal(number, before[signal.Signals(number)])
        if pid():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid(), signal.SIGTERM)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
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
                status = connection.scalar(sa.text("SELECT status FROM runs WHERE run_id = :run"), {"run": run_id})
                if status in _FINISHED:
                    return str(status)
            time.sleep(0.2)
    finally:
        engine.dispose()
    return "FAILURE"


def _here(settings: Settings, location: str, order: Order, on_message: Callable[[Message], object]) -> Finished:
    from dagster._utils.interrupts import capture_interrupts, setup_interrupt_handlers

    from polydesk_dagster.runtime import forks

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
    setup_interrupt_handlers()
    with instances.open_instance(settings) as instance, capture_interrupts():
        carry_out(instance, order, tell, code=forks.code(pointer), location=location)
    return Finished(ended["run_id"], ended["status"])


def carry_out(
    instance: DagsterInstance,
    order: Order,
    tell: Callable[[Message], object],
    *,
    code: Any,
    location: str,
    run_id: str | None = None,
) -> bool:
    """Record a run and execute it in this process, telling what happens. Returns whether it succeeded.

    ``code`` is the ``ReconstructableRepository`` of the location.
    """
    from dagster import DagsterInvalidConfigError, DagsterInvariantViolationError
    from dagster._core.storage.tags import PARTITION_NAME_TAG

    from polydesk_dagster.runtime import progress, work

    tags = dict(order.tags)
    if order.partition is not None:
        tags[PARTITION_NAME_TAG] = order.partition
        _know_partition(instance, code, order)
    try:
        run = work.create(
            instance,
            code=code,
            job_name=order.job,
            run_config=order.run_config,
            tags=tags,
            location=instances.origin(Path(instance.root_directory).parent, location),
            run_id=run_id,
        )
    except (DagsterInvalidConfigError, DagsterInvariantViolationError) as error:
        tell({"kind": "refused", "message": str(error)})
        return True
    tell({"kind": "run", "run_id": run.run_id, "pid": os.getpid()})

    def on_event(event: DagsterEvent) -> None:
        tell({"kind": "event", "type": event.event_type_value, "step": event.step_key, "message": event.message})

    def on_progress(done: int, total: int, what: str) -> None:
        tell({"kind": "progress", "done": done, "total": total, "what": what})

    with progress.shown(on_progress):
        succeeded = work.execute(instance, run.run_id, on_event)
    recorded = instance.get_run_by_id(run.run_id)
    tell({"kind": "end", "status": recorded.status.value if recorded else "FAILURE"})
    return succeeded


def _know_partition(instance: DagsterInstance, code: Any, order: Order) -> None:
    """A key of dynamic partitions exists once somebody has named it."""
    from dagster import DynamicPartitionsDefinition

    partitions = code.get_definition().get_job(order.job).partitions_def
    if isinstance(partitions, DynamicPartitionsDefinition) and partitions.name and order.partition:
        instance.add_dynamic_partitions(partitions.name, [order.partition])
