"""A chain of a thousand clinics and of ten thousand: the look that goes out every minute, the night that generates
slots. Bounds are seconds, megabytes and bytes, whatever the reference takes."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from multiprocessing.connection import Connection
from pathlib import Path

import httpx
import sqlalchemy as sa

from benchmarks import night, wire
from benchmarks import slots as world
from benchmarks.harness import Bench, Figure, peak_mb, settle
from polydesk_dagster.clinic.calendar import slots
from polydesk_dagster.demo.simulators.fleet import Fleet, address
from polydesk_dagster.schedules.due import DUE
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
TICKS = {service: due for service, due in DUE.items() if service != "index_knowledge"}
"""What other ticks ask the database for in the process in which a look is under way; one looks into a folder."""
A_TICK = 1.0
"""Seconds that they may take beside it, for each thousand clinics. Dagster gives a tick sixty."""
BARE = (
    "CREATE TABLE reference (LIKE slot INCLUDING ALL)",
    "ALTER TABLE reference ADD FOREIGN KEY (agenda_id) REFERENCES agenda",
)
NEW_DAY = """
    INSERT INTO reference (agenda_id, starts_at, ends_at, local_date, capacity)
    SELECT agenda_id, starts_at, ends_at, local_date, capacity FROM slot
    WHERE local_date = (SELECT max(local_date) FROM slot)"""


def figures(bench: Bench) -> Iterator[Figure]:
    with fleet() as port:
        for count in (bench.size(CLINICS), bench.size(10 * CLINICS)):
            with bench.engine() as engine:
                make(engine, count, port)
                cpu, took = _look(engine)
                beside, alone = _ticks(engine)
            asked, waited = plainly([address(port, n) for n in range(count)])
            name = f"a look at {count} clinics, CPU, beside httpx asking them"
            yield Figure("chain", name, cpu, asked, "s", count * MOST / asked, peak_mb=peak_mb())
            longest = 10.0 if count <= CLINICS else 1.1 * looking.BOUNDS.longest
            yield Figure("chain", f"the same with {LATENCY} s latency", took, waited, "s", longest / waited)
            name = f"{len(TICKS)} other ticks' questions meanwhile, the slowest of 20, beside no look"
            yield Figure("chain", name, beside, alone, "s", A_TICK * count / CLINICS / alone)
    yield from _generation(bench)


def _generation(bench: Bench) -> Iterator[Figure]:
    """A night in which nothing has changed but the date, and the same looked at whole, beside one statement that writes
    the rows of the new day into a table like ours."""
    sizes = [bench.size(each) for each in NIGHTS]
    for what, whole in (("slots of a night", False), ("the same looked at whole", True)):
        spent, plain = zip(*(_night(bench, each, whole=whole) for each in sizes), strict=True)
        for each, seconds, reference in zip(sizes, spent, plain, strict=True):
            most = each * AN_HOUR / 10 / CLINICS / reference
            yield Figure("chain", f"{what}, {each} clinics, CPU", seconds, reference, "s", most)
        ours, reference = night.fit(sizes, spent, 10 * CLINICS), night.fit(sizes, plain, 10 * CLINICS)
        name = f"{what}, 10,000 clinics by the fit, CPU"
        yield Figure("chain", name, ours, reference, "s", AN_HOUR / reference, peak_mb=peak_mb())


def _night(bench: Bench, clinics: int, *, whole: bool) -> tuple[float, float]:
    """Processor seconds of the server and of this process; and of the plain statement."""
    with bench.engine() as engine:
        world.load(engine, clinics * AGENDAS, 90, clinics)
        slots.generate(engine, world.AS_OF)
        slots.generate(engine, world.AS_OF + timedelta(days=1))
        settle(engine)
        before = processor(engine) + time.process_time()
        report = slots.generate(engine, world.AS_OF + timedelta(days=2), whole=whole)
        if report.counts.created != clinics * AGENDAS * 22:
            raise AssertionError("the night has added more, or less, than a day")
        took = processor(engine) + time.process_time() - before
        with engine.begin() as connection:
            for statement in BARE:
                connection.execute(sa.text(statement))
        before = processor(engine) + time.process_time()
        with engine.begin() as connection:
            connection.execute(sa.text(NEW_DAY))
        return took, processor(engine) + time.process_time() - before


def plainly(urls: Sequence[str]) -> tuple[float, float]:
    """CPU and seconds of httpx asking as many at once as a look does, and keeping no connection."""

    async def ask() -> None:
        places = asyncio.Semaphore(looking.BOUNDS.quick)
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        async with httpx.AsyncClient(trust_env=False, verify=wire.CONTEXT, limits=limits, timeout=60) as client:

            async def one(url: str) -> None:
                async with places:
                    answer = await client.get(f"{url}/events", params={"after": 0, "limit": 1})
                    answer.raise_for_status().json()

            await asyncio.gather(*map(one, urls))

    processor, started = time.process_time(), time.perf_counter()
    asyncio.run(ask())
    return time.process_time() - processor, time.perf_counter() - started


def processor(engine: sa.Engine) -> float:
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
        processor, started = time.process_time(), time.perf_counter()
        seen = _looked(engine)
        measured.append((time.process_time() - processor, time.perf_counter() - started))
        if {each.why for each in seen} - {looking.NOTHING, looking.NOT_REACHED}:
            raise AssertionError("the minute was not idle")
    return min(measured)


def _looked(engine: sa.Engine) -> Sequence[looking.Seen]:
    as_of = datetime.now(UTC)
    with engine.connect() as connection:
        known = looking.clinics(connection, as_of)
    return looking.look(known, as_of, lambda _: "token")


def _ticks(engine: sa.Engine) -> tuple[float, float]:
    """Seconds by the clock for which one in twenty waits longest, while a look is under way in this process; alone."""
    with ThreadPoolExecutor(1) as others:
        under_way = others.submit(_looked, engine)
        beside = _slowest(engine, lambda _: not under_way.done())
        under_way.result()
    return beside, _slowest(engine, lambda asked: asked < 100)


def _slowest(engine: sa.Engine, going_on: Callable[[int], bool]) -> float:
    took: list[float] = []
    while going_on(len(took)):
        started = time.perf_counter()
        with engine.connect() as connection:
            for due in TICKS.values():
                due(connection, datetime.now(UTC))
        took.append(time.perf_counter() - started)
    return sorted(took)[int(len(took) * 0.95)]


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


def _without_news(told: Connection) -> None:
    asyncio.run(Fleet(LATENCY).serve(told.send))


@contextmanager
def fleet(serve: Callable[[Connection], None] = _without_news) -> Iterator[int]:
    """The studiolabs in a process of their own, so that only who asks is measured; the port that ``serve`` tells."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=[there], daemon=True)
    process.start()
    try:
        yield here.recv()
    finally:
        process.kill()
        process.join()
