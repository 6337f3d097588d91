"""A chain of a thousand clinics and of ten thousand: the look that goes out every minute, beside what it may cost."""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from multiprocessing.connection import Connection

import sqlalchemy as sa

from benchmarks.harness import Bench, Figure, peak_mb
from polydesk_dagster.demo.simulators.fleet import Fleet, address
from polydesk_dagster.sources.events import looking

CLINICS = 1000
LATENCY = 0.3
"""Seconds until a studiolab answers."""
MOST = 0.003
"""Seconds of CPU that a clinic may cost."""


def figures(bench: Bench) -> Iterator[Figure]:
    with _fleet() as port:
        for count in (bench.size(CLINICS), bench.size(10 * CLINICS)):
            with bench.engine() as engine:
                _make(engine, count, port)
                cpu, took = _look(engine)
            most = count * MOST
            yield Figure("chain", f"a look at {count} clinics, CPU", cpu, most, "s", 1.0, peak_mb=peak_mb())
            yield Figure("chain", f"the same with {LATENCY} s latency", took, looking.BOUNDS.longest, "s", 1.1)


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


def _make(engine: sa.Engine, count: int, port: int) -> None:
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
def _fleet() -> Iterator[int]:
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
