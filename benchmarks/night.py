"""A night of a chain whose clinics have lists: what it costs, remembers, and leaves in Dagster's storage.

One chain grows from size to size: who joins is filled as of the night before, by runs for her alone, so that the night
that is measured is one day's work for everybody. What is known so far is told on standard error: all of it takes ten
minutes. Each service's runs are those that its schedule asks for, executed one after the other, each in a process of
its own, on Dagster's storage as an installation has it. Studiolab's lists are bytes on the wire, from a process of
their own.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import resource
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import sqlalchemy as sa

from benchmarks import patients, slots, wire
from benchmarks.harness import Bench, Figure, server_of, settle, spent
from polydesk_dagster import many
from polydesk_dagster import settings as configuration
from polydesk_dagster.database.engine import create_engine, dagster_url
from polydesk_dagster.database.migrate import create_database
from polydesk_dagster.runtime import instance

WITH_LISTS = (50, 100, 200)
"""Clinics from whose nights that of a thousand is worked out."""
CLINICS = 1000
TWO_CORES = 2 * 3600.0
"""Seconds of CPU in the hour that a night may take."""
AGENDAS, PRICES, PATIENTS = 50, 2000, 5000
HORIZON = 90
AGREEMENTS = 49
"""Each service has a private price and one for each of these."""
CHANGED = 100
"""One in so many records of each list is another than the night before."""
FILLING = ("generate_slots", "sync_prices", "import_patients")
SERVICES = ("nightly_cleanup", *FILLING)
STRAIGHT = 1.1
"""What a size may take beside the line through all of them, that the line may be drawn on to a thousand."""
TOKEN = "POLYDESK_STUDIOLAB_TOKEN_BENCH"

# Each agenda works two turns of eleven twenty-minute slots on all seven days.
JOIN = """
    CREATE TEMP TABLE joining ON COMMIT DROP AS SELECT generate_series(CAST(:first AS bigint), :last) AS n;
    INSERT INTO clinic (id, code, name, region, municipality_code, horizon_days)
    SELECT n, 'C' || n, 'Clinica ' || n, 'Lazio', 'H501', :horizon FROM joining;
    INSERT INTO location (id, clinic_id, name) SELECT n, n, 'Sede' FROM joining;
    INSERT INTO resource (id, clinic_id, location_id, kind, name) SELECT n, n, n, 'room', 'Sala' FROM joining;
    INSERT INTO agenda (clinic_id, location_id, resource_id, name, auto_generate, slot_minutes)
    SELECT n, n, n, 'Agenda ' || a, true, 20 FROM joining, generate_series(1, CAST(:agendas AS integer)) a;
    INSERT INTO agenda_rule (agenda_id, weekday, starts_at, ends_at, valid_from)
    SELECT a.id, weekday, turn.starts_at, turn.ends_at, '2020-01-01'
    FROM agenda a JOIN joining ON n = a.clinic_id, generate_series(1, 7) weekday,
         (VALUES (time '08:00', time '11:40'), ('14:00', '17:40')) turn(starts_at, ends_at);
    INSERT INTO integration (clinic_id, base_url, token_env, active)
    SELECT n, CAST(:url AS text) || '/C' || n || '/api/v1', :token, true FROM joining;
    INSERT INTO service (clinic_id, external_id, code, name, duration_minutes)
    SELECT n, 'S' || s, 'C' || s, 'Visita', 20
    FROM joining, generate_series(0, CAST(:prices AS integer) / (:agreements + 1)) s"""


@dataclass(frozen=True, slots=True)
class Night:
    """What one night has taken."""

    cpu: Mapping[str, float]
    """Seconds by service, of its runs and of the server."""
    peak_mb: float
    """The most that any process had resident, a run or one of the server's."""
    stored: int
    """Bytes that Dagster's storage has grown by."""
    runs: int
    wall: float
    """Seconds by the clock."""
    plain: float
    """Seconds of CPU in which the same lists are read plainly, and nothing is done with them."""


