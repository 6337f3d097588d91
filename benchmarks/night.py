"""A night of a chain whose clinics have lists: what it costs, remembers, and leaves in Dagster's storage.

Each service's runs are those that its schedule asks for, executed one after the other, each in a process of its own, on
Dagster's storage as an installation has it. Studiolab's lists are bytes on the wire, from a process of their own.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import resource
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import sqlalchemy as sa

from benchmarks import patients, slots, wire
from benchmarks.harness import Bench, server_of, settle, spent
from polydesk_dagster import settings as configuration
from polydesk_dagster.database.engine import create_engine, dagster_url
from polydesk_dagster.database.migrate import create_database
from polydesk_dagster.runtime import instance

AGENDAS, PRICES, PATIENTS = 50, 2000, 5000
HORIZON = 90
AGREEMENTS = 49
"""Each service has a private price and one for each of these."""
CHANGED = 100
"""One in so many records of each list is another than the night before."""
SERVICES = ("nightly_cleanup", "generate_slots", "sync_prices", "import_patients")
TOKEN = "POLYDESK_STUDIOLAB_TOKEN_BENCH"
LISTS = """
    INSERT INTO integration (clinic_id, base_url, token_env, active)
    SELECT id, CAST(:url AS text) || '/' || code || '/api/v1', :token, true FROM clinic;
    INSERT INTO service (clinic_id, external_id, code, name, duration_minutes)
    SELECT c.id, 'S' || n, 'C' || n, 'Visita', 20 FROM clinic c, generate_series(0, :prices / (:agreements + 1)) n"""


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
    plain: float
    """Seconds of CPU in which the same lists are read plainly, and nothing is done with them."""


def night(bench: Bench, clinics: int) -> Night:
    """The second night of so many clinics: the first has filled everything, since then one record in a hundred of each
    list has changed."""
    with bench.engine() as engine, TemporaryDirectory(prefix="polydesk-night-") as folder:
        lists = Path(folder) / "lists"
        _write(lists, clinics, 0)
        slots.load(engine, clinics * AGENDAS, HORIZON, clinics)
        with wire.serving(lists) as url, _installation(engine, Path(folder) / "home") as theirs:
            with engine.begin() as connection:
                values = {"url": url.removesuffix(wire.ROOT), "token": TOKEN, "prices": PRICES,
                          "agreements": AGREEMENTS}  # fmt: skip
                for statement in LISTS.split(";"):
                    connection.execute(sa.text(statement), values)
            _once(engine, theirs, 0, 0)
            _write(lists, clinics, 1)
            return _once(engine, theirs, 1, _plainly(url, clinics))


def _plainly(url: str, clinics: int) -> float:
    """CPU of a plain client and ``json.loads`` for every list of every clinic."""
    before = time.process_time()
    for number in range(1, clinics + 1):
        for kind in ("agreements", "prices", "patients"):
            deque(wire.pages(url.replace(wire.ROOT, f"/C{number}{wire.ROOT}"), kind), maxlen=0)
    return time.process_time() - before


def _write(folder: Path, clinics: int, night: int) -> None:
    """The lists of each clinic as its studiolab has them on the evening before ``night``."""
    folder.mkdir(exist_ok=True)
    (folder / wire.VERSION).write_text(str(night))
    people = patients.records(clinics * (PATIENTS + PATIENTS // CHANGED))
    for number in range(1, clinics + 1):
        there = folder / f"C{number}"
        there.mkdir(exist_ok=True)
        agreements = [{"id": f"A{n}", "name": f"Fondo {n}", "kind": "fund", "valid_from": "2026-01-01",
                       "valid_to": None, "active": True} for n in range(1, AGREEMENTS + 1)]  # fmt: skip
        wire.write(there, "agreements", iter(agreements), len(agreements))
        wire.write(there, "prices", map(_price, range(PRICES), [night] * PRICES), PRICES)
        hers = list(islice(people, PATIENTS + PATIENTS // CHANGED))
        shown = hers[: PATIENTS + night * PATIENTS // CHANGED]
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
def _installation(engine: sa.Engine, home: Path) -> Iterator[sa.Engine]:
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
    stored = _bytes(theirs)
    for service in SERVICES:
        before = spent(database)
        with _watched(database) as most:
            used = _apart(service, as_of.isoformat())
        cpu[service] = spent(database) - before + used.seconds
        peak, runs = max(peak, used.peak_mb, most[0]), runs + used.runs
    settle(theirs)  # what is dead is used again by the next night
    return Night(cpu, peak, _bytes(theirs) - stored, runs, plain)


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


def _apart(service: str, as_of: str) -> _Used:
    """The runs of one service, in a process that is forked from this one as a run is from the fork server."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=_run, args=(there, service, as_of))
    process.start()
    there.close()
    try:
        found = here.recv()
    finally:
        process.join()
    if not isinstance(found, _Used):
        raise TypeError(f"{service}: {found}")
    return found


def _run(told: Connection, service: str, as_of: str) -> None:
    import dagster as dg
    from dagster._core.definitions.job_base import InMemoryJob
    from dagster._core.execution.api import execute_run

    from polydesk_dagster import build, many
    from polydesk_dagster.catalog import BY_KEY, Place

    before = _seconds()
    found = BY_KEY[service]
    job = build.definitions(Place.ORDINARY).resolve_job_def(service)
    with instance.open_instance(configuration.load()) as dagster:
        asked: Sequence[dg.RunRequest] = [dg.RunRequest(tags={"polydesk/service": service})]
        if found.per_clinic:
            engine = create_engine(sa.make_url(os.environ["POLYDESK_DATABASE_URL"]))
            with engine.connect() as connection:
                codes = list(connection.scalars(sa.text("SELECT code FROM clinic")))
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
