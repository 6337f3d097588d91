"""Clean-up of a million old rows, and how long other people's transactions take meanwhile."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Event

import sqlalchemy as sa
from sqlalchemy.engine import URL

from benchmarks.harness import Bench, Figure, peak_mb, seconds
from polydesk_dagster.clinic.upkeep import retention
from polydesk_dagster.database.engine import create_engine

CLIENTS = 4
PAUSE = 0.01
"""Seconds between two transactions of one client: a busy desk, not a race."""
QUIET_SECONDS = 10
AS_OF = datetime(2026, 3, 10, 9, 0, tzinfo=UTC)

_WORLD = """
    INSERT INTO clinic (id, code, name, region, municipality_code)
    VALUES (1, 'BO01', 'Banco di prova', 'Emilia-Romagna', 'A944');
    INSERT INTO location (id, clinic_id, name) VALUES (1, 1, 'Sede');
    INSERT INTO specialist (id, clinic_id, last_name, first_name) VALUES (1, 1, 'Bianchi', 'Elena');
    INSERT INTO agenda (id, clinic_id, location_id, specialist_id, name, slot_minutes)
    VALUES (1, 1, 1, 1, 'Agenda', 30);
    INSERT INTO slot (id, agenda_id, starts_at, ends_at, local_date, capacity)
    VALUES (1, 1, '2025-06-01 09:00+00', '2025-06-01 09:30+00', '2025-06-01', 1);
    CREATE TABLE desk (id bigint PRIMARY KEY, note text);
    INSERT INTO desk SELECT n, 'x' FROM generate_series(1, 1000) n
"""

_OLD = sa.text("""
    INSERT INTO hold (clinic_id, slot_id, token_hash, visitor_hash, state, created_at, expires_at, last_activity_at,
                      ended_at)
    SELECT 1, 1, sha256(CAST('t' || n AS bytea)), sha256(CAST('v' || n AS bytea)), 'expired', at,
           at + interval '10 minutes', at, at + interval '10 minutes'
    FROM generate_series(1, CAST(:rows AS integer)) n,
         LATERAL (SELECT CAST(:as_of AS timestamptz) - interval '60 days' + n * interval '1 second' AS at) t""")


def _client(url: URL, number: int, stop: Event, found: Queue[list[float]]) -> None:
    """Small transactions, one every few milliseconds, each timed."""
    engine = create_engine(url, pool_size=1)
    write = sa.text("UPDATE desk SET note = 'y' WHERE id = :id")
    read = sa.text("SELECT count(*) FROM hold WHERE visitor_hash = :visitor AND ended_at IS NULL")
    took = []
    turn = 0
    while not stop.is_set():
        turn += 1
        start = time.perf_counter()
        with engine.begin() as connection:
            connection.execute(read, {"visitor": b"nobody"})
            connection.execute(write, {"id": 1 + number * 200 + turn % 200})
        took.append(time.perf_counter() - start)
        time.sleep(PAUSE)
    found.put(took[20:])
    engine.dispose()


def _p95_while(url: URL, action: Callable[[], object]) -> float:
    """Milliseconds within which 95 of 100 of the clients' transactions end while ``action`` runs."""
    context = multiprocessing.get_context("fork")
    stop, found = context.Event(), context.Queue()
    clients = [context.Process(target=_client, args=(url, n, stop, found)) for n in range(CLIENTS)]
    for client in clients:
        client.start()
    action()
    stop.set()
    took: list[float] = sorted(each for _ in clients for each in found.get(timeout=60))
    for client in clients:
        client.join()
    return 1000 * took[int(len(took) * 0.95)]


def figures(bench: Bench) -> Iterator[Figure]:
    """The same clients without and with the clean-up; and its rows a second beside one plain ``DELETE``."""
    rows = bench.size(1_000_000)
    with bench.engine() as engine:
        with engine.begin() as connection:
            for statement in _WORLD.split(";\n"):
                connection.execute(sa.text(statement))
            connection.execute(_OLD, {"rows": rows, "as_of": AS_OF})
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(sa.text("VACUUM ANALYZE"))
        quiet = _p95_while(engine.url, lambda: time.sleep(QUIET_SECONDS * min(1.0, bench.scale * 4)))
        busy = _p95_while(engine.url, lambda: _clean(engine, rows))
        yield Figure("cleanup", "others' p95 during the clean-up", busy, quiet, "ms", 2.0, peak_mb=peak_mb())
        with engine.begin() as connection:
            connection.execute(_OLD, {"rows": rows, "as_of": AS_OF})
        plain = seconds(lambda: _delete(engine))
        with engine.begin() as connection:
            connection.execute(_OLD, {"rows": rows, "as_of": AS_OF})
        ours = seconds(lambda: _clean(engine, rows, rest=False))
        yield Figure("cleanup", "clean-up without rests, beside one DELETE", ours, plain, "s", 4.0, peak_mb=peak_mb())


def _clean(engine: sa.Engine, rows: int, *, rest: bool = True) -> None:
    report = retention.clean(engine, AS_OF, rest=(lambda: time.sleep(retention.REST)) if rest else None)
    if report.counts.retired != rows:
        raise RuntimeError(f"{report.counts.retired} righe tolte invece di {rows}: {report.reasons}")


def _delete(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        connection.execute(sa.text("DELETE FROM hold WHERE ended_at < :at"), {"at": AS_OF})
