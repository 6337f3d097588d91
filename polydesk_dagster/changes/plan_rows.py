"""A plan's rows, in a typed table of its own: made by a query or filled by copying, counted, and hashed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from polydesk_dagster.changes.kind import FINDINGS, Kind
from polydesk_dagster.database import bulk

FEW = 100
"""Rows that a plan may have before the planner of queries is told how many there are: what goes through them goes well
with so few whichever way, and with five hundred it went through all of ours for each."""


def table(plan_id: int) -> str:
    return f"plan_rows.p{plan_id:d}"


def column_types(connection: sa.Connection, table: str) -> dict[str, str]:
    """The SQL type of each column of ``table``."""
    query = """SELECT attname, format_type(atttypid, atttypmod) AS type FROM pg_attribute
               WHERE attrelid = CAST(:table AS regclass) AND attnum > 0 AND NOT attisdropped"""
    found = connection.execute(sa.text(query), {"table": table})
    return {row.attname: row.type for row in found}


def digest(connection: sa.Connection, plan_id: int, row: str = "r") -> str:
    """Of a plan's rows, or of ``row`` made of each: their hashes are added up, so that a million need no sort."""
    query = f"SELECT count(*) || ':' || sum(hash_record_extended({row}, 0)) FROM {table(plan_id)} r"
    return str(connection.scalar(sa.text(query)))


def tally(connection: sa.Connection, plan_id: int) -> dict[str, int]:
    """Rows of a plan by action, and findings by class."""
    found = connection.execute(
        sa.text(f"""
            SELECT action, coalesce(finding, CASE action WHEN 'create' THEN 'missing_here'
                                                         WHEN 'retire' THEN 'missing_there'
                                                         WHEN 'update' THEN 'differs' END) AS finding, count(*) AS rows
            FROM {table(plan_id)} GROUP BY 1, 2
        """)
    )
    counted: dict[str, int] = {}
    for row in found:
        counted[row.action] = counted.get(row.action, 0) + row.rows
        if row.finding in FINDINGS:
            counted[row.finding] = counted.get(row.finding, 0) + row.rows
    return counted


def create(
    connection: sa.Connection,
    kind: Kind,
    plan_id: int,
    query: str,
    *,
    values: Mapping[str, Any],
    was: Sequence[str],
    told: bool = False,
    types: Mapping[str, str] | None = None,
) -> int:
    """Store the plan's rows from ``query`` and say how many, each with what the columns ``was`` of its target hold now
    (``told`` by the query as ``was_…``, or looked up): its precondition, and what undo restores. Barred is conflict."""
    types = types or column_types(connection, kind.table)
    columns = []
    for name in kind.identity:
        given = f"CAST(r.{name} AS {types[name]})"
        if kind.identity == ("id",):
            given = f"coalesce({given}, CASE WHEN r.action = 'create' THEN {_next_of(connection, kind)} END)"
        columns.append(f"{given} AS {name}")
    columns += [f"CAST(r.{name} AS {types[name]}) AS {name}" for name in kind.written]
    columns += [f"CAST(r.{name} AS {type_}) AS {name}" for name, type_ in kind.carried.items()]
    columns += [f"r.was_{name}" if told else f"t.{name} AS was_{name}" for name in was]
    same = " AND ".join(f"t.{name} = CAST(r.{name} AS {types[name]})" for name in kind.identity)
    target = ""
    if (was and not told) or kind.barred is not None:
        target = f"LEFT JOIN {kind.table} t ON {same}"
        if kind.identity == ("id",) and kind.source is None:
            # Row by row: other than a source's list, most of it is new, and all clinics' rows are too many to hash. For
            # what is new nothing is looked for: all of a table that others have filled since would be read each time.
            same = f"r.id IS NOT NULL AND {same}"
            target = f"LEFT JOIN LATERAL (SELECT * FROM {kind.table} t WHERE {same} OFFSET 0) t ON true"
    verdict = ["r.action", "r.finding", "r.reason"]
    if kind.barred is not None:
        target += f" CROSS JOIN LATERAL (SELECT CASE WHEN r.action <> 'conflict' THEN {kind.barred} END AS why) barred"
        verdict = [
            "CASE WHEN barred.why IS NULL THEN r.action ELSE 'conflict' END",
            "CASE WHEN barred.why IS NULL THEN r.finding END",
            "coalesce(barred.why, r.reason)",
        ]
    created = connection.execute(
        sa.text(f"""
            CREATE TABLE {table(plan_id)} AS
            SELECT row_number() OVER () AS ordinal, CAST({verdict[0]} AS text) AS action,
                   CAST({verdict[1]} AS text) AS finding, CAST({verdict[2]} AS text) AS reason, {", ".join(columns)}
            FROM ({query}) r {target}
        """),
        values,
    )
    if created.rowcount > FEW:  # a sample of 3,000 tells enough; 30,000 are most plans whole
        bulk.analyze(connection, table(plan_id), target=10)
    return created.rowcount


def create_empty(connection: sa.Connection, kind: Kind, plan_id: int) -> None:
    """The table of a plan's rows for records that are copied straight into it, as creations with their ids."""
    staged = {} if kind.source is None else kind.source.columns
    types = {**staged, **column_types(connection, kind.table), **kind.carried}
    named = dict.fromkeys((*kind.written, *kind.carried, *staged))
    columns = ", ".join(f"{name} {types[name]}" for name in named)
    connection.execute(
        sa.text(f"""
            CREATE TABLE {table(plan_id)} (
                ordinal bigint, action text NOT NULL DEFAULT 'create', finding text, reason text,
                id bigint DEFAULT {_next_of(connection, kind)}, {columns})
        """)
    )


def _next_of(connection: sa.Connection, kind: Kind) -> str:
    """The expression for a new id. The sequence is looked up here: by name it would be looked up for every row."""
    sequence = connection.scalar(sa.text("SELECT pg_get_serial_sequence(:table, 'id')"), {"table": kind.table})
    return f"nextval(CAST('{sequence}' AS regclass))"
