"""Dagster's own history, kept small by the nightly clean-up as well: by the rule of ``runtime.retention``, audited."""

import hashlib
from collections.abc import Iterator
from datetime import UTC, datetime

import dagster as dg
import sqlalchemy as sa

from polydesk_dagster.changes import audit
from polydesk_dagster.clinic.upkeep.retention import Progress
from polydesk_dagster.outcome import Counts, Report, done
from polydesk_dagster.runtime.dagster_inside.history import forget, forget_checks
from polydesk_dagster.runtime.retention import KEEP, needed

PAGE = 200


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
    """Delete runs past their time that nothing needs any more, page by page; ticks go by the instance's own retention.

    Each page leaves an audit line before it goes.
    """
    kept_ids = needed(instance)
    deleted = kept = 0
    for page in _old_runs(instance, as_of):
        gone = [r.dagster_run.run_id for r in page if r.dagster_run.run_id not in kept_ids]
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
        forget_checks(instance, gone)
        for run_id in gone:
            forget(instance, run_id)
        if progress is not None:
            progress(deleted, deleted, "progress.dagster_runs")
    counts = Counts(retired=deleted)
    return Report(done(counts), counts, figures={"dagster_runs_kept": kept})


def _old_runs(instance: dg.DagsterInstance, as_of: datetime) -> Iterator[list[dg.RunRecord]]:
    """Pages of runs, oldest first; listed whole before the first is deleted, since a page's end marks the next."""
    pages: list[list[dg.RunRecord]] = []
    for status, age in KEEP.items():
        wanted = dg.RunsFilter(statuses=[status], created_before=as_of - age)
        cursor = None
        while page := list(instance.get_run_records(wanted, limit=PAGE, cursor=cursor, ascending=True)):
            cursor = page[-1].dagster_run.run_id
            pages.append(page)
    yield from pages
