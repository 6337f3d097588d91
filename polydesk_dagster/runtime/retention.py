"""How long Dagster's history is kept: old runs go with their events and their logs, so that the storage stays small.

Ticks have their own retention in the instance's configuration; the clinics' own records are none of this.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import sqlalchemy as sa
from dagster import DagsterEventType, DagsterRunStatus, RunsFilter
from dagster._core.storage.event_log.schema import AssetCheckExecutionsTable as Checks
from dagster._core.storage.event_log.schema import SqlEventLogStorageTable as Events
from dagster._core.storage.event_log.sql_event_log import SqlEventLogStorage

if TYPE_CHECKING:
    from dagster import DagsterInstance

KEEP = {
    DagsterRunStatus.SUCCESS: timedelta(days=30),
    DagsterRunStatus.CANCELED: timedelta(days=30),
    DagsterRunStatus.FAILURE: timedelta(days=90),
}
"""Runs in other statuses are never touched."""

_INSTIGATORS = ("dagster/schedule_name", "dagster/sensor_name")


def prune(instance: DagsterInstance, now: datetime, *, at_most: int, seconds: float) -> int:
    """Delete the oldest runs past their time, until ``at_most`` are gone or ``seconds`` have passed. Returns how many.

    What :func:`needed` names stays, however old.
    """
    until = time.monotonic() + seconds
    kept = needed(instance)
    deleted = 0
    for status, age in KEEP.items():
        old = instance.get_run_records(
            RunsFilter(statuses=[status], created_before=now - age), limit=at_most - deleted + len(kept), ascending=True
        )
        gone = [record.dagster_run.run_id for record in old if record.dagster_run.run_id not in kept]
        gone = gone[: at_most - deleted]
        forget_checks(instance, gone)
        for run_id in gone:
            if time.monotonic() > until:
                return deleted
            forget(instance, run_id)
            deleted += 1
    return deleted


def needed(instance: DagsterInstance) -> set[str]:
    """Runs whose history something still asks for, whatever their age: that of each asset's and partition's newest
    materialisation, that of each check's newest result, and the newest of each schedule and sensor, whose run key says
    that its tick has been served."""
    found: set[str] = set()
    storage = instance.event_log_storage
    if isinstance(storage, SqlEventLogStorage):
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
            found.update(connection.scalars(sa.select(Events.c.run_id).where(Events.c.id.in_(made))))
            found.update(connection.scalars(sa.select(Checks.c.run_id).where(Checks.c.id.in_(checked))))
    for tag in _INSTIGATORS:
        for _, names in instance.get_run_tags(tag_keys=[tag]):
            for name in names:
                found.update(run.run_id for run in instance.get_runs(RunsFilter(tags={tag: name}), limit=1))
    return found


def forget_checks(instance: DagsterInstance, run_ids: Sequence[str]) -> None:
    """Delete the results of asset checks that these runs left; they are found by their runs, which go after them."""
    storage = instance.event_log_storage
    if run_ids and isinstance(storage, SqlEventLogStorage):
        with storage.index_connection() as connection:
            connection.execute(sa.delete(Checks).where(Checks.c.run_id.in_(run_ids)))


def forget(instance: DagsterInstance, run_id: str) -> None:
    """Delete a run with its logs and events. Its own row goes last: whoever is killed halfway finds it again by that,
    while Dagster's own order would leave events and logs that nothing leads to."""
    instance.compute_log_manager.delete_logs(prefix=[run_id])
    instance.event_log_storage.delete_events(run_id)
    instance.run_storage.delete_run(run_id)
