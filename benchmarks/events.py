"""Studiolab's events: a backlog drained over HTTP beside the same pages read plainly and written a statement a table;
the minute in which nothing happens beside asking everybody. Measured is CPU, of this process and the server."""

from __future__ import annotations

import asyncio
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

import httpx
import psutil
import psycopg
import sqlalchemy as sa

from benchmarks import wire
from benchmarks.harness import Bench, Figure, cpu, in_turn
from polydesk_dagster.database.engine import plain_url
from polydesk_dagster.demo.simulators.server import API, DEMO_TOKEN
from polydesk_dagster.sources.events import intake, looking
from polydesk_dagster.sources.events.numbering import Counted
from polydesk_dagster.sources.studiolab.client import Studiolab

BACKLOG = 50_000
CLINICS = 50
ROUNDS = 5
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
        yield from _idle(bench, url)


def _drain(bench: Bench, url: str) -> Iterator[Figure]:
    count = bench.size(BACKLOG)
    _order(url, "PUT", "data/BO", LISTS)
    _order(url, "POST", "burst/BO", {"count": count, "seed": 1})
    as_of = datetime.now(UTC)
    with bench.engine() as engine, Studiolab("BO", _address(url, "BO"), DEMO_TOKEN) as feed:
        _make(engine)
        with _Growth() as growth:
            ours = cpu(engine, lambda: intake.sync(engine, as_of, "BO", Counted(feed)))
        written = _written(engine)
    with bench.engine() as engine:
        _make(engine)
        reference = cpu(engine, lambda: _plainly(engine, _address(url, "BO")))
        if _written(engine) != written or written[0] != count:
            raise AssertionError(f"of {count} events came {written}, by the reference {_written(engine)}")
    per = "events/CPU s"
    yield Figure("events", f"{count} drained", count / ours, count / reference, per, 0.4, at_least=True)
    yield Figure("events", "memory while draining", growth.peak, 100.0, "MB", 1.0, peak_mb=growth.peak)


INCOMING = """
    CREATE TEMP TABLE incoming (event_id uuid, sequence bigint, type text, version integer, occurred_at timestamptz,
                                key text, data jsonb)"""
PLAIN = """
    INSERT INTO event_inbox (clinic_id, event_id, sequence, type, version, occurred_at, entity, state, received_at,
                             changed_at)
    SELECT 1, event_id, sequence, type, version, occurred_at, key, 'applied', now(), now() FROM incoming;
    CREATE TEMP TABLE newest AS
    SELECT i.*, i.type LIKE '%.cancelled' AS cancelled, g.id AS agenda, CAST(data ->> 'starts_at' AS timestamptz) AS at,
           CAST(data ->> 'ends_at' AS timestamptz) AS ends
    FROM (SELECT DISTINCT ON (key) * FROM incoming WHERE type LIKE 'appointment.%' ORDER BY key, sequence DESC) i
    JOIN agenda g ON g.clinic_id = 1 AND g.external_id = data ->> 'agenda_id';
    INSERT INTO slot (agenda_id, starts_at, ends_at, local_date, capacity, manual)
    SELECT agenda, at, ends, CAST(at AT TIME ZONE 'Europe/Rome' AS date), 1, true FROM newest WHERE NOT cancelled;
    INSERT INTO appointment (clinic_id, agenda_id, slot_id, service_id, specialist_id, patient_id, external_id,
                             starts_at, ends_at, status, channel, cancelled_at, accepted_at, accepted_desk, created_at)
    SELECT 1, i.agenda, t.id, s.id, d.id, l.patient_id, i.key, i.at, i.ends,
           CASE WHEN cancelled THEN 'cancelled' WHEN a.key IS NOT NULL THEN 'accepted' ELSE 'booked' END, 'studiolab',
           CASE WHEN cancelled THEN i.occurred_at END, a.accepted_at, a.desk, i.occurred_at
    FROM newest i
    JOIN patient_link l ON l.clinic_id = 1 AND l.external_id = data ->> 'patient_id'
    JOIN service s ON s.clinic_id = 1 AND s.external_id = data ->> 'service_id'
    LEFT JOIN slot t ON t.agenda_id = i.agenda AND t.starts_at = i.at AND NOT cancelled
    LEFT JOIN specialist d ON d.clinic_id = 1 AND d.external_id = data ->> 'collaborator_id'
    LEFT JOIN (SELECT DISTINCT ON (1) data ->> 'appointment_id' AS key, data ->> 'desk' AS desk,
                      CAST(data ->> 'accepted_at' AS timestamptz) AS accepted_at
               FROM incoming WHERE type = 'acceptance.created' ORDER BY 1, sequence DESC) a ON a.key = i.key;
    INSERT INTO seat (slot_id, unit, appointment_id)
    SELECT slot_id, 1, id FROM appointment WHERE slot_id IS NOT NULL;
    INSERT INTO report (clinic_id, external_id, patient_id, appointment_id, title, url, published_at, withdrawn_at,
                        updated_at)
    SELECT 1, i.key, l.patient_id, a.id, data ->> 'title', data ->> 'url', CAST(data ->> 'published_at' AS timestamptz),
           CASE WHEN i.type LIKE '%.withdrawn' THEN i.occurred_at END, now()
    FROM (SELECT DISTINCT ON (key) * FROM incoming WHERE type LIKE 'report.%' ORDER BY key, sequence DESC) i
    JOIN patient_link l ON l.clinic_id = 1 AND l.external_id = data ->> 'patient_id'
    LEFT JOIN appointment a ON a.clinic_id = 1 AND a.external_id = data ->> 'appointment_id'"""


