"""What Dagster's event log says of runs beyond what its public API can be asked in few queries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import sqlalchemy as sa
from dagster import DagsterEventType
from dagster._core.storage.event_log.schema import AssetCheckExecutionsTable as Checks
from dagster._core.storage.event_log.schema import SqlEventLogStorageTable as Events
from dagster._core.storage.event_log.sql_event_log import SqlEventLogStorage

if TYPE_CHECKING:
    from dagster import DagsterInstance


def newest_of_each(instance: DagsterInstance) -> set[str]:
    """The runs of each asset's and partition's newest materialisation and of each check's newest result; none where
    the storage is not SQL.

    The public API answers this an asset and a partition at a time, hundreds of queries for a chain.
    """
    storage = instance.event_log_storage
    if not isinstance(storage, SqlEventLogStorage):
        return set()
    made = (
        sa.select(sa.func.max(Events.c.id))
        .where(
            Events.c.asset_key.is_not(None),
            Events.c.dagster_event_type == DagsterEventType.ASSET_MATERIALIZATION.value,
        )
        .group_by(Events.c.asset_key, Events.c.partition)
    )
    checked = sa.select(sa.func.max(Checks.c.id)).group_by(Checks.c.asset_key, Checks.c.check_name)
    with storage.index_connection() as connection:
        return {
            *connection.scalars(sa.select(Events.c.run_id).where(Events.c.id.in_(made))),
            *connection.scalars(sa.select(Checks.c.run_id).where(Checks.c.id.in_(checked))),
        }


def forget_checks(instance: DagsterInstance, run_ids: Sequence[str]) -> None:
    """Delete the results of asset checks that these runs left; they are found by their runs, which go after them.

    Dagster's own deletion of a run, public or not, leaves them for ever.
    """
    storage = instance.event_log_storage
    if run_ids and isinstance(storage, SqlEventLogStorage):
        with storage.index_connection() as connection:
            connection.execute(sa.delete(Checks).where(Checks.c.run_id.in_(run_ids)))


def forget(instance: DagsterInstance, run_id: str) -> None:
    """Delete a run with its logs and events. Its own row goes last: whoever is killed halfway finds it again by that,
    while the public ``delete_run`` would leave events and logs that nothing leads to."""
    instance.compute_log_manager.delete_logs(prefix=[run_id])
    instance.event_log_storage.delete_events(run_id)
    instance.run_storage.delete_run(run_id)
