"""The pages that everybody looks at and health, with a thousand clinics and their history, over real HTTP: the CPU of
the door and of the server for an answer, beside a program without any of ours that answers as many bytes."""

from __future__ import annotations

import multiprocessing
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import psutil
import sqlalchemy as sa

from benchmarks.harness import Bench, Figure, server_of, settle, spent
from polydesk_dagster.catalog import SERVICES
from polydesk_dagster.database.engine import create_engine
from polydesk_dagster.database.migrate import create_database
from polydesk_dagster.database.service_runs import record
from polydesk_dagster.outcome import Counts, Outcome, Report
from polydesk_dagster.settings import Settings
from polydesk_dagster.values import Reason
from polydesk_dagster.web import sessions

CLINICS = 1000
NIGHTS = 30
TIMES = 7
COOKIE, HOST = "polydesk-3000", {"Host": "127.0.0.1:3000"}
GOAL = 1.0
"""Seconds for an answer: the CPU of all who work for it."""
ASKED = {
    "first paint of Servizi": "/",
    "one service with its runs": "/servizi/sync_prices",
    "Cliniche": "/cliniche",
    "Salute": "/salute",
    "health": "/health",
    "Da fare": "/da-fare",
    "Piani": "/piani",
}

_CLINICS = """
    INSERT INTO clinic (code, name, region, municipality_code)
    SELECT 'C' || to_char(n, 'FM0000'), 'Poliambulatorio ' || n, 'Emilia-Romagna', 'A944'
    FROM generate_series(1, :many) n;
    INSERT INTO integration (clinic_id, base_url, token_env, active)
    SELECT id, 'https://studiolab.example/api/v1', 'POLYDESK_STUDIOLAB_TOKEN_' || code, true FROM clinic;
    INSERT INTO event_cursor (clinic_id, sequence, read_at, failures, quiet_until, down_since)
    SELECT id, 5000, now(), (id % 50 = 0)::integer, CASE WHEN id % 50 = 0 THEN now() + interval '9 minutes' END,
           CASE WHEN id % 50 = 0 THEN now() - interval '1 hour' END FROM clinic"""
_OWNER = """
    INSERT INTO app_user (clinic_id, email, display_name, role, state, invited_at, activated_at, whole_chain)
    SELECT min(id), 'bench@example.org', 'Bench', 'superuser', 'active', now(), now(), true FROM clinic RETURNING id"""

# Each clinic's nights as the one that was recorded, a fiftieth of the last ones failed; then those of the chain.
_RUNS = """
    INSERT INTO service_run (service, clinic_id, preview, dagster_run, outcome, counts, reasons, figures, tables,
                             as_of, started_at, seconds)
    SELECT s, c.id, false, 'night ' || n || s, CASE WHEN n = 0 AND c.id % 50 = 7 THEN 'failed' ELSE 'ok' END, r.counts,
           CASE WHEN n = 0 AND c.id % 50 = 7 THEN r.reasons ELSE '[]' END, r.figures, r.tables,
           r.as_of - n * interval '1 day', r.as_of - n * interval '1 day', 1
    FROM service_run r, unnest(CAST(:services AS text[])) s, clinic c, generate_series(0, :nights - 1) n;
    INSERT INTO service_run (service, preview, dagster_run, outcome, counts, reasons, as_of, started_at, seconds)
    SELECT s, false, 'chain ' || n || s, 'ok', r.counts, '[]', r.as_of - n * interval '1 hour',
           r.as_of - n * interval '1 hour', 1
    FROM (SELECT * FROM service_run LIMIT 1) r, unnest(CAST(:chain AS text[])) s, generate_series(0, :nights * 24 - 1) n
"""

# A plan a clinic, list and night, the newest of every fiftieth clinic stopped by a guard; what clinics have told.
_LEFT = """
    INSERT INTO plan (service, kind, clinic_id, fingerprint, tally, guards, state, as_of, created_at, expires_at,
                      applied_at, applied_by)
    SELECT 'sync_prices', k, c.id, 'f', '{"update": 20}',
           jsonb_build_array(jsonb_build_object('name', 'source_empty', 'passed', stopped, 'value', 0, 'limit', 0,
                                                'values', jsonb_build_object(), 'held', 0)),
           CASE WHEN stopped THEN 'applied' ELSE 'ready' END,
           at, at, at + interval '3 days', CASE WHEN stopped THEN at END, CASE WHEN stopped THEN 'dagster' END
    FROM generate_series(:nights - 1, 0, -1) n, unnest(ARRAY['agreement', 'price', 'patient']) k, clinic c,
         LATERAL (SELECT NOT (n = 0 AND k = 'price' AND c.id % 50 = 9) AS stopped, now() - n * interval '1 day' AS at);
    INSERT INTO event_inbox (clinic_id, event_id, sequence, type, version, entity, state, reason, next_try_at, payload,
                             received_at, changed_at)
    SELECT c.id, gen_random_uuid(), n, 'appointment.created', 1, 'appointment:' || n,
           CASE WHEN parked THEN 'parked' ELSE 'applied' END,
           CASE WHEN parked THEN '{"code": "no_news", "values": {}}' END,
           CASE WHEN parked THEN now() + interval '1 hour' END, CASE WHEN parked THEN '{}'::jsonb END, now(), now()
    FROM clinic c, generate_series(1, :nights * 10) n, LATERAL (SELECT n = 7 AND c.id % 20 = 0 AS parked);
    INSERT INTO quarantine (service, kind, clinic_id, record_key, code, message, record, first_seen_at, last_seen_at)
    SELECT 'import_patients', 'patient', c.id, 'P' || n, 'no_birth_date', '', '{}', now(), now()
    FROM clinic c, generate_series(1, 2) n"""

