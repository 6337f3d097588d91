"""The first free starts of a service in a city, beside one look-up by primary key through the same connection.

A chain of 50 clinics in ten cities, 1,000 agendas of 22 slots a day for 90 days: two million slots. 290,000 of them are
booked, and those are the next ones: eleven days are full to the last slot.

Measured is the CPU of the server's process and of this one, which does not depend on who else is at work there.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import sqlalchemy as sa

from benchmarks.harness import Bench, Figure, peak_mb, settle
from polydesk_dagster.clinic.bookings import answers, availability, confirming, holds

AS_OF = datetime(2026, 3, 10, 6, 0, tzinfo=UTC)
CLINICS, DAYS = 50, 90
TIMES = 50
"""Searches of a round."""
ROUNDS = 15
"""In turn; the median of each way counts."""

# The triggers that write one booking's rows are left out of the bulk, which writes the same rows itself.
# Agenda n is of clinic 1 + n % 50 and of specialist n; each clinic has twenty services, an agenda offers two of
# them: in a city of five clinics ten doctors have each.
_WORLD = """
    INSERT INTO clinic (id, code, name, region, municipality_code)
    SELECT n, 'BO' || n, 'Banco di prova', 'Emilia-Romagna', 'A' || 900 + n % :cities
    FROM generate_series(1, :clinics) n;
    INSERT INTO location (id, clinic_id, name, municipality_code)
    SELECT id, id, 'Sede', municipality_code FROM clinic;
    INSERT INTO specialist (id, clinic_id, last_name, first_name, fiscal_code)
    SELECT n, 1 + n % :clinics, 'Bianchi', 'Elena', 'BNCLNE70A' || n FROM generate_series(1, :agendas) n;
    INSERT INTO service (id, clinic_id, code, name, duration_minutes, bookable_online)
    SELECT 20 * (c.id - 1) + k, c.id, 'S' || k, 'Visita ' || k, CASE WHEN k % 4 = 0 THEN 40 ELSE 20 END, true
    FROM clinic c, generate_series(1, 20) k;
    INSERT INTO patient (id, last_name, first_name) SELECT n, 'Rossi', 'Mario' FROM generate_series(1, 2000) n;
    INSERT INTO agenda (id, clinic_id, location_id, specialist_id, name, slot_minutes, online)
    SELECT n, 1 + n % :clinics, 1 + n % :clinics, n, 'Agenda ' || n, 20, true FROM generate_series(1, :agendas) n;
    INSERT INTO agenda_service (clinic_id, agenda_id, service_id)
    SELECT a.clinic_id, a.id, 20 * (a.clinic_id - 1) + 1 + (a.id / :clinics + 10 * k) % 20
    FROM agenda a, generate_series(0, 1) k;
    INSERT INTO slot (agenda_id, starts_at, ends_at, local_date, capacity)
    SELECT a.id, s.at, s.at + interval '20 minutes', CAST(s.at AS date), 1
    FROM agenda a, generate_series(0, :days - 1) d, generate_series(0, 21) k,
         LATERAL (SELECT CAST(:as_of AS timestamptz) + d * interval '1 day' + interval '1 hour'
                         + k * interval '20 minutes' AS at) s
    ORDER BY a.id, s.at;
    SET LOCAL session_replication_role = replica;
    INSERT INTO appointment (clinic_id, agenda_id, slot_id, service_id, specialist_id, patient_id, starts_at, ends_at,
                             status, channel)
    SELECT a.clinic_id, a.id, s.id, 20 * (a.clinic_id - 1) + 1, a.specialist_id, 1 + s.id % 2000, s.starts_at,
           s.ends_at, 'booked', 'desk'
    FROM slot s JOIN agenda a ON a.id = s.agenda_id
    WHERE (s.id * 7919) % 1000 < CASE CAST(s.starts_at AS date) - CAST(CAST(:as_of AS timestamptz) AS date)
                                 WHEN 11 THEN 900 WHEN 12 THEN 700 WHEN 13 THEN 500
                                 ELSE CASE WHEN s.starts_at < CAST(:as_of AS timestamptz) + interval '11 days'
                                           THEN 1000 ELSE 0 END END;
    INSERT INTO seat (slot_id, unit, appointment_id) SELECT slot_id, 1, id FROM appointment;
    INSERT INTO occupancy (kind, subject, during, within, appointment_id)
    SELECT 'doctor', specialist_id, tstzrange(starts_at, ends_at), 4 * agenda_id, id FROM appointment;
    UPDATE open_day d SET longest = longest_of(n.ranges), ranges = n.ranges, slots = n.slots, starts = n.starts
    FROM open_day o CROSS JOIN LATERAL open_slots(o.agenda_id, o.day) n
    WHERE d.agenda_id = o.agenda_id AND d.day = o.day
