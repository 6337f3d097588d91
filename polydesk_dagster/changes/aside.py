"""What a run newly gives to a person: rows in conflict and records in quarantine that no run before has told of."""

from __future__ import annotations

import sqlalchemy as sa

from polydesk_dagster.changes.kind import Kind
from polydesk_dagster.changes.plans import Plan, Scope, rows_table


def _conflicts(kind: Kind, plan_id: int) -> str:
    """A row is the same question as before where its name and what is wrong with it are."""
    name = f"concat_ws('/', CAST({kind.key} AS text), r.finding)"
    return f"""SELECT DISTINCT hashtextextended({name}, 0) AS row_hash
               FROM {rows_table(plan_id)} r WHERE r.action = 'conflict'"""


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


def _about(kind: Kind, scope: Scope) -> dict[str, object]:
    return {"service": scope.service, "kind": kind.name, "scope": scope.name, "clinic_id": scope.clinic_id}
