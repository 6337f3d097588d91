"""How long Dagster's history is kept: old runs go with their events and their logs, so that the storage stays small.

Ticks have their own retention in the instance's configuration; the clinics' own records are none of this.
"""

from __future__ import annotations

import time
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from dagster import DagsterRunStatus, RunsFilter

from polydesk_dagster.runtime.dagster_inside import history

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
        history.forget_checks(instance, gone)
        for run_id in gone:
            if time.monotonic() > until:
                return deleted
            history.forget(instance, run_id)
            deleted += 1
    return deleted


def needed(instance: DagsterInstance) -> set[str]:
    """Runs whose history something still asks for, whatever their age: that of each asset's and partition's newest
    materialisation, that of each check's newest result, and the newest of each schedule and sensor, whose run key says
    that its tick has been served."""
    found = history.newest_of_each(instance)
    for tag in _INSTIGATORS:
        for _, names in instance.get_run_tags(tag_keys=[tag]):
            for name in names:
                found.update(run.run_id for run in instance.get_runs(RunsFilter(tags={tag: name}), limit=1))
    return found
