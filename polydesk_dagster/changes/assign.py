"""Say of a source's record, row by row, which of ours it is: it changes that one instead of standing beside it."""

from __future__ import annotations

from datetime import datetime

import sqlalchemy as sa

from polydesk_dagster.changes import audit
from polydesk_dagster.changes.audit import LEAST_REASON, is_reason
from polydesk_dagster.changes.hold import found
from polydesk_dagster.changes.kind import Kind
from polydesk_dagster.changes.plans import Plan
from polydesk_dagster.changes.recount import recount
from polydesk_dagster.changes.why import why
from polydesk_dagster.outcome import Counts, Outcome, Reason, Report


def assign(
    connection: sa.Connection, plan_id: int, row: int, record: str, *, as_of: datetime, actor: str, reason: str
) -> Report:
    """Make the row numbered ``row``, which would create a record or could be one of several, a change of ours that
    ``record`` names (its id, or what people call it by).

    Refused, with nothing written, without a reason, for a kind whose records have no names of a source's own, for a row
    or a record that is none, and for a record of ours that the source still has under the name that we know.
    """
    at = found(connection, plan_id)
    if isinstance(at, Report):
        return at
    plan, kind = at
    if kind.called is None:
        return Report.refused("not_assignable", {"plan": plan.id}, plan.clinic)
    if not is_reason(reason):
        return Report.refused("reason_missing", {"least": LEAST_REASON}, plan.clinic)
    target = _ours(connection, plan, kind, record)
    if target is None:
        return Report.refused("no_such_record", {"given": record}, plan.clinic)
    loose = "r.action = 'create' OR r.action = 'conflict' AND r.finding = 'duplicate'"
    if not connection.scalar(
        sa.text(f"SELECT count(*) FROM {plan.rows} r WHERE r.ordinal = :row AND ({loose})"), {"row": row}
    ):
        return Report.refused("row_not_assignable", {"plan": plan.id, "row": row}, plan.clinic)
    if _is_there(connection, plan, kind, target, row):
        return Report.refused("record_at_source", {"given": record}, plan.clinic)
    _take(connection, plan, kind, target, row, actor)
    now = recount(connection, plan, kind, 0)
    audit.append(
        connection,
        as_of=as_of,
        actor=actor,
        action="assign",
        service=plan.service,
        clinic=plan.clinic,
        plan_id=plan.id,
        detail={
            "kind": plan.kind,
            "row": row,
            "record": target,
            "fingerprint": now.fingerprint,
            "was": plan.fingerprint,
            "reason": reason,
        },
    )
    said = Reason("row_assigned", {"plan": plan.id, "row": row}, plan.clinic)
    return Report(Outcome.OK, Counts(), (said,), plan_id=plan.id)


def _ours(connection: sa.Connection, plan: Plan, kind: Kind, record: str) -> int | None:
    """The one record of the plan's clinic that is called so."""
    query = f"""SELECT t.id FROM {kind.table} t
                WHERE t.clinic_id = :clinic_id
                  AND (CAST(t.id AS text) = :record OR name_key(CAST({kind.called} AS text)) = name_key(:record))"""
    found_ = connection.scalars(sa.text(query), {"clinic_id": plan.clinic_id, "record": record.strip()}).all()
    return int(found_[0]) if len(found_) == 1 else None


def _is_there(connection: sa.Connection, plan: Plan, kind: Kind, target: int, row: int) -> bool:
    """Whether the source still has the record under the name that we know: the plan does not retire it, or another of
    its rows is about it."""
    query = f"""
        SELECT bool_or(r.action <> 'retire' AND NOT r.action = 'conflict')
               OR count(*) = 0 AND (SELECT t.external_id IS NOT NULL FROM {kind.table} t WHERE t.id = :target)
        FROM {plan.rows} r WHERE r.id = :target AND r.ordinal <> :row"""
    return bool(connection.scalar(sa.text(query), {"target": target, "row": row}))


def _take(connection: sa.Connection, plan: Plan, kind: Kind, target: int, row: int, actor: str) -> None:
    values = {"plan": plan.id, "row": row, "target": target, "actor": actor}
    gone = (
        f"DELETE FROM {plan.rows} r WHERE r.id = :target AND r.ordinal <> :row AND r.action IN ('retire', 'conflict')"
    )
    connection.execute(
        sa.text(f"""
            WITH gone AS ({gone} RETURNING r.ordinal)
            DELETE FROM plan_hold p WHERE p.plan_id = :plan AND (p.ordinal = :row OR p.ordinal IN (TABLE gone))"""),
        values,
    )
    was = ", ".join(f"was_{name} = t.{name}" for name in kind.compared)
    connection.execute(
        sa.text(f"""
            UPDATE {plan.rows} r SET action = 'update', finding = NULL, id = t.id, target = t.id,
                   reason = {why("assigned_by", who="CAST(:actor AS text)")}, {was}
            FROM {kind.table} t WHERE t.id = :target AND r.ordinal = :row"""),
        values,
    )
