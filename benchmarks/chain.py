"""A chain of a thousand clinics and of ten thousand: the look that goes out every minute and the night that generates
slots, beside what they may cost."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from multiprocessing.connection import Connection
from pathlib import Path

import sqlalchemy as sa

from benchmarks import slots as world
from benchmarks.harness import Bench, Figure, peak_mb, settle
from polydesk_dagster.clinic.calendar import slots
from polydesk_dagster.demo.simulators.fleet import Fleet, address
from polydesk_dagster.sources.events import looking

CLINICS = 1000
LATENCY = 0.3
"""Seconds until a studiolab answers."""
MOST = 0.003
"""Seconds of CPU that a clinic may cost."""
NIGHTS = (20, 40, 80)
"""Clinics of ten agendas, ninety days of slots each, from whose nights that of ten thousand is worked out."""
AGENDAS = 10
AN_HOUR = 2 * 3600.0
"""What two cores have until a nightly run is ended."""


def figures(bench: Bench) -> Iterator[Figure]:
    with fleet() as port:
        for count in (bench.size(CLINICS), bench.size(10 * CLINICS)):
            with bench.engine() as engine:
                make(engine, count, port)
                cpu, took = _look(engine)
            most = count * MOST
            yield Figure("chain", f"a look at {count} clinics, CPU", cpu, most, "s", 1.0, peak_mb=peak_mb())
            yield Figure("chain", f"the same with {LATENCY} s latency", took, looking.BOUNDS.longest, "s", 1.1)
    yield from _generation(bench)


def _generation(bench: Bench) -> Iterator[Figure]:
    """A night in which nothing has changed but the date, and the same looked at whole."""
    sizes = [bench.size(each) for each in NIGHTS]
    for what, whole in (("slots of a night", False), ("the same looked at whole", True)):
        spent = [_night(bench, each, whole=whole) for each in sizes]
        for each, seconds in zip(sizes, spent, strict=True):
            yield Figure("chain", f"{what}, {each} clinics, CPU", seconds, each * AN_HOUR / 10 / CLINICS, "s", 1.0)
        # least squares through three points: what a night costs, and what each clinic adds
        centre, mean = sum(sizes) / len(sizes), sum(spent) / len(spent)
        spread = sum((each - centre) ** 2 for each in sizes)
        slope = sum((x - centre) * (y - mean) for x, y in zip(sizes, spent, strict=True)) / (spread or 1)
        ours = mean + slope * (10 * CLINICS - centre)
        yield Figure("chain", f"{what}, 10,000 clinics by the fit, CPU", ours, AN_HOUR, "s", 1.0, peak_mb=peak_mb())


def _night(bench: Bench, clinics: int, *, whole: bool) -> float:
    """Processor seconds of the server and of this process."""
    with bench.engine() as engine:
        world.load(engine, clinics * AGENDAS, 90, clinics)
        slots.generate(engine, world.AS_OF)
        slots.generate(engine, world.AS_OF + timedelta(days=1))
        settle(engine)
        before = _processor(engine) + time.process_time()
        report = slots.generate(engine, world.AS_OF + timedelta(days=2), whole=whole)
        if report.counts.created != clinics * AGENDAS * 22:
            raise AssertionError("the night has added more, or less, than a day")
        return _processor(engine) + time.process_time() - before


def _processor(engine: sa.Engine) -> float:
    """Seconds that the server's processes have been busy, those that have ended too."""
    with engine.connect() as connection:
        backend = connection.scalar(sa.text("SELECT pg_backend_pid()"))
    parent = _fields(str(backend))[1]
    ticks = sum(map(int, _fields(parent)[11:15]))
    for process in Path("/proc").glob("[0-9]*"):
        try:
            fields = _fields(process.name)
        except OSError:  # it has gone meanwhile
            continue
        if fields[1] == parent:
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _fields(pid: str) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()


def _look(engine: sa.Engine) -> tuple[float, float]:
    """Seconds of this process and on the wall; the faster of two."""
    measured = []
    for _ in range(2):
        as_of, processor, started = datetime.now(UTC), time.process_time(), time.perf_counter()
        with engine.connect() as connection:
            known = looking.clinics(connection, as_of)
        seen = looking.look(known, as_of, lambda _: "token")
        measured.append((time.process_time() - processor, time.perf_counter() - started))
        if {each.why for each in seen} - {looking.NOTHING, looking.NOT_REACHED} or looking.changed(seen):
            raise AssertionError("the minute was not idle")
    return min(measured)


def make(engine: sa.Engine, count: int, port: int) -> None:
    """So many clinics, each with a studiolab of the fleet that answers at ``port``."""
    with engine.begin() as connection:
        connection.execute(
            sa.text("""
            WITH made AS (INSERT INTO clinic (code, name, region, municipality_code)
                          SELECT code, code, 'Lazio', 'H501' FROM unnest(CAST(:codes AS text[])) code RETURNING *)
            INSERT INTO integration (clinic_id, base_url, token_env, active)
            SELECT made.id, url, 'POLYDESK_STUDIOLAB_TOKEN_BENCH', true
            FROM made JOIN unnest(CAST(:codes AS text[]), CAST(:urls AS text[])) a(code, url) USING (code)"""),
            {"codes": [f"C{n:05}" for n in range(count)], "urls": [address(port, n) for n in range(count)]},
        )


@contextmanager
def fleet() -> Iterator[int]:
    """The studiolabs in a process of their own, so that only who asks is measured."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_serve, args=[there], daemon=True)
    process.start()
    try:
        yield here.recv()
    finally:
        process.kill()
        process.join()


def _serve(told: Connection) -> None:
    asyncio.run(Fleet(LATENCY).serve(told.send))
