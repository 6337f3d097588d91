"""Messages: planning beside the bare INSERT of the same rows, sending beside a bare HTTP loop to the same gateway."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial

import httpx
import sqlalchemy as sa

from benchmarks.harness import Bench, Figure, peak_mb, seconds
from polydesk_dagster.clinic.messages import hours, planning, service
from polydesk_dagster.clinic.messages.dispatch import dispatch
from polydesk_dagster.clinic.messages.pace import Limits
from polydesk_dagster.demo.simulators.server import DEMO_TOKEN
from polydesk_dagster.providers.sms import SmsGateway

AS_OF = datetime(2026, 3, 10, 9, 30, tzinfo=UTC)
CLINICS = 12
AT_ONCE = 16
TRIES = 3
"""The best counts, of ours and of the reference."""
ROUNDS = 5

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
        planning_seconds = min(_plan(engine, count, keep=attempt == TRIES) for attempt in range(1, TRIES + 1))
        bare_planning = _bare_insert(engine)
        _vacuum(engine)
        sending = bare_sending = 0.0
        with _gateway() as url:
            for turn in range(ROUNDS):  # in turns, so that whatever else the machine does weighs on both
                share = count * (turn + 1) // ROUNDS - count * turn // ROUNDS
                sending += seconds(partial(_send, engine, url, share))
                bare_sending += seconds(partial(_send_bare, url, share))
        _vacuum(engine)
        idle = min(seconds(lambda: service.send(engine, AS_OF, "reminder", {})) for _ in range(5))
    yield Figure("messages", f"plan {count} reminders", planning_seconds, bare_planning, "s", 3.0, peak_mb=peak_mb())
    yield Figure("messages", "a run with nothing due", idle, planning_seconds, "s", 1 / 50, peak_mb=peak_mb())
    yield Figure(
        *("messages", f"send {count} texts, ledger included", count / sending, count / bare_sending, "messages/s", 0.6),
        at_least=True,
        peak_mb=peak_mb(),
    )


def _vacuum(engine: sa.Engine) -> None:
    """What autovacuum does by itself on a server that lives longer than a benchmark."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.text("VACUUM ANALYZE"))


def _plan(engine: sa.Engine, count: int, *, keep: bool) -> float:
    """Seconds to plan everything; rolled back unless ``keep``."""
    _vacuum(engine)
    with engine.connect() as connection:
        clinics = hours.load(connection, AS_OF)
        planned = []

        def work() -> None:
            planned.append(planning.plan(connection, "reminder", AS_OF, clinics))
            if keep:
                connection.commit()

        taken = seconds(work)
    if planned[0].messages != count:
        raise RuntimeError(f"{planned[0].messages} of {count} planned")
    return taken


def _bare_insert(engine: sa.Engine) -> float:
    """Seconds for the same ledger rows, just planned, by one plain INSERT … SELECT into empty tables of the same
    definition."""
    with engine.begin() as connection:
        for table in ("message", "message_ledger"):
            connection.execute(sa.text(f"CREATE TABLE kept_{table} AS SELECT * FROM {table}"))
            connection.execute(sa.text(f"CREATE TABLE bare_{table} (LIKE {table} INCLUDING ALL)"))
        for clause in (
            "bare_message ADD FOREIGN KEY (clinic_id) REFERENCES clinic",
            "bare_message_ledger ADD FOREIGN KEY (clinic_id) REFERENCES clinic",
            "bare_message_ledger ADD FOREIGN KEY (message_id) REFERENCES bare_message",
        ):
            connection.execute(sa.text(f"ALTER TABLE {clause}"))
    bare = sa.text("""
        WITH written AS (INSERT INTO bare_message SELECT * FROM kept_message)
        INSERT INTO bare_message_ledger SELECT * FROM kept_message_ledger""")
    taken = []
    for attempt in range(1, TRIES + 1):
        _vacuum(engine)
        with engine.connect() as connection:

            def work(connection: sa.Connection = connection, *, keep: bool = attempt == TRIES) -> None:
                connection.execute(bare)
                if keep:
                    connection.commit()

            taken.append(seconds(work))
    return min(taken)


@contextmanager
def _gateway() -> Iterator[str]:
    """The SMS simulator in a process of its own."""
    command = [sys.executable, "-m", "polydesk_dagster.demo.simulators.sms", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.terminate()


def _send(engine: sa.Engine, url: str, count: int) -> None:
    limits = Limits(run_cap=count, hourly_cap=10**6, sms_per_second=1e6, mail_per_second=1e6, sms_at_once=AT_ONCE)
    with engine.connect() as connection:
        clinics = hours.load(connection, AS_OF)
    gateway = SmsGateway(url, DEMO_TOKEN, "Polydesk", at_once=AT_ONCE)
    tally = dispatch(engine, AS_OF, providers={"sms": gateway}, clinics=clinics, kinds=["reminder"], limits=limits)
    if tally.total("sent") != count:
        raise RuntimeError(f"{tally.total('sent')} of {count} sent")


def _send_bare(url: str, count: int) -> None:
    asyncio.run(_bare_loop(url, count))


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
