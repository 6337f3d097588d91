"""Refreshing statistics after few changes and after none, beside counting everything, beside one plain GROUP BY."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import sqlalchemy as sa

from benchmarks.harness import Bench, Figure, cpu, peak_mb
from polydesk_dagster.clinic.statistics.refresh import compare, refresh

AS_OF = datetime(2026, 1, 12, 10, 0, tzinfo=UTC)
CLINICS = 100
DAYS = 500
PER_DAY = 100
"""Appointments of one clinic on one day: 100 clinics, 500 days, 5,000,000 in all."""

# Twelve specialists a clinic, each with an agenda and eight services; days stand together in the heap, as they come in.
CHAIN = """
    INSERT INTO clinic (id, code, name, region, municipality_code)
    SELECT n, 'C' || n, 'Clinica ' || n, 'Lazio', 'H501' FROM generate_series(1, :clinics) n;
    INSERT INTO location (id, clinic_id, name) SELECT id, id, 'Sede' FROM clinic;
    INSERT INTO specialist (id, clinic_id, last_name, first_name)
    SELECT c.id * 100 + n, c.id, 'Cognome ' || n, 'Nome' FROM clinic c, generate_series(0, 11) n;
    INSERT INTO service (id, clinic_id, code, name, duration_minutes)
    SELECT c.id * 100 + n, c.id, 'S' || n, 'Visita ' || n, 20 FROM clinic c, generate_series(0, 7) n;
    INSERT INTO agreement (id, clinic_id, name, kind, valid_from)
    SELECT c.id * 100 + n, c.id, 'Fondo ' || n, 'fund', '2020-01-01' FROM clinic c, generate_series(1, 3) n;
    INSERT INTO agenda (id, clinic_id, location_id, specialist_id, name, slot_minutes)
    SELECT id, clinic_id, clinic_id, id, last_name, 20 FROM specialist;
    INSERT INTO patient (id, last_name, first_name) VALUES (1, 'Prova', 'Paziente')
"""

SLOTS = """
    INSERT INTO slot (agenda_id, starts_at, ends_at, local_date, capacity)
    SELECT c * 100 + n % 12, at, at + interval '20 minutes', CAST(at AS date), 1
    FROM generate_series(1, :days) d, generate_series(1, :clinics) c, generate_series(0, :per_day - 1) n,
         LATERAL (SELECT timestamptz '2025-01-01 07:00Z' + d * interval '1 day' + n / 12 * interval '20 minutes') t (at)
    ORDER BY d, c, n
"""

APPOINTMENTS = """
    INSERT INTO appointment (clinic_id, agenda_id, service_id, specialist_id, patient_id, agreement_id, starts_at,
                             ends_at, created_at, status, channel, quoted_price, cancelled_at)
    SELECT c, c * 100 + n % 12, c * 100 + r % 8, c * 100 + n % 12, 1,
           CASE WHEN r % 10 < 3 THEN c * 100 + r % 10 + 1 END,
           at, at + interval '20 minutes', at - make_interval(hours => CAST(r % 900 AS integer)),
           CASE WHEN r % 100 < 6 THEN 'cancelled' WHEN at > :now THEN 'booked'
                WHEN r % 100 < 10 THEN 'no_show' ELSE 'completed' END,
           (ARRAY['online', 'desk', 'phone', 'studiolab'])[1 + r % 4], 50 + r % 120, CASE WHEN r % 100 < 6 THEN at END
    FROM generate_series(1, :days) d, generate_series(1, :clinics) c, generate_series(0, :per_day - 1) n,
         LATERAL (SELECT timestamptz '2025-01-01 07:00Z' + d * interval '1 day' + n / 12 * interval '20 minutes',
                         abs(hashint4(n * 1000003 + d * 1009 + c))) t (at, r)
    ORDER BY d, c, n
