"""What Dagster's tables say, read as rows: heartbeats, runs, ticks, switches, growth.

The public API answers most of this too, but only from a process that has imported Dagster and opened its instance,
which costs more CPU than the whole command, and not at all while Dagster itself cannot start: a probe of health must
answer then. Connections are to Dagster's own database; instants are UTC.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import sqlalchemy as sa


@dataclass(frozen=True, slots=True)
class UnfinishedRun:
    """A run that has not ended; ``since`` is when its process started it, or when it was recorded."""

    run_id: str
    job: str
    status: str
    since: datetime


@dataclass(frozen=True, slots=True)
class Tick:
    """One evaluation of a schedule or sensor; ``status`` is ``SUCCESS``, ``SKIPPED`` or ``FAILURE``."""

    name: str
    status: str
    at: datetime
    skip_reason: str | None
    """What the evaluation gave as its reason to skip."""
    runs: int
    """How many runs it asked for."""


def written(connection: sa.Connection) -> bool:
    """Whether Dagster has made its tables in this database."""
    return bool(connection.scalar(sa.text("SELECT to_regclass('job_ticks') IS NOT NULL")))


def heartbeats(connection: sa.Connection) -> dict[str, datetime]:
    """When each daemon beat last, by Dagster's name of its kind."""
    rows = connection.execute(sa.text("SELECT daemon_type, max(timestamp) FROM daemon_heartbeats GROUP BY daemon_type"))
    return {kind: at.replace(tzinfo=UTC) for kind, at in rows}


def unfinished(connection: sa.Connection, statuses: Sequence[str]) -> list[UnfinishedRun]:
    """The runs in any of these statuses, oldest first."""
    rows = connection.execute(
        sa.text("""
            SELECT run_id, pipeline_name, status,
                   coalesce(to_timestamp(start_time), create_timestamp AT TIME ZONE 'UTC')
            FROM runs WHERE status = ANY(:statuses) ORDER BY id"""),
        {"statuses": list(statuses)},
    )
    return [UnfinishedRun(*row) for row in rows]


def start_lag(connection: sa.Connection, since: datetime) -> float:
    """The longest that a run which was asked for since an instant has waited for its process, in seconds; 0 where none
    was."""
    lag = connection.scalar(
        sa.text("""
            SELECT max(start_time - extract(epoch FROM create_timestamp AT TIME ZONE 'UTC'))
            FROM runs WHERE create_timestamp > :since AND start_time IS NOT NULL"""),
        {"since": since.astimezone(UTC).replace(tzinfo=None)},
    )
    return max(float(lag or 0), 0.0)


def status_of(connection: sa.Connection, run_id: str) -> str | None:
    """A run's status; None if there is no such run."""
    status = connection.scalar(sa.text("SELECT status FROM runs WHERE run_id = :run"), {"run": run_id})
    return None if status is None else str(status)


def last_ticks(connection: sa.Connection, since: datetime) -> Iterator[Tick]:
    """The newest tick of each schedule and sensor in each status since an instant; those under way are left out."""
    rows = connection.execute(
        sa.text("""
            SELECT status, timestamp, tick_body FROM job_ticks JOIN (
                SELECT DISTINCT ON (selector_id, status) id FROM job_ticks
                WHERE timestamp > :since AND status IN ('SUCCESS', 'SKIPPED', 'FAILURE')
                ORDER BY selector_id, status, timestamp DESC) newest USING (id)"""),
        {"since": since.astimezone(UTC).replace(tzinfo=None)},
    )
    for status, at, body in rows:
        tick = json.loads(body)
        # Dagster writes its field ``instigator_name`` under the older name that its storage has kept.
        yield Tick(tick["job_name"], status, at.replace(tzinfo=UTC), tick["skip_reason"], len(tick["run_ids"]))


def switches(connection: sa.Connection) -> dict[str, bool]:
    """The schedules and sensors that somebody switched on or off in Dagster's page, by name: whether they are on.

    One that is missing here is as its definition says.
    """
    rows = connection.execute(
        sa.text("""
            SELECT instigator_body, status FROM instigators
            WHERE status IN ('RUNNING', 'STOPPED') ORDER BY update_timestamp""")
    )
    return {json.loads(body)["origin"]["job_name"]: status == "RUNNING" for body, status in rows}


def growth(connection: sa.Connection) -> tuple[int, float]:
    """The bytes of Dagster's storage, and the days from its first event to its last (0 where there is none)."""
    size, days = connection.execute(
        sa.text("""
            SELECT pg_database_size(current_database()),
                   extract(epoch FROM (SELECT timestamp FROM event_logs ORDER BY id DESC LIMIT 1)
                                    - (SELECT timestamp FROM event_logs ORDER BY id LIMIT 1)) / 86400""")
    ).one()
    return int(size), float(days or 0)
