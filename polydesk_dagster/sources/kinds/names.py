"""The names by which a source knows its records, where it has given one a new name."""

from __future__ import annotations

from polydesk_dagster.changes.kind import Guard
from polydesk_dagster.changes.stage import STAGE

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


_NAMED = (
    ("service", "service", "service", "x.deleted_at IS NULL"),
    ("agreement", "agreement", "agreement", "(x.valid_to IS NULL OR x.valid_to > :today)"),
    ("specialist", "collaborator", "collaborator", "x.deleted_at IS NULL"),
)
"""What a price names: our table, the record kind, the column of the list, and what makes it one of ours in force."""


MANY = 1000
"""Where more prices than this name something unknown, none is told from the others: all that seem to be gone wait."""


def waits_for_its_name(*content: str) -> str:
    """SQL over a price ``c`` that the list no longer has: one of those that name something unknown may be it,
    for what it is about is in force, and the list no longer has its name. Either the new name waits to be passed by a
    person, or else the price is the same in ``content`` and begins on the same day."""
    ours, theirs, joins, passed = [], [], [], []
    for n, (table, kind, column, in_force) in enumerate(_NAMED):
        ours.append(f"""
            coalesce((SELECT CASE WHEN {in_force} AND x.external_id NOT IN
                                       (SELECT l.{column} FROM {STAGE} l WHERE l.{column} IS NOT NULL)
                                  THEN 0 ELSE x.id END FROM {table} x WHERE x.id = c.{table}_id), -1)""")
        theirs.append(f"CASE WHEN s.{column} IS NULL THEN -1 ELSE coalesce(x{n}.id, 0) END")
        joins.append(f"LEFT JOIN {table} x{n} ON x{n}.clinic_id = :clinic_id AND x{n}.external_id = s.{column}")
        # What changes a record of ours under a name that none of ours has, gives it that name.
        passed.append(f"""
            (s.{column} IS NULL OR x{n}.id IS NOT NULL OR hashtextextended(s.{column}, 0) IN (
                SELECT h.thing FROM plan_hold h WHERE h.action = 'update' AND h.plan_id = (
                    SELECT max(p.id) FROM plan p
                    WHERE p.kind = '{kind}' AND p.clinic_id = :clinic_id AND p.undoes IS NULL)))""")
    unknown = f"""FROM wanted w JOIN {STAGE} s ON s.n = w.n {" ".join(joins)}
                  WHERE w.problem = 'unmapped' AND 0 IN ({", ".join(theirs)})"""
    fields = ("valid_from", *content)
    told = ", ".join(f"coalesce(CAST(s.{name} AS text), '')" for name in fields)
    held = ", ".join(f"coalesce(CAST(c.{name} AS text), '')" for name in fields)
    what = ", ".join(ours)
    return f"""((SELECT count(*) > {MANY} FROM wanted w WHERE w.problem = 'unmapped')
                OR ({what}) IN (SELECT {", ".join(theirs)} {unknown} AND {" AND ".join(passed)})
                OR ({what}, {held}) IN (SELECT {", ".join(theirs)}, {told} {unknown}))"""
