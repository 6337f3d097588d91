"""What a piece of work costs the database whatever the machine: blocks looked at, and bytes of its log; and how much
processor time of server and client it takes on this one.

Blocks found in memory and blocks read count alike; those of temporary tables count too. A second in which the machine
did something else changes neither.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psutil
import sqlalchemy as sa

from polydesk_dagster.database.engine import create_engine

COUNTED = """
SELECT (SELECT coalesce(sum(coalesce(hits, 0) + coalesce(reads, 0) + coalesce(extends, 0)), 0)
        FROM pg_stat_get_backend_io(pg_backend_pid())),
       (SELECT wal_bytes FROM pg_stat_get_backend_wal(pg_backend_pid()))"""


@dataclass(frozen=True, slots=True)
class Spent:
    """Blocks of 8 KiB, bytes, and seconds of processor time."""

    blocks: int
    log: int
    cpu: float


def spent(url: sa.URL, work: Callable[[sa.Engine], Any]) -> Spent:
    """What ``work`` costs with an engine of its own, in all the connections that it takes.

    Counters are a backend's own (PostgreSQL 18), so that it does not matter who else works on the server. A connection
    that is closed before ``work`` ends is not counted. Nor is what this process has gathered before: looking through
    all of it for garbage takes longer than many a piece of work.
    """
    engine = create_engine(url)
    opened: list[Any] = []
    sa.event.listen(engine, "connect", lambda connection, _: opened.append(connection))
    try:
        with engine.connect():
            before = _counted(opened)
        gc.disable()
        work(engine)
        after = _counted(opened)
        return Spent(*(then - now for then, now in zip(after, before, strict=True)))
    finally:
        gc.enable()
        engine.dispose()


def _counted(connections: list[Any]) -> tuple[int, int, float]:
    blocks = log = 0
    cpu = time.process_time()
    for connection in connections:
        used = psutil.Process(connection.info.backend_pid).cpu_times()
        cpu += used.user + used.system
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_stat_force_next_flush()")
        connection.commit()
        with connection.cursor() as cursor:
            found = cursor.execute(COUNTED).fetchone()
        connection.commit()
        blocks, log = blocks + int(found[0]), log + int(found[1])
    return blocks, log, cpu
