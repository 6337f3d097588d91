"""What a table's growth costs: slots kept whole and slots kept by month, at three sizes each four times the last.

Of both: adding a day, finding an agenda's day, finding a slot by its id, and clearing away the oldest day, by the
processor time of the session that does it. Clearing by month is the drop of a month.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import sqlalchemy as sa

from benchmarks.harness import Bench, Figure, peak_mb, settle

SIZES = (1_000_000, 4_000_000, 16_000_000)
DAYS, A_DAY = 500, 20
"""Of each agenda, and slots on each."""
LOOKS = 20_000

TABLES = """
    CREATE TABLE whole (LIKE slot INCLUDING ALL);
    CREATE TABLE by_month (LIKE slot INCLUDING DEFAULTS INCLUDING CONSTRAINTS) PARTITION BY RANGE (local_date);
    ALTER TABLE by_month ADD PRIMARY KEY (id, local_date), ADD UNIQUE (agenda_id, starts_at, local_date);
    CREATE INDEX by_month_day ON by_month (agenda_id, local_date)
"""

# In the order in which nights have written them: day after day, each agenda's together.
ROWS = """
    INSERT INTO {table} (id, agenda_id, starts_at, ends_at, local_date, capacity, state, manual)
    SELECT :base + row_number() OVER (ORDER BY d, a, n), a, day + time '08:00' + n * interval '20 minutes',
           day + time '08:20' + n * interval '20 minutes', day, 1, 'free', false
    FROM generate_series(CAST(:first AS int), CAST(:last AS int)) AS d
    CROSS JOIN LATERAL (SELECT date '2025-01-01' + d AS day) x
    CROSS JOIN generate_series(1, CAST(:agendas AS int)) AS a
    CROSS JOIN generate_series(0, :a_day - 1) AS n
"""

LOOK = """
DO $$ DECLARE found bigint; BEGIN
    FOR k IN 1..{looks} LOOP
        SELECT {what} INTO found FROM {table}
        WHERE {where};
    END LOOP;
END $$
"""
A_DAYS = "agenda_id = 1 + k * 7919 % {agendas} AND local_date = date '2025-01-01' + k * 104729 % 500"
BY_ID = "id = 1 + k::bigint * 7919 * 101 % {rows}"

# As clean-up does: batch by batch, by id, each from where the last one ended.
CLEAR = """
DO $$ DECLARE keys bigint[]; BEGIN
    LOOP
        SELECT array_agg(id) INTO keys
        FROM (SELECT id FROM {table} WHERE id > coalesce(keys[cardinality(keys)], 0) AND local_date = '2025-01-01'
                                       AND id <= {added} ORDER BY id LIMIT 250) k;
        EXIT WHEN keys IS NULL;
        DELETE FROM {table} WHERE id = ANY(keys);
    END LOOP;
END $$
"""


def figures(bench: Bench) -> Iterator[Figure]:
    for size in SIZES:
        rows = bench.size(size)
        agendas = max(1, rows // (DAYS * A_DAY))
        with bench.engine() as engine:
            _make(engine, agendas)
            whole, by_month = (_measure(engine, table, agendas) for table in ("whole", "by_month"))
        for what, ours in whole.items():
            yield Figure("growth", f"{what}, {agendas * DAYS * A_DAY} slots kept whole beside by month", ours,
                         by_month[what], "µs", 1.0, peak_mb=peak_mb())  # fmt: skip


def _make(engine: sa.Engine, agendas: int) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql(TABLES)
        for month in range(20):
            year, place = divmod(month, 12)
            first, after = (
                f"{2025 + year}-{place + 1:02}-01",
                f"{2025 + year + place // 11}-{(place + 1) % 12 + 1:02}-01",
            )
            connection.exec_driver_sql(
                f"CREATE TABLE by_month_{month} PARTITION OF by_month FOR VALUES FROM ('{first}') TO ('{after}')"
            )
        for table in ("whole", "by_month"):
            values = {"base": 0, "first": 0, "last": DAYS - 1, "agendas": agendas, "a_day": A_DAY}
            connection.execute(sa.text(ROWS.format(table=table)), values)
    settle(engine)


def _measure(engine: sa.Engine, table: str, agendas: int) -> dict[str, float]:
    """Microseconds of the server's processor for a row or a look-up."""
    rows, added = agendas * DAYS * A_DAY, agendas * A_DAY
    with engine.connect() as connection:

        def run(statement: str, **values: object) -> Callable[[], None]:
            def action() -> None:
                connection.execute(sa.text(statement), values)
                connection.commit()

            return action

        new = {"base": rows, "first": DAYS, "last": DAYS, "agendas": agendas, "a_day": A_DAY}
        day = LOOK.format(what="count(*)", table=table, where=A_DAYS.format(agendas=agendas), looks=LOOKS)
        by_id = LOOK.format(what="agenda_id", table=table, where=BY_ID.format(rows=rows), looks=LOOKS)
        for statement in (day, by_id):
            run(statement)()
        measured = {
            "adding a day, a row": _processor(connection, run(ROWS.format(table=table), **new)) / added,
            "an agenda's day": _processor(connection, run(day)) / LOOKS,
            "a slot by its id": _processor(connection, run(by_id)) / LOOKS,
        }
        clear, cleared = CLEAR.format(table=table, added=added), added
        if table == "by_month":
            clear, cleared = "DROP TABLE by_month_0", 31 * added
        return {**measured, "clearing away, a row": _processor(connection, run(clear)) / cleared}


def _processor(connection: sa.Connection, action: Callable[[], None]) -> float:
    """Microseconds that the session's server process was busy."""
    busy = Path(f"/proc/{connection.scalar(sa.text('SELECT pg_backend_pid()'))}/schedstat")
    before = int(busy.read_text().split()[0])
    action()
    return (int(busy.read_text().split()[0]) - before) / 1e3
