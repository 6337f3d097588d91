"""How long Dagster's history is kept: old runs go with their events and their logs, so that the storage stays small.

Ticks have their own retention in the instance's configuration; the clinics' own records are none of this.
"""

from __future__ import annotations

import time
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from dagster import DagsterRunStatus, RunsFilter

if TYPE_CHECKING:
    from dagster import DagsterInstance

KEEP = {
    DagsterRunStatus.SUCCESS: timedelta(days=30),
    DagsterRunStatus.CANCELED: timedelta(days=30),
    DagsterRunStatus.FAILURE: timedelta(days=90),
}
"""Runs in other statuses are never touched."""


def prune(instance: DagsterInstance, now: datetime, *, at_most: int, seconds: float) -> int:
    """Delete the oldest runs past their time, until ``at_most`` are gone or ``seconds`` have passed. Returns how many.

    The run that last materialised an asset stays, however old: it is what the asset's page shows.
    """
    until = time.monotonic() + seconds
    shown = {record.asset_entry.last_run_id for record in instance.get_asset_records()}
    deleted = 0
    for status, age in KEEP.items():
        old = instance.get_run_records(
            RunsFilter(statuses=[status], created_before=now - age), limit=at_most + len(shown), ascending=True
        )
        for record in old:
            if deleted >= at_most or time.monotonic() > until:
                return deleted
            run_id = record.dagster_run.run_id
            if run_id not in shown:
                forget(instance, run_id)
                deleted += 1
    return deleted


def forget(instance: DagsterInstance, run_id: str) -> None:
    """Delete a run with its logs and events. Its own row goes last: whoever is killed halfway finds it again by that,
    while Dagster's own order would leave events and logs that nothing leads to."""
    instance.compute_log_manager.delete_logs(prefix=[run_id])
    instance.event_log_storage.delete_events(run_id)
    instance.run_storage.delete_run(run_id)
