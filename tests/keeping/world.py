"""Installations that are copied: what is in them, row by row, and where their copies go."""

from __future__ import annotations

import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import URL

from polydesk_dagster.database import embedded
from polydesk_dagster.database.engine import create_engine, dagster_url, plain_url
from polydesk_dagster.settings import Settings
from tests import postgres
from tests.waiting import PATIENCE

TABLES = """
    SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname IN ('public', 'plan_rows') AND c.relkind IN ('r', 'p') ORDER BY 1"""
OF_THE_PROGRAM = {"public.alembic_version", "public.installation"}
"""Which say of which schema it is, and that it is a copy."""


def rows(url: URL) -> dict[str, tuple[int, str]]:
    """Of every table the number of its rows, and a digest of them."""
    engine = create_engine(url, pool_size=1)
    try:
        with engine.connect() as connection:
            tables = list(connection.scalars(sa.text(TABLES)))
            digest = "SELECT count(*), coalesce(md5(string_agg(md5(t::text), '' ORDER BY md5(t::text))), '') FROM {} t"
            return {
                table: tuple(connection.execute(sa.text(digest.format(table))).one())
                for table in tables
                if table not in OF_THE_PROGRAM
            }
    finally:
        engine.dispose()


def configured(home: Path, url: URL) -> Settings:
    return Settings(home=home, database_url=plain_url(url))


def theirs(settings: Settings) -> URL:
    """Dagster's database, for us to look into."""
    return dagster_url(settings).set(drivername="postgresql+psycopg")


@contextmanager
def of_dagster(url: URL) -> Iterator[URL]:
    """The storage that belongs to the database ``url``, while the block lasts."""
    storage = url.set(database=f"{url.database}_dagster")
    postgres.dagster_storage(storage)
    try:
        yield storage
    finally:
        drop(storage)


@contextmanager
def nowhere(server: URL) -> Iterator[URL]:
    """The address of a database that is not there yet; whatever is made of it goes."""
    url = server.set(database=f"restored_{uuid.uuid4().hex[:12]}")
    try:
        yield url
    finally:
        drop(url)
        drop(url.set(database=f"{url.database}_dagster"))


def drop(url: URL) -> None:
    engine = create_engine(url.set(database="postgres"), pool_size=1)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.text(f"DROP DATABASE IF EXISTS {url.database} WITH (FORCE)"))
    engine.dispose()


@contextmanager
def home() -> Iterator[Path]:
    """A new home for an embedded server, which as root must not lie under a folder that is closed to others."""
    folder = Path(tempfile.mkdtemp(prefix="polydesk-kept-", dir=postgres.room()))
    folder.chmod(0o755)
    try:
        yield folder / "home"
    finally:
        embedded.stop(folder / "home", patience=PATIENCE)
        shutil.rmtree(folder, ignore_errors=True)
