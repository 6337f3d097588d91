"""The PostgreSQL server of a test session, and databases of it that are copied from templates."""

from __future__ import annotations

import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import URL, make_url

from polydesk_dagster.database import embedded
from polydesk_dagster.database.engine import create_engine
from polydesk_dagster.database.migrate import create_database, migrate
from tests.waiting import PATIENCE
from tests.world import AS_OF

EMPTY = "template_empty"
"""Migrated, without a row."""
SMALL_CHAIN = "template_small_chain"
"""The demo chain of size ``small``, as of ``world.AS_OF``."""
DAGSTER = "template_dagster"
"""Dagster's storage, empty."""

_MEMORY = Path("/dev/shm")
_ENOUGH = 4 * 1024**3


@contextmanager
def started() -> Iterator[URL]:
    """A server of its own, in memory where there is some: nothing of it outlives the session."""
    home = Path(tempfile.mkdtemp(prefix="polydesk-test-", dir=room()))  # short: a socket's path has a limit
    home.chmod(0o755)
    url = make_url(embedded.start(home)).set(drivername="postgresql+psycopg")
    with _administered(url) as connection:
        for setting in ("fsync = off", "synchronous_commit = off", "full_page_writes = off", "autovacuum = off"):
            connection.execute(sa.text(f"ALTER SYSTEM SET {setting}"))
        connection.execute(sa.text("SELECT pg_reload_conf()"))
    try:
        yield url
    finally:
        _keeper(url.set(database="postgres")).dispose()
        embedded.stop(home, patience=PATIENCE)
        shutil.rmtree(home, ignore_errors=True)


def do(url: URL, *statements: str) -> None:
    """Statements for whoever keeps the server, each by itself."""
    with _administered(url) as connection:
        for statement in statements:
            connection.execute(sa.text(statement))


def room() -> Path:
    """Where a server's folder goes: into memory where there is enough of it."""
    return _MEMORY if _MEMORY.is_dir() and shutil.disk_usage(_MEMORY).free > _ENOUGH else Path("/tmp")


_finished: list[str] = []
"""Databases whose tests are over. Dropped at once each would wait for its last sessions to end; by the next copy they
have."""


def copy(server: URL, template: str) -> URL:
    """A new database; the template is made by whoever first wants it."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    with _administered(server) as connection:
        while _finished:
            connection.execute(sa.text(f"DROP DATABASE {_finished.pop()} WITH (FORCE)"))
        _make(connection, server, template)
        connection.execute(sa.text(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy"))
    return server.set(database=name)


def over(url: URL) -> None:
    """Nobody wants the database that ``url`` names any more."""
    _finished.append(str(url.database))


@contextmanager
def copied(server: URL, template: str) -> Iterator[URL]:
    """A database of its own."""
    url = copy(server, template)
    try:
        yield url
    finally:
        over(url)


def left(url: URL) -> None:
    """End the sessions that somebody's pool still keeps at the database that ``url`` names: it can be copied then."""
    ending = "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = :name"
    with _administered(url) as connection:
        connection.execute(sa.text(ending), {"name": url.database})


@contextmanager
def dropped(url: URL) -> Iterator[None]:
    """Drop the database that ``url`` names at the end."""
    try:
        yield
    finally:
        with _administered(url) as connection:
            connection.execute(sa.text(f"DROP DATABASE IF EXISTS {url.database} WITH (FORCE)"))


def dagster_storage(url: URL) -> None:
    """Make the database that ``url`` names, with Dagster's tables; who asks for it drops it."""
    with _administered(url) as connection:
        _make(connection, url, DAGSTER)
        connection.execute(sa.text(f"CREATE DATABASE {url.database} TEMPLATE {DAGSTER} STRATEGY file_copy"))


def _tables(engine: sa.Engine) -> None:
    from dagster_postgres import DagsterPostgresStorage

    url = engine.url.set(drivername="postgresql+psycopg2")
    storage = DagsterPostgresStorage(url.render_as_string(hide_password=False))
    assert all((storage.run_storage, storage.event_log_storage, storage.schedule_storage))


def _chain(engine: sa.Engine) -> None:
    from polydesk_dagster.demo import chain

    chain.load(engine, "small", as_of=AS_OF)


_BASES: dict[str, tuple[str | None, Callable[[sa.Engine], object]]] = {
    EMPTY: (None, migrate),
    SMALL_CHAIN: (EMPTY, _chain),
    DAGSTER: (None, _tables),
}
"""What each template is copied from, and what is done to the copy."""


def _make(connection: sa.Connection, server: URL, template: str) -> None:
    there = sa.text("SELECT EXISTS (SELECT FROM pg_database WHERE datname = :name)")
    if connection.scalar(there, {"name": template}):
        return
    base, fill = _BASES[template]
    if base is not None:
        _make(connection, server, base)
    connection.execute(sa.text("SELECT pg_advisory_lock(hashtext(:name))"), {"name": template})
    try:
        if not connection.scalar(there, {"name": template}):
            unfinished = server.set(drivername="postgresql+psycopg", database=f"{template}_unfinished")
            if base is None:
                create_database(unfinished)
            else:
                connection.execute(sa.text(f"CREATE DATABASE {unfinished.database} TEMPLATE {base}"))
            engine = create_engine(unfinished)
            fill(engine)
            engine.dispose()
            connection.execute(sa.text(f"ALTER DATABASE {unfinished.database} RENAME TO {template}"))
    finally:
        connection.execute(sa.text("SELECT pg_advisory_unlock(hashtext(:name))"), {"name": template})


@contextmanager
def _administered(server: URL) -> Iterator[sa.Connection]:
    with _keeper(server.set(drivername="postgresql+psycopg", database="postgres")).connect() as connection:
        yield connection


@cache
def _keeper(url: URL) -> sa.Engine:
    """One session a process, kept: to begin one costs a quarter of a copied database."""
    return create_engine(url, pool_size=1).execution_options(isolation_level="AUTOCOMMIT")
