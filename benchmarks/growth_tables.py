"""The tables beside ``slot`` that grow, each kept whole and cut: appointments, ledger, inbox and change log by month,
prices by clinic; at three sizes, each four times the last, so that what grows with a table shows.

Of both, by the processor time of the session and the blocks that it looks at: adding rows, each look-up that the
product makes, and clearing away the oldest part: in batches and vacuumed where the table is whole, else by its drop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from benchmarks.harness import Bench, Figure, peak_mb, settle

SIZES = (25_000, 100_000, 400_000)
DAYS, PARTS = 600, 20
"""Rows of each table are over so many days, thirty of them a part; or of so many clinics."""
LOOKS, ADDED = 2_000, 600

AT = "timestamptz '2025-01-01' + (n * 600 / {rows}) * interval '1 day'"


@dataclass(frozen=True, slots=True)
class Kept:
    """A table, by what it would be cut, its rows by ``n`` and the instant ``at``, and how rows of ``n`` are found."""

    columns: str
    values: str
    looks: Mapping[str, str]
    cut: str


TABLES: Mapping[str, Kept] = {
    "appointment": Kept(
        "id, clinic_id, slot_id, service_id, patient_id, external_id, starts_at, ends_at, status, channel, created_at",
        "n, mod(n, 20), n, mod(n, 400), mod(n, 50000), 'A' || n, at, at + interval '20 minutes', 'booked', 'desk', at",
        {
            "by id": "id = n",
            "by the source's code": "clinic_id = mod(n, 20) AND external_id = 'A' || n",
            "a patient's": "patient_id = mod(n, 50000)",
            "a clinic's day": "clinic_id = mod(n, 20) AND starts_at >= at AND starts_at < till",
        },
        "starts_at",
    ),
    "message_ledger": Kept(
        "id, subject, subject_id, version, kind, recipient_type, recipient_id, clinic_id, message_id, planned_at",
        "n, 'appointment', n, 1, 'reminder', 'patient', mod(n, 50000), mod(n, 20), n, at",
        {
            "by what it is about": "subject_id = n AND kind = 'reminder' AND version = 1 AND subject = 'appointment'",
            "a message's": "message_id = n",
        },
        "planned_at",
    ),
    "event_inbox": Kept(
        "id, clinic_id, event_id, sequence, type, entity, state, received_at, changed_at",
        "n, mod(n, 20), md5(n::text)::uuid, n, 'booking', 'B' || n, 'applied', at, at",
        {"by the event's id": "clinic_id = mod(n, 20) AND event_id = md5(n::text)::uuid", "by id": "id = n"},
        "received_at",
    ),
    "statistic_change": Kept(
        "topic, clinic_id, day, changed_at",
        "'appointments', mod(n, 20), at::date, at",
        {},
        "changed_at",
    ),
    "price": Kept(
        "id, clinic_id, service_id, amount, valid_from",
        "n, mod(n, 20), n, 50, date '2025-01-01'",
        {
            "by id": "id = n",
            "a service's": "service_id = n",
            "a clinic's service's": "clinic_id = mod(n, 20) AND service_id = n",
        },
        "clinic_id",
    ),
}  # fmt: skip

FILL = """
    INSERT INTO {table} ({columns})
    SELECT {values} FROM generate_series({first}::bigint, {last}) AS n CROSS JOIN LATERAL (SELECT {at} AS at) x
"""
LOOK = """
DO $$ DECLARE n bigint; at timestamptz; till timestamptz; found bigint; BEGIN
    FOR k IN 1..{looks} LOOP
        n := 1 + mod(k::bigint * 7919 * 101, {rows});
        at := {at};
        till := at + interval '1 day';
        SELECT count(*) INTO found FROM {table} WHERE {where};
    END LOOP;
END $$
"""
CLEAR = """
DO $$ DECLARE batch tid[]; BEGIN
    FOR batch IN SELECT array_agg(ctid) FROM (SELECT ctid, row_number() OVER () AS n FROM {table} WHERE {old}) o
                 GROUP BY n / 250 LOOP
        DELETE FROM {table} WHERE ctid = ANY(batch);
    END LOOP;
END $$
"""
COUNTED = """
    SELECT sum(coalesce(hits, 0) + coalesce(reads, 0) + coalesce(extends, 0))
    FROM pg_stat_get_backend_io(pg_backend_pid())
