"""Dagster's PostgreSQL storage on a small pool of connections shared by the whole process.

Dagster's own opens a connection for each query, a hundred for a run, and reflects whole tables to see whether a column
exists; both cost far more than the queries. What is stored, and its tables, are Dagster's own.

``dagster-postgres`` offers no way to give it a pool or to say which columns are there: the engines and the answers are
put into its classes from here, and the tables are asked for by the names that they have in Dagster's schema.
"""

from __future__ import annotations

import os
import select
from collections.abc import Mapping
from functools import cache, cached_property
from typing import Any

import sqlalchemy as sa
from dagster import AssetKey, DagsterEventType
from dagster._core.events.log import EventLogEntry
from dagster._core.storage.event_log import SqlEventLogStorage
from dagster._core.storage.event_log.schema import AssetKeyTable, ConcurrencyLimitsTable
from dagster._core.storage.runs.schema import BackfillTagsTable, BulkActionsTable, RunsTable
from dagster._core.storage.schedules.schema import InstigatorsTable
from dagster._core.storage.sql import create_engine
from dagster._serdes import ConfigurableClassData
from dagster_postgres import (
    DagsterPostgresStorage,
    PostgresEventLogStorage,
    PostgresRunStorage,
    PostgresScheduleStorage,
)
from dagster_postgres.utils import pg_url_from_config, set_pg_statement_timeout
from psycopg.conninfo import make_conninfo
from psycopg2 import OperationalError, extensions

from polydesk_dagster.database import patience
from polydesk_dagster.database.engine import ask_who_rested
from polydesk_dagster.runtime.dagster_inside import planned


@cache
def _pool(url: str) -> sa.Engine:
    """Connections are kept while they work: a server that was restarted costs nobody an error."""
    extensions.set_wait_callback(_answered)
    engine: sa.Engine = create_engine(
        url,
        isolation_level="AUTOCOMMIT",
        pool_size=2,
        max_overflow=40,
        pool_recycle=3600,
        pool_use_lifo=True,
        use_native_hstore=False,
        connect_args=patience.NETWORK,
    )
    ask_who_rested(engine)
    return engine


def _answered(connection: Any) -> None:
    """How psycopg2 waits: as psycopg does where it is ours (:class:`patience.Connection`). What is raised here closes
    the connection."""
    while (state := connection.poll()) != extensions.POLL_OK:
        comes = select.poll()
        comes.register(connection.fileno(), select.POLLIN if state == extensions.POLL_READ else select.POLLOUT)
        if not comes.poll(patience.QUIET * 1000):
            known = connection.info.dsn_parameters | {"password": connection.info.password}
            if not patience.lives(make_conninfo(**known), patience.RUN):
                raise OperationalError("the server is mute")


# A forked run must never speak on its parent's connections.
os.register_at_fork(after_in_child=_pool.cache_clear)


@cache
def _created(url: str) -> bool:
    """Whether Dagster's tables exist in this database."""
    with _pool(url).connect() as connection:
        return connection.scalar(sa.text("SELECT to_regclass('asset_check_executions')")) is not None


_HAS_COLUMN = sa.text("""
    SELECT EXISTS (SELECT FROM pg_attribute
                   WHERE attrelid = to_regclass(:table) AND attname = :column AND NOT attisdropped)""")


class _Pooled:
    """Puts a storage of Dagster on the process's pool."""

    _engine: sa.Engine
    postgres_url: str

    def _use_pool(self) -> None:
        self._engine.dispose()
        self._engine = _pool(self.postgres_url)

    def optimize_for_webserver(self, statement_timeout: int, pool_recycle: int, max_overflow: int) -> None:  # noqa: ARG002
        """The pool is Dagster's optimisation already; what is left is that no page's query runs for ever."""
        self._engine.dispose()
        sa.event.listen(
            self._engine, "connect", lambda connection, _: set_pg_statement_timeout(connection, statement_timeout)
        )

    @cached_property
    def _columns(self) -> set[tuple[str, ...]]:
        return set()

    @cached_property
    def _there(self) -> set[str]:
        """What was there or built once is there."""
        return set()

    def _has(self, table: sa.Table, *columns: str) -> bool:
        """A column that was there once is there."""
        asked = (table.name, *columns)
        if asked not in self._columns:
            with self._engine.connect() as connection:
                for column in columns:
                    if not connection.scalar(_HAS_COLUMN, {"table": table.name, "column": column}):
                        return False
            self._columns.add(asked)
        return True