# Dagster's log of those nights, as rows of the size that its own have.
_LOG = """
    INSERT INTO event_logs (run_id, event, dagster_event_type, timestamp, step_key, asset_key, partition)
    SELECT md5(n::text || c / 100), repeat('x', 1200), 'ASSET_MATERIALIZATION', now() - n * interval '1 day',
           'studiolab__prices', '["studiolab", "prices"]', 'C' || c
    FROM generate_series(0, :nights - 1) n, generate_series(1, :clinics) c, generate_series(1, 12)"""


def figures(bench: Bench) -> Iterator[Figure]:
    with bench.engine() as engine, TemporaryDirectory(prefix="polydesk-page-") as home:
        token = _history(engine, bench.size(CLINICS), bench.size(NIGHTS))
        url = engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
        _dagster(engine, bench.size(CLINICS), bench.size(NIGHTS))
        settle(engine)
        with _process(_serve_door, Path(home), url) as door:
            for what, path in ASKED.items():
                ours, wall, size = _answer(engine, door, path, token, TIMES)
                with _process(_serve_bare, size) as bare:
                    least, _, _ = _answer(engine, bare, path, token, 50 * TIMES)
                told = f"{what}, {size // 1000} KB, CPU"
                yield Figure("page", told, ours, least, "s", GOAL / least, peak_mb=door.peak)
                yield Figure("page", f"{what}, by the clock", wall, GOAL, "s", 1.0)


def _history(engine: sa.Engine, clinics: int, nights: int) -> str:
    """A chain with its history; returns a session's token."""
    now = datetime.now(UTC)
    with engine.begin() as connection:
        _all(connection, _CLINICS, {"many": clinics})
        token = sessions.begin(connection, int(connection.scalar(sa.text(_OWNER)) or 0), "password", now)
        why = Reason("remote_silent", {"system": Reason("system_source", {"of": "C0001"})})
        failed = Report(Outcome.FAILED, Counts(updated=20, unchanged=2000), (why,))
        record(connection, "bench", failed, clinic=None, preview=False, dagster_run="b", as_of=now, started=now,
               seconds=1.0)  # fmt: skip
        services = {
            "services": [service.key for service in SERVICES if service.per_clinic],
            "chain": [service.key for service in SERVICES if not service.per_clinic],
        }
        _all(connection, _RUNS, {**services, "nights": nights})
        _all(connection, _LEFT, {"nights": nights})
    return token


def _all(connection: sa.Connection, statements: str, values: Mapping[str, object]) -> None:
    for statement in statements.split(";\n"):
        connection.execute(sa.text(statement), values)


def _dagster(engine: sa.Engine, clinics: int, nights: int) -> None:
    """Dagster's own storage, as those nights have left it."""
    from dagster_postgres import DagsterPostgresStorage

    url = engine.url.set(database=f"{engine.url.database}_dagster")
    create_database(url)
    plain = url.set(drivername="postgresql+psycopg2").render_as_string(hide_password=False)
    storage = DagsterPostgresStorage(plain)
    assert all((storage.run_storage, storage.event_log_storage, storage.schedule_storage))
    theirs = create_engine(url)
    with theirs.begin() as connection:
        connection.execute(sa.text(_LOG), {"nights": nights, "clinics": clinics})
    theirs.dispose()


class _Answering:
    """A process that answers."""

    def __init__(self, process: psutil.Process, port: int) -> None:
        self.process, self.address = process, f"http://127.0.0.1:{port}"
        self.peak = 0.0

    def cpu(self) -> float:
        used = self.process.cpu_times()
        self.peak = self.process.memory_info().rss / 1e6
        return used.user + used.system


def _answer(engine: sa.Engine, server: _Answering, path: str, token: str, times: int) -> tuple[float, float, int]:
    """Of an answer the CPU seconds of who answers and of the database, the seconds that it took (the median), and the
    bytes, after one that warms up."""
    database, took, size = server_of(engine), [], 0
    with httpx.Client(
        base_url=server.address, cookies={COOKIE: token}, headers=HOST, timeout=60, trust_env=False
    ) as browser:
        before = 0.0
        for number in range(times + 1):
            if number == 1:
                before = server.cpu() + spent(database)
            started = time.perf_counter()
            answer = browser.get(path)
            took.append(time.perf_counter() - started)
            size = len(answer.content)
            if answer.status_code not in {200, 503 if path == "/health" else 200}:
                raise RuntimeError(f"{path} was not shown: {answer.status_code}")
    return (server.cpu() + spent(database) - before) / times, median(took[1:]), size


@contextmanager
def _process(target: Any, *arguments: Any) -> Iterator[_Answering]:
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=target, args=(there, *arguments), daemon=True)
    process.start()
    try:
        yield _Answering(psutil.Process(process.pid), here.recv())
    finally:
        process.kill()
        process.join()


def _serve_door(told: Connection, home: Path, url: str) -> None:
    from polydesk_dagster.database.migrate import serving
    from polydesk_dagster.web.application import application
    from polydesk_dagster.web.door import Door

    door = Door(Settings(home=home, database_url=url), serving(sa.make_url(url)))
    _serve(told, application(door))


def _serve_bare(told: Connection, size: int) -> None:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    async def answer(_: Request) -> Response:
        return Response(b"x" * size, media_type="text/html")

    _serve(told, Starlette(routes=[Route("/{path:path}", answer)]))


def _serve(told: Connection, program: Any) -> None:
    import uvicorn

    listening = socket.create_server(("127.0.0.1", 0))
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    told.send(listening.getsockname()[1])
    uvicorn.Server(uvicorn.Config(program, log_level="warning", access_log=False)).run([listening])