def figures(bench: Bench) -> Iterator[Figure]:
    """Beside reading the same lists plainly; bounds are seconds, megabytes and bytes, whatever that takes."""
    sizes = [bench.size(each) for each in WITH_LISTS]
    measured = nights(bench, sizes)
    took, plain = [sum(each.cpu.values()) for each in measured], [each.plain for each in measured]
    for each, seconds, reference in zip(sizes, took, plain, strict=True):
        most = TWO_CORES * each / CLINICS / reference
        yield Figure("night", f"{each} clinics with lists, CPU", seconds, reference, "s", most)
    ours, reference = fit(sizes, took, CLINICS), fit(sizes, plain, CLINICS)
    yield Figure("night", f"{CLINICS} by the fit, CPU", ours, reference, "s", TWO_CORES / reference)
    clock = [each.wall for each in measured]
    yield Figure("night", f"{CLINICS} by the fit, by the clock, beside an hour", fit(sizes, clock, CLINICS), 3600.0,
                 "s", 1.0)  # fmt: skip
    for what, values in (("CPU", took), ("by the clock", clock)):
        for each, value in zip(sizes, values, strict=True):
            line = fit(sizes, values, each)
            yield Figure("night", f"{each} clinics, {what}, beside the line through all", value, line, "s", STRAIGHT)
    a_run, a_clinic = _shares([(each.runs, size) for each, size in zip(measured, sizes, strict=True)], measured)
    for night, size in zip(measured, sizes, strict=True):
        name = f"Dagster's storage of {size} clinics, beside {a_run:.3f} MB a run and {1000 * a_clinic:.1f} KB a clinic"
        yield Figure("night", name, night.stored / 1e6, night.runs * a_run + size * a_clinic, "MB", STRAIGHT)
    stored = (2 + 2 * CLINICS // many.A_RUN) * a_run + CLINICS * a_clinic
    yield Figure("night", "Dagster's storage of that night, beside 20 MB", stored, 20.0, "MB", 1.0)
    peak = max(each.peak_mb for each in measured)
    yield Figure("night", "the largest process of those nights, beside 500 MB", peak, 500.0, "MB", 1.0, peak_mb=peak)


def fit(sizes: Sequence[int], values: Sequence[float], at: int) -> float:
    """The least squares' line through the values, at another size."""
    slope, start = statistics.linear_regression(sizes, values) if len(set(sizes)) > 1 else (0.0, values[0])
    return start + slope * at


def _shares(of: Sequence[tuple[int, int]], measured: Sequence[Night]) -> tuple[float, float]:
    """Megabytes that a run and a clinic leave in Dagster's storage, so that they fit best."""
    import numpy as np

    found = np.linalg.lstsq(np.array(of, float), np.array([each.stored / 1e6 for each in measured]), rcond=None)[0]
    return float(found[0]), float(found[1])


def nights(bench: Bench, sizes: Sequence[int]) -> list[Night]:
    """A night of each size, in which one record in a hundred of each list is another than the night before."""
    found, most = [], 1 + len(sizes)
    with bench.engine() as engine, TemporaryDirectory(prefix="polydesk-night-") as folder:
        lists = Path(folder) / "lists"
        _write(lists, range(1, 2), 0, most)
        with wire.serving(lists) as url, installation(engine, Path(folder) / "home") as theirs:
            there = 0
            for before, clinics in enumerate(sizes):
                started, joining = time.perf_counter(), range(there + 1, clinics + 1)
                _write(lists, joining, before, most)
                _join(engine, url.removesuffix(wire.ROOT), joining, slots.AS_OF + timedelta(days=before))
                there = clinics
                _write(lists, range(1, clinics + 1), before + 1, most)
                built = time.perf_counter() - started
                measured = _once(engine, theirs, before + 1, _plainly(url, clinics))
                print(f"{clinics} clinics, made in {built:.0f} s by the clock: {measured}", file=sys.stderr, flush=True)
                found.append(measured)
    return found


def _join(engine: sa.Engine, url: str, joining: range, as_of: datetime) -> None:
    """These clinics come, and what they have is taken in as of the night that the others have behind them."""
    with engine.begin() as connection:
        values = {"url": url, "token": TOKEN, "prices": PRICES, "agendas": AGENDAS, "agreements": AGREEMENTS,
                  "horizon": HORIZON, "first": joining.start, "last": joining[-1]}  # fmt: skip
        for statement in JOIN.split(";"):
            connection.execute(sa.text(statement), values)
    settle(engine)
    for service in FILLING:
        apart(service, as_of.isoformat(), clinics=[f"C{number}" for number in joining])


def _plainly(url: str, clinics: int) -> float:
    """CPU of a plain client and ``json.loads`` for every list of every clinic."""
    before = time.process_time()
    for number in range(1, clinics + 1):
        for kind in ("agreements", "prices", "patients"):
            deque(wire.pages(url.replace(wire.ROOT, f"/C{number}{wire.ROOT}"), kind), maxlen=0)
    return time.process_time() - before


def _write(folder: Path, clinics: range, night: int, most: int) -> None:
    """The lists of these clinics as their studiolabs have them on the evening before ``night``, of ``most``."""
    folder.mkdir(exist_ok=True)
    (folder / wire.VERSION).write_text(str(night))
    each = PATIENTS + most * (PATIENTS // CHANGED)
    people = islice(patients.records(clinics[-1] * each), (clinics.start - 1) * each, None)
    for number in clinics:
        there = folder / f"C{number}"
        there.mkdir(exist_ok=True)
        agreements = [{"id": f"A{n}", "name": f"Fondo {n}", "kind": "fund", "valid_from": "2026-01-01",
                       "valid_to": None, "active": True} for n in range(1, AGREEMENTS + 1)]  # fmt: skip
        wire.write(there, "agreements", iter(agreements), len(agreements))
        wire.write(there, "prices", map(_price, range(PRICES), [night] * PRICES), PRICES)
        shown = list(islice(people, each))[: PATIENTS + night * (PATIENTS // CHANGED)]
        wire.write(there, "patients", iter(shown), len(shown))


def _price(number: int, night: int) -> dict[str, Any]:
    which = number % (AGREEMENTS + 1)
    return {
        "service_id": f"S{number // (AGREEMENTS + 1)}",
        "agreement_id": f"A{which}" if which else None,
        "collaborator_id": None,
        "amount": f"{50 + number % 90 + (night if number % CHANGED == 0 else 0)}.00",
        "patient_share": None,
        "currency": "EUR",
        "vat_rate": None,
        "valid_from": "2026-01-01",
        "valid_to": None,
    }


@contextmanager
def installation(engine: sa.Engine, home: Path) -> Iterator[sa.Engine]:
    """The environment of an installation over this database, until the end; yields Dagster's own database."""
    before = dict(os.environ)
    url = engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
    os.environ |= {"POLYDESK_HOME": str(home), "POLYDESK_DATABASE_URL": url, TOKEN: "token"}
    settings = configuration.load()
    theirs = create_engine(dagster_url(settings).set(drivername="postgresql+psycopg"))
    try:
        create_database(theirs.url)
        instance.prepare(settings)
        os.environ |= instance.environment(settings)
        yield theirs
    finally:
        theirs.dispose()
        os.environ.clear()
        os.environ |= before


def _once(engine: sa.Engine, theirs: sa.Engine, number: int, plain: float) -> Night:
    """Every service once; a day later than the night before."""
    as_of = slots.AS_OF + timedelta(days=number)
    database, cpu, peak, runs = server_of(engine), {}, 0.0, 0
    settle(engine)
    settle(theirs)
    stored, started = _bytes(theirs), time.perf_counter()
    for service in SERVICES:
        before = spent(database)
        with _watched(database) as most:
            used = apart(service, as_of.isoformat())
        cpu[service] = spent(database) - before + used.seconds
        peak, runs = max(peak, used.peak_mb, most[0]), runs + used.runs
    wall = time.perf_counter() - started
    settle(theirs)  # what is dead is used again by the next night
    return Night(cpu, peak, _bytes(theirs) - stored, runs, wall, plain)


def _bytes(storage: sa.Engine) -> int:
    with storage.connect() as connection:
        size = connection.scalar(sa.text("SELECT sum(pg_total_relation_size(oid)) FROM pg_class WHERE relkind = 'r'"))
    return int(size or 0)


@contextmanager
def _watched(server: psutil.Process) -> Iterator[list[float]]:
    """The most that one process of the server has resident meanwhile, in MB."""
    most, over = [0.0], threading.Event()

    def watch() -> None:
        while not over.wait(0.25):
            for process in server.children():
                with contextlib.suppress(psutil.NoSuchProcess):
                    most[0] = max(most[0], process.memory_info().rss / 1024**2)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield most
    finally:
        over.set()
        thread.join()


@dataclass(frozen=True, slots=True)
class _Used:
    seconds: float
    peak_mb: float
    runs: int


def apart(service: str, as_of: str, asked: Sequence[Any] | None = None, clinics: Sequence[str] | None = None) -> _Used:
    """The runs of one service, those that are ``asked`` for or that its schedule asks for (of ``clinics`` alone), in a
    process that is forked from this one as a run is from the fork server."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=_run, args=(there, service, as_of, asked, clinics))
    process.start()
    there.close()
    try:
        found = here.recv()
    finally:
        process.join()
    if not isinstance(found, _Used):
        raise TypeError(f"{service}: {found}")
    return found


def _run(
    told: Connection, service: str, as_of: str, asked: Sequence[Any] | None, clinics: Sequence[str] | None
) -> None:
    import dagster as dg
    from dagster._core.definitions.job_base import InMemoryJob
    from dagster._core.execution.api import execute_run

    from polydesk_dagster import build
    from polydesk_dagster.catalog import BY_KEY, Place

    before = _seconds()
    found = BY_KEY[service]
    job = build.definitions(Place.ORDINARY).resolve_job_def(service)
    with instance.open_instance(configuration.load()) as dagster:
        if asked is None and not found.per_clinic:
            asked = [dg.RunRequest(tags={"polydesk/service": service})]
        elif asked is None:
            engine = create_engine(sa.make_url(os.environ["POLYDESK_DATABASE_URL"]))
            with engine.connect() as connection:
                codes = clinics or list(connection.scalars(sa.text("SELECT code FROM clinic")))
            engine.dispose()
            asked = list(many.requests(dagster, found, codes, as_of))
        for request in asked:
            config: dict[str, Any] = {"ops": {step: {"config": {"as_of": as_of}} for step in found.steps}}
            for step, given in request.run_config.get("ops", {}).items():
                config["ops"][step]["config"] |= given["config"]
            of_one = {"dagster/partition": request.partition_key} if request.partition_key else {}
            run = dagster.create_run_for_job(job, run_config=config, tags={**request.tags, **of_one})
            execute_run(InMemoryJob(job), run, dagster)
            ended = dagster.get_run_by_id(run.run_id)
            if ended is None or not ended.is_success:
                told.send(f"{run.run_id} has failed")
                return
    told.send(_Used(_seconds() - before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, len(asked)))


def _seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
