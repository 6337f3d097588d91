"""Many hours of a bad studiolab in little time: at the end our state is the one that the list of events tells.

``POLYDESK_SOAK_EVENTS=100000`` runs it at full size.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL, make_url

from polydesk_dagster.database import embedded
from polydesk_dagster.database.engine import create_engine
from polydesk_dagster.database.migrate import create_database, migrate
from polydesk_dagster.demo.simulators.server import DEMO_TOKEN, in_thread
from polydesk_dagster.demo.simulators.studiolab import Feed, StudiolabSimulator, random_events
from polydesk_dagster.sources.events import intake
from polydesk_dagster.sources.events.numbering import Counted
from polydesk_dagster.sources.studiolab.client import Studiolab
from tests.sources.events_world import CODE, FAST, records
from tests.waiting import PATIENCE

EVENTS = int(os.environ.get("POLYDESK_SOAK_EVENTS", "3000"))
AGENDAS, PATIENTS = 20, 200
START = datetime(2026, 3, 10, 0, 0, tzinfo=UTC)
HOURS = 20
FAULTS: tuple[dict[str, Any], ...] = (
    {"kind": "status", "status": 429, "retry_after": 0},
    {"kind": "status", "status": 503, "html": True},
    {"kind": "html"},
    {"kind": "cut", "share": 0.7},
    {"kind": "cut_encoding", "encoding": "gzip"},
    {"kind": "encoding", "encoding": "zstd"},
    {"kind": "slow", "seconds": 0.2},
)

BATCHES = 24
"""The day's events come in this many lots; in between studiolab only delivers what is late."""
LATE = timedelta(seconds=20)

WORKER = """
import sys
from datetime import datetime
import sqlalchemy as sa
from sqlalchemy.engine import make_url
from polydesk_dagster.database.engine import create_engine
from polydesk_dagster.errors import TransientError
from polydesk_dagster.sources.events import intake
from polydesk_dagster.sources.events.numbering import Counted
from polydesk_dagster.sources.studiolab.client import Studiolab
from tests.sources.events_world import CODE, FAST
engine = create_engine(make_url(sys.argv[1]))
with Studiolab(CODE, sys.argv[2], sys.argv[3], FAST) as feed:
    for instant in sys.stdin:
        try:
            intake.sync(engine, datetime.fromisoformat(instant.strip()), CODE, Counted(feed), page=int(sys.argv[4]))
            print("done", flush=True)
        except (TransientError, sa.exc.OperationalError) as error:
            print("failed", type(error).__name__, flush=True)
"""


