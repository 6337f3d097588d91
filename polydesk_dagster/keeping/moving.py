"""The embedded server's two databases taken to a configured server, once and for good.

Nothing works meanwhile: whoever is no superuser is kept out of the old databases before they are copied, and stays out
when the new ones are whole, so that an installation never goes on in two places.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa
from pydantic import SecretStr
from sqlalchemy.engine import URL

from polydesk_dagster.database.engine import business_url, create_engine, dagster_url
from polydesk_dagster.database.migrate import create_database
from polydesk_dagster.errors import PermanentError
from polydesk_dagster.keeping import backup, dumps, environment, manifest, restoring
from polydesk_dagster.runtime.state import restored
from polydesk_dagster.settings import Settings, variable

_TABLES = """
    SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p') AND n.nspname NOT IN ('pg_catalog', 'information_schema') ORDER BY 1"""
_OTHERS = """
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = ANY(:names) AND pid <> pg_backend_pid() AND backend_type = 'client backend'"""


def move(settings: Settings, to: str) -> dict[str, int]:
    """Take an installation with the embedded server, which is running, to the server at ``to``, where its database is
    made if it is not there; then the home's ``.env`` names that server. Returns the number of rows by table.

    Raises:
        PermanentError: it has a server of its own already, somebody uses the embedded one, or something lives at the
            other; everything is as it was then.
    """
    if not settings.embedded:
        raise PermanentError("moved_already", variable=variable("database_url"))
    there = settings.model_copy(update={"database_url": SecretStr(to)})
    olds = backup.whole_urls(settings)
    news = (business_url(there), dagster_url(there).set(drivername="postgresql+psycopg"))
    _, server = map(_made, news)
    with _to_ourselves(olds), tempfile.TemporaryDirectory(prefix=".move-", dir=settings.home) as folder:
        ours, theirs = Path(folder) / manifest.BUSINESS, Path(folder) / manifest.DAGSTER
        for url, file in zip(olds, (ours, theirs), strict=True):
            dumps.dump(url, file, server=_version(url))
        dumps.load(theirs, news[1], server=server)
        restoring.load_ours(there, ours, news[0], restored.moved, server=server)
        counts = [_rows(url) for url in (*olds, *news)]
        if counts[:2] != counts[2:]:
            raise PermanentError("moved_unequal")
        environment.put(settings.home, {variable("database_url"): to})
    return counts[0] | counts[1]


@contextmanager
def _to_ourselves(urls: Sequence[URL]) -> Iterator[None]:
    """Keep everybody but the administrator out of some databases: during the block, and for ever if it ends well."""
    names = [str(url.database) for url in urls]
    engine = create_engine(urls[0].set(database="postgres"), pool_size=1)
    try:
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:

            def limit(number: int) -> None:
                for name in names:
                    connection.execute(sa.text(f"ALTER DATABASE {name} CONNECTION LIMIT {number}"))

            limit(0)
            try:
                _nobody_in(connection, names)
                yield
            except BaseException:
                limit(-1)
                raise
    finally:
        engine.dispose()


def _nobody_in(connection: sa.Connection, names: Sequence[str]) -> None:
    if connection.scalar(sa.text(_OTHERS), {"names": list(names)}):
        raise PermanentError("embedded_in_use")


def _made(url: URL) -> int:
    """The version of the server of a database that is there now, and in which nothing lives."""
    create_database(url)
    return restoring.free(url)[0]


def _version(url: URL) -> int:
    engine = create_engine(url, pool_size=1)
    with engine.connect() as connection:
        found = dumps.server_version(connection)
    engine.dispose()
    return found


def _rows(url: URL) -> dict[str, int]:
    engine = create_engine(url, pool_size=1)
    try:
        with engine.connect() as connection:
            tables = list(connection.scalars(sa.text(_TABLES)))
            counted = " UNION ALL ".join(f"SELECT '{table}', count(*) FROM {table}" for table in tables)
            return {table: int(rows) for table, rows in connection.execute(sa.text(counted))} if tables else {}
    finally:
        engine.dispose()
