"""The names by which a source knows its records, where it has given one a new name."""

from __future__ import annotations

from collections.abc import Sequence

from polydesk_dagster.changes.kind import Guard, Kind
from polydesk_dagster.changes.stage import STAGE

RENUMBERED = Guard(
    "renumbered",
    rows="r.action = 'update' AND r.was_external_id IS NOT NULL AND r.was_external_id <> r.external_id",
    noun="records",
)
"""One row for a person instead of one that ends and another that begins: the same thing under another name."""


def again(table: str, in_force: str, same: str) -> str:
    """SQL, a FROM item ``again`` after ``known`` and ``ours``: the one record of ours (its id) in force whose name the
    source no longer has, and that a new record ``s`` is all the same. ``in_force`` tells over it as ``c``, ``same`` as
    ``o``, and over ``s``."""
    return f"""
            LEFT JOIN (
                WITH gone AS MATERIALIZED (
                    SELECT c.* FROM {table} c
                    WHERE c.clinic_id = :clinic_id AND {in_force}
                      AND NOT EXISTS (SELECT FROM {{stage}} x WHERE x.external_id = c.external_id))
                SELECT s.n, min(o.id) AS id FROM {{stage}} s JOIN gone o ON {same} GROUP BY s.n HAVING count(*) = 1
                ) again ON again.n = s.n AND known.id IS NULL AND ours.id IS NULL"""


def waits_for_its_name(named: Sequence[Kind], *content: str) -> str:
    """SQL over a price ``c`` that the list no longer has: one of those that name something unknown may be it, for what
    it is about (records of the kinds ``named``) is in force, and the list no longer has its name. Either the new name
    waits to be passed by a person, or else the price is the same in ``content`` and begins on the same day.

    Each IN is a look into a hash table that is made once: IS TRUE and DISTINCT keep the planner, which has no
    statistics of what was staged, from comparing each with all."""
    ours, theirs, joins, passed = [], [], [], []
    for kind in named:
        source, column = kind.source, kind.name
        assert source is not None
        known = f"known_{column}"
        ours.append(f"""
            coalesce((SELECT CASE WHEN {source.retirable} AND c.external_id NOT IN
                                       (SELECT DISTINCT l.{column} FROM {STAGE} l WHERE l.{column} IS NOT NULL)
                                  THEN 0 ELSE c.id END FROM {kind.table} c WHERE c.id = price.{kind.table}_id), -1)""")
        theirs.append(f"CASE WHEN s.{column} IS NULL THEN -1 ELSE coalesce({known}.id, 0) END")
        joins.append(
            f"LEFT JOIN {kind.table} {known} ON {known}.clinic_id = :clinic_id AND {known}.external_id = s.{column}"
        )
        # What changes a record of ours under a name that none of ours has, gives it that name.
        passed.append(f"""
            (s.{column} IS NULL OR {known}.id IS NOT NULL OR hashtextextended(s.{column}, 0) IN (
                SELECT h.thing FROM plan_hold h WHERE h.action = 'update' AND h.plan_id = (
                    SELECT max(p.id) FROM plan p
                    WHERE p.kind = '{kind.name}' AND p.clinic_id = :clinic_id AND p.undoes IS NULL)))""")
    unknown = f"""FROM {STAGE} s {" ".join(joins)}
                  WHERE (s.n IN (SELECT w.n FROM wanted w WHERE w.problem = 'unmapped')) IS TRUE
                    AND 0 IN ({", ".join(theirs)})"""
    fields = ("valid_from", *content)
    told = ", ".join(f"coalesce(CAST(s.{name} AS text), '')" for name in fields)
    held = ", ".join(f"coalesce(CAST(o.{name} AS text), '')" for name in fields)
    what = ", ".join(f"o.{kind.name}" for kind in named)
    about = ", ".join(f"{sql} AS {kind.name}" for sql, kind in zip(ours, named, strict=True))
    return f"""(EXISTS (SELECT FROM wanted w WHERE w.problem = 'unmapped')
                AND (SELECT ({what}) IN (SELECT {", ".join(theirs)} {unknown} AND {" AND ".join(passed)})
                            OR ({what}, {held}) IN (SELECT {", ".join(theirs)}, {told} {unknown})
                     FROM (SELECT price.*, {about} FROM (SELECT c.*) price OFFSET 0) o))"""
