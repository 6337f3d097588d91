"""Take back what a plan did, by a plan of its own: what was edited or came into use since stays, and is named."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

import sqlalchemy as sa

from polydesk_dagster.changes import plan_rows, plans, registry
from polydesk_dagster.changes.apply import KEPT, apply, is_altered, named, same, taken_back
from polydesk_dagster.changes.kind import Kind
from polydesk_dagster.changes.plans import Plan
from polydesk_dagster.changes.propose import finish
from polydesk_dagster.changes.why import read, why
from polydesk_dagster.outcome import Counts, Outcome, Reason, Report, done


def undo(
    connection: sa.Connection,
    plan_id: int,
    *,
    as_of: datetime,
    actor: str,
    reason: str | None = None,
    preview: bool = False,
) -> Report:
    """Take back what plan ``plan_id`` did, as a plan of its own that is made and (without ``preview``) applied here.

    Rows that were edited or came into use since stay as they are and are named, and so do those that go only together
    with one of them or that would contradict what stays; the others are taken back. While some stay, the plan can be
    undone again: what was taken back already is left alone then. Refused, with nothing written, when nothing of it can
    be taken back, or when its rows are no longer those that were applied.
    """
    try:
        plan = plans.load(connection, plan_id, lock=True)
    except LookupError:
        return Report.refused("unknown_plan", {"plan": plan_id})
    if plan.state != "applied" or plan.undoes is not None or not plan.rows_kept:
        cause = (
            "undone_already"
            if plan.state == "undone"
            else "undo_itself"
            if plan.undoes is not None
            else "not_applied"
            if plan.state == "ready"
            else "nothing_kept"
        )
        refusal = Reason("not_undoable", {"plan": plan.id, "why": Reason(cause)}, plan.clinic)
        return Report(Outcome.REFUSED, reasons=(refusal,), plan_id=plan.id)
    if is_altered(connection, plan):
        refusal = Reason("altered_since", {"plan": plan.id}, plan.clinic)
        return Report(Outcome.REFUSED, reasons=(refusal,), plan_id=plan.id)
    kind = registry.kind(plan.kind)
    if kind.final is not None:
        refusal = Reason("final", {"plan": plan.id, "why": read(kind.final)}, plan.clinic)
        return Report(Outcome.REFUSED, reasons=(refusal,), plan_id=plan.id)
    back = _reverse(connection, plan, kind, as_of)
    reasons = tuple(named(connection, back, kind, "changed_since", "action = 'conflict'", "r.reason"))
    if preview:
        return Report(done(back.counts), back.counts, reasons, plan_id=back.id, preview=True)
    if reasons and not back.writes:
        return Report(Outcome.REFUSED, Counts(skipped=back.counts.skipped), reasons, plan_id=back.id)
    report = apply(connection, back.id, as_of=as_of, actor=actor, reason=reason)
    left = reasons or any(each.code == "moved" for each in report.reasons)
    if report.outcome is Outcome.REFUSED or not left:
        return report
    outcome = Outcome.PARTIAL if report.counts.changed else Outcome.REFUSED
    return Report(outcome, report.counts, reasons + report.reasons, report.figures, report.tables, back.id)


def _reverse(connection: sa.Connection, plan: Plan, kind: Kind, as_of: datetime) -> Plan:
    """The plan that takes back what is left of ``plan``: what was edited or came into use since is a conflict."""
    scope = plan.within
    plan_id = plans.next_id(connection)
    types = plan_rows.column_types(connection, plan.rows)
    was = [name.removeprefix("was_") for name in types if name.startswith("was_")]
    kept = [name for name in kind.written if name not in was]
    created = f"r.action = 'create' AND ({_edited(connection, kind)})"
    changed = f"r.action IN ('update', 'retire') AND NOT {same('t', 'r', was)}"
    gone = " OR ".join(f"t.{name} IS NULL" for name in kind.identity)
    identity = ", ".join(f"r.{name}" for name in kind.identity)
    columns = [identity, *(f"r.{name}" for name in kept), *(f"r.{name}" for name in kind.carried)]
    columns += [f"CASE WHEN r.action = 'create' THEN r.{name} ELSE r.was_{name} END AS {name}" for name in was]
    stays = f"""CASE WHEN r.action <> 'delete' AND r.action <> 'link' AND ({gone}) THEN 'gone_here'
                   WHEN {created} OR {changed} THEN 'changed_since_applied'
                   WHEN r.action = 'create' THEN coalesce({kind.held}, {_in_use(connection, kind)})
                   WHEN r.action = 'delete' AND NOT ({gone}) THEN 'here_again' END"""
    query = f"""
        SELECT CASE WHEN why IS NOT NULL THEN 'conflict'
                    WHEN action = 'create' THEN 'delete' WHEN action = 'delete' THEN 'create'
                    WHEN action = 'link' THEN 'link' ELSE 'update' END AS action,
               CAST(NULL AS text) AS finding, why AS reason, back.*
        FROM (SELECT r.action AS done, {", ".join(columns)}, {stays} AS why, r.action
              FROM {plan.rows} r LEFT JOIN {kind.table} t ON {kind.on}
              WHERE r.action <> 'conflict' AND {KEPT.format(plan=plan.id)}
                AND NOT ({taken_back(connection, kind, plan.id)})) back
    """
    query = query.replace(
        "back.*", ", ".join(f"back.{name}" for name in (*kind.identity, *kind.written, *kind.carried))
    )
    values = {**plans.parameters(scope, as_of, plan_id), "undoes": plan.id}
    rows = plan_rows.create(connection, kind, plan_id, query, values=values, was=kind.written)
    for statement in (*_together(kind), *kind.undo_reconsider):
        connection.execute(sa.text(statement.format(rows=plan_rows.table(plan_id))), values)
    counted = plan_rows.tally(connection, plan_id)
    return finish(
        connection,
        kind,
        scope,
        plan_id,
        as_of=as_of,
        counted=counted,
        snapshot=plan.snapshot,
        rows=rows,
        undoes=plan.id,
    )


def _together(kind: Kind) -> Iterator[str]:
    """What sets aside every row that can only be taken back with one that stays as it is."""
    if kind.together is not None:
        name = "r.ordinal" if kind.private else kind.key
        staying = why("only_with_row" if kind.private else "only_together", row="staying.name")
        yield f"""
            UPDATE {{rows}} r SET action = 'conflict', reason = {staying}
            FROM (SELECT DISTINCT ON (1) {kind.together} AS thing, {name} AS name
                  FROM {{rows}} r WHERE action = 'conflict' ORDER BY 1, ordinal) staying
            WHERE r.action <> 'conflict' AND {kind.together} = staying.thing
        """


def _edited(connection: sa.Connection, kind: Kind) -> str:
    """SQL over ``t`` and ``r``: somebody has changed what was created, or filled in what is the clinic's."""
    defaults = connection.execute(
        sa.text("""
            SELECT a.attname AS name, coalesce(pg_get_expr(d.adbin, d.adrelid), 'NULL') AS value
            FROM pg_attribute a LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
            WHERE a.attrelid = CAST(:table AS regclass) AND a.attname = ANY(:kept) ORDER BY a.attnum
        """),
        {"table": kind.table, "kept": [name for name in kind.kept if name not in kind.derived]},
    )
    filled_in = [f"t.{row.name} IS DISTINCT FROM {row.value}" for row in defaults]
    return " OR ".join([f"NOT {same('t', 'r', kind.written)}", *filled_in])


def _in_use(connection: sa.Connection, kind: Kind) -> str:
    """SQL over ``t``: why a row cannot be deleted because others refer to it, or null."""
    if kind.identity != ("id",):
        return "CAST(NULL AS text)"
    found = connection.execute(
        sa.text("""
            SELECT CAST(CAST(c.conrelid AS regclass) AS text) AS table_name, a.attname AS column_name
            FROM pg_constraint c
            CROSS JOIN LATERAL unnest(c.conkey, c.confkey) AS k(own, other)
            JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = k.own
            JOIN pg_attribute f ON f.attrelid = c.confrelid AND f.attnum = k.other AND f.attname = 'id'
            WHERE c.contype = 'f' AND c.confrelid = CAST(:table AS regclass) ORDER BY 1, 2
        """),
        {"table": kind.table},
    )

    def used(table: str) -> str:
        return why("in_use", table=f"jsonb_build_object('term', '{table}', 'domain', 'table')")

    tests = [
        f"WHEN EXISTS (SELECT FROM {row.table_name} f WHERE f.{row.column_name} = t.id) THEN {used(row.table_name)}"
        for row in found
        if row.table_name not in kind.dependents
    ]
    return f"CASE {' '.join(tests)} END" if tests else "CAST(NULL AS text)"