"""

# What one would write without a summary: read the slots in order and look at the seats of each.
_OBVIOUS = sa.text("""
    SELECT s.id, s.starts_at, a.id, v.id, l.name
    FROM service v JOIN agenda_service o ON o.service_id = v.id JOIN agenda a ON a.id = o.agenda_id AND a.online
    JOIN location l ON l.id = a.location_id AND l.municipality_code = :city
    JOIN slot s ON s.agenda_id = a.id AND s.state = 'free' AND s.starts_at > :as_of AND s.starts_at < :before
    WHERE v.code = :code
      AND (SELECT count(*) FROM seat t WHERE t.slot_id = s.id AND coalesce(t.held_until > :as_of, true)) < s.capacity
    ORDER BY s.starts_at, s.id LIMIT 20""")

_ONE_ROW = sa.text("SELECT id, starts_at FROM slot WHERE id = :id")


def figures(bench: Bench) -> Iterator[Figure]:
    agendas = max(CLINICS, bench.size(1000))
    cities = 10 if agendas > CLINICS * 10 else 5  # ten doctors of a service in each, at any scale
    given = {"as_of": AS_OF, "clinics": CLINICS, "cities": cities, "agendas": agendas, "days": DAYS}
    with bench.engine() as engine:
        with engine.begin() as connection:
            for statement in _WORLD.split(";\n"):
                connection.execute(sa.text(statement), given)
            availability.tidy(connection)
        settle(engine)
        before = AS_OF + timedelta(days=14)
        wanted = availability.Wanted("S1", AS_OF, before, municipality="A903")
        obvious = {"as_of": AS_OF, "before": before, "city": "A903", "code": "S1"}
        with engine.connect() as connection:
            found = [start.slot_id for start in availability.first_starts(connection, wanted, AS_OF)]
            expected = [row[0] for row in connection.execute(_OBVIOUS, obvious)]
            if len(found) != 20 or found != expected:
                raise RuntimeError(f"trovati {found}, attesi {expected}")
            ours, look_up, scan = _medians(
                connection,
                lambda: availability.first_starts(connection, wanted, AS_OF),
                lambda: connection.execute(_ONE_ROW, {"id": found[0]}).all(),
                lambda: connection.execute(_OBVIOUS, obvious).all(),
            )
        name = "first 20 starts of a service in a city within 14 days"
        yield Figure("availability", f"{name}, beside one look-up by key", ours, look_up, "ms", 5, peak_mb=peak_mb())
        yield Figure(
            "availability", f"{name}, beside the SQL without a summary", ours, scan, "ms", 0.2, peak_mb=peak_mb()
        )
        yield _cost(engine, bench)


def _cost(engine: sa.Engine, bench: Bench) -> Figure:
    """What keeping the summary costs whoever books: the same bookings with its triggers and without, in turn."""
    pairs = bench.size(200)
    with engine.connect() as connection:
        free = iter(
            connection.execute(
                sa.text("""SELECT s.id, min(o.service_id) FROM slot s JOIN agenda_service o ON o.agenda_id = s.agenda_id
                           JOIN service v ON v.id = o.service_id AND v.duration_minutes = 20
                           WHERE s.starts_at > :after GROUP BY s.id, s.starts_at ORDER BY s.starts_at, s.id
                           LIMIT :slots"""),
                {"after": AS_OF + timedelta(days=20), "slots": pairs * ROUNDS * 2},
            ).all()
        )
    taken: dict[str, list[float]] = {"ENABLE": [], "DISABLE": []}
    for _ in range(ROUNDS):
        for how, each in taken.items():
            with engine.begin() as connection:
                for deed in ("insert", "update", "delete"):
                    connection.execute(sa.text(f"ALTER TABLE seat {how} TRIGGER seat_opens_{deed}"))
            with engine.connect() as connection:
                each.append(_cpu(connection, lambda: _book(connection, itertools.islice(free, pairs))))
    ours, bare = (1000 * statistics.median(each) / pairs for each in (taken["ENABLE"], taken["DISABLE"]))
    name = "place and confirm, beside the same without the summary's triggers"
    return Figure("availability", name, ours, bare, "ms", 1.1, peak_mb=peak_mb())


def _book(connection: sa.Connection, free: Iterable[Sequence[int]]) -> None:
    for row in free:
        slot, service = row[0], row[1]
        token = holds.new_token()
        holds.place(connection, slot_id=slot, service_id=service, token=token, visitor=token, as_of=AS_OF)
        connection.commit()
        # A patient for each: this measures no conflict.
        booking = holds.Booking(service_id=service, contact_email="chi@example.org", paid=True)
        reply = confirming.confirm(connection, token=token, booking=booking, as_of=AS_OF)
        connection.commit()
        if reply.answer is not answers.Answer.CONFIRMED:
            raise RuntimeError(f"slot {slot}: {reply.answer}")


def _cpu(connection: sa.Connection, action: Callable[[], object]) -> float:
    """CPU seconds of one action: of the process that serves the connection, and of this thread."""
    process = Path(f"/proc/{connection.connection.driver_connection.info.backend_pid}/schedstat")  # pyrefly: ignore[missing-attribute]
    server, client = int(process.read_text().split()[0]), time.thread_time()
    action()
    return (int(process.read_text().split()[0]) - server) / 1e9 + time.thread_time() - client


def _medians(connection: sa.Connection, *ways: Callable[[], object]) -> list[float]:
    """Milliseconds of each way. A round gives each about the same time, so that what a preemption costs hits them
    alike."""

    def spent(way: Callable[[], object], calls: int) -> float:
        return 1000 / calls * _cpu(connection, lambda: [way() for _ in range(calls)])

    first = [spent(way, TIMES) for way in ways]  # statements are prepared, plans are made
    calls = [max(1, round(TIMES * first[0] / each)) for each in first]
    rounds = [[spent(way, each) for way, each in zip(ways, calls, strict=True)] for _ in range(ROUNDS)]
    return [statistics.median(each) for each in zip(*rounds, strict=True)]
