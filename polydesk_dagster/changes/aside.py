"""What a run newly gives to a person: rows in conflict and records in quarantine that no run before has told of."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from polydesk_dagster.changes import plan_rows, registry
from polydesk_dagster.changes.kind import Kind
from polydesk_dagster.changes.plans import Plan, Scope


def _conflicts(kind: Kind, plan_id: int) -> str:
    """A row is the same question as before where its name and what is wrong with it are."""
    name = f"concat_ws('/', CAST({kind.key} AS text), r.finding)"
    return f"""SELECT DISTINCT hashtextextended({name}, 0) AS row_hash
               FROM {plan_rows.table(plan_id)} r WHERE r.action = 'conflict'"""


def new(connection: sa.Connection, kind: Kind, scope: Scope, plan_id: int) -> int:
    """How many rows of the plan that is being made, and records that could not be read, wait for a person anew."""
    query = f"""
        SELECT (SELECT count(*) FROM ({_conflicts(kind, plan_id)}) c
                WHERE NOT EXISTS (SELECT FROM set_aside s
                                  WHERE s.service = :service AND s.kind = :kind AND s.scope = :scope
                                    AND s.row_hash = c.row_hash))
             + (SELECT count(*) FROM quarantine
                WHERE service = :service AND kind = :kind AND clinic_id IS NOT DISTINCT FROM CAST(:clinic_id AS bigint)
                  AND coalesce(scope, :scope) = :scope AND resolved_at IS NULL AND told_at IS NULL)"""
    return int(connection.scalar(sa.text(query), _about(kind, scope)) or 0)


def told(connection: sa.Connection, kind: Kind, plan: Plan) -> None:
    """Note that the run which settled ``plan`` has told of what waits; what waits no more is forgotten."""
    about = _about(kind, Scope(plan.service, plan.clinic, plan.clinic_id, plan.scope))
    now = _conflicts(kind, plan.id) if plan.rows_kept else "SELECT CAST(NULL AS bigint) AS row_hash WHERE false"
    connection.execute(
        sa.text(f"""
            WITH now AS MATERIALIZED ({now}),
            gone AS (DELETE FROM set_aside
                     WHERE service = :service AND kind = :kind AND scope = :scope
                       AND row_hash NOT IN (SELECT row_hash FROM now)),
            quarantined AS (UPDATE quarantine SET told_at = now()
                            WHERE service = :service AND kind = :kind
                              AND clinic_id IS NOT DISTINCT FROM CAST(:clinic_id AS bigint)
                              AND coalesce(scope, :scope) = :scope AND told_at IS NULL)
            INSERT INTO set_aside (service, kind, scope, row_hash, plan_id, since)
            SELECT :service, :kind, :scope, row_hash, :plan_id, now() FROM now ON CONFLICT DO NOTHING"""),
        {**about, "plan_id": plan.id},
    )


@dataclass(frozen=True, slots=True)
class Left:
    """Rows of one kind and clinic (None: the chain's) that what was applied last has left, for a person to decide."""

    service: str
    kind: str
    clinic: str | None
    rows: int
    since: datetime
    plan: int
    """The newest plan that names them."""


def left(connection: sa.Connection) -> list[Left]:
    """What plans that were applied in part have left, the longest waiting first.

    Rows that somebody holds back are her own (``held.waiting``), and doubtful patients are questions of their own
    (``patient_review``): of patients only what a guard or an undo has set aside is counted.
    """
    found = connection.execute(
        sa.text("""
            WITH waiting AS (
                SELECT service, kind, scope, count(*) AS rows, min(since) AS since, min(plan_id) AS first
                FROM set_aside GROUP BY 1, 2, 3)
            SELECT w.service, w.kind, clinic.code, least(w.rows, newest.still), w.since, newest.id, marked.held,
                   marked.flagged
            FROM waiting w JOIN plan f ON f.id = w.first LEFT JOIN clinic ON clinic.id = f.clinic_id
            CROSS JOIN LATERAL (
                SELECT p.id, CASE p.state WHEN 'applied'
                             THEN coalesce(CAST(p.tally ->> 'conflict' AS bigint), 0) END AS still
                FROM plan p
                WHERE p.service = w.service AND p.clinic_id IS NOT DISTINCT FROM f.clinic_id AND p.kind = w.kind
                  AND p.scope = f.scope AND p.undoes IS NULL ORDER BY p.id DESC LIMIT 1) newest
            CROSS JOIN LATERAL (
                SELECT count(*) FILTER (WHERE h.thing IS NOT NULL) AS held,
                       count(*) FILTER (WHERE h.thing IS NULL) AS flagged
                FROM plan_hold p
                LEFT JOIN held_row h ON h.thing = p.thing AND h.kind = w.kind
                                    AND h.clinic_id IS NOT DISTINCT FROM f.clinic_id
                WHERE p.plan_id = newest.id) marked
            WHERE NOT f.volatile ORDER BY w.since, w.service, w.kind""")
    )
    lines = []
    for service, kind, clinic, rows, since, plan, held, flagged in found:
        many = min(rows, flagged) if registry.kind(kind).private else rows - held
        lines += [Left(service, kind, clinic, many, since, plan)] if many > 0 else []
    return lines


def _about(kind: Kind, scope: Scope) -> dict[str, object]:
    return {"service": scope.service, "kind": kind.name, "scope": scope.name, "clinic_id": scope.clinic_id}
