"""A real daemon, its code server and its runs under a false clock: both nights of the clocks, and a clock that is set
back and forward by an hour."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from polydesk_dagster import settings as configuration
from polydesk_dagster.catalog import ROME
from polydesk_dagster.database.engine import create_engine, dagster_url
from polydesk_dagster.demo.simulators.central import CentralSimulator
from polydesk_dagster.demo.simulators.server import DEMO_TOKEN, in_thread
from tests import postgres
from tests.faults.clockwork import live
from tests.faults.faketime import ROOT, Clock
from tests.faults.test_clock import AUTUMN, NIGHTLY, SPRING
from tests.faults.world import broken_invariants
from tests.waiting import PATIENCE, until

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="warm runs need Linux")]

UP = """
from polydesk_dagster import settings as configuration
from polydesk_dagster.runtime import instance, processes, supervisor
settings = configuration.load()
locations = instance.LOCATIONS[:1]
written = instance.prepare(settings, locations) / "dagster.yaml"
written.write_text(written.read_text().replace("start_timeout_seconds: 300", "start_timeout_seconds: 86400"))
children = processes.dagster_children(settings, instance.environment(settings), locations)
supervisor.Supervisor(settings.home, [each for each in children if each.name != "web"]).run()
"""
_KEYS = [service.key for service in NIGHTLY]
OFTEN = "release_expired_holds"
"""It comes every five minutes: by the ticks of its schedule it is seen how far the daemon has come."""
_LOOKED = sa.text(f"SELECT max(timestamp) FROM job_ticks WHERE tick_body LIKE '%\"{OFTEN}\"%'")
_ALIVE = sa.text("SELECT timestamp FROM daemon_heartbeats WHERE daemon_type = 'SCHEDULER'")
_KNOWN = sa.text("SELECT count(*) FROM instigators WHERE instigator_type = 'SCHEDULE'")
_ASKED = sa.text("SELECT value FROM run_tags WHERE key = 'dagster/run_key'")
_UNFINISHED = sa.text("""
    SELECT count(*) FROM runs
    WHERE pipeline_name = ANY(:nightly) AND status NOT IN ('SUCCESS', 'FAILURE', 'CANCELED')""").bindparams(
    nightly=_KEYS
)
_IN_HAND = sa.text("""
    SELECT (SELECT count(*) FROM runs WHERE status NOT IN ('SUCCESS', 'FAILURE', 'CANCELED'))
         + (SELECT count(*) FROM job_ticks WHERE status = 'STARTED')""")
"""Runs under way, and ticks that may yet ask for one."""
_A_LOOK = 1.5
"""Seconds in which the daemon looks once, where nothing else keeps the machine busy."""
_UNWELL = sa.text("SELECT service FROM service_run WHERE outcome = 'failed'")
_EACH_NIGHT = sa.text("""
    SELECT service, count(DISTINCT dagster_run) FROM service_run
    WHERE service = ANY(:nightly) AND dagster_run <> 'before' GROUP BY service""").bindparams(nightly=_KEYS)


def _rome(day: date, hour: int, minute: int, *, again: bool = False) -> datetime:
    """The last second of a minute of the clock on the wall: Dagster's scheduler sleeps until the minute is over."""
    return datetime(day.year, day.month, day.day, hour, minute, 59, tzinfo=ROME, fold=int(again)).astimezone(UTC)


