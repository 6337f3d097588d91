"""What it costs to start a run: ours and Dagster's default launcher on the same job, what 100 runs leave behind, and
what a run costs that waits in the queue."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import psutil
import sqlalchemy as sa
from dagster import DagsterEventType, DagsterInstance, DefaultRunLauncher, RunsFilter
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.definitions.schedule_definition import ScheduleExecutionData
from dagster._core.remote_origin import RemoteRepositoryOrigin
from dagster._core.scheduler.instigation import TickData, TickStatus
from dagster._core.storage.dagster_run import FINISHED_STATUSES
from dagster._grpc.client import DagsterGrpcClient
from dagster._grpc.types import ExternalScheduleExecutionArgs
from dagster._serdes import deserialize_value
from pydantic import SecretStr

from benchmarks.harness import Bench, Figure, server_of, settle, spent
from polydesk_dagster.database.engine import create_engine, dagster_url
from polydesk_dagster.database.migrate import create_database
from polydesk_dagster.runtime import instance
from polydesk_dagster.runtime.dagster_inside import runs
from polydesk_dagster.runtime.forks import client as forks
from polydesk_dagster.settings import Settings

JOB = "generate_slots"
"""A service of ours, on a database without clinics: all that is measured is what surrounds it."""
RUNS = 20
MANY = 100
TICKS_A_DAY = 1440 + 96 + 144 + 72 + 58
"""Events, statistics, caches, reminders, preparation notices."""
DUE = 0.05
"""The share of ticks that find something to do."""
QUEUED = 100
CALM = 20.0
"""Seconds in which what the daemon takes with nothing to do is looked at."""
A_RUN_MAY_KEEP = 5e9 / 30 / 3000
"""Bytes: of 3,000 runs a night for thirty nights the storage passes the 5 GB at which health complains."""


def figures(bench: Bench) -> Iterator[Figure]:
    with _installation(bench) as (dagster, settings, ours, default):
        engine = create_engine(dagster_url(settings).set(drivername="postgresql+psycopg"), pool_size=1)
        _timed(dagster, settings, ours.launch)
        _timed(dagster, settings, default.launch)
        lags: dict[_Launcher, list[float]] = {ours: [], default: []}
        took = {launcher: -launcher.cpu_seconds() for launcher in lags}
        count = bench.size(RUNS)
        for _ in range(count):
            for launcher, lag in lags.items():
                lag.append(_timed(dagster, settings, launcher.launch))
        for launcher in lags:
            launcher.settle()
            took[launcher] += launcher.cpu_seconds()
        yield Figure("runtime", "start lag, median", median(lags[ours]), median(lags[default]), "s", 1 / 6)
        yield Figure("runtime", "start lag, worst", max(lags[ours]), max(lags[default]), "s", 1 / 3)
        yield Figure("runtime", "CPU a run", took[ours] / count, took[default] / count, "s", 1 / 4)
        yield from _day(bench, dagster, settings, engine, (ours, default), took[ours] / count, took[default] / count)
        before, many = _held(ours, engine), bench.size(MANY)
        for _ in range(many):
            _timed(dagster, settings, ours.launch)
        ours.settle()
        after = _held(ours, engine)
        for what, held in after.items():
            yield Figure("runtime", f"{what} left by {many} runs", max(0, held - before[what]), many, "", 0.0)
        yield Figure("runtime", f"memory grown in {many} runs", ours.grown(), ours.size, "B", 0.1)
        yield from _queue(bench, dagster, settings, engine, (ours, default))
        engine.dispose()


def _queue(
    bench: Bench,
    dagster: DagsterInstance,
    settings: Settings,
    storage: sa.Engine,
    launchers: tuple[_Launcher, _Launcher],
) -> Iterator[Figure]:
    """Runs that wait for the daemon as those of schedules and of Dagster's page do: what each costs the daemon, whoever
    starts it, itself and the database, less what all of them take while nothing waits. The reference is a run that
    Dagster's launcher starts without a queue, the database included."""
    count, database = bench.size(QUEUED), server_of(storage)
    ours, default = launchers
    cold = max(1, count // 10)
    before = default.cpu_seconds() + spent(database)
    for _ in range(cold):
        _timed(dagster, settings, default.launch)
    default.settle()
    reference = (default.cpu_seconds() + spent(database) - before) / cold
    workspace = instance.workspace_file(settings.home)
    words = [sys.executable, "-m", "polydesk_dagster.runtime.dagster_inside.daemon", str(workspace), "colored"]
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(words, stdin=quiet, stdout=quiet, stderr=quiet)
    try:
        daemon = _Launcher(psutil.Process(process.pid), ours.launch, ours.client)
        parts = {"daemon": daemon, "fork server and runs": ours, "code server": default}

        def used() -> dict[str, float]:
            return {"database": spent(database)} | {name: part.cpu_seconds() for name, part in parts.items()}

        _queued(dagster, settings, 1)
        idle, began = used(), time.monotonic()
        time.sleep(max(2.0, CALM * bench.scale))
        a_second = {name: (now - idle[name]) / (time.monotonic() - began) for name, now in used().items()}
        settle(storage)
        kept, start, began = _storage_bytes(storage), used(), time.monotonic()
        _queued(dagster, settings, count)
        ours.settle()
        lasted = time.monotonic() - began
        cost = {name: (now - start[name] - a_second[name] * lasted) / count for name, now in used().items()}
        settle(storage)
        kept = _storage_bytes(storage) - kept
    finally:
        process.terminate()
        process.wait(30)
    for name, seconds in cost.items():
        yield Figure("runtime", f"CPU a run through the queue: {name}", seconds, reference, "s", 1 / 4)
    yield Figure("runtime", "CPU a run through the queue", sum(cost.values()), reference, "s", 1 / 4)
    yield Figure("runtime", "storage a run through the queue", kept / count, A_RUN_MAY_KEEP, "B", 1.0)


def _queued(dagster: DagsterInstance, settings: Settings, count: int) -> None:
    """So many runs, put into the queue one after the other; returns once all have ended well."""
    waiting = {_recorded(dagster, settings) for _ in range(count)}
    for run_id in waiting:
        dagster.submit_run(run_id, None)  # pyrefly: ignore[bad-argument-type]
    deadline = time.monotonic() + 60 + 10 * count
    while waiting:
        if time.monotonic() > deadline:
            raise RuntimeError(f"{len(waiting)} runs have not left the queue")
        time.sleep(0.5)
        for record in dagster.get_run_records(RunsFilter(run_ids=list(waiting), statuses=FINISHED_STATUSES)):
            if not record.dagster_run.is_success:
                raise RuntimeError(f"the run {record.dagster_run.run_id} has failed")
            waiting.discard(record.dagster_run.run_id)


def _day(
    bench: Bench,
    dagster: DagsterInstance,
    settings: Settings,
    engine: sa.Engine,
    launchers: tuple[_Launcher, _Launcher],
    run: float,
    cold_run: float,
) -> Iterator[Figure]:
    """A day of the frequent services, from the measured cost of a look and of a run: ours looks first and starts a run
    for what is due, the reference starts one at each tick with Dagster's launcher."""
    ours, default = launchers
    looks = bench.size(100)
    clock, storage = default.cpu_seconds() + time.process_time(), _storage_bytes(engine)
    for _ in range(looks):
        _look(dagster, settings, default)
    look = (default.cpu_seconds() + time.process_time() - clock) / looks
    look_bytes = (_storage_bytes(engine) - storage) / looks
    runs, storage = bench.size(20), _storage_bytes(engine)
    for _ in range(runs):
        _timed(dagster, settings, ours.launch)
    run_bytes = (_storage_bytes(engine) - storage) / runs
    work = TICKS_A_DAY * DUE
    yield Figure("runtime", "CPU a look", look, cold_run, "s", 0.05)
    yield Figure(
        "runtime", "CPU a day of ticks", TICKS_A_DAY * look + work * run, TICKS_A_DAY * (look + cold_run), "s", 0.1
    )
    grown = TICKS_A_DAY * look_bytes + work * run_bytes
    yield Figure("runtime", "storage a day", grown / 1e6, TICKS_A_DAY * (look_bytes + run_bytes) / 1e6, "MB", 0.25)


def _look(dagster: DagsterInstance, settings: Settings, code_server: _Launcher) -> None:
    """One tick as the daemon makes it: recorded, evaluated by the code server, recorded as skipped."""
    now = time.time()
    data = TickData(
        instigator_origin_id=JOB,
        instigator_name=JOB,
        instigator_type=InstigatorType.SCHEDULE,
        status=TickStatus.STARTED,
        timestamp=now,
        selector_id=JOB,
    )
    tick = dagster.create_tick(data)
    name = instance.LOCATIONS[0].name
    origin = RemoteRepositoryOrigin(runs.origin(instance.code_socket(settings.home, name), name), "__repository__")
    answer = code_server.client.external_schedule_execution(
        ExternalScheduleExecutionArgs(origin, dagster.get_ref(), JOB, now, "Europe/Rome")
    )
    if not isinstance(deserialize_value(answer), ScheduleExecutionData):
        raise TypeError(f"the schedule {JOB} was not evaluated: {answer[:500]}")
    dagster.update_tick(tick.with_status(TickStatus.SKIPPED))


def _storage_bytes(storage: sa.Engine) -> int:
    """Of Dagster's tables with their indexes."""
    with storage.connect() as connection:
        size = connection.scalar(sa.text("SELECT sum(pg_total_relation_size(oid)) FROM pg_class WHERE relkind = 'r'"))
    return int(size or 0)


class _Launcher:
    """A server process that starts runs, and what it and its runs have cost."""

    def __init__(self, process: psutil.Process, launch: Callable[[str], object], client: DagsterGrpcClient) -> None:
        self.process = process
        self.client = client
        self.launch = launch
        self.size = process.memory_info().rss

    def cpu_seconds(self) -> float:
        """Of the server and of the children that it has waited for."""
        used = self.process.cpu_times()
        return float(used.user + used.system + used.children_user + used.children_system)

    def settle(self) -> None:
        deadline = time.monotonic() + 20
        while self.process.children() and time.monotonic() < deadline:
            time.sleep(0.1)

    def grown(self) -> int:
        return max(0, int(self.process.memory_info().rss) - self.size)


def _recorded(dagster: DagsterInstance, settings: Settings) -> str:
    """The id of a new run, which nobody has started."""
    location = instance.LOCATIONS[0]
    run = runs.create(
        dagster,
        code=runs.code(location.pointer),
        job_name=JOB,
        run_config={},
        tags={},
        location=runs.origin(instance.code_socket(settings.home, location.name), location.name),
        run_id=None,
    )
    return run.run_id


def _timed(dagster: DagsterInstance, settings: Settings, launch: Callable[[str], object]) -> float:
    """Seconds from a run's creation to its first step; returns once it has ended."""
    run_id = _recorded(dagster, settings)
    created = time.time()
    launch(run_id)
    while (current := dagster.get_run_by_id(run_id)) is None or not current.is_finished:
        time.sleep(0.05)
    steps = dagster.all_logs(run_id, of_type=DagsterEventType.STEP_START)
    if not steps:
        raise RuntimeError(f"the run {run_id} ended as {current.status.value} before its first step")
    return steps[0].timestamp - created


def _held(launcher: _Launcher, engine: sa.Engine) -> dict[str, int]:
    """What a run could leave behind: processes, the server's descriptors, connections."""
    with engine.connect() as connection:
        connections = connection.scalar(
            sa.text("SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'client%'")
        )
    return {
        "processes": len(launcher.process.children(recursive=True)),
        "descriptors": launcher.process.num_fds(),
        "connections": int(connections or 0),
    }


@contextmanager
def _installation(bench: Bench) -> Iterator[tuple[DagsterInstance, Settings, _Launcher, _Launcher]]:
    """An instance of its own, with a fork server and the code server that Dagster's launcher asks."""
    with bench.engine() as business, TemporaryDirectory(prefix="polydesk-runtime-", dir="/tmp") as folder:
        url = business.url.render_as_string(hide_password=False)
        settings = Settings(home=Path(folder), database_url=SecretStr(url))
        storage = dagster_url(settings)
        create_database(storage.set(drivername="postgresql+psycopg"))
        before = dict(os.environ)
        os.environ.update(instance.environment(settings))
        os.environ["POLYDESK_DATABASE_URL"] = url
        instance.prepare(settings, instance.LOCATIONS[:1])
        servers: list[subprocess.Popen[bytes]] = []
        try:
            with DagsterInstance.get() as dagster:
                yield dagster, settings, *_launchers(dagster, settings, servers)
        finally:
            for server in servers:
                server.send_signal(signal.SIGTERM)
            for server in servers:
                try:
                    server.wait(20)
                except subprocess.TimeoutExpired:
                    server.kill()
                    server.wait()
            os.environ.clear()
            os.environ.update(before)
            _drop(bench, str(storage.database))


def _launchers(
    dagster: DagsterInstance, settings: Settings, servers: list[subprocess.Popen[bytes]]
) -> tuple[_Launcher, _Launcher]:
    location = instance.LOCATIONS[0]
    warm_socket = instance.runs_socket(instance.dagster_home(settings.home), location.name)
    cold_socket = instance.code_socket(settings.home, location.name)
    cold = [sys.executable, "-m", "dagster", "api", "grpc", "--socket", str(cold_socket), "--module-name"]
    cold += [location.module, "--location-name", location.name, "--empty-working-directory", "--log-level", "warning"]
    warm = forks.command(warm_socket, location.name, location.pointer, settings.home / "runs.log")
    quiet = subprocess.DEVNULL
    servers += [subprocess.Popen(each, stdin=quiet, stdout=quiet, stderr=quiet) for each in (warm, cold)]
    deadline = time.monotonic() + 60
    while not (warm_socket.exists() and cold_socket.exists()):
        if time.monotonic() > deadline:
            raise RuntimeError("the servers did not start")
        time.sleep(0.1)
    client = DagsterGrpcClient(socket=str(cold_socket))

    def start_cold(run_id: str) -> None:
        run = dagster.get_run_by_id(run_id)
        assert run is not None
        DefaultRunLauncher.launch_run_from_grpc_client(dagster, run, client)

    def start_warm(run_id: str) -> None:
        dagster.launch_run(run_id, None)  # pyrefly: ignore[bad-argument-type]

    return (
        _Launcher(psutil.Process(servers[0].pid), start_warm, client),
        _Launcher(psutil.Process(servers[1].pid), start_cold, client),
    )


def _drop(bench: Bench, name: str) -> None:
    admin = create_engine(bench.server.set(database="postgres"))
    with admin.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.text(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)'))
    admin.dispose()