class Worker:
    """A process that takes events in, one run at a time, until it is killed."""

    def __init__(self, target: URL, address: str) -> None:
        arguments = [
            target.render_as_string(hide_password=False),
            address,
            DEMO_TOKEN,
            str(min(1000, max(20, EVENTS // 90))),
        ]
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, as_of: datetime) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{as_of.isoformat()}\n")
        self.process.stdin.flush()

    def answer(self) -> str:
        assert self.process.stdout is not None
        said = self.process.stdout.readline().strip()
        assert said, "the worker ended by itself"
        return said

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def own_server() -> Iterator[tuple[Path, URL]]:
    """A server that may be restarted under the test."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix="polydesk-soak-", dir="/tmp") as folder:
        home = Path(folder)
        home.chmod(0o755)
        url = make_url(embedded.start(home)).set(drivername="postgresql+psycopg", database="soak")
        create_database(url)
        engine = create_engine(url)
        migrate(engine)
        engine.dispose()
        yield home, url
        embedded.stop(home, patience=PATIENCE)


def history(dice: random.Random) -> list[dict[str, Any]]:
    """Believable events with every trouble that a feed can have."""
    data = {
        "patients": [{"id": f"P{n}"} for n in range(1, PATIENTS + 1)],
        "services": [{"id": "S1"}],
        "collaborators": [{"id": "D1"}],
        "agendas": [{"id": f"A{n}"} for n in range(1, AGENDAS + 1)],
    }
    return [_troubled(event, dice) for event in random_events(data, EVENTS, 7)]


def _troubled(event: dict[str, Any], dice: random.Random) -> dict[str, Any]:
    roll = dice.random()
    if roll < 0.02:
        return event | {"again": dice.randint(1, 2)}
    if roll < 0.03:
        return event | {"twice": True}
    if roll < 0.06:
        return event | {"late": dice.randint(1, 3)}
    if roll < 0.063:
        return event | {"data": event["data"] | {"patient_id": 7}}
    if roll < 0.066:
        return event | {"type": "invoice.created", "entity": {"type": "invoice", "id": event["id"]}}
    return event | {"version": 2} if roll < 0.069 else event


def expected(published: list[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, str]]:
    """The state that the list of events tells, read one by one in order of their numbers; and each event's fate."""
    first: dict[str, dict[str, Any]] = {}
    for event in sorted(published, key=lambda e: e["sequence"]):
        first.setdefault(event["id"], event)
    stuck: set[tuple[str, str]] = set()
    fate: dict[str, str] = {}
    state: dict[str, Any] = {}
    known: set[str] = set()
    for event in sorted(first.values(), key=lambda e: e["sequence"]):
        entity, data, kind = (event["entity"]["type"], event["entity"]["id"]), event["data"], event["type"]
        bad = event["version"] != 1 or kind == "invoice.created"
        bad = bad or (data.get("patient_id") == 7 and not kind.startswith("acceptance"))
        bad = bad or (kind.startswith("acceptance") and data["appointment_id"] not in known)
        if bad or entity in stuck:
            fate[event["id"]] = "stuck"
            stuck.add(entity)
            continue
        fate[event["id"]] = "applied"
        if kind.startswith("appointment"):
            known.add(event["entity"]["id"])
            status = "cancelled" if kind == "appointment.cancelled" else "booked"
            state["appointment", event["entity"]["id"]] = (status, data["agenda_id"], data["starts_at"])
        elif kind.startswith("acceptance"):
            state["acceptance", data["appointment_id"]] = data["desk"] if kind == "acceptance.created" else None
        else:
            state["report", event["entity"]["id"]] = kind == "report.withdrawn"
    return state, fate


def held(connection: sa.Connection) -> dict[str, Any]:
    """The same state as our records tell it."""
    state: dict[str, Any] = {}
    for row in connection.execute(
        sa.text("""SELECT a.external_id, a.status, g.external_id AS agenda, a.starts_at, a.accepted_desk
                   FROM appointment a JOIN agenda g ON g.id = a.agenda_id""")
    ):
        status = "booked" if row.status == "accepted" else row.status
        state["appointment", row.external_id] = (status, row.agenda, row.starts_at.isoformat())
        if row.accepted_desk is not None:
            state["acceptance", row.external_id] = row.accepted_desk
    reports = connection.execute(sa.text("SELECT external_id, withdrawn_at IS NOT NULL FROM report"))
    state |= {("report", external_id): withdrawn for external_id, withdrawn in reports}
    return state


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_long_bad_day_ends_in_the_state_that_the_events_tell(own_server: tuple[Path, URL]) -> None:
    home, url = own_server
    dice = random.Random(20)
    engine = create_engine(url)
    records(engine, AGENDAS, PATIENTS)
    simulator = StudiolabSimulator()
    published: list[dict[str, Any]] = []
    waiting = history(dice)
    lot = -(-EVENTS // BATCHES)
    killed = restarted = failed = lots = 0
    as_of = START
    with in_thread(simulator) as api:
        address = api.replace("/api/v1", f"/{CODE}/api/v1")
        feed = simulator.feed(CODE)
        worker = Worker(url, address)
        while waiting or feed.late or drained(engine) < newest(feed):
            as_of += LATE
            if waiting and not feed.late:
                as_of += timedelta(hours=HOURS) / BATCHES - LATE
                lots += 1
                for event in waiting[:lot]:
                    if dice.random() < 0.005:
                        feed.last += dice.randint(1, 3)
                    published += simulator.publish(CODE, event)
                waiting = waiting[lot:]
            feed.shuffled = dice.random() < 0.3
            if dice.random() < 0.4:
                simulator.fail(**dice.choice(FAULTS), path="/events")
            worker.ask(as_of)
            if lots > (killed + 1) * BATCHES // 4 and killed < 3:
                time.sleep(dice.random() * 0.3)
                worker.kill()
                worker, killed = Worker(url, address), killed + 1
                continue
            if lots > BATCHES * 0.6 and not restarted:
                restart(home)
                restarted = 1
            failed += worker.answer().startswith("failed")
        day = as_of - START
        worker.kill()
        with Studiolab(CODE, address, DEMO_TOKEN, FAST) as client:
            for pause in (timedelta(minutes=11), *(timedelta(hours=7),) * 6):
                as_of += pause
                intake.sync(engine, as_of, CODE, Counted(client))
    state, fate = expected(published)
    with engine.connect() as connection:
        ours = held(connection)
        inbox = dict(connection.execute(sa.text("SELECT CAST(event_id AS text), state FROM event_inbox")).all())
        unseated = connection.scalar(
            sa.text("""SELECT count(*) FROM appointment a WHERE (status IN ('booked', 'accepted')) <>
                       (1 = (SELECT count(*) FROM seat WHERE appointment_id = a.id))""")
        )
        twice = connection.scalar(
            sa.text("""SELECT (SELECT count(*) FROM appointment WHERE start_version > 2)
                            + (SELECT count(*) FROM report WHERE version > 1)""")
        )  # every booking moves once at most, and no report is published again
    engine.dispose()
    told = {key: _instant(value) for key, value in state.items() if value is not None}
    assert {key: _instant(value) for key, value in ours.items()} == told
    assert set(inbox) == set(fate)
    settled = {"applied", "superseded"}
    assert {key for key, value in inbox.items() if value in settled} == {k for k, v in fate.items() if v == "applied"}
    assert (unseated, twice) == (0, 0)
    assert (killed, restarted) == (3, 1)
    print(
        f"\n{len(published)} deliveries of {len(fate)} events in {day / timedelta(hours=1):.1f} hours:"
        f" {dict(Counter(inbox.values()))}, {failed} runs failed, {killed} killed, {restarted} restart;"
        f" {len(ours)} facts agree, none applied twice"
    )


def _instant(value: Any) -> Any:
    return (*value[:2], datetime.fromisoformat(value[2])) if isinstance(value, tuple) else value


def newest(feed: Feed) -> int:
    return int(feed.events[-1]["sequence"]) if feed.events else 0


def drained(engine: sa.Engine) -> int:
    try:
        with engine.connect() as connection:
            return int(connection.scalar(sa.text("SELECT sequence FROM event_cursor")) or 0)
    except sa.exc.OperationalError:
        return 0


def restart(home: Path) -> None:
    """Without a goodbye to anybody: what was not committed is gone."""
    postmaster = psutil.Process(int(next(home.rglob("postmaster.pid")).read_text().split()[0]))
    postmaster.send_signal(signal.SIGQUIT)
    postmaster.wait(PATIENCE)
    embedded.start(home)