"""


def figures(bench: Bench) -> Iterator[Figure]:
    with bench.engine() as engine:
        for table, kept in TABLES.items():
            for rows in (max(DAYS, bench.size(size)) for size in SIZES):
                _make(engine, table, kept, rows)
                whole, cut = (_measure(engine, each, kept, rows) for each in ("whole", "cut"))
                for what, ours in whole.items():
                    for unit, mine, others in zip(("µs", "blocks"), ours, cut[what], strict=True):
                        yield Figure("growth_tables", f"{table}, {rows}: {what}, whole beside cut by {kept.cut}", mine,
                                     others, unit, 1.0, peak_mb=peak_mb())  # fmt: skip


def _make(engine: sa.Engine, table: str, kept: Kept, rows: int) -> None:
    by_clinic = kept.cut == "clinic_id"
    with engine.begin() as connection:
        run = connection.exec_driver_sql
        run("DROP TABLE IF EXISTS whole, cut")
        run(f"CREATE TABLE whole (LIKE {table} INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING INDEXES)")
        run(f"CREATE TABLE cut (LIKE {table} INCLUDING DEFAULTS INCLUDING CONSTRAINTS) "
            f"PARTITION BY {'LIST' if by_clinic else 'RANGE'} ({kept.cut})")  # fmt: skip
        indexes = run(
            "SELECT pg_get_indexdef(indexrelid), indisunique, indisexclusion FROM pg_index "
            "WHERE indrelid = 'whole'::regclass"
        ).all()
        for definition, unique, exclusion in indexes:
            if not exclusion:
                ordered = definition[definition.index(" USING") :]
                more = unique and kept.cut not in ordered
                run(f"CREATE {'UNIQUE' if unique else ''} INDEX ON cut {ordered[:-1] if more else ordered}"
                    + (f", {kept.cut})" if more else ""))  # fmt: skip
        exclusions = run("SELECT pg_get_constraintdef(oid) FROM pg_constraint "
                         "WHERE conrelid = 'whole'::regclass AND contype = 'x'").scalars().all()  # fmt: skip
        for part in range(PARTS + 1):
            bounds = f"IN ({part})" if by_clinic else (
                f"FROM (timestamptz '2025-01-01' + {30 * part} * interval '1 day') "
                f"TO (timestamptz '2025-01-01' + {30 * part + 30} * interval '1 day')")  # fmt: skip
            run(f"CREATE TABLE cut_{part} PARTITION OF cut FOR VALUES {bounds}")
            for each in exclusions:
                run(f"ALTER TABLE cut_{part} ADD {each}")
        for each in ("whole", "cut"):
            run(_filling(each, kept, rows, 0, rows - 1))
    settle(engine)


def _filling(table: str, kept: Kept, rows: int, first: int, last: int) -> str:
    return FILL.format(table=table, columns=kept.columns, values=kept.values, first=first, last=last,
                       at=AT.format(rows=rows))  # fmt: skip


def _measure(engine: sa.Engine, table: str, kept: Kept, rows: int) -> dict[str, tuple[float, float]]:
    """Microseconds of the server's processor, and blocks, for a row or a look-up."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:

        def run(*statements: str) -> Callable[[], None]:
            def action() -> None:
                for statement in statements:
                    connection.exec_driver_sql(statement)

            return action

        looks = {
            what: run(LOOK.format(looks=LOOKS, rows=rows, at=AT.format(rows=rows), table=table, where=where))
            for what, where in kept.looks.items()
        }
        old = "clinic_id = 0" if kept.cut == "clinic_id" else f"{kept.cut} < timestamptz '2025-01-31'"
        count = connection.exec_driver_sql(f"SELECT count(*) FROM {table} WHERE {old}").scalar_one()
        clear = (CLEAR.format(table=table, old=old), "VACUUM (PARALLEL 0) whole")
        added = min(ADDED, rows // PARTS)  # what comes after the last day stays in the last part
        measured = {}
        for what, action in looks.items():
            action()
            measured[what] = _spent(connection, action, LOOKS)
        measured["a row added"] = _spent(connection, run(_filling(table, kept, rows, rows, rows + added - 1)), added)
        measured["a row cleared away"] = _spent(
            connection, run(*clear) if table == "whole" else run("DROP TABLE cut_0"), count
        )
        return measured


def _spent(connection: sa.Connection, action: Callable[[], None], among: int) -> tuple[float, float]:
    busy = Path(f"/proc/{connection.scalar(sa.text('SELECT pg_backend_pid()'))}/schedstat")

    def so_far() -> tuple[float, float]:
        connection.exec_driver_sql("SELECT pg_stat_force_next_flush()")
        blocks = connection.exec_driver_sql(COUNTED).scalar_one()
        return int(busy.read_text().split()[0]) / 1e3, float(blocks)

    before = so_far()
    action()
    after = so_far()
    return (after[0] - before[0]) / among, (after[1] - before[1]) / among
