"""Hold rows of a plan back one by one, and let them go: the rest can be applied meanwhile."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime

import sqlalchemy as sa

from polydesk_dagster.changes import audit, held, plans, registry
from polydesk_dagster.changes.apply import is_altered
from polydesk_dagster.changes.kind import Kind
from polydesk_dagster.changes.plans import Plan
from polydesk_dagster.changes.recount import recount
from polydesk_dagster.outcome import Counts, Outcome, Reason, Report
from polydesk_dagster.values import Several


def may_hold(plan: Plan, kind: Kind) -> bool:
    """Whether rows of a plan can be held back: it still waits to be applied, and its rows are units."""
    return plan.state == "ready" and not plan.expired and plan.undoes is None and not (kind.volatile or kind.whole)


def hold(
    connection: sa.Connection,
    plan_id: int,
    rows: Collection[int],
    *,
    as_of: datetime,
    actor: str,
    reason: str | None = None,
) -> Report:
    """Take the rows numbered ``rows`` out of what plan ``plan_id`` writes, with all that go only together with them.

    They wait, in this plan and in every later one, until they are let go or their source has nothing for them any
    more. Guards that count rows are asked again. Refused, with nothing written, for a plan that is not to be applied
    any more or whose rows are no units, and where a number is none of a row that would be written.
    """
    at = _chosen(connection, plan_id, rows, _WRITTEN, "no_such_rows")
    if isinstance(at, Report):
        return at
    plan, kind = at
    connection.execute(
        sa.text(f"""
            INSERT INTO held_row (kind, clinic_id, scope, thing, held_by, held_at)
            SELECT DISTINCT :kind, CAST(:clinic_id AS bigint), :scope, {held.thing(kind)}, :actor,
                   CAST(:as_of AS timestamptz)
            FROM {plan.rows} r WHERE r.ordinal = ANY(:rows) ON CONFLICT DO NOTHING"""),
        {
            "kind": kind.name,
            "clinic_id": plan.clinic_id,
            "scope": plan.within.name,
            "actor": actor,
            "as_of": as_of,
            "rows": list(rows),
        },
    )
    many = held.carry(connection, kind, plan.clinic_id, plan.id)
    return _settled(connection, plan, kind, "hold", rows, many, as_of=as_of, actor=actor, reason=reason)


def only(
    connection: sa.Connection,
    plan_id: int,
    rows: Collection[int],
    *,
    as_of: datetime,
    actor: str,
    reason: str | None = None,
) -> Report:
    """Leave in plan ``plan_id`` only the rows numbered ``rows``, with all that go only together with them. The others
    are left for another plan: nobody holds them back. Refused as ``hold`` is."""
    at = _chosen(connection, plan_id, rows, _WRITTEN, "no_such_rows")
    if isinstance(at, Report):
        return at
    plan, kind = at
    values = {"plan_id": plan.id, "rows": list(rows)}
    chosen = f"SELECT {held.thing(kind)} FROM {plan.rows} r WHERE r.ordinal = ANY(:rows)"
    connection.execute(
        sa.text(f"""
            INSERT INTO plan_hold (plan_id, ordinal, thing, action, reason)
            SELECT :plan_id, r.ordinal, {held.thing(kind)}, r.action, r.reason FROM {plan.rows} r
            WHERE r.action <> 'conflict' AND {held.thing(kind)} NOT IN ({chosen})"""),
        values,
    )
    many = connection.execute(
        sa.text(f"""
            UPDATE {plan.rows} r SET action = 'conflict', reason = 'not_chosen' FROM plan_hold p
            WHERE p.plan_id = :plan_id AND p.ordinal = r.ordinal AND r.action <> 'conflict'"""),
        values,
    ).rowcount
    return _settled(connection, plan, kind, "only", rows, many, as_of=as_of, actor=actor, reason=reason)


def release(
    connection: sa.Connection,
    plan_id: int,
    rows: Collection[int],
    *,
    as_of: datetime,
    actor: str,
    reason: str | None = None,
) -> Report:
    """Put the held rows numbered ``rows`` back into plan ``plan_id``, with all that go only together with them."""
    at = _chosen(connection, plan_id, rows, _HELD, "no_held_rows")
    if isinstance(at, Report):
        return at
    plan, kind = at
    values = {"kind_name": kind.name, "clinic_id": plan.clinic_id, "plan_id": plan.id, "rows": list(rows)}
    things = "SELECT thing FROM plan_hold WHERE plan_id = :plan_id AND ordinal = ANY(:rows)"
    connection.execute(sa.text(f"DELETE FROM held_row h WHERE {held.OF} AND h.thing IN ({things})"), values)
    many = connection.execute(
        sa.text(f"""
            WITH gone AS (DELETE FROM plan_hold WHERE plan_id = :plan_id AND thing IN ({things}) RETURNING *)
            UPDATE {plan.rows} r SET action = gone.action, reason = gone.reason FROM gone
            WHERE gone.ordinal = r.ordinal"""),
        values,
    ).rowcount
    return _settled(connection, plan, kind, "release", rows, -many, as_of=as_of, actor=actor, reason=reason)


def found(connection: sa.Connection, plan_id: int) -> tuple[Plan, Kind] | Report:
    """The plan, locked, and its kind; or why nothing of it is held back or let go."""
    try:
        plan = plans.load(connection, plan_id, lock=True)
    except LookupError:
        return Report.refused("unknown_plan", {"plan": plan_id})
    kind = registry.kind(plan.kind)
    if not (may_hold(plan, kind) and plan.rows_kept):
        return Report.refused("not_holdable", {"plan": plan.id}, plan.clinic)
    if is_altered(connection, plan):
        return Report.refused("altered", {"plan": plan.id}, plan.clinic)
    return plan, kind


_WRITTEN = "r.action <> 'conflict'"
_HELD = "EXISTS (SELECT FROM plan_hold p WHERE p.plan_id = :plan_id AND p.ordinal = r.ordinal)"


def _chosen(
    connection: sa.Connection, plan_id: int, rows: Collection[int], where: str, otherwise: str
) -> tuple[Plan, Kind] | Report:
    """The plan and its kind; or why not: as ``found``, or ``otherwise``, with those of the numbers that are none of a
    row for which ``where`` holds."""
    at = found(connection, plan_id)
    if isinstance(at, Report):
        return at
    plan, _ = at
    known = connection.scalars(
        sa.text(f"SELECT r.ordinal FROM {plan.rows} r WHERE r.ordinal = ANY(:rows) AND {where}"),
        {"plan_id": plan.id, "rows": list(rows)},
    )
    unknown = sorted(set(rows) - set(known))
    if not rows or unknown:
        return Report.refused(otherwise, {"plan": plan.id, "rows": Several(tuple(unknown))}, plan.clinic)
    return at


def _settled(
    connection: sa.Connection,
    plan: Plan,
    kind: Kind,
    action: str,
    rows: Collection[int],
    many: int,
    *,
    as_of: datetime,
    actor: str,
    reason: str | None,
) -> Report:
    """Count the plan anew, and leave the line in the audit trail."""
    now = recount(connection, plan, kind, many)
    audit.append(
        connection,
        as_of=as_of,
        actor=actor,
        action=action,
        service=plan.service,
        clinic=plan.clinic,
        plan_id=plan.id,
        detail={
            "kind": plan.kind,
            "rows": sorted(rows),
            "in_all": abs(many),
            "fingerprint": now.fingerprint,
            "was": plan.fingerprint,
            "reason": reason,
        },
    )
    said = Reason(f"rows_{action}", {"plan": plan.id}, plan.clinic, abs(many))
    return Report(Outcome.OK, Counts(waiting=max(0, many)), (said,), plan_id=plan.id)
