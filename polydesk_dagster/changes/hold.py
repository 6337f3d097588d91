"""Hold rows of a plan back one by one, and let them go: the rest can be applied meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
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

    def keep_back(plan: Plan, kind: Kind) -> int:
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
        return held.carry(connection, kind, plan.clinic_id, plan.id)

    change = _Change("hold", _WRITTEN, "no_such_rows", keep_back)
    return _changed(connection, plan_id, rows, change, as_of=as_of, actor=actor, reason=reason)


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

    def leave_the_others(plan: Plan, kind: Kind) -> int:
        values = {"plan_id": plan.id, "rows": list(rows)}
        chosen = f"SELECT {held.thing(kind)} FROM {plan.rows} r WHERE r.ordinal = ANY(:rows)"
        connection.execute(
            sa.text(f"""
                INSERT INTO plan_hold (plan_id, ordinal, thing, action, reason)
                SELECT :plan_id, r.ordinal, {held.thing(kind)}, r.action, r.reason FROM {plan.rows} r
                WHERE r.action <> 'conflict' AND {held.thing(kind)} NOT IN ({chosen})"""),
            values,
        )
        return connection.execute(
            sa.text(f"""
                UPDATE {plan.rows} r SET action = 'conflict', reason = 'not_chosen' FROM plan_hold p
                WHERE p.plan_id = :plan_id AND p.ordinal = r.ordinal AND r.action <> 'conflict'"""),
            values,
        ).rowcount

    change = _Change("only", _WRITTEN, "no_such_rows", leave_the_others)
    return _changed(connection, plan_id, rows, change, as_of=as_of, actor=actor, reason=reason)


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

    def let_go(plan: Plan, kind: Kind) -> int:
        values = {"kind_name": kind.name, "clinic_id": plan.clinic_id, "plan_id": plan.id, "rows": list(rows)}
        things = "SELECT thing FROM plan_hold WHERE plan_id = :plan_id AND ordinal = ANY(:rows)"
        connection.execute(sa.text(f"DELETE FROM held_row h WHERE {held.OF} AND h.thing IN ({things})"), values)
        return -connection.execute(
            sa.text(f"""
                WITH gone AS (DELETE FROM plan_hold WHERE plan_id = :plan_id AND thing IN ({things}) RETURNING *)
                UPDATE {plan.rows} r SET action = gone.action, reason = gone.reason FROM gone
                WHERE gone.ordinal = r.ordinal"""),
            values,
        ).rowcount

    change = _Change("release", _HELD, "no_held_rows", let_go)
    return _changed(connection, plan_id, rows, change, as_of=as_of, actor=actor, reason=reason)


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


@dataclass(frozen=True, slots=True)
class _Change:
    """What is done to chosen rows of a plan."""

    action: str
    where: str
    """SQL: which rows can be chosen."""
    otherwise: str
    """Why not, where one of the numbers is none of such a row."""
    do: Callable[[Plan, Kind], int]
    """Returns how many rows more wait by it."""


def _changed(
    connection: sa.Connection,
    plan_id: int,
    rows: Collection[int],
    change: _Change,
    *,
    as_of: datetime,
    actor: str,
    reason: str | None,
) -> Report:
    """Do it, count the plan anew, and leave the line in the audit trail; or say why not."""
    at = found(connection, plan_id)
    if isinstance(at, Report):
        return at
    plan, kind = at
    known = connection.scalars(
        sa.text(f"SELECT r.ordinal FROM {plan.rows} r WHERE r.ordinal = ANY(:rows) AND {change.where}"),
        {"plan_id": plan.id, "rows": list(rows)},
    )
    unknown = sorted(set(rows) - set(known))
    if not rows or unknown:
        return Report.refused(change.otherwise, {"plan": plan.id, "rows": Several(tuple(unknown))}, plan.clinic)
    many = change.do(plan, kind)
    now = recount(connection, plan, kind, many)
    audit.append(
        connection,
        as_of=as_of,
        actor=actor,
        action=change.action,
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
    said = Reason(f"rows_{change.action}", {"plan": plan.id}, plan.clinic, abs(many))
    return Report(Outcome.OK, Counts(waiting=max(0, many)), (said,), plan_id=plan.id)
