"""The names by which a source knows its records, where it has given one a new name."""

from __future__ import annotations

from polydesk_dagster.changes.kind import Guard

RENUMBERED = Guard(
    "renumbered",
    rows="r.action = 'update' AND r.was_external_id IS NOT NULL AND r.was_external_id <> r.external_id",
    noun="records",
)
"""One row for a person instead of one that ends and another that begins: the same thing under another name."""


def again(table: str, same: str) -> str:
    """SQL, a FROM item ``again`` after ``known`` and ``ours``: the one record of ours (its id) whose name the source no
    longer has, and that a new record ``s`` is all the same. ``same`` tells, over it (``o``) and ``s``."""
    return f"""
            LEFT JOIN (
                WITH gone AS MATERIALIZED (
                    SELECT o.* FROM {table} o
                    WHERE o.clinic_id = :clinic_id AND o.external_id IS NOT NULL
                      AND NOT EXISTS (SELECT FROM {{stage}} x WHERE x.external_id = o.external_id))
                SELECT s.n, min(o.id) AS id FROM {{stage}} s JOIN gone o ON {same} GROUP BY s.n HAVING count(*) = 1
                ) again ON again.n = s.n AND known.id IS NULL AND ours.id IS NULL"""
