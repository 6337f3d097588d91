"""Databases that the tests of a process use one after another.

A copy of a template and the first sessions with it cost a test some 45 ms of processor time; what the test before has
written is taken away in 8. Whatever else that one has left ends the database: it is lent again only where its schema is
as it was and nobody is in it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import psycopg
import sqlalchemy as sa
from sqlalchemy.engine import URL

from polydesk_dagster.database.engine import create_engine
from tests import postgres

Fill = Callable[[sa.Engine], Any]

FILLS: dict[str, Fill] = {}
"""What a database is filled with, by the fixture that asks for it."""

_OFTEN = 40
"""How many tests a database serves: what is deleted stays in its files."""

_CATALOGUES = [
    "pg_class",
    "pg_attribute",
    "pg_attrdef",
    "pg_constraint",
    "pg_index",
    "pg_inherits",
    "pg_trigger",
    "pg_rewrite",
    "pg_proc",
    "pg_policy",
    "pg_statistic",
    "pg_statistic_ext",
    "pg_default_acl",
    "pg_description",
    "pg_event_trigger",
    "pg_extension",
    "pg_largeobject_metadata",
]
"""What DDL writes into; nothing is left there of a temporary table that is gone."""

_NEWER = "count(*) FILTER (WHERE age(xmin) < age(CAST(CAST(:mark AS text) AS xid)))"
_SCHEMA = sa.text(
    """
    SELECT count(*), CAST(NULL AS bigint) FROM pg_namespace WHERE nspname !~ '^pg_(toast_)?temp_'
    UNION ALL SELECT CAST(CAST(xmin AS text) AS bigint), NULL FROM pg_database WHERE datname = current_database()
    UNION ALL SELECT count(*), NULL FROM pg_db_role_setting s JOIN pg_database d ON d.oid = s.setdatabase
              WHERE d.datname = current_database()"""
    + "".join(f" UNION ALL SELECT count(*), {_NEWER} FROM {catalogue}" for catalogue in _CATALOGUES)
)
"""How many rows each has, and how many of them are newer than a transaction."""
_NOW = sa.text("SELECT CAST(CAST(pg_current_xact_id() AS text) AS bigint)")

_PLANS = sa.text("""
    SELECT format('plan_rows.%I', relname) FROM pg_class
    WHERE relnamespace = CAST('plan_rows' AS regnamespace) AND relkind = 'r'""")
_WRITTEN = sa.text("""
    SELECT format('%I.%I', n.nspname, c.relname),
           EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = c.oid AND t.tgenabled = 'A') AS heard
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind = 'r' AND n.nspname IN ('public', 'plan_rows') AND pg_relation_size(c.oid) > 0""")
"""Tables that have held a row; of those that are ``heard`` other tables note what comes and goes, whoever does it."""
_NOTED = sa.text("""
    SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind = 'r' AND n.nspname IN ('public', 'plan_rows') AND pg_stat_get_xact_tuples_inserted(c.oid) > 0""")
"""Tables that got a row in this transaction: a hundredth of the work of looking at every file again."""
_SEQUENCES = sa.text("SELECT CAST(seqrelid AS bigint) AS id, pg_sequence_last_value(seqrelid) AS last FROM pg_sequence")
_SET = sa.text("""
    SELECT setval(CAST(CAST(v.id AS oid) AS regclass), coalesce(v.last, s.seqstart), v.last IS NOT NULL)
    FROM unnest(CAST(:ids AS bigint[]), CAST(:lasts AS bigint[])) AS v (id, last)
    JOIN pg_sequence s ON s.seqrelid = CAST(v.id AS oid)""")

_OTHERS = sa.text("""
    SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND NOT pid = ANY(:ours))
        OR EXISTS (SELECT FROM pg_database WHERE starts_with(datname, current_database() || '_'))""")
"""Sessions that somebody still keeps, if only in a pool; databases that are called after it (Dagster's of the same
installation)."""
_AS_BEGUN = """
    SET SESSION AUTHORIZATION DEFAULT; RESET ALL; SELECT pg_advisory_unlock_all(); UNLISTEN *; DISCARD TEMP;
    DROP TABLE IF EXISTS pg_temp.nothing"""
"""A session is again as it began; at ``DROP`` psycopg forgets the statements that it had prepared."""


class Lent:
    """One database, what it held when it was made, and what ``fill`` told of that."""

    def __init__(self, url: URL, fill: Fill | None) -> None:
        self.engine = create_engine(url)
        self.told = fill(self.engine) if fill is not None else None
        self._uses = 0
        with self.engine.begin() as connection:
            self._plans = set(connection.scalars(_PLANS))
            rows = {table: _copied(connection, table) for table in connection.scalars(_WRITTEN)}
            self._rows = {table: lines for table, lines in rows.items() if lines}
            self._sequences = _sequences(connection)
            self._mark = connection.scalar(_NOW)
            self._schema = connection.execute(_SCHEMA, {"mark": self._mark}).all()

    def as_it_was(self) -> bool:
        """Whether the next test finds it as the first one did; what was written is taken away for that."""
        self._uses += 1
        pool: Any = self.engine.pool
        if self._uses == _OFTEN or pool.checkedout():
            return False
        try:
            with ExitStack() as stack:
                sessions = [stack.enter_context(self.engine.connect()) for _ in range(max(pool.checkedin(), 1))]
                return self._left_alone(sessions) and self._emptied(sessions[0])
        except (sa.exc.DBAPIError, psycopg.Error):  # somebody works in it after all
            return False

    def _left_alone(self, sessions: list[sa.Connection]) -> bool:
        for session in sessions:
            _driver(session).execute(_AS_BEGUN)
            _driver(session).commit()
        ours = [_driver(session).info.backend_pid for session in sessions]
        return not sessions[0].scalar(_OTHERS, {"ours": ours})

    def _emptied(self, connection: sa.Connection) -> bool:
        if plans := set(connection.scalars(_PLANS)) - self._plans:
            connection.execute(sa.text(f"DROP TABLE {', '.join(plans)}"))
        if connection.execute(_SCHEMA, {"mark": self._mark}).all() != self._schema:
            return False
        connection.execute(sa.text("SET LOCAL session_replication_role = replica"))
        written = connection.execute(_WRITTEN).all()
        first = {table for table, heard in written if heard}
        self._put_back(connection, first)
        noted = connection.scalars(_NOTED) if first else ()
        self._put_back(connection, {table for table, _ in written}.union(noted) - first)
        moved = {
            key: self._sequences[key] for key, last in _sequences(connection).items() if last != self._sequences[key]
        }
        if moved:
            connection.execute(_SET, {"ids": list(moved), "lasts": list(moved.values())})
        self._mark = connection.scalar(_NOW)
        connection.commit()
        return True

    def _put_back(self, connection: sa.Connection, tables: set[str]) -> None:
        counting = [f"SELECT '{table}', count(*), {_NEWER} FROM {table}" for table in tables & self._rows.keys()]
        held = connection.execute(sa.text(" UNION ALL ".join(counting)), {"mark": self._mark}).all() if counting else ()
        changed = {table for table, rows, newer in held if newer or rows != self._rows[table].count(b"\n")}
        if deleting := [f"DELETE FROM {table}" for table in tables - self._rows.keys() | changed]:
            connection.exec_driver_sql("; ".join(deleting))
        for table in changed:
            with _driver(connection).cursor().copy(f"COPY {table} FROM STDIN") as copy:
                copy.write(self._rows[table])


def _driver(connection: sa.Connection) -> Any:
    return connection.connection.driver_connection


def _copied(connection: sa.Connection, table: str) -> bytes:
    with _driver(connection).cursor().copy(f"COPY {table} TO STDOUT") as copy:
        return b"".join(copy)


def _sequences(connection: sa.Connection) -> dict[int, int | None]:
    return {row.id: row.last for row in connection.execute(_SEQUENCES)}


_free: dict[tuple[str, Fill | None], list[Lent]] = defaultdict(list)


@contextmanager
def lent(server: URL, template: str, fill: Fill | None = None) -> Iterator[tuple[sa.Engine, Any]]:
    """A database as ``template``, with what ``fill`` put into it, and what that told: by an engine of which nobody else
    hears."""
    free = _free[template, fill]
    while free:
        found = free.pop()
        if found.as_it_was():
            break
        found.engine.dispose()
        postgres.over(found.engine.url)
    else:
        found = Lent(postgres.copy(server, template), fill)
    yield found.engine.execution_options(), found.told
    free.append(found)
