"""Bring a database to the newest schema, safe to run from two processes at once; and whether this program and a schema
suit each other.

Migrations expand: what the program of the release before needs is taken away one release later. So old and new code may
work side by side while an installation is brought up to date.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.engine import URL

from polydesk_dagster.database import patience, refusals
from polydesk_dagster.database.engine import SESSION, create_engine
from polydesk_dagster.database.refusals import Phase
from polydesk_dagster.errors import PermanentError

if TYPE_CHECKING:
    from alembic.config import Config

MIGRATIONS = Path(__file__).parent / "migrations"
_LOCK = 7_301_000_001
"""Advisory lock: one migration of one database at a time."""

SERVES = "0047"
"""The oldest program, by the newest migration that it knows, that may work on the schema as this one leaves it. A
migration that takes something away moves it; the database bears it, for programs that do not know that migration."""
_BEARS = "serves "


class SchemaError(PermanentError):
    """Why this program does not work on this schema: ``schema_missing``, ``schema_behind`` or ``schema_newer``."""


def _config() -> Config:
    from alembic.config import Config

    config = Config(stdout=io.StringIO())
    config.set_main_option("script_location", str(MIGRATIONS))
    return config


@cache
def head() -> str:
    """The newest revision that this program knows: that of the last file, whose names begin with it. Alembic would
    import every one of them to say the same."""
    return max(path.name for path in (MIGRATIONS / "versions").glob("[0-9]*.py")).partition("_")[0]


def current(connection: sa.Connection) -> str | None:
    """The revision of this database, or None for an empty one."""
    if connection.scalar(sa.text("SELECT to_regclass('alembic_version')")) is None:
        return None
    return str(connection.scalar(sa.text("SELECT version_num FROM alembic_version")))


def unsuited(connection: sa.Connection) -> SchemaError | None:
    """Why this program does not work on the schema of this database; None if it does."""
    found = current(connection)
    return _unsuited(found, None if found is None else connection.scalar(sa.text(_SAYS)))


_SAYS = "SELECT obj_description(to_regclass('alembic_version'), 'pg_class')"


def _unsuited(found: str | None, says: str | None) -> SchemaError | None:
    wanted = head()
    if found == wanted:
        return None
    if found is None:
        return SchemaError("schema_missing", wanted=wanted)
    if found < wanted:
        return SchemaError("schema_behind", found=found, wanted=wanted)
    if says is not None and says.startswith(_BEARS) and says.removeprefix(_BEARS) <= wanted:
        return None
    return SchemaError("schema_newer", found=found, wanted=wanted)


def serving(url: URL, *, pool_size: int = 4, reads: bool = False, waits: float = patience.PERSON) -> sa.Engine:
    """An engine for whoever works with the records: none of its connections is one to a schema that does not suit.

    Raises, when it connects:
        SchemaError: the schema does not suit this program.
        PermanentError: a pooler on the way has left out what our sessions ask for.
    """
    engine = create_engine(url, pool_size=pool_size, reads=reads, waits=waits)
    sa.event.listen(engine, "connect", partial(_look_at, url))
    return engine


_ASKED = " AND ".join(f"current_setting('{name}') = '{value}'" for name, value in SESSION.items())


def _look_at(url: URL, connection: Any, _record: object) -> None:
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT to_regclass('alembic_version') IS NOT NULL, {_ASKED}")
        found = says = None
        written, ours = cursor.fetchone()
        if not ours:
            connection.close()
            raise refusals.refused_pooler(url)
        if written:
            (found, says) = cursor.execute(f"SELECT version_num, ({_SAYS}) FROM alembic_version").fetchone()
    connection.rollback()
    if (error := _unsuited(found, says)) is not None:
        connection.close()
        raise error


def create_database(url: URL) -> bool:
    """Create the database that ``url`` names if it does not exist. Returns whether it did. Where it exists, nobody asks
    for another: its account may be kept out of every other one.

    Raises:
        PermanentError: it may not be made, or the server refuses; with the SQL for whoever runs it.
    """
    engine = create_engine(url, pool_size=1)
    try:
        engine.connect().close()
    except sa.exc.OperationalError as error:
        why = refusals.known(error, url, Phase.CONNECT)
        if why is not None and why.code == "database_broke":
            return False  # it lets us in now: somebody made it between the two questions
        if why is None or why.code != "refused_missing":
            raise refusals.refused(error, url, Phase.CONNECT) from None
    else:
        return False
    finally:
        engine.dispose()
    try:
        return _made(url)
    except sa.exc.DBAPIError as error:
        raise refusals.refused(error, url, Phase.MAKE, asked=url.set(database="postgres")) from None


def _made(url: URL) -> bool:
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


def migrate(
    engine: sa.Engine, then: Callable[[sa.Connection], None] = lambda _: None, *, to: str = "head"
) -> tuple[str | None, str]:
    """Apply what is missing up to revision ``to``, and do ``then``, in one transaction. Returns the revision before and
    after; a newer schema that serves this program too is left as it is.

    Raises:
        SchemaError: the schema is newer and does not serve this program.
    """
    from alembic import command

    with engine.connect() as connection:
        connection.execute(sa.text("SET lock_timeout = 0"))
        connection.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
        before = current(connection)
        if before is not None and before > head():
            if (newer := unsuited(connection)) is not None:
                raise newer
            return before, before
        config = _config()
        config.attributes["connection"] = connection
        command.upgrade(config, to)
        if to == "head":
            connection.execute(sa.text(f"COMMENT ON TABLE alembic_version IS '{_BEARS}{SERVES}'"))
        then(connection)
        connection.commit()
        return before, str(current(connection))