"""

# The same cells by hand: one GROUP BY a table of facts, written where nothing else is and without an index.
REFERENCE = """
    CREATE TABLE by_hand AS
    SELECT a.clinic_id, CAST(a.starts_at AT TIME ZONE c.time_zone AS date) AS day, agenda_id, specialist_id, service_id,
           agreement_id, channel, status, count(*) AS appointments,
           sum(CAST(floor(date_part('epoch', ends_at - starts_at) / 60) AS integer)) AS minutes,
           sum(quoted_price) AS quoted, count(quoted_price) AS priced,
           count(*) FILTER (WHERE a.created_at <= starts_at) AS lead_known,
           sum(CAST(floor(date_part('epoch', starts_at - a.created_at) / 60) AS integer))
               FILTER (WHERE a.created_at <= starts_at) AS lead_minutes,
           count(*) FILTER (WHERE a.created_at <= starts_at AND starts_at - a.created_at <= '7 days') AS within_7_days,
           count(*) FILTER (WHERE a.created_at <= starts_at AND starts_at - a.created_at <= '30 days') AS within_30_days
    FROM appointment a JOIN clinic c ON c.id = a.clinic_id GROUP BY 1, 2, 3, 4, 5, 6, 7, 8;
    CREATE TABLE offer_by_hand AS
    SELECT a.clinic_id, s.local_date, s.agenda_id, count(*) AS slots,
           sum(CAST(extract(epoch FROM s.ends_at - s.starts_at) / 60 AS bigint) * s.capacity) AS minutes
    FROM slot s JOIN agenda a ON a.id = s.agenda_id WHERE s.state <> 'retired' GROUP BY 1, 2, 3;
    CREATE TABLE funnel_by_hand AS
    SELECT a.clinic_id, CAST(a.created_at AT TIME ZONE c.time_zone AS date) AS day, count(*) AS booked,
           count(*) FILTER (WHERE verified_at IS NOT NULL OR confirmed_by_staff_at IS NOT NULL) AS verified,
           count(*) FILTER (WHERE status NOT IN ('unverified', 'expired')) AS confirmed
    FROM appointment a JOIN clinic c ON c.id = a.clinic_id WHERE channel = 'online' GROUP BY 1, 2
"""


def figures(bench: Bench) -> Iterator[Figure]:
    """Counting everything, one cell in a hundred, one row in a hundred so that every day changed, and nothing."""
    with bench.engine() as engine:
        days = bench.size(DAYS)
        sizes = {"clinics": CLINICS, "days": days, "per_day": PER_DAY}
        with engine.begin() as connection:
            connection.execute(sa.text("SET LOCAL session_replication_role = replica"))
            for statement in (*CHAIN.split(";"), SLOTS, APPOINTMENTS):
                connection.execute(sa.text(statement), {**sizes, "now": AS_OF})
        _settle(engine)
        by_hand = cpu(engine, lambda: _by_hand(engine))
        first = cpu(engine, lambda: refresh(engine, AS_OF, full=True))
        _settle(engine)
        whole = cpu(engine, lambda: refresh(engine, AS_OF, full=True))

        yield _figure("tutto, tabelle vuote", first, by_hand, 2)
        yield _figure("tutto, ricalcolo", whole, by_hand, 2)

        def few(where: str) -> float:
            with engine.begin() as connection:
                connection.execute(
                    sa.text(f"""
                        UPDATE appointment SET quoted_price = coalesce(quoted_price, 0) + 1
                        WHERE {where}"""),
                    {"from": AS_OF, "days": max(1, days // 100)},
                )
            return cpu(engine, lambda: refresh(engine, AS_OF))

        busy = (
            "starts_at >= timestamptz '2025-01-05' AND starts_at < timestamptz '2025-01-05' + :days * interval '1 day'"
        )
        yield _figure("1 % cambiato, giorni vicini", few(busy), whole, 1 / 20)
        yield _figure("1 % cambiato, in ogni giorno", few("abs(hashint8(id)) % 100 = 0"), whole, 2)
        nothing = cpu(engine, lambda: refresh(engine, AS_OF))
        yield _figure("nulla cambiato", nothing, whole, 1 / 200)
        if compare(engine, AS_OF, whole=True).drifted:
            raise AssertionError("le statistiche incrementali non sono quelle complete")


def _by_hand(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        connection.execute(sa.text("SET LOCAL work_mem = '128MB'"))
        connection.execute(sa.text(REFERENCE))


def _settle(engine: sa.Engine) -> None:
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.text("VACUUM ANALYZE"))


def _figure(figure: str, ours: float, reference: float, target: float) -> Figure:
    return Figure("statistics", figure, ours, reference, "CPU s", target, peak_mb=peak_mb())
