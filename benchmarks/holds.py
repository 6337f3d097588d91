"""Holds under 16 clients: placed and confirmed, beside as many bare transactions on the same server.

Bare means without any rule: first the rows that a pair leaves, in tables with the same columns, indexes and
constraints, in two transactions of one statement each: a hold, its seat, where its doctor is; the appointment, where
its patient is; and with each what statistics and messages are told. What a pair writes a second time (the seat and the
hold pass to the appointment, the doctor is there for good) the reference is spared. They are sent by SQLAlchemy, as
nearly all here is, and by the driver alone, as a pair is. Then rows of a table that has nothing but a key.

Measured is the CPU, user and system, of the server and of the clients: that is what bounds so many on a small machine,
and it does not depend on who else is at work there.
"""

from __future__ import annotations

import multiprocessing
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Barrier

import psutil
import psycopg
import sqlalchemy as sa
from sqlalchemy.engine import URL

from benchmarks.harness import Bench, Figure, peak_mb, server_of, settle
from benchmarks.harness import spent as spent_cpu
from polydesk_dagster.clinic.bookings import answers, confirming, holds
from polydesk_dagster.database.engine import create_engine

CLIENTS = 16
WORKERS = 2
"""Processes of the front end, which the clients share: with one each, a small machine measures its caches."""
ROUNDS = 15
"""Short ones in turn: a machine's speed changes within a minute, and by more than the ways differ."""
WARM_UP = 20
"""Pairs of each client before the clock starts: connections made, statements prepared."""
AS_OF = datetime(2026, 3, 10, 9, 0, tzinfo=UTC)
BARE = ("hold", "seat", "appointment", "occupancy", "statistic_change", "message_recheck")
"""Tables of which the reference writes a copy."""

Work = Callable[[sa.Engine, int, int], None]
"""Does its share: an engine, the first number of the share, how many."""


def _place_and_confirm(engine: sa.Engine, first: int, share: int) -> None:
    for slot in range(first, first + share):
        token = holds.new_token()
        service = 1 + (slot + 1) % 5
        booking = holds.Booking(service_id=service, patient_id=1 + slot % 2000)
        with engine.begin() as connection:
            placed = holds.place(
                connection, slot_id=slot, service_id=service, token=token, visitor=f"visitor {slot}", as_of=AS_OF
            )
        with engine.begin() as connection:
            confirmed = confirming.confirm(connection, token=token, booking=booking, as_of=AS_OF)
        if confirmed.answer is not answers.Answer.CONFIRMED:
            raise RuntimeError(f"slot {slot}: {placed.answer}, then {confirmed.answer}")


_BARE_HOLD = """
    WITH written AS (
        INSERT INTO bare_hold (clinic_id, slot_id, service_id, ends_at, token_hash, visitor_hash, created_at,
                               expires_at, last_activity_at)
        VALUES (:clinic, :slot, :service, :ends, :token, :visitor, :at, :until, :at)
        RETURNING id, slot_id, expires_at
    ), seated AS (
        INSERT INTO bare_seat (slot_id, unit, hold_id, held_until) SELECT slot_id, 1, id, expires_at FROM written
    ), logged AS (
        INSERT INTO bare_statistic_change (topic, clinic_id, day) VALUES ('funnel', :clinic, CAST(:at AS date))
    )
    INSERT INTO bare_occupancy (kind, subject, during, within, hold_id, until)
    SELECT 'doctor', :specialist, tstzrange(:starts, :ends), 4 * :agenda, id, expires_at FROM written"""

_BARE_APPOINTMENT = """
    WITH written AS (
        INSERT INTO bare_appointment (clinic_id, agenda_id, slot_id, service_id, specialist_id, patient_id, starts_at,
                                      ends_at, status, channel, created_at, updated_at)
        VALUES (:clinic, :agenda, :slot, :service, :specialist, :patient, :starts, :ends, 'booked', 'online', :at, :at)
        RETURNING id
    ), logged AS (
        INSERT INTO bare_statistic_change (topic, clinic_id, day)
        VALUES ('appointments', :clinic, CAST(:starts AS date)), ('funnel', :clinic, CAST(:at AS date))
    ), planned AS (
        INSERT INTO bare_message_recheck (kind, appointment_id)
        SELECT k, id FROM written, unnest(ARRAY['reminder', 'preparation']) k
    )
    INSERT INTO bare_occupancy (kind, subject, during, within, hold_id)
    SELECT 'patient', :patient, tstzrange(:starts, :ends), 4 * id + 2, :slot FROM written"""

_BY_SQLALCHEMY = {each: sa.text(each) for each in (_BARE_HOLD, _BARE_APPOINTMENT)}
_BY_DRIVER = {each: re.sub(r":(\w+)", r"%(\1)s", each).encode() for each in (_BARE_HOLD, _BARE_APPOINTMENT)}


def _by_sqlalchemy(connection: sa.Connection, statement: str, values: dict[str, object]) -> None:
    connection.execute(_BY_SQLALCHEMY[statement], values)


