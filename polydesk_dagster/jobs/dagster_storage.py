"""Dagster's own history kept small: old runs with their events, check results and logs, but never what is still
needed to say when an asset was last made or that a run key has been used."""

import hashlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import dagster as dg
import sqlalchemy as sa
from dagster._core.storage.dagster_run import FINISHED_STATUSES, RunRecord
from dagster._core.storage.event_log.schema import AssetCheckExecutionsTable
from dagster._core.storage.event_log.sql_event_log import SqlEventLogStorage

from polydesk_dagster.changes import audit
from polydesk_dagster.clinic.retention import Progress
from polydesk_dagster.outcome import Counts, Report, done
from polydesk_dagster.runtime.retention import forget

KEPT = timedelta(days=60)
PAGE = 200
_INSTIGATORS = ("dagster/schedule_name", "dagster/sensor_name")


def running_since(instance: dg.DagsterInstance, *, but_not: str) -> datetime | None:
    """The start of the oldest run that is still going on, other than this one; None if there is none."""
    going = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]
    records = instance.get_run_records(dg.RunsFilter(statuses=going))
    began = [r.create_timestamp.replace(tzinfo=UTC) for r in records if r.dagster_run.run_id != but_not]
    return min(began, default=None)


def clean_dagster(
    instance: dg.DagsterInstance,
    engine: sa.Engine,
    as_of: datetime,
    *,
    preview: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Delete runs that ended more than 60 days ago, page by page; ticks go by the instance's own retention.

    Kept whatever their age: the run of each asset's (and partition's) newest materialisation, of each check's newest
    result, and the newest run of each schedule and sensor. Each page leaves an audit line before it goes.
    """
    needed = _needed(instance)
    deleted = kept = 0
    for page in _old_runs(instance, as_of - KEPT):
        gone = [r.dagster_run.run_id for r in page if r.dagster_run.run_id not in needed]
        kept += len(page) - len(gone)
        deleted += len(gone)
        if preview or not gone:
            continue
        with engine.begin() as connection:
            detail = {
                "dataset": "dagster_runs",
                "removed": len(gone),
                "digest": hashlib.sha256(",".join(gone).encode()).hexdigest(),
            }
            audit.append(
                connection, as_of=as_of, actor="dagster", action="cleanup", service="nightly_cleanup", detail=detail
            )
        _forget_checks(instance, gone)
        for run_id in gone:
            forget(instance, run_id)
        if progress is not None:
            progress(deleted, deleted, "esecuzioni di Dagster")
    counts = Counts(retired=deleted)
    return Report(done(counts), counts, figures={"Esecuzioni di Dagster vecchie ma ancora utili": kept})


def _old_runs(instance: dg.DagsterInstance, before: datetime) -> Iterator[list[RunRecord]]:
    """Pages of runs, oldest first; listed whole before the first is deleted, since a page's end marks the next."""
    wanted = dg.RunsFilter(statuses=list(FINISHED_STATUSES), updated_before=before)
    pages: list[list[RunRecord]] = []
    while page := list(
        instance.get_run_records(
            wanted, limit=PAGE, cursor=pages[-1][-1].dagster_run.run_id if pages else None, ascending=True
        )
    ):
        pages.append(page)
    yield from pages


def _needed(instance: dg.DagsterInstance) -> set[str]:
    """Runs whose history something still asks for."""
    storage = instance.event_log_storage
    found: set[str] = set()
    for key in instance.all_asset_keys():
        newest = instance.get_latest_materialization_event(key)
        if newest is not None:
            found.add(newest.run_id)
        ids = storage.get_latest_storage_id_by_partition(key, dg.DagsterEventType.ASSET_MATERIALIZATION).values()
        if ids:
            records = instance.get_event_records(
                dg.EventRecordsFilter(dg.DagsterEventType.ASSET_MATERIALIZATION, storage_ids=list(ids))
            )
            found.update(record.run_id for record in records)
    if isinstance(storage, SqlEventLogStorage):
        with storage.index_connection() as connection:
            newest_checks = sa.select(sa.func.max(AssetCheckExecutionsTable.c.id)).group_by(
                AssetCheckExecutionsTable.c.asset_key, AssetCheckExecutionsTable.c.check_name
            )
            found.update(
                connection.scalars(
                    sa.select(AssetCheckExecutionsTable.c.run_id).where(
                        AssetCheckExecutionsTable.c.id.in_(newest_checks)
                    )
                )
            )
    for tag in _INSTIGATORS:
        for _, names in instance.get_run_tags(tag_keys=[tag]):
            for name in names:
                found.update(r.run_id for r in instance.get_runs(dg.RunsFilter(tags={tag: name}), limit=1))
    return found


def _forget_checks(instance: dg.DagsterInstance, run_ids: list[str]) -> None:
    storage = instance.event_log_storage
    if isinstance(storage, SqlEventLogStorage):
        with storage.index_connection() as connection:
            connection.execute(
                sa.delete(AssetCheckExecutionsTable).where(AssetCheckExecutionsTable.c.run_id.in_(run_ids))
            )
