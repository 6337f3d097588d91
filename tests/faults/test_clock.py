"""Clocks that jump and nights that have an hour less or more, with every schedule running: nothing twice, nothing lost.

Dagster's scheduler itself is run over simulated nights in this process, always; beside libfaketime, where it is
installed, a whole installation lives through the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest
from sqlalchemy.engine import URL

from polydesk_dagster.catalog import ROME, SERVICES, Daily, Every
from tests.faults.clockwork import Clockwork, clockwork, live

STEP = timedelta(minutes=10)
NIGHTLY = [service for service in SERVICES if isinstance(service.cadence, Daily) and not service.per_clinic]
OFTEN = [service for service in SERVICES if isinstance(service.cadence, Every) and service.sensor is None]
SPRING, AUTUMN = date(2026, 3, 29), date(2026, 10, 25)


@pytest.fixture
def clock(database: URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Clockwork]:
    monkeypatch.setenv("POLYDESK_HOME", str(tmp_path))
    monkeypatch.setenv("POLYDESK_DATABASE_URL", database.render_as_string(hide_password=False))
    live(database, datetime(2026, 1, 1, tzinfo=UTC))
    with clockwork() as made:
        yield made


def _rome(day: date, hour: int, minute: int = 0) -> datetime:
    return datetime(day.year, day.month, day.day, hour, minute, tzinfo=ROME).astimezone(UTC)


def _through(clock: Clockwork, start: datetime, end: datetime) -> None:
    now = start
    while now <= end:
        clock.schedules(now)
        now += STEP


def _each_night_once(clock: Clockwork, *nights: date) -> None:
    asked = Counter(run.tags["dagster/run_key"] for run in clock.runs())
    assert {key: number for key, number in asked.items() if number > 1} == {}
    wanted = {f"{service.key}:{night}" for service in NIGHTLY for night in nights}
    assert wanted <= asked.keys(), wanted - asked.keys()


@pytest.mark.slow
@pytest.mark.parametrize("night", [SPRING, AUTUMN], ids=["an hour less", "an hour more"])
def test_each_nightly_service_runs_once_in_the_nights_of_the_clocks(clock: Clockwork, night: date) -> None:
    _through(clock, _rome(night, 1, 50), _rome(night, 3, 40))
    _each_night_once(clock, night)
    for service in OFTEN:
        assert isinstance(service.cadence, Every)
        ticks = clock.ticks(service.key)
        assert ticks
        longest = max((after - before for before, after in pairwise(ticks)), default=STEP)
        assert longest <= max(STEP, timedelta(minutes=service.cadence.minutes)), service.key


@pytest.mark.slow
def test_a_clock_that_is_set_back_and_forth_by_an_hour_loses_no_night_and_repeats_none(clock: Clockwork) -> None:
    """Set back after the nightly services have run, with the daemon alive and after it has died; then forward, over
    the time at which they should run."""
    first, second = date(2026, 5, 5), date(2026, 5, 6)
    _through(clock, _rome(first, 2, 20), _rome(first, 3, 40))
    _each_night_once(clock, first)
    before = len(clock.runs())
    _through(clock, _rome(first, 2, 40), _rome(first, 3, 10))
    clock.restart(_rome(first, 3, 10))
    _through(clock, _rome(first, 3, 10), _rome(first, 3, 55))
    assert len([run for run in clock.runs() if _nightly(run.job_name)]) == len(NIGHTLY)
    assert len(clock.runs()) >= before
    often = OFTEN[0].key
    assert clock.ticks(often)[-1] >= _rome(first, 3, 45), "it never looked again"
    _through(clock, _rome(second, 2), _rome(second, 2, 20))
    _through(clock, _rome(second, 4, 10), _rome(second, 4, 20))
    _each_night_once(clock, first, second)
    clock.sensors(_rome(second, 4, 30))
    looked = clock.looks()
    clock.sensors(_rome(second, 3, 30))
    assert clock.looks() == looked, "Dagster's sensors wait no longer: nothing need be done for them"
    clock.restart(_rome(second, 3, 30))
    clock.sensors(_rome(second, 3, 30))
    assert clock.looks() == 2 * looked


def _nightly(job: str) -> bool:
    return job in {service.key for service in NIGHTLY}