def _by_driver(connection: sa.Connection, statement: str, values: dict[str, object]) -> None:
    driver = connection.connection.driver_connection
    assert isinstance(driver, psycopg.Connection)
    driver.execute(_BY_DRIVER[statement], values)


def _same_rows(
    send: Callable[[sa.Connection, str, dict[str, object]], None], engine: sa.Engine, first: int, share: int
) -> None:
    for slot in range(first, first + share):
        turn = slot - 1_000_000
        agenda, starts = turn % 50 + 1, AS_OF + timedelta(days=1 + turn // 50)
        clinic = 1 + agenda % 5
        place: dict[str, object] = {
            "clinic": clinic,
            "agenda": agenda,
            "slot": slot,
            "service": clinic,
            "specialist": agenda,
            "starts": starts,
            "ends": starts + timedelta(minutes=30),
            "at": AS_OF,
        }
        hold = {
            **place,
            "token": holds.hashed(holds.new_token()),
            "visitor": holds.hashed(f"visitor {slot}"),
            "until": AS_OF + timedelta(minutes=10),
        }
        with engine.begin() as connection:
            send(connection, _BARE_HOLD, hold)
        with engine.begin() as connection:
            send(connection, _BARE_APPOINTMENT, {**place, "patient": 1 + slot % 2000})


def _bare(engine: sa.Engine, first: int, share: int) -> None:
    insert = sa.text("INSERT INTO bare (id, token, at) VALUES (:id, :token, :at)")
    update = sa.text("UPDATE bare SET at = :at WHERE id = :id")
    for number in range(first, first + share):
        with engine.begin() as connection:
            connection.execute(insert, {"id": number, "token": holds.new_token(), "at": AS_OF})
        with engine.begin() as connection:
            connection.execute(update, {"id": number, "at": AS_OF})


def _worker(url: URL, work: Work, first: int, share: int, start: Barrier, spent: Synchronized[float]) -> None:
    """The clients of one process, each with a connection of its own; they begin when all of all processes are warm."""
    clients = CLIENTS // WORKERS
    warm, go = threading.Barrier(clients + 1, timeout=60), threading.Barrier(clients + 1, timeout=60)

    def client(mine: int) -> None:
        engine = create_engine(url, pool_size=1)
        work(engine, mine, WARM_UP)
        warm.wait()
        go.wait()
        work(engine, mine + WARM_UP, share)
        engine.dispose()

    with ThreadPoolExecutor(clients) as pool:
        running = [pool.submit(client, first + n * (WARM_UP + share)) for n in range(clients)]
        warm.wait()
        start.wait()
        began = time.process_time()
        go.wait()
    for each in running:
        each.result()
    with spent.get_lock():
        spent.value += time.process_time() - began


def _throughput(server: psutil.Process, url: URL, work: Work, first: int, pairs: int) -> float:
    """Transactions of all clients together, two for each pair, by second of CPU."""
    context = multiprocessing.get_context("fork")
    share = pairs // CLIENTS
    start, spent = context.Barrier(WORKERS + 1, timeout=60), context.Value("d", 0.0)
    stride = CLIENTS // WORKERS * (WARM_UP + share)
    workers = [
        context.Process(target=_worker, args=(url, work, first + n * stride, share, start, spent))
        for n in range(WORKERS)
    ]
    for worker in workers:
        worker.start()
    start.wait()
    before = spent_cpu(server)
    for worker in workers:
        worker.join()
    if any(worker.exitcode for worker in workers):
        raise RuntimeError("un processo del banco di prova è fallito")
    return 2 * share * CLIENTS / (spent_cpu(server) - before + float(spent.value))


# Five clinics of ten agendas each: agenda n is of clinic and of service 1 + n % 5, and of specialist n.
_WORLD = """
    INSERT INTO clinic (id, code, name, region, municipality_code)
    SELECT n, 'BO0' || n, 'Banco di prova', 'Emilia-Romagna', 'A944' FROM generate_series(1, 5) n;
    INSERT INTO location (id, clinic_id, name) SELECT n, n, 'Sede' FROM generate_series(1, 5) n;
    INSERT INTO specialist (id, clinic_id, last_name, first_name)
    SELECT n, 1 + n % 5, 'Bianchi', 'Elena' FROM generate_series(1, 50) n;
    INSERT INTO service (id, clinic_id, code, name, duration_minutes, bookable_online)
    SELECT n, n, '89.7', 'Visita', 30, true FROM generate_series(1, 5) n;
    INSERT INTO patient (id, last_name, first_name) SELECT n, 'Rossi', 'Mario' FROM generate_series(1, 2000) n;
    INSERT INTO agenda (id, clinic_id, location_id, specialist_id, name, slot_minutes, online)
    SELECT n, 1 + n % 5, 1 + n % 5, n, 'Agenda ' || n, 30, true FROM generate_series(1, 50) n;
    INSERT INTO agenda_service (clinic_id, agenda_id, service_id)
    SELECT 1 + n % 5, n, 1 + n % 5 FROM generate_series(1, 50) n;
    CREATE TABLE bare (id bigint PRIMARY KEY, token text NOT NULL, at timestamptz NOT NULL)
"""

_REFERENCES = """
    DO $$ DECLARE f record; BEGIN
        FOR f IN SELECT regexp_replace(pg_get_constraintdef(oid), 'S (hold|appointment)\\(', 'S bare_\\1(') AS reference
                 FROM pg_constraint
                 WHERE conrelid = CAST('{table}' AS regclass) AND contype = 'f' LOOP
            EXECUTE 'ALTER TABLE bare_{table} ADD ' || f.reference;
        END LOOP;
    END $$"""

# A month that has been: tables as a running clinic has them, so that plans are those of a running clinic.
_PAST = """
    WITH past AS (
        INSERT INTO slot (agenda_id, starts_at, ends_at, local_date, capacity)
        SELECT 1 + n % 50, s, s + interval '30 minutes', CAST(s AS date), 1
        FROM generate_series(1, 20000) n,
             LATERAL (SELECT CAST(:as_of AS timestamptz) - (1 + n / 50) * interval '1 hour' AS s) t
        RETURNING id, agenda_id, starts_at, ends_at
    ), booked AS (
        INSERT INTO appointment (clinic_id, agenda_id, slot_id, service_id, patient_id, starts_at, ends_at, status,
                                 channel)
        SELECT 1 + agenda_id % 5, agenda_id, id, 1 + agenda_id % 5, 1 + id % 2000, starts_at, ends_at, 'completed',
               'online'
        FROM past
        RETURNING id, clinic_id, slot_id, starts_at
    ), seated AS (
        INSERT INTO seat (slot_id, unit, appointment_id) SELECT slot_id, 1, id FROM booked
    )
    INSERT INTO hold (clinic_id, slot_id, token_hash, visitor_hash, state, created_at, expires_at, last_activity_at,
                      ended_at, appointment_id)
    SELECT clinic_id, slot_id, sha256(CAST('t' || id AS bytea)), sha256(CAST('v' || id AS bytea)), 'confirmed',
           starts_at - interval '1 day', starts_at - interval '1430 minutes', starts_at - interval '1 day',
           starts_at - interval '1435 minutes', id
    FROM booked
"""


def prepare(engine: sa.Engine, slots: int) -> None:
    """Five clinics with a month behind them and so many free slots ahead, and the bare tables, filled alike."""
    with engine.begin() as connection:
        for statement in _WORLD.split(";\n"):
            connection.execute(sa.text(statement))
        for table in BARE:
            connection.execute(sa.text(f"CREATE TABLE bare_{table} (LIKE {table} INCLUDING ALL)"))
        connection.execute(sa.text(_PAST), {"as_of": AS_OF})
        connection.execute(sa.text("SELECT refresh_bookable()"))  # as whoever tidies leaves it
        for table in ("appointment", "hold", "seat"):
            connection.execute(sa.text(f"INSERT INTO bare_{table} SELECT * FROM {table}"))
        for table in BARE:
            connection.execute(sa.text(_REFERENCES.format(table=table)))
        for table in ("hold", "appointment"):
            sequence = sa.text(f"SELECT setval(pg_get_serial_sequence('bare_{table}', 'id'), 1000000)")
            connection.execute(sequence)
        connection.execute(
            sa.text("""
                INSERT INTO slot (id, agenda_id, starts_at, ends_at, local_date, capacity)
                SELECT 1000000 + n, n % 50 + 1, s, s + interval '30 minutes', CAST(s AS date), 1
                FROM generate_series(1, CAST(:slots AS integer)) n,
                     LATERAL (SELECT CAST(:as_of AS timestamptz) + (1 + n / 50) * interval '1 day' AS s) t"""),
            {"slots": slots, "as_of": AS_OF},
        )
    settle(engine)


def figures(bench: Bench) -> Iterator[Figure]:
    """Take ours and the references in turn, and compare the medians."""
    pairs = max(CLIENTS, bench.size(1_600))
    numbers = pairs + CLIENTS * WARM_UP
    with bench.engine() as engine:
        prepare(engine, 2 * numbers * ROUNDS)  # the rows that are sent both ways are not the same rows
        server = server_of(engine)
        same_rows = partial(_same_rows, _by_sqlalchemy), partial(_same_rows, _by_driver)
        ways: dict[Work, list[float]] = {work: [] for work in (_place_and_confirm, *same_rows, _bare)}
        for turn in range(ROUNDS):
            for work, reached in ways.items():
                first = 1_000_001 + (turn + ROUNDS * (work is same_rows[1])) * numbers
                reached.append(_throughput(server, engine.url, work, first, pairs))
        ours, *references = (sorted(reached)[ROUNDS // 2] for reached in ways.values())
        names = ("the same rows inserted", "the same rows sent by the driver", "rows of a table with a key alone")
        for name, reference in zip(names, references, strict=True):
            yield Figure(
                "holds",
                f"place and confirm, 16 clients, beside {name}",
                ours,
                reference,
                "transactions/CPU s",
                0.7,
                at_least=True,
                peak_mb=peak_mb(),
            )
