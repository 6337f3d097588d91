"""A list that a guard stops is compared again at every try: where nothing is another, the plan that waits is shown."""

from __future__ import annotations

import sqlalchemy as sa

from polydesk_dagster.changes import plan_rows, plans
from polydesk_dagster.changes.kind import Kind
from polydesk_dagster.changes.plans import Plan, Scope

# The newest plan before this one. Whatever a person has done to its rows has changed its tally or its guards.
_WAITING = f"""
{plans.LOAD}
WHERE plan.id = (SELECT max(id) FROM plan
                 WHERE service = :service AND clinic_id IS NOT DISTINCT FROM :clinic_id AND kind = :kind AND id < :id
                   AND scope = CAST(:scope AS jsonb) AND undoes IS NULL AND jsonb_exists(tally, 'seen'))
  AND plan.state = 'ready' AND plan.expires_at > now() AND plan.snapshot IS NOT DISTINCT FROM :snapshot
  AND (plan.tally, plan.guards, plan.rows_kept)
      = (SELECT tally, guards, rows_kept FROM plan WHERE id = :id)
FOR UPDATE OF plan"""

_SEEN_AGAIN = """
UPDATE plan SET origin = coalesce(:origin, origin), as_of = :as_of, expires_at = now() + :expires WHERE id = :id"""


def standing(connection: sa.Connection, kind: Kind, scope: Scope, made: Plan) -> Plan:
    """The plan that says what ``made``, which a guard stops and which this transaction has made, says too; it stands
    anew, and ``made`` is forgotten. ``made`` itself where there is none."""
    if not made.failed_guards:
        return made
    found = connection.execute(
        sa.text(_WAITING).bindparams(sa.bindparam("clinic_id", type_=sa.BigInteger)),
        {
            "service": made.service,
            "clinic_id": made.clinic_id,
            "kind": made.kind,
            "id": made.id,
            "scope": scope.stored,
            "snapshot": made.snapshot,
        },
    ).one_or_none()
    if found is None or (made.rows_kept and _rows(connection, made.id) != _rows(connection, found.id)):
        return made
    connection.execute(sa.text("DELETE FROM plan_hold WHERE plan_id = :id"), {"id": made.id})
    plans.discard(connection, [made.id])
    seen = {"id": found.id, "origin": scope.origin, "as_of": made.as_of, "expires": kind.expires}
    connection.execute(sa.text(_SEEN_AGAIN), seen)
    return plans.load(connection, found.id)


def _rows(connection: sa.Connection, plan_id: int) -> str:
    """What a plan's rows say, without the ids that what is new was given this time."""
    columns = plan_rows.column_types(connection, plan_rows.table(plan_id))
    said = [f"r.{name}" for name in columns if name not in {"id", "ordinal"}]
    if "id" in columns:
        said.append("CASE WHEN r.action <> 'create' THEN r.id END")
    return plan_rows.digest(connection, plan_id, f"ROW({', '.join(said)})")