def _plainly(engine: sa.Engine, url: str) -> None:
    """The reference: the same pages over the wire, one COPY, and by a plain statement each the same rows of the same
    tables: inbox, slots, appointments, seats, reports. All at once, and nothing of what an event may be looked at."""
    with psycopg.connect(plain_url(engine.url)) as connection, wire.client() as client:
        connection.execute(INCOMING)
        with connection.cursor().copy("COPY incoming FROM STDIN") as copy:
            after, more = 0, True
            while more:
                asked = {"after": after, "limit": intake.PAGE}
                answer = client.get(f"{url}/events", params=asked, headers={"Authorization": f"Bearer {DEMO_TOKEN}"})
                items = json.loads(answer.content)["items"]
                for it in items:
                    head = [it[name] for name in ("id", "sequence", "type", "version", "occurred_at")]
                    copy.write_row([*head, it["entity"]["id"], json.dumps(it["data"])])
                more = len(items) == intake.PAGE
                after = max((it["sequence"] for it in items), default=after)
        connection.execute("ANALYZE incoming")
        for statement in PLAIN.split(";"):
            connection.execute(statement)


def _idle(bench: Bench, url: str) -> Iterator[Figure]:
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
        asked = [_address(url, f"C{n}") for n in range(1, clinics + 1)]
        ours, reference = in_turn(
            ROUNDS,
            lambda: cpu(engine, lambda: _tick(engine)),
            lambda: cpu(engine, lambda: asyncio.run(_ask(asked))),
        )
    name = f"idle minute, {clinics} clinics, beside httpx asking them all"
    yield Figure("events", name, ours, reference, "CPU s", 1.5)


async def _ask(urls: list[str]) -> None:
    """Whatever is new at each, asked for at once and read: nothing else."""
    headers = {"Authorization": f"Bearer {DEMO_TOKEN}"}
    async with httpx.AsyncClient(trust_env=False, verify=wire.CONTEXT, headers=headers) as client:
        asking = [client.get(f"{url}/events", params={"after": 0, "limit": 1}) for url in urls]
        for answer in await asyncio.gather(*asking):
            answer.raise_for_status().json()


def _tick(engine: sa.Engine) -> None:
    as_of = datetime.now(UTC)
    with engine.connect() as connection:
        known = looking.clinics(connection, as_of)
    seen = looking.look(known, as_of, lambda _: DEMO_TOKEN)
    if any(each.why != looking.NOTHING for each in seen):
        raise AssertionError("the minute was not idle")


def _make(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        connection.execute(sa.text(RECORDS))


def _written(engine: sa.Engine) -> list[int]:
    """How many events were applied, and how many rows came of them."""
    tables = ("event_inbox WHERE state = 'applied'", "appointment", "seat", "report")
    with engine.connect() as connection:
        return [connection.scalar(sa.text(f"SELECT count(*) FROM {table}")) or 0 for table in tables]


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
