"""Whether the databases of an installation are as they must be: each thing looked at, and the SQL for what is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import URL

from polydesk_dagster.database import refusals
from polydesk_dagster.database.engine import SESSION, Role, business_url, create_engine, dagster_url
from polydesk_dagster.database.migrate import unsuited
from polydesk_dagster.database.refusals import Phase
from polydesk_dagster.keeping import dumps
from polydesk_dagster.settings import Settings
from polydesk_dagster.values import Reason

LEAST_FREE = 30
"""Connections that a whole installation may want at once."""


@dataclass(frozen=True, slots=True)
class Checked:
    """Something that was looked at, ``term.database_check.<what>``; ``why`` is None where it is well."""

    what: str
    why: Reason | None


_FACTS = sa.text("""
    SELECT current_setting('server_encoding') AS encoding, current_setting('transaction_read_only') = 'on' AS read_only,
           has_database_privilege(current_database(), 'TEMPORARY')
               AND has_schema_privilege('public', 'USAGE, CREATE') AS rights,
           CAST(current_setting('max_connections') AS integer)
               - (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend') AS free,
           pg_backend_pid() AS backend""")


def look(settings: Settings) -> Iterator[Checked]:
    """Both databases, one thing after the other; nothing is changed. The embedded server must be running."""
    ours = business_url(settings, Role.OWNER)
    yield from _ours(ours)
    theirs = dagster_url(settings).set(drivername="postgresql+psycopg")
    why = _reached(theirs)
    if why is not None and why.code == "refused_missing" and may_make(ours):
        why = Reason("made_by_migrating", {"database": theirs.database or ""})
    yield Checked("theirs", why)


def may_make(url: URL) -> bool:
    """Whether the account may make databases."""
    engine = create_engine(url.set(database="postgres"), pool_size=1)
    try:
        with engine.connect() as connection:
            question = sa.text("SELECT rolcreatedb OR rolsuper FROM pg_roles WHERE rolname = current_user")
            return bool(connection.scalar(question))
    except sa.exc.SQLAlchemyError:
        return False
    finally:
        engine.dispose()


def _reached(url: URL) -> Reason | None:
    engine = create_engine(url, pool_size=1)
    try:
        engine.connect().close()
    except sa.exc.OperationalError as error:
        return refusals.refused(error, url, Phase.CONNECT).reason
    finally:
        engine.dispose()
    return None


def _ours(url: URL) -> Iterator[Checked]:
    why = _reached(url)
    yield Checked("ours", why)
    if why is not None:
        return
    engine = create_engine(url, pool_size=2)
    try:
        with engine.connect() as connection, engine.connect() as other:
            facts = connection.execute(_FACTS).one()
            version = dumps.server_version(connection)
            session = _session(connection)
            connection.rollback()
            same = other.scalar(sa.text("SELECT pg_backend_pid()")) == facts.backend
            wrong = unsuited(connection)
    finally:
        engine.dispose()
    old = Reason("server_too_old", {"found": version, "wanted": dumps.OLDEST})
    yield Checked("version", old if version < dumps.OLDEST else None)
    yield Checked("encoding", None if facts.encoding == "UTF8" else Reason("not_utf8", {"found": facts.encoding}))
    yield Checked("writes", refusals.of_state("25006", url, Phase.CONNECT) if facts.read_only else None)
    yield Checked("rights", None if facts.rights else refusals.of_state("42501", url, Phase.MIGRATE))
    pooled = Reason("refused_pooling", {"host": refusals.host(url)}) if same else None
    yield Checked("session", pooled or (None if session else refusals.of_state("08P01", url, Phase.CONNECT)))
    yield Checked("connections", refusals.of_state("53300", url, Phase.CONNECT) if facts.free < LEAST_FREE else None)
    yield Checked("schema", wrong.reason if wrong is not None else None)


def _session(connection: sa.Connection) -> bool:
    """Whether a session is what ours ask for, and nobody on the way has left that out."""
    asked = " AND ".join(f"current_setting('{name}') = :{name}" for name in SESSION)
    return bool(connection.scalar(sa.text(f"SELECT {asked}"), SESSION))
