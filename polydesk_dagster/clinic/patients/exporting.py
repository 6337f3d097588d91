"""Everything that is held about one patient (art. 15 and 20 GDPR), by the registry of personal columns."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from polydesk_dagster.clinic.patients.personal import REGISTRY, Personal

_BINARY = """SELECT CAST(CAST(attrelid AS regclass) AS text) AS table, array_agg(CAST(attname AS text)) AS columns
             FROM pg_attribute
             WHERE attrelid = ANY(CAST(:tables AS regclass[])) AND attnum > 0 AND NOT attisdropped
               AND atttypid = CAST('bytea' AS regtype) GROUP BY 1"""


def everything(connection: sa.Connection, patient: int) -> dict[str, tuple[str | None, list[dict[str, Any]]]]:
    """By data set of the registry, by which rule it would be kept (``personal``) and her rows as they stand, in
    order, without secrets and without who works here; read in one snapshot only if the caller's transaction is one.

    Raises:
        LookupError: there is no such patient.
    """
    if not connection.scalar(sa.text("SELECT count(*) FROM patient WHERE id = :id"), {"id": patient}):
        raise LookupError(f"patient {patient}")
    tables = sorted({each.table for each in REGISTRY})
    binary = {row.table: row.columns for row in connection.execute(sa.text(_BINARY), {"tables": tables})}
    found: dict[str, tuple[str | None, list[dict[str, Any]]]] = {}
    for each in REGISTRY:
        rows = connection.scalars(sa.text(_rows(each)), {"patient": patient, "left": binary.get(each.table, [])}).all()
        if rows:
            found[each.key] = each.law, list(rows)
    return found


def _rows(each: Personal) -> str:
    beside = ", ".join(f"'{name}', {query}" for name, query in each.beside.items())
    hidden = ", ".join(f"'{name}'" for name in each.hidden)
    return f"""SELECT to_jsonb(t) - CAST(:left AS text[]) - CAST(ARRAY[{hidden}] AS text[])
                      || jsonb_build_object({beside})
               FROM {each.table} t WHERE {each.whose} ORDER BY to_jsonb(t) -> 'id', to_jsonb(t)"""
