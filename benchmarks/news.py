"""The minute's look where some clinics hang, and where all of them have news that one run takes in."""

from __future__ import annotations

import asyncio
import gc
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import parse_qs, urlsplit

import sqlalchemy as sa

from benchmarks import chain, night
from benchmarks.events import LISTS
from benchmarks.harness import Bench, Figure, cpu, peak_mb, server_of, spent
from polydesk_dagster.demo.simulators.fleet import Fleet, address
from polydesk_dagster.demo.simulators.studiolab import StudiolabSimulator
from polydesk_dagster.sources.events import looking

CLINICS, NEWS = 1000, 10
HANGING, OF = 8, 25
"""So many of so many questions get no answer: 64 of 200."""
ASKED = 200
MINUTE, PROMPT = 60.0, 120.0
"""Seconds until the next look; in which all news is taken in."""
RUNS = 10

# What the events are about: of each clinic as much as they name.
RECORDS = """
    INSERT INTO location (id, clinic_id, name) SELECT id, id, 'Centro' FROM clinic;
    INSERT INTO specialist (clinic_id, external_id, last_name, first_name)
    SELECT id, 'D' || n, 'Bianchi', 'Elena' FROM clinic, generate_series(1, 5) n;
    INSERT INTO service (clinic_id, external_id, code, name, duration_minutes)
    SELECT id, 'S' || n, '89.7A.' || n, 'Visita', 30 FROM clinic, generate_series(1, 5) n;
    INSERT INTO agenda (clinic_id, location_id, specialist_id, external_id, name, slot_minutes)
    SELECT s.clinic_id, s.clinic_id, s.id, replace(s.external_id, 'D', 'A'), 'Agenda', 30 FROM specialist s;
    INSERT INTO patient (id, last_name, first_name)
    SELECT 100 * id + n, 'Rossi', 'Mario ' || n FROM clinic, generate_series(1, 20) n;
    INSERT INTO patient_link (clinic_id, external_id, patient_id, made_by, made_at)
    SELECT id, 'P' || n, 100 * id + n, 'created', now() FROM clinic, generate_series(1, 20) n"""


def figures(bench: Bench) -> Iterator[Figure]:
    yield from _hanging(bench)
    yield from _taken_in(bench)


def _hanging(bench: Bench) -> Iterator[Figure]:
    count = bench.size(ASKED)
    hang = sum(number % OF < HANGING for number in range(1, count + 1))
    with chain.fleet(_hangs) as port, bench.engine() as engine:
        chain.make(engine, count, port)
        as_of = datetime.now(UTC)
        with engine.connect() as connection:
            known = looking.clinics(connection, as_of)
        _as_every_minute(known, as_of)
        started, before = time.perf_counter(), time.process_time()
        seen = looking.look(known, as_of, lambda _: "token")
        ours, took = time.process_time() - before, time.perf_counter() - started
    read = sum(each.why == looking.NOTHING for each in seen)
    with chain.fleet() as port:
        reference, _ = chain.plainly([address(port, number) for number in range(count - hang)])
    name = f"a look of which {hang} of {count} hang"
    yield Figure("news", f"{name}: others that are read", read, count - hang, "clinics", 1.0, at_least=True)
    yield Figure("news", f"{name}, CPU, beside httpx asking the others", ours, reference, "s", 3.0, peak_mb=peak_mb())
    yield Figure("news", f"{name}, by the clock, beside a minute", took, MINUTE, "s", 1.0)


def _as_every_minute(known: Sequence[looking.Clinic], as_of: datetime) -> None:
    """What a code server has behind it at any look but its first: certificates and vendors are read, and what it has
    loaded is out of the collector's way."""
    with chain.fleet() as port:
        theirs = [replace(each, settings={**each.settings, "url": address(port, 0)}) for each in known[:1]]
        looking.look(theirs, as_of, lambda _: "token")
        chain.plainly([address(port, 0)])
    gc.collect()
    gc.freeze()


def _taken_in(bench: Bench) -> Iterator[Figure]:
    from polydesk_dagster.sensors.studiolab_events import SERVICE, request

    count = bench.size(CLINICS)
    with chain.fleet(_tells) as port, bench.engine() as engine, TemporaryDirectory(prefix="polydesk-news-") as home:
        chain.make(engine, count, port)
        with engine.begin() as connection:
            for statement in RECORDS.split(";"):
                connection.execute(sa.text(statement))
        with night.installation(engine, Path(home)):
            as_of, server, runs, peak = datetime.now(UTC), server_of(engine), 0, 0.0
            started, before, own = time.perf_counter(), spent(server), time.process_time()
            while runs < RUNS:
                with engine.connect() as connection:
                    known = looking.clinics(connection, as_of)
                wanted, _ = request(looking.look(known, as_of, lambda _: "token"), (), {})
                if wanted is None:
                    break
                used = night.apart(SERVICE, as_of.isoformat(), [wanted])
                runs, peak, own = runs + 1, max(peak, used.peak_mb), own - used.seconds
            took, ours = time.perf_counter() - started, spent(server) - before + time.process_time() - own
        reference = cpu(engine, lambda: chain.plainly([address(port, number) for number in range(count)]))
        with engine.connect() as connection:
            applied = connection.scalar(sa.text("SELECT count(*) FROM event_inbox WHERE state = 'applied'"))
    if applied != count * NEWS:
        raise AssertionError(f"of {count * NEWS} events {applied} were applied")
    name = f"{count} clinics with {NEWS} events each"
    yield Figure("news", f"{name}, CPU, beside httpx reading them", ours, reference, "s", 2 * PROMPT / reference)
    yield Figure("news", f"{name}, by the clock, beside two minutes", took + MINUTE, PROMPT, "s", 1.0, peak_mb=peak)
    yield Figure("news", f"{name}: runs, beside ten", runs, RUNS, "runs", 1.0)


def _hangs(told: Connection) -> None:
    asyncio.run(Fleet(chain.LATENCY, lambda number: number % OF < HANGING).serve(told.send))


def _tells(told: Connection) -> None:
    """Every clinic has the same news."""
    studiolab = StudiolabSimulator()
    studiolab.hold("C", {name: rows[: 20 if name == "patients" else 5] for name, rows in LISTS.items()})
    studiolab.burst("C", NEWS, 1)
    feed = studiolab.feed("C")
    bodies = [json.dumps({"items": feed.page(n, 1000), "last_sequence": feed.last}).encode() for n in range(NEWS + 1)]

    def tells(path: str) -> bytes:
        return bodies[min(NEWS, int(parse_qs(urlsplit(path).query)["after"][0]))]

    asyncio.run(Fleet(chain.LATENCY, tells=tells).serve(told.send))
