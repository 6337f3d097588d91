"""Studiolab's events: a backlog drained over HTTP beside one COPY and one set-based apply of the same events, and the
minute in which nothing happens."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import sqlalchemy as sa

from benchmarks.harness import Bench, Figure, seconds
from polydesk_dagster.demo.simulators.server import API, DEMO_TOKEN
from polydesk_dagster.sources.events import effects, inbox, intake, looking, staging
from polydesk_dagster.sources.events.numbering import Counted
from polydesk_dagster.sources.studiolab.client import Studiolab

BACKLOG = 50_000
CLINICS = 50
SLOWEST = 0.3
"""Seconds that the slowest of the clinics takes to answer an idle look."""

RECORDS = """
INSERT INTO clinic (id, code, name, region, municipality_code) VALUES (1, 'BO', 'BO', 'Emilia-Romagna', 'A944');
INSERT INTO location (id, clinic_id, name) VALUES (1, 1, 'Centro');
INSERT INTO specialist (id, clinic_id, external_id, last_name, first_name)
    SELECT n, 1, 'D' || n, 'Bianchi', 'Elena' FROM generate_series(1, 40) n;
INSERT INTO service (id, clinic_id, external_id, code, name, duration_minutes)
    SELECT n, 1, 'S' || n, '89.7A.' || n, 'Visita', 30 FROM generate_series(1, 20) n;
INSERT INTO agenda (id, clinic_id, location_id, specialist_id, external_id, name, slot_minutes)
    SELECT n, 1, 1, n, 'A' || n, 'Agenda ' || n, 30 FROM generate_series(1, 40) n;
INSERT INTO patient (id, last_name, first_name) SELECT n, 'Rossi', 'Mario ' || n FROM generate_series(1, 5000) n;
INSERT INTO patient_link (clinic_id, external_id, patient_id, made_by, made_at)
    SELECT 1, 'P' || n, n, 'created', now() FROM generate_series(1, 5000) n;
ANALYZE;"""

LISTS = {
    name: [{"id": f"{letter}{n}"} for n in range(1, count + 1)]
    for name, letter, count in (
        ("patients", "P", 5000),
        ("services", "S", 20),
        ("collaborators", "D", 40),
        ("agendas", "A", 40),
    )
}


def figures(bench: Bench) -> Iterator[Figure]:
    with _studiolab() as url:
        yield from _drain(bench, url)
        yield _idle(bench, url)


def _drain(bench: Bench, url: str) -> Iterator[Figure]:
    count = bench.size(BACKLOG)
    _order(url, "PUT", "data/BO", LISTS)
    _order(url, "POST", "burst/BO", {"count": count, "seed": 1})
    as_of = datetime.now(UTC)
    with bench.engine() as engine, Studiolab("BO", _address(url, "BO"), DEMO_TOKEN) as feed:
        _make(engine)
        with _Growth() as growth:
            ours = seconds(lambda: intake.sync(engine, as_of, "BO", Counted(feed)))
        applied = _applied(engine)
    with bench.engine() as engine, Studiolab("BO", _address(url, "BO"), DEMO_TOKEN) as feed:
        _make(engine)
        staged = _everything(feed, count)
        reference = seconds(lambda: _at_once(engine, as_of, staged))
        if _applied(engine) != applied or applied != count:
            raise AssertionError(f"{applied} of {count} events were applied, {_applied(engine)} by the reference")
    yield Figure("events", f"{count} drained", count / ours, count / reference, "events/s", 0.4, at_least=True)
    yield Figure("events", "memory while draining", growth.peak, 100.0, "MB", 1.0, peak_mb=growth.peak)


def _at_once(engine: sa.Engine, as_of: datetime, staged: staging.Batch) -> None:
    """The reference: one COPY, one apply, one transaction; nothing fetched, read or checked."""
    clinic = {"clinic": 1, "as_of": as_of}
    with engine.begin() as connection:
        staging.copy(connection, staged)
        connection.execute(sa.text("ANALYZE news"))
        effects.settle(connection, 1, as_of)
        connection.execute(sa.text(inbox.INBOX), clinic)


def _idle(bench: Bench, url: str) -> Figure:
    clinics = bench.size(CLINICS)
    with bench.engine() as engine:
        with engine.begin() as connection:
            connection.execute(
                sa.text("""
                WITH made AS (INSERT INTO clinic (code, name, region, municipality_code)
                              SELECT 'C' || n, 'C' || n, 'Lazio', 'H501' FROM generate_series(1, :n) n RETURNING *)
                INSERT INTO integration (clinic_id, base_url, token_env, active)
                SELECT id, replace(:url, '{clinic}', code), 'POLYDESK_STUDIOLAB_TOKEN_BENCH', true FROM made"""),
                {"n": clinics, "url": _address(url, "{clinic}")},
            )
        _tick(engine)
        slow = {"kind": "slow", "path": "/C1/api/v1/events", "seconds": SLOWEST, "times": None}
        _order(url, "POST", "faults", slow)
        ours = min(seconds(lambda: _tick(engine)) for _ in range(3))
    return Figure("events", f"idle minute, {clinics} clinics", ours, 2 * SLOWEST + 0.2, "s", 1.0)


def _tick(engine: sa.Engine) -> None:
    as_of = datetime.now(UTC)
    with engine.connect() as connection:
        known = looking.clinics(connection, as_of)
    seen = looking.look(known, as_of, lambda _: DEMO_TOKEN)
    if any(each.why != looking.NOTHING for each in seen) or looking.changed(seen):
        raise AssertionError("the minute was not idle")


def _make(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        connection.execute(sa.text(RECORDS))


def _applied(engine: sa.Engine) -> int:
    with engine.connect() as connection:
        query = "SELECT count(*) FROM event_inbox WHERE state = 'applied'"
        return int(connection.execute(sa.text(query)).scalar_one())


def _everything(feed: Studiolab, count: int) -> staging.Batch:
    rows: dict[str, tuple[str | None, ...]] = {}
    after = 0
    while after < count:
        news = feed.news(str(after), intake.PAGE)
        rows |= staging.batch(news.events, news.rejected).rows
        after = news.events[-1].sequence
    return staging.Batch(rows, 0)


@contextmanager
def _studiolab() -> Iterator[str]:
    """The simulator in a process of its own."""
    with TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "polydesk_dagster.demo.simulators.studiolab", "--port", "0"]
        process = subprocess.Popen([*command, "--state", folder], stdout=subprocess.PIPE, text=True, cwd=Path.cwd())
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip()
        finally:
            process.terminate()
            process.wait(10)


def _address(url: str, clinic: str) -> str:
    return url.replace(API, f"/{clinic}{API}")


def _order(url: str, method: str, what: str, body: Any) -> None:
    request = urllib.request.Request(
        url.replace(API, f"/admin/{what}"),
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
        method=method,
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        answer.read()


class _Growth:
    """How much more memory this process has resident at most during the block, in MB."""

    def __enter__(self) -> _Growth:
        self._process = psutil.Process()
        self._before = self._process.memory_info().rss
        self.peak = 0.0
        self._done = threading.Event()
        self._watch = threading.Thread(target=self._sample)
        self._watch.start()
        return self

    def _sample(self) -> None:
        while not self._done.is_set():
            self.peak = max(self.peak, (self._process.memory_info().rss - self._before) / 1024 / 1024)
            time.sleep(0.02)

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._watch.join()
