"""One writer at a time, whoever started it: advisory locks, of the database session or of a transaction."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import sqlalchemy as sa

from polydesk_dagster.database.refusals import host
from polydesk_dagster.errors import PermanentError


def lock_key(*names: str | None) -> int:
    """A stable signed 64-bit key for a name such as a service and a clinic."""
    digest = hashlib.sha256("\x1f".join(name or "" for name in names).encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


def in_turn(connection: sa.Connection, *names: str | None) -> None:
    """Wait for whoever holds the lock on ``names``, and hold it until the end of the transaction."""
    all_in_turn(connection, [names])


def all_in_turn(connection: sa.Connection, locks: Sequence[Sequence[str | None]]) -> None:
    """The same for several, one after the other in the order in which everybody takes them."""
    keys = sorted(lock_key(*names) for names in locks)
    connection.execute(
        sa.text("SELECT count(pg_advisory_xact_lock(key)) FROM unnest(CAST(:keys AS bigint[])) key"), {"keys": keys}
    )


@contextmanager
def exclusive(engine: sa.Engine, *names: str | None) -> Iterator[bool]:
    """Hold the lock on ``names`` for the block, on a connection of its own; yields False if somebody has it.

    The lock goes with the session, so a killed process never leaves it behind.

    Raises:
        PermanentError: a pooler gives one session to several, and a lock of it is none.
    """
    key = lock_key(*names)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        found = connection.execute(sa.text("SELECT pg_try_advisory_lock(:key), pg_backend_pid()"), {"key": key})
        taken, session = found.one()
        try:
            if taken and _another(engine) == session:
                raise PermanentError("refused_pooling", host=host(engine.url))
            yield bool(taken)
        finally:
            if taken:
                connection.execute(sa.text("SELECT pg_advisory_unlock(:key)"), {"key": key})


def _another(engine: sa.Engine) -> int:
    """The server's process behind another connection than those in use."""
    with engine.connect() as connection:
        return int(connection.scalar(sa.text("SELECT pg_backend_pid()")) or 0)
