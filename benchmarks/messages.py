"""Messages: planning beside the bare INSERT of the same rows, sending beside a bare HTTP loop to the same gateway."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import httpx
import sqlalchemy as sa

from benchmarks.harness import Bench, Figure, peak_mb, seconds
from polydesk_dagster.clinic.messages import hours, planning, service
from polydesk_dagster.clinic.messages.dispatch import Limits, dispatch
from polydesk_dagster.demo.simulators.server import DEMO_TOKEN
from polydesk_dagster.providers.sms import SmsGateway

AS_OF = datetime(2026, 3, 10, 9, 30, tzinfo=UTC)
CLINICS = 12
AT_ONCE = 16

_APPOINTMENTS = """
    WITH house AS (
        INSERT INTO clinic (code, name, region, municipality_code, phone)
        SELECT 'B' || n, 'Poliambulatorio ' || n, 'Emilia-Romagna', 'A944', '+390510000000'
        FROM generate_series(1, :clinics) n RETURNING id
    ), offer AS (
        INSERT INTO service (clinic_id, code, name, duration_minutes)
        SELECT id, '89.7A.3', 'Prima visita cardiologica', 30 FROM house RETURNING id, clinic_id
    ), person AS (
        INSERT INTO patient (last_name, first_name, mobile)
        SELECT 'Rossi', 'Mario', '+39347' || lpad((n * 10 + 5)::text, 7, '0') FROM generate_series(1, :count) n
        RETURNING id
    ), numbered AS (SELECT id, row_number() OVER (ORDER BY id) AS n FROM person),
    offers AS (SELECT offer.*, row_number() OVER (ORDER BY id) - 1 AS n FROM offer)
    INSERT INTO appointment (clinic_id, service_id, patient_id, starts_at, ends_at, status, channel, created_at)
    SELECT o.clinic_id, o.id, p.id, start, start + interval '30 minutes', 'booked', 'desk', :as_of - interval '9 days'
    FROM numbered p JOIN offers o ON o.n = p.n % :clinics
    CROSS JOIN LATERAL (
        SELECT CAST(:as_of AS timestamptz) + interval '22 hours' + make_interval(mins => CAST(p.n % 60 AS integer) * 8)
    ) AS s (start)"""


def figures(bench: Bench) -> Iterator[Figure]:
    """Planning, a run with nothing due, and sending; the bare loop is asked for as many texts as were sent."""
    count = bench.size(20_000)
    with bench.engine() as engine:
        with engine.begin() as connection:
            connection.execute(sa.text(_APPOINTMENTS), {"clinics": CLINICS, "count": count, "as_of": AS_OF})
        _vacuum(engine)
        planning_seconds = seconds(lambda: _plan(engine, count))
        _vacuum(engine)
        with _gateway() as url:
            sending = count / seconds(lambda: _send(engine, url, count))
            bare_sending = count / seconds(lambda: asyncio.run(_bare_loop(url, count)))
        _vacuum(engine)
        idle = min(seconds(lambda: service.send(engine, AS_OF, "reminder", {})) for _ in range(5))
        bare_planning = _bare_insert(engine)
    yield Figure("messages", f"plan {count} reminders", planning_seconds, bare_planning, "s", 3.0, peak_mb=peak_mb())
    yield Figure("messages", "a run with nothing due", idle, planning_seconds, "s", 1 / 50, peak_mb=peak_mb())
    yield Figure(
        *("messages", f"send {count} texts, ledger included", sending, bare_sending, "messages/s", 0.6),
        at_least=True,
        peak_mb=peak_mb(),
    )


def _vacuum(engine: sa.Engine) -> None:
    """What autovacuum does by itself on a server that lives longer than a benchmark."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.text("VACUUM ANALYZE"))


def _plan(engine: sa.Engine, count: int) -> None:
    with engine.begin() as connection:
        planned = planning.plan(connection, "reminder", AS_OF, hours.load(connection, AS_OF))
    if planned.messages != count:
        raise RuntimeError(f"{planned.messages} of {count} planned")


def _bare_insert(engine: sa.Engine) -> float:
    """The same ledger rows, as planning left them, by one plain INSERT … SELECT into the same tables."""
    as_planned = """
        CREATE TABLE kept_message AS SELECT * FROM message;
        UPDATE kept_message SET state = 'planned', sent_at = NULL, channel = NULL, address = NULL, body = NULL,
               idempotency_key = NULL, provider_reference = NULL, segments = NULL;
        CREATE TABLE kept_ledger AS SELECT * FROM message_ledger;
        TRUNCATE message, message_ledger CASCADE"""
    with engine.begin() as connection:
        for statement in as_planned.split(";"):
            connection.execute(sa.text(statement))
    _vacuum(engine)
    bare = sa.text("""
        WITH written AS (INSERT INTO message SELECT * FROM kept_message)
        INSERT INTO message_ledger SELECT * FROM kept_ledger""")

    def insert() -> None:
        with engine.begin() as connection:
            connection.execute(bare)

    return seconds(insert)


@contextmanager
def _gateway() -> Iterator[str]:
    """The SMS simulator in a process of its own."""
    command = [sys.executable, "-m", "polydesk_dagster.demo.simulators.sms", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.terminate()


def _send(engine: sa.Engine, url: str, count: int) -> None:
    limits = Limits(run_cap=10**6, hourly_cap=10**6, sms_per_second=1e6, mail_per_second=1e6, sms_at_once=AT_ONCE)
    with engine.connect() as connection:
        clinics = hours.load(connection, AS_OF)
    gateway = SmsGateway(url, DEMO_TOKEN, "Polydesk", at_once=AT_ONCE)
    tally = dispatch(engine, AS_OF, providers={"sms": gateway}, clinics=clinics, kinds=["reminder"], limits=limits)
    if tally.total("sent") != count:
        raise RuntimeError(f"{tally.total('sent')} of {count} sent")


async def _bare_loop(url: str, count: int) -> None:
    """As many texts of the same length by as many workers, and nothing else."""
    text = (
        "Poliambulatorio 1: Mario Rossi, le ricordiamo l'appuntamento di mercoledì 11 marzo, ore 09:30 Prima visita "
        "cardiologica. Per disdire: +390510000000"
    )
    numbers = iter(range(count))
    headers = {"Authorization": f"Bearer {DEMO_TOKEN}"}
    limits = httpx.Limits(max_connections=AT_ONCE, max_keepalive_connections=AT_ONCE)
    async with httpx.AsyncClient(headers=headers, limits=limits, trust_env=False) as client:

        async def work() -> None:
            for number in numbers:
                body = {"to": f"+39348{number:06d}5", "from": "Polydesk", "text": text}
                answer = await client.post(f"{url}/messages", json=body, headers={"Idempotency-Key": str(uuid.uuid4())})
                answer.raise_for_status()

        await asyncio.gather(*(work() for _ in range(AT_ONCE)))
