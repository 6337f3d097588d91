"""Writers that publish something whole: one snapshot each, one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa

from polydesk_dagster.errors import TransientError
from polydesk_dagster.values import Term

_BUSY = {"55P03", "40001", "40P01"}
"""SQLSTATE of a lock not available, a serialization failure, a deadlock."""


@contextmanager
def turn(engine: sa.Engine, table: str, what: str, *, keep: bool) -> Iterator[sa.Connection]:
    """A transaction that sees one state of the database, taken when all writers of ``table`` before it have ended.

    Committed at the end if ``keep``; readers of the table are never made to wait. The catalogues know ``what`` it is
    (``term.publication``).

    Raises:
        TransientError: when the writer before did not end in time.
    """
    try:
        with engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection:
            connection.execute(sa.text(f"LOCK TABLE {table} IN EXCLUSIVE MODE"))  # takes no snapshot yet
            yield connection
            if keep:
                connection.commit()
    except sa.exc.OperationalError as error:
        if getattr(error.orig, "sqlstate", None) in _BUSY:
            raise TransientError("another_refresh", what=Term("publication", what)) from None
        raise
