"""A month of the daemon's looks, compressed: what it holds and what it stores has an end."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import linear_regression

import psutil
import pytest
import sqlalchemy as sa
from dagster import DagsterRunStatus
from sqlalchemy.engine import URL

from polydesk_dagster import settings as configuration
from polydesk_dagster.database.engine import create_engine, dagster_url
from polydesk_dagster.runtime.retention import KEEP
from tests.faults.clockwork import Clockwork, clockwork, live

DAYS, STEP = 50, 5
_STORED = sa.text("""
    SELECT (SELECT count(*) FROM runs) AS runs, (SELECT count(*) FROM event_logs) AS events,
           (SELECT count(*) FROM job_ticks) AS ticks,
           (SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()) AS connections""")
_AS_OF_THEN = sa.text("UPDATE runs SET create_timestamp = :then WHERE create_timestamp > :since")


@pytest.fixture
def clock(database: URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Clockwork]:
    monkeypatch.setenv("POLYDESK_HOME", str(tmp_path))
    monkeypatch.setenv("POLYDESK_DATABASE_URL", database.render_as_string(hide_password=False))
    live(database, datetime.now(UTC) - timedelta(days=DAYS + 1))
    with clockwork() as made:
        yield made


@pytest.mark.slow
def test_what_a_month_of_ticks_leaves_and_holds_has_an_end(clock: Clockwork) -> None:
    """Ten nights, five days apart, end today: in the second half of them nothing grows any more, and what is older than
    its retention has gone."""
    storage = create_engine(dagster_url(configuration.load()).set(drivername="postgresql+psycopg"), pool_size=1)
    process, began = psutil.Process(), datetime.now(UTC)
    held: list[dict[str, int]] = []
    for day in range(DAYS, 0, -STEP):
        now = (began - timedelta(days=day)).replace(hour=2, minute=35)
        clock.schedules(now)
        clock.sensors(now + timedelta(minutes=12))
        with storage.begin() as connection:
            connection.execute(_AS_OF_THEN, {"then": now.replace(tzinfo=None), "since": began.replace(tzinfo=None)})
            stored = dict(connection.execute(_STORED).one()._mapping)
        held.append({**stored, "descriptors": process.num_fds(), "memory": process.memory_info().rss})
    clock.sensors(began)
    with storage.connect() as connection:
        stored = dict(connection.execute(_STORED).one()._mapping)
        old = connection.scalar(
            sa.text("SELECT count(*) FROM runs WHERE create_timestamp < :then"),
            {"then": (began - KEEP[DagsterRunStatus.SUCCESS]).replace(tzinfo=None)},
        )
    storage.dispose()
    later = held[len(held) // 2 :]
    slopes = {what: linear_regression(range(len(later)), [each[what] for each in later]).slope for what in held[0]}
    print({what: round(slope, 2) for what, slope in slopes.items()}, held[-1])
    assert slopes["descriptors"] < 0.5, "fewer are what other tests of this process had left open"
    assert abs(slopes["connections"]) < 0.5
    assert slopes["memory"] < 2e6, "each night has some thirty ticks"
    assert stored["runs"] < len(held) * 5
    assert old == 0