class PooledRunStorage(_Pooled, PostgresRunStorage):
    """The history of runs."""

    def has_run_stats_index_cols(self) -> bool:
        return self._has(RunsTable, "start_time", "end_time")

    def has_bulk_actions_selector_cols(self) -> bool:
        return self._has(BulkActionsTable, "selector_id")

    def has_backfill_id_column(self) -> bool:
        return self._has(RunsTable, "backfill_id")

    def has_bulk_action_job_name_column(self) -> bool:
        return self._has(BulkActionsTable, "job_name")

    def has_backfill_tags_table(self) -> bool:
        return self._has(BackfillTagsTable, "id")


class PooledEventLogStorage(_Pooled, PostgresEventLogStorage):
    """The log of events."""

    @cached_property
    def _asset_key_columns(self) -> dict[str, bool]:
        return {}

    def _has_asset_key_col_on_connection(self, conn: sa.Connection, column_name: str) -> bool:
        known = self._asset_key_columns
        if not known.get(column_name):
            known[column_name] = bool(conn.scalar(_HAS_COLUMN, {"table": AssetKeyTable.name, "column": column_name}))
        return known[column_name]

    def has_table(self, table_name: str) -> bool:
        if table_name not in self._there and super().has_table(table_name):
            self._there.add(table_name)
        return table_name in self._there

    @cached_property
    def has_default_pool_limit_col(self) -> bool:
        return self._has(ConcurrencyLimitsTable, ConcurrencyLimitsTable.c.using_default_limit.name)

    @property
    def supports_partition_subset_in_asset_materialization_planned_events(self) -> bool:
        return True

    def store_event(self, event: EventLogEntry) -> None:
        """As every storage does it. PostgreSQL's also notifies listeners, of whom Dagster has none any more, with a
        commit for which all others wait that notify."""
        SqlEventLogStorage.store_event(self, planned.alone(event))

    def get_latest_asset_partition_materialization_attempts_without_materializations(
        self, asset_key: AssetKey, after_storage_id: int | None = None
    ) -> Mapping[str, tuple[str, int]]:
        begun = dict(
            super().get_latest_asset_partition_materialization_attempts_without_materializations(
                asset_key, after_storage_id
            )
        )
        with self._engine.connect() as connection:
            of_sets = planned.newest(connection, asset_key, after_storage_id)
        if not of_sets:
            return begun
        made = self.get_latest_storage_id_by_partition(
            asset_key, DagsterEventType.ASSET_MATERIALIZATION, after_cursor=after_storage_id
        )
        for partition, (run, number) in of_sets.items():
            if number > max(made.get(partition, 0), begun.get(partition, ("", 0))[1]):
                begun[partition] = (run, number)
        return begun


class PooledScheduleStorage(_Pooled, PostgresScheduleStorage):
    """The state and the ticks of schedules and sensors."""

    def _has_instigators_table(self, conn: sa.Connection) -> bool:
        if InstigatorsTable.name not in self._there and super()._has_instigators_table(conn):
            self._there.add(InstigatorsTable.name)
        return InstigatorsTable.name in self._there

    def has_instigators_table(self) -> bool:
        return InstigatorsTable.name in self._there or super().has_instigators_table()

    def has_built_index(self, migration_name: str) -> bool:
        if migration_name not in self._there and super().has_built_index(migration_name):
            self._there.add(migration_name)
        return migration_name in self._there


class PooledPostgresStorage(DagsterPostgresStorage):
    """Configured like Dagster's ``postgres`` storage."""

    def __init__(self, postgres_url: str, inst_data: ConfigurableClassData | None = None) -> None:
        create = not _created(postgres_url)
        super().__init__(postgres_url, should_autocreate_tables=create, inst_data=inst_data)
        if create:
            _created.cache_clear()
        self._run_storage = PooledRunStorage(postgres_url, should_autocreate_tables=False)
        self._event_log_storage = PooledEventLogStorage(postgres_url, should_autocreate_tables=False)
        self._schedule_storage = PooledScheduleStorage(postgres_url, should_autocreate_tables=False)
        for storage in (self._run_storage, self._event_log_storage, self._schedule_storage):
            storage._use_pool()

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]
    ) -> PooledPostgresStorage:
        return cls(pg_url_from_config(config_value), inst_data)
