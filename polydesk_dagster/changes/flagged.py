"""Set aside, row by row, what a guard over rows or a person's undo speaks against: the rest of the plan goes on.

Only guards about the source as a whole stop all of a plan. A row set aside here waits like one that a person holds
back; whoever has looked lets it through by applying its plan past the guard, with a reason.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import sqlalchemy as sa

from polydesk_dagster.changes import held, plan_rows, undone
from polydesk_dagster.changes.kind import Kind
from polydesk_dagster.changes.why import why

_SAID = """(SELECT jsonb_agg(jsonb_build_object('reason', jsonb_build_object(
                'code', 'row_' || guard, 'values', jsonb_build_object()))) FROM unnest(f.guards) guard)"""


def set_aside(
    connection: sa.Connection, kind: Kind, plan_id: int, values: Mapping[str, Any], repeating: str | None
) -> int:
    """Take out of what the plan ``plan_id`` writes the rows that a guard speaks against, and those that ``repeating``
    gives (``undone.repeating``), with all that go only together with them; returns how many. ``values`` are
    ``plans.parameters``."""
    rows = plan_rows.table(plan_id)
    ways = [f"SELECT r.ordinal, '{guard.name}' AS guard FROM {rows} r WHERE {guard.flags}" for guard in kind.row_guards]
    if repeating is not None:
        ways.append(f"SELECT ordinal, '{undone.GUARD}' AS guard FROM ({repeating}) repeated")
    if not ways:
        return 0
    set_ = connection.execute(
        sa.text(f"""
            WITH flagged AS MATERIALIZED ({" UNION ALL ".join(ways)}),
            things AS (SELECT {held.thing(kind)} AS thing, array_agg(DISTINCT f.guard) AS guards
                       FROM flagged f JOIN {rows} r USING (ordinal) WHERE r.action <> 'conflict' GROUP BY 1)
            INSERT INTO plan_hold (plan_id, ordinal, thing, action, reason, guards)
            SELECT :plan_id, r.ordinal, f.thing, r.action, r.reason, f.guards
            FROM {rows} r JOIN things f ON f.thing = {held.thing(kind)}
            WHERE r.action <> 'conflict' AND EXISTS (SELECT FROM flagged)"""),
        values,
    ).rowcount
    if set_:
        connection.execute(
            sa.text(f"""
                UPDATE {rows} r SET action = 'conflict', reason = {why("set_aside", why=_SAID)}
                FROM plan_hold f
                WHERE f.plan_id = :plan_id AND f.ordinal = r.ordinal AND f.guards <> '{{}}'
                  AND r.action <> 'conflict'"""),
            values,
        )
    return set_


def let_through(connection: sa.Connection, plan_id: int, guards: Collection[str]) -> int:
    """Put back into the plan what only ``guards`` have set aside; returns how many rows."""
    return connection.execute(
        sa.text(f"""
            WITH gone AS (DELETE FROM plan_hold
                          WHERE plan_id = :plan_id AND guards <> '{{}}' AND guards <@ CAST(:guards AS text[])
                          RETURNING *)
            UPDATE {plan_rows.table(plan_id)} r SET action = gone.action, reason = gone.reason FROM gone
            WHERE gone.ordinal = r.ordinal"""),
        {"plan_id": plan_id, "guards": list(guards)},
    ).rowcount
