"""Apply exactly a plan's rows, or say why not."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from polydesk_dagster.changes import audit, flagged, held, past, plan_rows, plans, registry
from polydesk_dagster.changes.kind import Kind, Moved
from polydesk_dagster.changes.plans import Plan
from polydesk_dagster.changes.recount import recount
from polydesk_dagster.changes.show import next_step, row_names, then_pass
from polydesk_dagster.database import refusals
from polydesk_dagster.outcome import Counts, Outcome, Reason, Report, combine, done
from polydesk_dagster.values import Instant, Term, Value

NAMED = 20
"""How many rows a refusal names; the rest are counted."""

KEPT = "ordinal NOT IN (SELECT ordinal FROM plan_skip WHERE plan_id = {plan})"

STALE = frozenset({
    "moved", "exists_already", "barred", "constraint", "undo_constraint", "held_meanwhile", "plan_expired",
})  # fmt: skip
"""Why a plan is refused whose records have changed since it was made, or which waited for so long that they may have:
comparing again gives one that fits them."""


def apply(
    connection: sa.Connection,
    made: int | Plan,
    *,
    as_of: datetime,
    actor: str,
    reason: str | None = None,
    past_guards: Collection[str] = (),
) -> Report:
    """Write the plan's rows, its undo record and its audit line in the caller's transaction.

    The plan is given by its number; one that was made in this very transaction by itself: nobody can have seen it, let
    alone altered its rows, and neither is read again for that.

    Refused, with nothing written, when the plan is unknown, used up, expired, altered, made for an instant after
    ``as_of``, stopped by a guard that ``past_guards`` does not name (naming one needs a ``reason``, that it is the
    plan's, and with it all others of the rows that it has set aside), or, for a plan that is not volatile, when any row
    has moved since: the report names the rows. The rows of a volatile plan that have moved are skipped, each with its
    reason. What guards have set aside is written where ``past_guards`` names them.
    """
    if isinstance(made, Plan):
        plan, unseen = made, True
    else:
        try:
            plan, unseen = plans.load(connection, made, lock=True), False
        except LookupError:
            return Report.refused("unknown_plan", {"plan": made})
    refusal = _unfit(connection, plan, as_of, reason, past_guards, unseen=unseen)
    if refusal is not None:
        way = (Reason("what_to_do", {"next": next_step(plan)}, plan.clinic),) if refusal.code == "guard" else ()
        return Report(Outcome.REFUSED, reasons=(refusal, *way), plan_id=plan.id)
    kind = registry.kind(plan.kind)
    passed = sorted(set(past_guards) & {guard.name for guard in plan.speaking_guards})
    if passed and plan.holding_guards:
        if freed := flagged.let_through(connection, plan.id, passed):
            plan = recount(connection, plan, kind, -freed)
        elif (refusal := past.stopped_by(plan, others := past.missing(connection, plan, passed))) is not None:
            todo = then_pass(plan, [*passed, *(guard.name for guard in others)])
            way = Reason("what_to_do", {"next": todo}, plan.clinic)
            return Report(Outcome.REFUSED, reasons=(refusal, way), plan_id=plan.id)
    values = {**plans.parameters(plan.within, as_of, plan.id), "undoes": plan.undoes, "kind_name": plan.kind}
    try:
        with connection.begin_nested():
            report = Report(done(plan.counts), plan.counts)
            if plan.rows_kept:
                report = _write(connection, plan, kind, as_of, values)
            connection.execute(
                sa.text("""
                    UPDATE plan SET state = 'applied', applied_at = now(), applied_by = :actor, reason = :reason,
                                    past_guards = :past WHERE id = :id
                """),
                {
                    "id": plan.id,
                    "actor": actor,
                    "reason": reason,
                    "past": passed,
                },
            )
            if plan.undoes is not None and not report.counts.skipped:
                connection.execute(sa.text("UPDATE plan SET state = 'undone' WHERE id = :id"), {"id": plan.undoes})
            if plan.undoes is None:
                held.forget(connection, kind, plan)
            if report.counts.changed:
                _record(connection, plan, report, as_of=as_of, actor=actor, reason=reason, past_guards=passed)
    except Moved as moved:
        reasons = named(connection, plan, kind, moved.code, moved.where, moved.why, values)
        return Report(Outcome.REFUSED, reasons=tuple(reasons), plan_id=plan.id)
    except IntegrityError as error:
        constraint = getattr(getattr(error.orig, "diag", None), "constraint_name", None)
        if constraint is not None and constraint == kind.sole and kind.taken is not None:
            there = named(connection, plan, kind, "exists_already", _there(kind, kind.taken), "'exists_here'", values)
            if there:
                return Report(Outcome.REFUSED, reasons=tuple(there), plan_id=plan.id)
        values_: dict[str, Value] = {"plan": plan.undoes or plan.id, "constraint": constraint, "table": kind.table}
        values_ |= {"kind": Term("kind", plan.kind), "why": refusals.broken(error, kind.table)}
        code = "constraint" if plan.undoes is None else "undo_constraint"
        return Report(Outcome.REFUSED, reasons=(Reason(code, values_, plan.clinic),), plan_id=plan.id)
    return Report(report.outcome, report.counts, report.reasons, report.figures, report.tables, plan.id)


def is_stale(report: Report) -> bool:
    """Whether a plan was refused for what comparing again mends."""
    return report.outcome is Outcome.REFUSED and any(reason.code in STALE for reason in report.reasons)


def named(
    connection: sa.Connection,
    plan: Plan,
    kind: Kind,
    code: str,
    where: str,
    why: str = "'edited_since'",
    values: Mapping[str, Any] | None = None,
) -> list[Reason]:
    """A reason for each of the first rows that satisfy ``where``, and one for how many more there are."""
    found = row_names(connection, plan, kind, where, NAMED, why=why, values=values)
    reasons = [Reason(code, {"row": row.name, "why": row.reason}, plan.clinic) for row in found.rows]
    if found.total > len(reasons):
        rest = found.total - len(reasons)
        reasons.append(Reason("more_of_plan", {"plan": plan.id}, plan.clinic, rest))
    return reasons


def _unfit(
    connection: sa.Connection,
    plan: Plan,
    as_of: datetime,
    reason: str | None,
    past_guards: Collection[str],
    *,
    unseen: bool,
) -> Reason | None:
    if plan.state != "ready":
        return Reason("plan_applied", {"plan": plan.id}, plan.clinic)
    if plan.expired:
        return Reason("plan_expired", {"plan": plan.id}, plan.clinic)
    if plan.as_of > as_of + plans.AHEAD:
        return Reason("plan_ahead", {"plan": plan.id, "at": Instant(plan.as_of)}, plan.clinic)
    if (refusal := past.unknown_guards([plan], past_guards) or past.stopped(plan, past_guards)) is not None:
        return refusal
    passes = {guard.name for guard in plan.speaking_guards} & set(past_guards)
    if passes and not audit.is_reason(reason):
        return Reason("reason_missing", {"least": audit.LEAST_REASON}, plan.clinic)
    if not unseen and is_altered(connection, plan):
        return Reason("altered", {"plan": plan.id}, plan.clinic)
    if plan.undoes is not None and plans.load(connection, plan.undoes, lock=True).state != "applied":
        return Reason("not_undoable", {"plan": plan.undoes, "why": Reason("undone_already")}, plan.clinic)
    return None


def is_altered(connection: sa.Connection, plan: Plan) -> bool:
    now = plans.fingerprint(connection, plan.id, plan.kind, plan.within, plan.snapshot, rows=plan.rows_kept)
    return now != plan.fingerprint


def _write(connection: sa.Connection, plan: Plan, kind: Kind, as_of: datetime, values: Mapping[str, Any]) -> Report:
    adds = plan.writes == plan.tally.get("create", 0)
    types = plan_rows.column_types(connection, plan.rows) if kind.volatile or not adds else {}
    was = [name.removeprefix("was_") for name in types if name.startswith("was_")]
    if kind.volatile and plan.undoes is None:
        _skip_moved(connection, plan, kind, was, values)
    rows = f"(SELECT * FROM {plan.rows} WHERE {KEPT.format(plan=plan.id)})" if kind.volatile else plan.rows
    before, after = kind.undo_before, kind.undo_after
    if plan.undoes is None:
        before, after = kind.before, (*(() if adds else kind.after_updates), *kind.after)
    for statement in before:
        connection.execute(sa.text(statement.format(rows=rows)), values)
    _test_again(connection, plan, kind, rows, values)
    counts = Counts(skipped=plan.counts.skipped, waiting=plan.counts.waiting, unchanged=plan.counts.unchanged)
    counts += Counts(retired=_delete(connection, plan, kind, rows, was))
    # Closing before changing before adding: what replaces a row must find its place free.
    counts += Counts(retired=_update(connection, plan, kind, rows=rows, was=was, action="retire", values=values))
    counts += Counts(updated=_update(connection, plan, kind, rows=rows, was=was, action="update", values=values))
    counts += Counts(created=_create(connection, plan, kind, rows))
    counts += Counts(updated=_linked(connection, plan, kind, rows))
    for statement in after:
        connection.execute(sa.text(statement.format(rows=rows)), values)
    report = Report(done(counts), counts, tuple(_skipped(connection, plan, kind)))
    counts += Counts(skipped=len(report.reasons) and sum(reason.count for reason in report.reasons))
    report = Report(done(counts), counts, report.reasons)
    more = kind.effect(connection, rows, as_of) if kind.effect is not None else None
    if kind.last is not None and plan.undoes is None:
        kind.last(connection, rows, as_of)
    if more is None:
        return report
    whole = combine([report, more])
    counts += Counts(waiting=more.counts.waiting)
    return Report(whole.outcome, counts, whole.reasons, whole.figures, whole.tables)


def _test_again(connection: sa.Connection, plan: Plan, kind: Kind, rows: str, values: Mapping[str, Any]) -> None:
    """Raise when an undo's row has been taken back meanwhile, the kind bars one that it let pass in the preview, or
    a person has held one back."""
    tests = []
    if plan.undoes is not None:
        tests.append(("moved", taken_back(connection, kind, plan.undoes), "'undone_already'"))
    if kind.barred is not None and not kind.volatile and plan.writes > plan.tally.get("create", 0):
        tests.append(("barred", f"r.action <> 'create' AND ({kind.barred}) IS NOT NULL", kind.barred))
    if plan.undoes is None and held.marks(connection, kind, plan.clinic_id):
        mark = f"FROM held_row h WHERE {held.OF} AND h.thing = {held.thing(kind)}"
        tests.append(("held_meanwhile", f"EXISTS (SELECT {mark})", f"(SELECT {held.REASON} {mark})"))
    if kind.moved is not None and plan.undoes is None:
        tests.append(("moved", f"({kind.moved}) IS NOT NULL", kind.moved))
    for code, test, why in tests:
        where = f"r.action <> 'conflict' AND {test}"
        if _some(connection, f"{rows} r LEFT JOIN {kind.table} t ON {kind.on} WHERE {where}", values):
            raise Moved(code, where, why)


def _some(connection: sa.Connection, rows: str, values: Mapping[str, Any] | None = None) -> bool:
    return any(_counted(connection, [rows], values))


def _counted(connection: sa.Connection, each: Sequence[str], values: Mapping[str, Any] | None = None) -> Sequence[int]:
    """How many rows there are of each, by one question. Asked only whether there is one, the planner would take the way
    that finds the first soonest, and nearly always there is none."""
    if not each:
        return ()
    counts = ", ".join(f"(SELECT count(*) FROM {rows})" for rows in each)
    return tuple(connection.execute(sa.text(f"SELECT {counts}"), values).one())


def same(left: str, right: str, columns: Iterable[str], prefix: str = "") -> str:
    ours = ", ".join(f"{left}.{name}" for name in columns)
    theirs = ", ".join(f"{right}.{prefix}{name}" for name in columns)
    return f"(ROW({ours}) IS NOT DISTINCT FROM ROW({theirs}))" if ours else "true"


def _update(
    connection: sa.Connection,
    plan: Plan,
    kind: Kind,
    *,
    rows: str,
    was: list[str],
    action: str,
    values: Mapping[str, Any],
) -> int:
    expected = plan.tally.get(action, 0)
    if not expected:
        return 0
    assigned = [f"{name} = r.{name}" for name in was]
    if "updated_at" in plan_rows.column_types(connection, kind.table) and "updated_at" not in was:
        assigned.append("updated_at = :as_of")
    done_ = connection.execute(
        sa.text(f"""
            UPDATE {kind.table} t SET {", ".join(assigned)} FROM {rows} r
            WHERE r.action = :action AND {kind.on} AND {same("t", "r", was, "was_")}
        """),
        {**values, "action": action},
    ).rowcount
    if not kind.volatile and done_ != expected:
        raise Moved("moved", _stale(kind, was, action))
    return done_


def _delete(connection: sa.Connection, plan: Plan, kind: Kind, rows: str, was: list[str]) -> int:
    expected = plan.tally.get("delete", 0)
    if not expected:
        return 0
    done_ = connection.execute(
        sa.text(f"""
            DELETE FROM {kind.table} t USING {rows} r
            WHERE r.action = 'delete' AND {kind.on} AND {same("t", "r", was, "was_")}
        """)
    ).rowcount
    if not kind.volatile and done_ != expected:
        raise Moved("moved", _stale(kind, was, "delete"))
    return done_


def _create(connection: sa.Connection, plan: Plan, kind: Kind, rows: str) -> int:
    if not plan.tally.get("create"):
        return 0
    ways = [*kind.alike] if kind.taken is None or kind.sole is not None else [kind.taken, *kind.alike]
    taken = [] if kind.volatile else [_there(kind, way.format(rows=rows)) for way in ways]
    counts = _counted(connection, [f"{rows} r WHERE {where}" for where in taken])
    for where, found in zip(taken, counts, strict=True):
        if found:
            raise Moved("exists_already", where, "'exists_here'")
    columns = ", ".join((*kind.identity, *kind.written))
    return connection.execute(
        sa.text(f"INSERT INTO {kind.table} ({columns}) SELECT {columns} FROM {rows} r WHERE action = 'create'")
    ).rowcount


def _there(kind: Kind, way: str) -> str:
    """SQL over ``r``: a row to create that is there already, going by ``way``."""
    return f"r.action = 'create' AND EXISTS (SELECT FROM {kind.table} t WHERE {way})"


def _linked(connection: sa.Connection, plan: Plan, kind: Kind, rows: str) -> int:
    """How many rows the kind's effects have worked on: of a volatile plan not those that were skipped."""
    planned = plan.tally.get("link", 0)
    if not planned or not kind.volatile:
        return planned
    return int(connection.scalar(sa.text(f"SELECT count(*) FROM {rows} r WHERE action = 'link'")) or 0)


def _stale(kind: Kind, was: list[str], action: str) -> str:
    return f"""action = '{action}' AND NOT EXISTS (
        SELECT FROM {kind.table} t WHERE {kind.on} AND {same("t", "r", was, "was_")})"""


def _skip_moved(connection: sa.Connection, plan: Plan, kind: Kind, was: list[str], values: Mapping[str, Any]) -> None:
    """Lock what still is as the plan saw it, in a steady order, and note every other row as skipped."""
    taken = f"OR r.action = 'create' AND NOT EXISTS (SELECT FROM {kind.table} t WHERE {kind.taken or 'false'})"
    connection.execute(
        sa.text(f"""
            WITH held AS MATERIALIZED (
                SELECT r.ordinal FROM {plan.rows} r JOIN {kind.table} t ON {kind.on}
                WHERE r.action <> 'create' AND {same("t", "r", was, "was_")} AND ({kind.still})
                ORDER BY {", ".join(f"t.{name}" for name in kind.identity)} FOR UPDATE OF t)
            INSERT INTO plan_skip (plan_id, ordinal, reason)
            SELECT :plan_id, r.ordinal, 'changed_since_preview' FROM {plan.rows} r
            WHERE r.action <> 'conflict' AND NOT (r.ordinal IN (SELECT ordinal FROM held) {taken})
        """),
        values,
    )


def _skipped(connection: sa.Connection, plan: Plan, kind: Kind) -> list[Reason]:
    if not kind.volatile:
        return []
    why = f"(SELECT k.reason FROM plan_skip k WHERE k.plan_id = {plan.id} AND k.ordinal = r.ordinal)"
    return named(connection, plan, kind, "moved", f"{why} IS NOT NULL", why)


def _record(
    connection: sa.Connection,
    plan: Plan,
    report: Report,
    *,
    as_of: datetime,
    actor: str,
    reason: str | None,
    past_guards: Collection[str],
) -> None:
    detail = {
        "kind": plan.kind,
        "fingerprint": plan.fingerprint,
        "snapshot": plan.snapshot,
        "counts": report.counts.as_dict(),
        "reason": reason,
        "past_guards": list(past_guards),
        "undoes": plan.undoes,
    }
    audit.append(
        connection,
        as_of=as_of,
        actor=actor,
        action="apply" if plan.undoes is None else "undo",
        service=plan.service,
        clinic=plan.clinic,
        plan_id=plan.id,
        detail=detail,
    )


def taken_back(connection: sa.Connection, kind: Kind, plan_id: int) -> str:
    """SQL over ``r``: an undo of the plan ``plan_id`` that was applied holds the same row."""
    undos = connection.scalars(
        sa.text("SELECT id FROM plan WHERE undoes = :id AND state = 'applied' AND rows_kept ORDER BY id"),
        {"id": plan_id},
    )
    ours, theirs = (", ".join(f"{side}.{name}" for name in kind.identity) for side in "ru")
    tests = [
        f"""({ours}) IN (SELECT {theirs} FROM {plan_rows.table(undo)} u
                         WHERE action <> 'conflict' AND {KEPT.format(plan=undo)})"""
        for undo in undos
    ]
    return f"({' OR '.join(tests)})" if tests else "false"
