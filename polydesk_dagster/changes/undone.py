"""What a person took back is not done again by the next scheduled run: the guard ``undone_before``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from polydesk_dagster.changes import plan_rows, plans
from polydesk_dagster.changes.kind import Kind, Source
from polydesk_dagster.changes.plans import Scope
from polydesk_dagster.changes.verdict import Verdict
from polydesk_dagster.values import Count, Several, Value

GUARD = "undone_before"

# Of one source: the plans that people took back lately, each with those that somebody has since applied past the guard.
_TAKEN_BACK = f"""
    SELECT p.id AS plan, u.id AS undo, u.applied_at,
           ARRAY(SELECT n.id FROM plan n
                 WHERE n.service = p.service AND n.kind = p.kind AND n.clinic_id IS NOT DISTINCT FROM p.clinic_id
                   AND n.scope = p.scope AND '{GUARD}' = ANY(n.past_guards) AND n.applied_at > u.applied_at
                   AND n.rows_kept) AS wanted_since
    FROM plan u JOIN plan p ON p.id = u.undoes
    WHERE u.undoes IS NOT NULL AND u.state = 'applied' AND u.applied_by LIKE 'desk:%'
      AND u.applied_at > now() - interval '{plans.REMEMBERED}' AND p.rows_kept AND u.rows_kept
      AND p.service = :service AND p.kind = :kind AND p.clinic_id IS NOT DISTINCT FROM :clinic_id
      AND p.scope = CAST(:scope AS jsonb)
    ORDER BY u.id
"""


@dataclass(frozen=True, slots=True)
class Repeating:
    """What a plan may do again although a person took it back."""

    query: str | None = None
    """SQL for the numbers of such rows; None where there can be none."""
    of: tuple[int, ...] = ()
    """The plans whose rows they were."""


NOTHING = Repeating()


def repeating(connection: sa.Connection, kind: Kind, scope: Scope, plan_id: int) -> Repeating:
    """Which rows of the plan that is being made repeat rows that a person took back in the last 30 days.

    A creation repeats one with the same key and values, a change one that set some field to the same value, a closure
    one of the same record, whatever its date (one that makes room for a creation is judged by that). A row that
    somebody has since applied past this guard counts no more.
    """
    source = kind.source
    if source is None:
        return NOTHING
    found = connection.execute(
        sa.text(_TAKEN_BACK).bindparams(sa.bindparam("clinic_id", type_=sa.BigInteger)),
        {
            "service": scope.service,
            "kind": kind.name,
            "clinic_id": scope.clinic_id,
            "scope": scope.stored,
        },
    ).all()
    needed = {*kind.identity, *kind.written, *kind.carried}
    comparable = [
        row for row in found if needed <= plan_rows.column_types(connection, plan_rows.table(row.plan)).keys()
    ]
    if not comparable:
        return NOTHING
    each = " UNION ".join(_repeating(kind, source, plan_id, row.plan, row.undo, row.wanted_since) for row in comparable)
    return Repeating(each, tuple(sorted({row.plan for row in comparable})))


def verdict(connection: sa.Connection, plan_id: int, of: Repeating) -> Verdict:
    """Whether the plan still writes rows that a person took back, and how many of them wait."""
    repeated = held = 0
    if of.query is not None:
        repeated = connection.scalar(sa.text(f"SELECT count(*) FROM ({of.query}) repeated")) or 0
        held = held_by(connection, plan_id).get(GUARD, 0)
    values: dict[str, Value] = {"value": Count("rows", repeated or held), "plans": Several(of.of)}
    return Verdict(GUARD, not repeated, repeated, 0, values, held)


def held_by(connection: sa.Connection, plan_id: int) -> dict[str, int]:
    """How many rows of a plan each guard has set aside."""
    found = connection.execute(
        sa.text("""SELECT guard, count(*) AS rows FROM plan_hold, unnest(guards) guard
                   WHERE plan_id = :plan_id GROUP BY 1"""),
        {"plan_id": plan_id},
    )
    return {row.guard: row.rows for row in found}


def _repeating(kind: Kind, source: Source, plan_id: int, plan: int, undo: int, wanted_since: Sequence[int]) -> str:
    """The rows of the new plan that repeat rows of ``plan`` which ``undo`` took back."""
    identity = ", ".join(f"p.{name}" for name in kind.identity)
    taken_back = ", ".join(f"u.{name}" for name in kind.identity)
    forgiven = "".join(
        f" AND NOT EXISTS (SELECT FROM {plan_rows.table(since)} n WHERE {_same(kind, source, 'n', 'p')})"
        for since in wanted_since
    )
    return f"""
        SELECT r.ordinal FROM {plan_rows.table(plan_id)} r
        WHERE EXISTS (SELECT FROM {plan_rows.table(plan)} p
                      WHERE {_same(kind, source, "r", "p")} AND ({identity}) IN (
                            SELECT {taken_back} FROM {plan_rows.table(undo)} u WHERE u.action <> 'conflict'){forgiven})
    """


def _same(kind: Kind, source: Source, new: str, old: str) -> str:
    """SQL: the row ``new`` does what the row ``old`` did."""
    keys = " AND ".join(f"{part.format(new)} = {part.format(old)}" for part in source.key)
    return f"""{new}.action = {old}.action AND {keys} AND CASE {new}.action
               {" ".join(_cases(kind, source, new, old))}
               WHEN 'retire' THEN {new}.finding IS DISTINCT FROM 'replaced' WHEN 'link' THEN true END"""


def _cases(kind: Kind, source: Source, new: str, old: str) -> Iterator[str]:
    # What is written once says where a record came from; only where the source owns nothing is it what the record says.
    values = kind.compared or kind.written
    sides = (", ".join(f"{side}.{name}" for name in values) for side in (new, old))
    yield f"WHEN 'create' THEN ROW({next(sides)}) IS NOT DISTINCT FROM ROW({next(sides)})"
    if kind.compared and not source.judge:
        changed = " OR ".join(
            f"""{old}.{name} IS DISTINCT FROM {old}.was_{name} AND {new}.{name} IS DISTINCT FROM {new}.was_{name}
                AND {new}.{name} IS NOT DISTINCT FROM {old}.{name}"""
            for name in kind.compared
        )
        yield f"WHEN 'update' THEN {changed}"
