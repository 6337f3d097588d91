"""Make a plan from a rule's own query: which rows, what they become, and why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime

import sqlalchemy as sa

from polydesk_dagster.changes import held, plan_rows, plans, undone
from polydesk_dagster.changes.kind import Guard, Kind
from polydesk_dagster.changes.plans import Plan, Scope
from polydesk_dagster.changes.verdict import Verdict
from polydesk_dagster.values import Count, Value


def propose(
    connection: sa.Connection,
    kind: Kind,
    scope: Scope,
    query: str,
    *,
    as_of: datetime,
    unchanged: int = 0,
) -> Plan:
    """Store what ``query`` finds as a plan, in the caller's transaction; nothing else is written.

    The query gives one row for each change: ``action`` (create, update, retire, delete, link or conflict),
    ``finding`` (or null), ``reason`` (or null; see ``changes.why``), the kind's identity (null for what is
    created with an id), and its ``fixed``, ``owned`` and ``carried`` columns as they shall be. It may bind :clinic_id,
    :as_of, :plan_id and the scope's parameters. A plan without rows is stored too, and says so.

    Raises:
        sqlalchemy.exc.DBAPIError: when the query does not give those columns.
    """
    plan_id = plans.next_id(connection)
    values = plans.parameters(scope, as_of, plan_id)
    rows = plan_rows.create(connection, kind, plan_id, query, values=values, was=kind.compared)
    held.carry(connection, kind, scope.clinic_id, plan_id)
    counted = {**plan_rows.tally(connection, plan_id), "unchanged": unchanged}
    return finish(connection, kind, scope, plan_id, as_of=as_of, counted=counted, snapshot=None, rows=rows)


def finish(
    connection: sa.Connection,
    kind: Kind,
    scope: Scope,
    plan_id: int,
    *,
    as_of: datetime,
    counted: Mapping[str, int],
    snapshot: str | None,
    rows: int,
    verdicts: tuple[Verdict, ...] = (),
    undoes: int | None = None,
) -> Plan:
    """Ask the kind's guards and store the plan's head; a plan without rows keeps no table."""
    values = plans.parameters(scope, as_of, plan_id)
    if undoes is None:
        verdicts += tuple(ask(connection, kind, plan_id, values))
    if not rows:
        connection.execute(sa.text(f"DROP TABLE {plan_rows.table(plan_id)}"))
    plan = plans.store(
        connection,
        kind,
        scope,
        plan_id,
        as_of=as_of,
        counted=counted,
        snapshot=snapshot,
        guards=verdicts,
        undoes=undoes,
        rows=bool(rows),
    )
    plans.prune(connection)
    return plan


def ask(connection: sa.Connection, kind: Kind, plan_id: int, values: Mapping[str, object]) -> list[Verdict]:
    """What the kind's own guards say of a plan's rows; ``values`` are ``plans.parameters``."""
    verdicts = []
    whole = [guard for guard in kind.guards if guard.rows is None]
    if whole:
        queries = ", ".join(f"({guard.query.format(rows=plan_rows.table(plan_id))})" for guard in whole)
        found = connection.execute(sa.text(f"SELECT {queries}"), values).one()
        for guard, number in zip(whole, found, strict=True):
            value = float(number or 0)
            verdicts.append(Verdict(guard.name, value <= guard.limit, value, guard.limit, _said(guard, value)))
    if kind.row_guards:
        verdicts += _of_rows(connection, kind, plan_id, values)
    return verdicts


def _of_rows(connection: sa.Connection, kind: Kind, plan_id: int, values: Mapping[str, object]) -> Iterator[Verdict]:
    """The verdicts of guards over rows: what of them would be written, and what waits."""
    held = undone.held_by(connection, plan_id)
    each = ", ".join(f"count(*) FILTER (WHERE {guard.flags}) AS {guard.name}" for guard in kind.row_guards)
    counted = connection.execute(sa.text(f"SELECT {each} FROM {plan_rows.table(plan_id)} r"), values).one()._mapping
    for guard in kind.row_guards:
        value, waiting = counted[guard.name], held.get(guard.name, 0)
        said = _said(guard, value or waiting)
        yield Verdict(guard.name, value <= guard.limit, value, guard.limit, said, waiting)


def _said(guard: Guard, value: float) -> dict[str, Value]:
    return {"value": Count(guard.noun, round(value)) if guard.noun else value, "limit": guard.limit}
