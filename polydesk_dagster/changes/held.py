"""Marks on what a person holds back: every plan that meets it leaves it as it is, until she lets it go."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from polydesk_dagster.changes import plan_rows
from polydesk_dagster.changes.kind import Kind
from polydesk_dagster.changes.plans import Plan, Scope
from polydesk_dagster.changes.why import why

REASON = why("held_back", who="h.held_by", at="jsonb_build_object('instant', h.held_at, 'zone', 'Europe/Rome')")
"""SQL over the mark ``h``: why a row that is held is not written."""


def thing(kind: Kind) -> str:
    """SQL over ``r``: a hash of what the row is about. Rows that go together are about one thing."""
    parts = [f"r.{name}" for name in kind.identity]
    if kind.together is not None:
        parts = [kind.together]
    elif kind.source is not None:
        parts = [part.format("r") for part in kind.source.key]
    return f"hashtextextended(concat_ws('/', {', '.join(parts)}), 0)"


def marks(connection: sa.Connection, kind: Kind, clinic_id: int | None) -> bool:
    """Whether anything of a kind is held back for a clinic (None: for the chain)."""
    query = "SELECT count(*) FROM held_row h WHERE " + OF
    return not kind.whole and bool(connection.scalar(sa.text(query), {"kind_name": kind.name, "clinic_id": clinic_id}))


OF = "h.kind = :kind_name AND h.clinic_id IS NOT DISTINCT FROM CAST(:clinic_id AS bigint)"
"""SQL: the mark ``h`` is one of a kind and a clinic."""


def carry(connection: sa.Connection, kind: Kind, clinic_id: int | None, plan_id: int) -> int:
    """Set aside what is marked among the rows of a plan; how many rows that newly was."""
    if not marks(connection, kind, clinic_id):
        return 0
    values = {"kind_name": kind.name, "clinic_id": clinic_id, "plan_id": plan_id}
    rows = plan_rows.table(plan_id)
    connection.execute(
        sa.text(f"""
            INSERT INTO plan_hold (plan_id, ordinal, thing, action, reason)
            SELECT :plan_id, r.ordinal, h.thing, r.action, r.reason
            FROM {rows} r JOIN held_row h ON {OF} AND h.thing = {thing(kind)} WHERE r.action <> 'conflict'"""),
        values,
    )
    return connection.execute(
        sa.text(f"""
            UPDATE {rows} r SET action = 'conflict', reason = {REASON}
            FROM plan_hold p JOIN held_row h ON {OF} AND h.thing = p.thing
            WHERE p.plan_id = :plan_id AND p.ordinal = r.ordinal AND r.action <> 'conflict'"""),
        values,
    ).rowcount


def forget(connection: sa.Connection, kind: Kind, plan: Plan) -> None:
    """Drop the marks that a whole list, now settled, no longer has anything for."""
    if kind.source is None or not marks(connection, kind, plan.clinic_id):
        return
    scope = Scope(plan.service, plan.clinic, plan.clinic_id, plan.scope)
    connection.execute(
        sa.text(f"""
            DELETE FROM held_row h WHERE {OF} AND h.scope = :scope
               AND NOT EXISTS (SELECT FROM plan_hold p WHERE p.plan_id = :plan_id AND p.thing = h.thing)"""),
        {"kind_name": kind.name, "clinic_id": plan.clinic_id, "scope": scope.name, "plan_id": plan.id},
    )


@dataclass(frozen=True, slots=True)
class Waiting:
    """What is held back of one kind and clinic (None: the chain's)."""

    kind: str
    clinic: str | None
    things: int
    who: tuple[str, ...]
    since: datetime
    plan: int | None
    """The newest plan that names it."""


def waiting(connection: sa.Connection) -> list[Waiting]:
    """Everything that is held back, the longest waiting first."""
    found = connection.execute(
        sa.text("""
            SELECT h.kind, c.code, count(*), array_agg(DISTINCT h.held_by), min(h.held_at), max(n.plan)
            FROM held_row h LEFT JOIN clinic c ON c.id = h.clinic_id
            LEFT JOIN LATERAL (
                SELECT max(p.plan_id) AS plan FROM plan_hold p JOIN plan ON plan.id = p.plan_id
                WHERE p.thing = h.thing AND plan.kind = h.kind AND plan.clinic_id IS NOT DISTINCT FROM h.clinic_id) n
                ON true
            GROUP BY 1, 2 ORDER BY 5, 1, 2""")
    )
    return [Waiting(kind, clinic, things, tuple(who), *rest) for kind, clinic, things, who, *rest in found]