class Installation:
    """Supervisor, daemon, code server and launcher, whose clock is false, and what they have asked for.

    While one waits for them the clock goes on by a minute at a time, always in the last second of one: the scheduler
    sleeps until a minute is over. So nobody may call a run late that took minutes of it to begin.
    """

    def __init__(self, clock: Clock, storage: sa.Engine, began: datetime) -> None:
        self._clock, self._storage, self.now = clock, storage, began
        code = [sys.executable, "-c", UP]
        self.process = subprocess.Popen(code, cwd=ROOT, stdout=subprocess.PIPE, env={**os.environ, **clock.environment})
        until(lambda: self._one(_KNOWN) >= len(_KEYS), "it never looked")

    def live_through(self, *moments: datetime) -> None:
        """The clock jumps to each of them, and the daemon has looked. No run is under way meanwhile: one that
        is then older than a run may become would rightly be ended, and tried once more."""
        for moment in moments:
            self._meanwhile(lambda: self._one(_IN_HAND) == 0)
            self._jump(moment)
            due = moment.replace(minute=moment.minute // 5 * 5, second=0, tzinfo=None)
            self._meanwhile(lambda due=due: (self._one(_LOOKED) or due.min) >= due)  # type: ignore[misc]

    def set_back(self, moment: datetime) -> None:
        """The clock is set back; who waits by it begins anew."""
        assert moment < self.now
        self._jump(moment)
        until(lambda: (self._one(_ALIVE) or self.now) == moment.replace(tzinfo=None), "nobody noticed the clock")

    def each_night_once(self, *nights: date) -> None:
        """Nothing was asked for twice, each nightly service once for each night, and all of it has ended."""
        wanted = {f"{key}:{night}" for key in _KEYS for night in nights}
        self._meanwhile(lambda: wanted <= self._asked().keys() and self._one(_UNFINISHED) == 0)
        assert {key: number for key, number in self._asked().items() if number > 1} == {}

    def _jump(self, moment: datetime) -> None:
        self.now = moment
        self._clock.set(moment)

    def _meanwhile(self, what: Callable[[], bool]) -> None:
        passed = time.monotonic()

        def look() -> bool:
            nonlocal passed
            if time.monotonic() - passed > _A_LOOK:
                passed = time.monotonic()
                self._jump(self.now + timedelta(minutes=1))
            return what()

        until(look, f"nothing came of it by {self.now}")

    def _asked(self) -> Counter[str]:
        with self._storage.connect() as connection:
            return Counter(connection.scalars(_ASKED))

    def _one(self, what: sa.TextClause) -> Any:
        with self._storage.connect() as connection:
            return connection.scalar(what)


@pytest.fixture
def home(small_chain: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The home of an installation of the small chain, with a central server."""
    home = Path(tempfile.mkdtemp(prefix="polydesk-clock-", dir="/tmp"))
    monkeypatch.setenv("POLYDESK_CENTRAL_TOKEN", DEMO_TOKEN)
    monkeypatch.setenv("POLYDESK_HOME", str(home))
    monkeypatch.setenv("POLYDESK_DATABASE_URL", small_chain.url.render_as_string(hide_password=False))
    with in_thread(CentralSimulator()) as central:
        monkeypatch.setenv("POLYDESK_CENTRAL_URL", central)
        yield home
    shutil.rmtree(home, ignore_errors=True)


@contextmanager
def _up(home: Path, chain: sa.Engine, began: datetime) -> Iterator[Installation]:
    """An installation that is live, from that moment of its clock on."""
    clock = Clock(home, began)
    live(chain.url, began - timedelta(days=60), [OFTEN, *_KEYS])
    url = dagster_url(configuration.load())
    postgres.dagster_storage(url)
    storage = create_engine(url.set(drivername="postgresql+psycopg"), pool_size=1)
    with postgres.dropped(url):
        up = Installation(clock, storage, began)
        try:
            yield up
        finally:
            assert up.process.stdout is not None
            up.process.send_signal(signal.SIGTERM)
            up.process.wait(PATIENCE)
            storage.dispose()


def _well(chain: sa.Engine, as_of: datetime) -> None:
    with chain.connect() as connection:
        assert connection.scalars(_UNWELL).all() == []
        ran = connection.execute(_EACH_NIGHT).all()
    assert sorted(ran) == sorted((key, 1) for key in _KEYS)
    assert broken_invariants(chain, as_of) == []


def test_a_night_that_has_an_hour_less_and_a_clock_that_is_set_forward_and_back(
    home: Path, small_chain: sa.Engine
) -> None:
    """Forward over the times at which the services should run, and back before them once they have."""
    with _up(home, small_chain, _rome(SPRING, 1, 58)) as up:
        up.live_through(_rome(SPRING, 3, 15))
        up.each_night_once(SPRING)
        up.set_back(up.now - timedelta(hours=1))
        up.live_through(up.now + timedelta(hours=2))
        up.each_night_once(SPRING)
    _well(small_chain, up.now)


def test_a_night_that_has_an_hour_more(home: Path, small_chain: sa.Engine) -> None:
    with _up(home, small_chain, _rome(AUTUMN, 1, 58)) as up:
        up.live_through(_rome(AUTUMN, 2, 45), _rome(AUTUMN, 2, 35, again=True), _rome(AUTUMN, 3, 15))
        up.each_night_once(AUTUMN)
    _well(small_chain, up.now)
