"""Bring a database to the newest schema; safe to run from two processes at once."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa
from sqlalchemy.engine import URL

from polydesk_dagster.database.engine import create_engine

if TYPE_CHECKING:
    from alembic.config import Config

MIGRATIONS = Path(__file__).parent / "migrations"
_LOCK = 7_301_000_001
"""Advisory lock: one migration of one database at a time."""


def _config() -> Config:
    from alembic.config import Config

    config = Config(stdout=io.StringIO())
    config.set_main_option("script_location", str(MIGRATIONS))
    return config


def head() -> str:
    """The newest revision that this program knows: that of the last file, whose names begin with it. Alembic would
    import every one of them to say the same."""
    return max(path.name for path in (MIGRATIONS / "versions").glob("[0-9]*.py")).partition("_")[0]


def current(connection: sa.Connection) -> str | None:
    """The revision of this database, or None for an empty one."""
    if connection.scalar(sa.text("SELECT to_regclass('alembic_version')")) is None:
        return None
    return str(connection.scalar(sa.text("SELECT version_num FROM alembic_version")))


def create_database(url: URL) -> bool:
    """Create the database that ``url`` names if it does not exist. Returns whether it did."""
    engine = create_engine(url.set(database="postgres"))
    try:
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection, _locked(connection):
            known = connection.scalar(
                sa.text("SELECT 1 FROM pg_database WHERE datname = :name"), {"name": url.database}
            )
            if known:
                return False
            quoted = connection.dialect.identifier_preparer.quote(str(url.database))
            connection.execute(sa.text(f"CREATE DATABASE {quoted} TEMPLATE template0 ENCODING 'UTF8'"))
            return True
    finally:
        engine.dispose()


@contextmanager
def _locked(connection: sa.Connection) -> Iterator[None]:
    connection.execute(sa.text("SELECT pg_advisory_lock(:key)"), {"key": _LOCK})
    try:
        yield
    finally:
        connection.execute(sa.text("SELECT pg_advisory_unlock(:key)"), {"key": _LOCK})


def migrate(engine: sa.Engine, then: Callable[[sa.Connection], None] = lambda _: None) -> tuple[str | None, str]:
    """Apply what is missing, and do ``then``, in one transaction. Returns the revision before and after."""
    from alembic import command

    with engine.connect() as connection:
        connection.execute(sa.text("SET lock_timeout = 0"))
        connection.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
        before = current(connection)
        config = _config()
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        then(connection)
        connection.commit()
        return before, head()
