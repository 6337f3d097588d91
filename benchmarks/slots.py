"""Generation of slots beside one plain ``INSERT … SELECT`` that expands the same rules; a closed day derived again."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import sqlalchemy as sa

from benchmarks.harness import Bench, Figure, cpu, peak_mb, seconds
from polydesk_dagster.clinic.calendar import slots, touched

AS_OF = datetime(2026, 1, 12, 2, 0, tzinfo=UTC)
CLINICS = 20

# Twenty clinics share the agendas; each works two turns of eleven twenty-minute slots on all seven days.
CHAIN = """
    INSERT INTO clinic (id, code, name, region, municipality_code, horizon_days)
    SELECT n, 'C' || n, 'Clinica ' || n, 'Lazio', 'H501', :horizon FROM generate_series(1, :clinics) n;
    INSERT INTO location (id, clinic_id, name) SELECT id, id, 'Sede' FROM clinic;
    INSERT INTO resource (id, clinic_id, location_id, kind, name) SELECT id, id, id, 'room', 'Sala' FROM clinic;
    INSERT INTO agenda (id, clinic_id, location_id, resource_id, name, auto_generate, slot_minutes)
    SELECT n, 1 + n % :clinics, 1 + n % :clinics, 1 + n % :clinics, 'Agenda ' || n, true, 20
    FROM generate_series(1, :agendas) n;
    INSERT INTO agenda_rule (agenda_id, weekday, starts_at, ends_at, valid_from)
    SELECT a.id, weekday, turn.starts_at, turn.ends_at, '2020-01-01'
    FROM agenda a, generate_series(1, 7) weekday,
         (VALUES (time '08:00', time '11:40'), ('14:00', '17:40')) turn(starts_at, ends_at)
"""

REFERENCE = """
    CREATE TABLE reference (LIKE slot INCLUDING ALL);
    ALTER TABLE reference ADD FOREIGN KEY (agenda_id) REFERENCES agenda;
    CREATE TRIGGER reference_no_overlap AFTER INSERT ON reference REFERENCING NEW TABLE AS touched
        FOR EACH STATEMENT EXECUTE FUNCTION reference_no_overlap();
"""

# What somebody would write who needs no plan, no guard, no undo and no care where the clocks change.
EXPANDED = """
    INSERT INTO reference (agenda_id, starts_at, ends_at, local_date, capacity)
    SELECT a.id, s.starts_at AT TIME ZONE k.time_zone, s.ends_at AT TIME ZONE k.time_zone, d.day, a.capacity
    FROM clinic k
    JOIN agenda a ON a.clinic_id = k.id
    CROSS JOIN LATERAL (SELECT CAST(:as_of AT TIME ZONE k.time_zone AS date) + n AS day
                        FROM generate_series(0, k.horizon_days - 1) n) d
    JOIN agenda_rule r ON r.agenda_id = a.id AND r.weekday = extract(isodow FROM d.day) AND d.day >= r.valid_from
    CROSS JOIN LATERAL (SELECT g AS starts_at, g + make_interval(mins => a.slot_minutes) AS ends_at
                        FROM generate_series(d.day + r.starts_at,
                                             d.day + r.ends_at - make_interval(mins => a.slot_minutes),
                                             make_interval(mins => a.slot_minutes)) g) s
    WHERE s.starts_at AT TIME ZONE k.time_zone > :as_of
      AND NOT EXISTS (SELECT FROM closure c
                      WHERE c.layer = 'national' AND d.day BETWEEN c.date_from AND c.date_to AND c.lifted_at IS NULL)
"""
DIFFERENT = """
    SELECT count(*) FROM (SELECT agenda_id, starts_at, ends_at, local_date, capacity FROM slot) s
    FULL JOIN reference r USING (agenda_id, starts_at, ends_at, local_date, capacity)
    WHERE r.id IS NULL OR s.agenda_id IS NULL
"""
CLOSED = """
    INSERT INTO closure (layer, name, date_from, date_to) VALUES ('national', 'Festa', '2026-01-20', '2026-01-20')
"""

CLOSURE = """
    INSERT INTO closure (layer, name, date_from, date_to) VALUES ('national', 'Prova', '2026-02-02', '2026-02-02');
    CREATE TEMP TABLE touched_days AS
    SELECT id AS agenda_id, date '2026-02-02' AS local_date FROM agenda WHERE id <= 100
"""


def figures(bench: Bench) -> Iterator[Figure]:
    agendas = bench.size(1000)
    with bench.engine() as engine:
        load(engine, agendas, 90)
        with engine.begin() as connection:
            connection.execute(sa.text(CLOSED))
        ours = cpu(engine, lambda: slots.generate(engine, AS_OF))
        peak = peak_mb()
        again = cpu(engine, lambda: slots.generate(engine, AS_OF))
        small = _closure_seconds(engine)
        reference = _reference(engine)
        with engine.connect() as connection:
            rows = connection.scalar(sa.text("SELECT count(*) FROM reference")) or 0
            assert not connection.scalar(sa.text(DIFFERENT)), "the reference expands the rules otherwise"
    yield Figure("slots", "rows per CPU second, first run", rows / ours, rows / reference, "rows/s", 0.5, True, peak)
    yield Figure("slots", "second run beside the first, CPU", again, ours, "s", 0.4, peak_mb=peak)
    yield Figure("slots", "Python's peak memory beside 300 MB", peak, 300, "MB", 1.0, peak_mb=peak)
    with bench.engine() as engine:
        load(engine, agendas, 730)
        with engine.begin() as connection:
            connection.execute(sa.text("UPDATE clinic SET horizon_days = 730"))
        slots.generate(engine, AS_OF)
        large = _closure_seconds(engine)
    yield Figure("slots", "one closure of 100 agendas, 8 times the slots", large, small, "s", 1.5, peak_mb=peak)


def load(engine: sa.Engine, agendas: int, horizon: int, clinics: int = CLINICS) -> None:
    with engine.begin() as connection:
        for statement in CHAIN.split(";"):
            connection.execute(sa.text(statement), {"clinics": clinics, "agendas": agendas, "horizon": horizon})
        connection.execute(sa.text("ANALYZE"))


def _closure_seconds(engine: sa.Engine) -> float:
    """Re-derive one closed day of a hundred agendas; rolled back, so that it can be measured again."""
    with engine.connect() as connection:
        for statement in CLOSURE.split(";"):
            connection.execute(sa.text(statement))
        elapsed = seconds(lambda: touched.derive(connection, "touched_days", AS_OF))
        connection.rollback()
    return elapsed


def _reference(engine: sa.Engine) -> float:
    """CPU seconds of one statement that expands the same slots into a table with the same columns, indexes, checks,
    foreign key and trigger against overlaps."""
    with engine.begin() as connection:
        body = connection.scalar(sa.text("SELECT prosrc FROM pg_proc WHERE proname = 'slot_no_overlap'"))
        function = str(body).replace("JOIN slot s", "JOIN reference s").replace("%", "%%")
        for statement in REFERENCE.split(";")[:-1]:
            if "CREATE TRIGGER" in statement:
                connection.exec_driver_sql(
                    f"CREATE FUNCTION reference_no_overlap() RETURNS trigger LANGUAGE plpgsql AS $body${function}$body$"
                )
            connection.exec_driver_sql(statement)

    def expand() -> None:
        with engine.begin() as connection:
            connection.execute(sa.text(EXPANDED), {"as_of": AS_OF})

    return cpu(engine, expand)
