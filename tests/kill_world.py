"""SIGKILL in the middle of a transaction, at a place that a test chooses: where it waits for a row that we hold."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa

from tests.waiting import until

_WAITING = sa.text("""
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND wait_event_type = 'Lock' AND pid <> pg_backend_pid()""")
_OTHERS = sa.text("""
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND xact_start IS NOT NULL AND pid <> pg_backend_pid()""")


_HELD = sa.text("""
    SELECT count(*) FROM pg_locks
    WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())""")


def let_go(engine: sa.Engine) -> None:
    """Returns once PostgreSQL has noticed that a killed process holds none of our locks any more."""
    with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as watcher:
        until(lambda: not watcher.scalar(_HELD), "the killed process's lock is still held")


def killed_at(engine: sa.Engine, row: str, target: Callable[..., Any], *arguments: object) -> None:
    """Run ``target(*arguments)`` in a process until it waits for the row that the statement ``row`` locks, and kill it
    there. Returns once PostgreSQL has taken back what that process had written."""
    context = multiprocessing.get_context("fork")
    alone = engine.execution_options(isolation_level="AUTOCOMMIT")
    with engine.connect() as holder, alone.connect() as watcher:
        assert holder.execute(sa.text(row)).all(), f"no such row: {row}"
        process = context.Process(target=target, args=arguments)
        process.start()
        until(lambda: watcher.scalar(_WAITING), f"never waited for: {row}")
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        holder.rollback()
        until(lambda: not watcher.scalar(_OTHERS), "the killed process's transaction is still there")
