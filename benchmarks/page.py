"""The first paint of *Servizi*: the server's CPU for its page, beside that for a page that asks nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import httpx
import sqlalchemy as sa

from benchmarks.harness import Bench, Figure, peak_mb
from polydesk_dagster.catalog import SERVICES
from polydesk_dagster.database.service_runs import record
from polydesk_dagster.outcome import Counts, Outcome, Report
from polydesk_dagster.settings import Settings
from polydesk_dagster.web import sessions
from polydesk_dagster.web.application import application
from polydesk_dagster.web.door import Door

CLINICS = 50
RUNS = 30
"""Of each service, and for a clinic's services of each clinic: as many as the sparkline shows."""
TIMES = 15
GOAL = 0.15
"""Seconds of CPU."""

_CLINICS = """
    INSERT INTO clinic (code, name, region, municipality_code)
    SELECT 'C' || to_char(n, 'FM000'), 'Poliambulatorio ' || n, 'Emilia-Romagna', 'A944'
    FROM generate_series(1, :many) n"""
_LINKED = """
    INSERT INTO integration (clinic_id, base_url, token_env, active)
    SELECT id, 'https://studiolab.example/api/v1', 'POLYDESK_STUDIOLAB_TOKEN_' || code, true FROM clinic"""
_OWNER = """
    INSERT INTO app_user (clinic_id, email, display_name, role, state, invited_at, activated_at, whole_chain)
    SELECT min(id), 'bench@example.org', 'Bench', 'superuser', 'active', now(), now(), true FROM clinic RETURNING id"""


def figures(bench: Bench) -> Iterator[Figure]:
    with bench.engine() as engine, TemporaryDirectory(prefix="polydesk-page-") as home:
        now = datetime.now(UTC)
        with engine.begin() as connection:
            connection.execute(sa.text(_CLINICS), {"many": bench.size(CLINICS)})
            connection.execute(sa.text(_LINKED))
            token = sessions.begin(connection, int(connection.scalar(sa.text(_OWNER)) or 0), "password", now)
        _ran(engine, now, bench.size(RUNS))
        url = engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
        door = Door(Settings(home=Path(home), database_url=url), engine)
        nothing, ours = asyncio.run(_measured(door, token, bench.size(TIMES)))
        goal = GOAL / nothing
        yield Figure("page", "first paint of Servizi, CPU", ours, nothing, "s", goal, peak_mb=peak_mb())


def _ran(engine: sa.Engine, now: datetime, runs: int) -> None:
    with engine.begin() as connection:
        codes = list(connection.scalars(sa.text("SELECT code FROM clinic")))
        for service in SERVICES:
            for clinic in codes if service.per_clinic else [None]:
                for number in range(runs if clinic is None else 2):
                    started = now - timedelta(minutes=runs - number)
                    record(connection, service.key, Report(Outcome.OK, Counts(updated=number)), clinic=clinic,
                           preview=False, dagster_run="bench", as_of=started, started=started, seconds=1.0)  # fmt: skip


async def _measured(door: Door, token: str, times: int) -> tuple[float, float]:
    transport = httpx.ASGITransport(application(door))
    given = {"base_url": door.address.public, "cookies": {door.cookie: token}}
    async with httpx.AsyncClient(transport=transport, **given) as browser:  # type: ignore[arg-type]
        return await _cpu(browser, "/accessibilita", times), await _cpu(browser, "/", times)


async def _cpu(browser: httpx.AsyncClient, path: str, times: int) -> float:
    """The median of this process's CPU seconds for one answer, after one that warms up."""
    spent = []
    for _ in range(times + 1):
        before = time.process_time()
        if (await browser.get(path)).status_code != 200:
            raise RuntimeError(f"{path} was not shown")
        spent.append(time.process_time() - before)
    return median(spent[1:])
