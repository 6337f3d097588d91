"""Apply exactly a plan's rows, or say why not; and take an applied plan back."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from polydesk_dagster.changes import audit, plans, registry
from polydesk_dagster.changes.kind import Kind
from polydesk_dagster.changes.plans import Plan, Scope
from polydesk_dagster.changes.propose import finish
from polydesk_dagster.changes.show import row_names
from polydesk_dagster.outcome import Counts, Outcome, Reason, Report, combine, done

NAMED = 20
"""How many rows a refusal names; the rest are counted."""

KEPT = "ordinal NOT IN (SELECT ordinal FROM plan_skip WHERE plan_id = {plan})"

STALE = frozenset({"moved", "exists_already", "barred", "constraint"})
"""Why a plan is refused whose records have changed since it was made: comparing again gives one that fits them."""


class _Moved(Exception):  # noqa: N818 -- unwinds the savepoint, never leaves this module
    """The records are no longer as the plan saw them: those rows that satisfy ``where``, once unwound, each for the
    reason that the SQL ``why`` gives."""

    def __init__(self, code: str, where: str, why: str = "'modificato dopo'") -> None:
        super().__init__(code)
        self.code = code
        self.where = where
        self.why = why


def apply(
    connection: sa.Connection,
    plan_id: int,
    *,
    as_of: datetime,
    actor: str,
    reason: str | None = None,
    past_guards: Collection[str] = (),
) -> Report:
    """Write the plan's rows, its undo record and its audit line in the caller's transaction.

    Refused, with nothing written, when the plan is unknown, used up, expired, altered, made for an instant after
    ``as_of``, stopped by a guard that ``past_guards`` does not name (naming one needs a ``reason``), or, for a plan
    that is not volatile, when any row has moved since: the report names the rows. The rows of a volatile plan that have
    moved are skipped, each with its reason.
    """
    try:
        plan = plans.load(connection, plan_id, lock=True)
    except LookupError:
        return Report.refused("unknown_plan", f"Non esiste il piano {plan_id}.")
    refusal = _unfit(connection, plan, as_of, reason, past_guards)
    if refusal is not None:
        return Report(Outcome.REFUSED, reasons=(refusal,), plan_id=plan.id)
    kind = registry.kind(plan.kind)
    values = {**plans.parameters(_scope(plan), as_of, plan.id), "undoes": plan.undoes}
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
                    "past": sorted(set(past_guards) & {guard.name for guard in plan.failed_guards}),
                },
            )
            if plan.undoes is not None and not report.counts.skipped:
                connection.execute(sa.text("UPDATE plan SET state = 'undone' WHERE id = :id"), {"id": plan.undoes})
            if report.counts.changed:
                _record(connection, plan, report, as_of=as_of, actor=actor, reason=reason, past_guards=past_guards)
    except _Moved as moved:
        reasons = named(connection, plan, kind, moved.code, moved.where, moved.why, values)
        return Report(Outcome.REFUSED, reasons=tuple(reasons), plan_id=plan.id)
    except IntegrityError as error:
        constraint = getattr(getattr(error.orig, "diag", None), "constraint_name", None)
        message = (
            f"Il piano {plan.id} non si può applicare: nel frattempo è stato scritto qualcosa che lo contraddice "
            f"(vincolo {constraint} di {kind.table}). Rifai l'anteprima."
            if plan.undoes is None
            else f"Il piano {plan.undoes} non si può annullare: ciò che resta lo contraddice (vincolo {constraint} di "
            f"{kind.table}). Correggi a mano ciò che serve."
        )
        return Report(Outcome.REFUSED, reasons=(Reason("constraint", message, plan.clinic),), plan_id=plan.id)
    return Report(report.outcome, report.counts, report.reasons, report.figures, report.tables, plan.id)


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
        return Report.refused("unknown_plan", f"Non esiste il piano {plan_id}.")
    if plan.state != "applied" or plan.undoes is not None or not plan.rows_kept:
        why = (
            "è già stato annullato"
            if plan.state == "undone"
            else "è a sua volta un annullamento"
            if plan.undoes is not None
            else "non è stato applicato"
            if plan.state == "ready"
            else "non ha scritto nulla o è troppo vecchio"
        )
        return Report(Outcome.REFUSED, reasons=(Reason("not_undoable", f"Il piano {plan.id} {why}."),), plan_id=plan.id)
    if _is_altered(connection, plan):
        message = (
            f"Le righe del piano {plan.id} nel database non sono più quelle applicate: annullarle scriverebbe altro. "
            "Correggi a mano ciò che serve."
        )
        return Report(Outcome.REFUSED, reasons=(Reason("altered", message, plan.clinic),), plan_id=plan.id)
    kind = registry.kind(plan.kind)
    if kind.final is not None:
        message = f"Il piano {plan.id} non si annulla: {kind.final}."
        return Report(Outcome.REFUSED, reasons=(Reason("final", message, plan.clinic),), plan_id=plan.id)
    back = _reverse(connection, plan, kind, as_of)
    reasons = tuple(named(connection, back, kind, "changed_since", "action = 'conflict'", "r.reason"))
    if preview:
        return Report(done(back.counts), back.counts, reasons, plan_id=back.id)
    if reasons and not back.writes:
        return Report(Outcome.REFUSED, Counts(skipped=back.counts.skipped), reasons, plan_id=back.id)
    report = apply(connection, back.id, as_of=as_of, actor=actor, reason=reason)
    left = reasons or any(each.code == "moved" for each in report.reasons)
    if report.outcome is Outcome.REFUSED or not left:
        return report
    outcome = Outcome.PARTIAL if report.counts.changed else Outcome.REFUSED
    return Report(outcome, report.counts, reasons + report.reasons, report.figures, report.tables, back.id)


def is_stale(report: Report) -> bool:
    """Whether a plan was refused because the records have changed since it was made."""
    return report.outcome is Outcome.REFUSED and any(reason.code in STALE for reason in report.reasons)


def named(
    connection: sa.Connection,
    plan: Plan,
    kind: Kind,
    code: str,
    where: str,
    why: str = "'modificato dopo'",
    values: Mapping[str, Any] | None = None,
) -> list[Reason]:
    """A reason for each of the first rows that satisfy ``where``, and one for how many more there are."""
    found = row_names(connection, plan, kind, where, NAMED, why=why, values=values)
    reasons = [Reason(code, f"{row.name}: {row.reason}", plan.clinic) for row in found.rows]
    if found.total > len(reasons):
        rest = found.total - len(reasons)
        reasons.append(Reason(code, f"… e altre {rest} righe del piano {plan.id}", plan.clinic, rest))
    return reasons


def _unfit(
    connection: sa.Connection, plan: Plan, as_of: datetime, reason: str | None, past_guards: Collection[str]
) -> Reason | None:
    if plan.state != "ready":
        return Reason("already_applied", f"Il piano {plan.id} è già stato applicato: rifai l'anteprima.", plan.clinic)
    if plan.expired:
        return Reason("expired", f"Il piano {plan.id} è scaduto: rifai l'anteprima.", plan.clinic)
    if plan.as_of > as_of + plans.AHEAD:
        when = f"{plan.as_of.astimezone(plans.ITALY):%d/%m/%Y %H:%M}"
        message = f"Il piano {plan.id} vale dal {when}: prima non si applica; rifai l'anteprima senza quell'istante."
        return Reason("ahead", message, plan.clinic)
    stopping = [guard for guard in plan.failed_guards if guard.name not in past_guards]
    if stopping:
        said = "; ".join(f"{guard.name}: {guard.message}" for guard in stopping)
        return Reason("guard", f"Il piano {plan.id} è fermato da un controllo ({said}).", plan.clinic, len(stopping))
    if plan.failed_guards and not audit.is_reason(reason):
        least = f"di almeno {audit.LEAST_REASON} caratteri"
        message = f"Per passare oltre un controllo del piano {plan.id} serve un motivo {least}."
        return Reason("reason_missing", message, plan.clinic)
    if _is_altered(connection, plan):
        return Reason("altered", f"Le righe del piano {plan.id} non sono più quelle calcolate: rifai l'anteprima.")
    if plan.undoes is not None and plans.load(connection, plan.undoes, lock=True).state != "applied":
        return Reason("not_undoable", f"Il piano {plan.undoes} è già stato annullato.", plan.clinic)
    return None


def _is_altered(connection: sa.Connection, plan: Plan) -> bool:
    now = plans.fingerprint(connection, plan.id, plan.kind, _scope(plan), plan.snapshot, rows=plan.rows_kept)
    return now != plan.fingerprint


def _scope(plan: Plan) -> Scope:
    return Scope(plan.service, plan.clinic, plan.clinic_id, plan.scope)


def _write(connection: sa.Connection, plan: Plan, kind: Kind, as_of: datetime, values: Mapping[str, Any]) -> Report:
    types = plans.column_types(connection, plan.rows)
    was = [name.removeprefix("was_") for name in types if name.startswith("was_")]
    if kind.volatile and plan.undoes is None:
        _skip_moved(connection, plan, kind, was, values)
    rows = f"(SELECT * FROM {plan.rows} WHERE {KEPT.format(plan=plan.id)})" if kind.volatile else plan.rows
    before, after = (kind.before, kind.after) if plan.undoes is None else (kind.undo_before, kind.undo_after)
    for statement in before:
        connection.execute(sa.text(statement.format(rows=rows)), values)
    _test_again(connection, plan, kind, rows, values)
    counts = Counts(skipped=plan.tally.get("conflict", 0), unchanged=plan.tally.get("unchanged", 0))
    counts += Counts(retired=_delete(connection, plan, kind, rows, was))
    # Closing before changing before adding: what replaces a row must find its place free.
    counts += Counts(retired=_update(connection, plan, kind, rows=rows, was=was, action="retire", values=values))
    counts += Counts(updated=_update(connection, plan, kind, rows=rows, was=was, action="update", values=values))
    counts += Counts(created=_create(connection, plan, kind, rows))
    counts += Counts(updated=plan.tally.get("link", 0))
    for statement in after:
        connection.execute(sa.text(statement.format(rows=rows)), values)
    report = Report(done(counts), counts, tuple(_skipped(connection, plan, kind)))
    counts += Counts(skipped=len(report.reasons) and sum(reason.count for reason in report.reasons))
    report = Report(done(counts), counts, report.reasons)
    more = kind.effect(connection, rows, as_of) if kind.effect is not None else None
    if more is None:
        return report
    whole = combine([report, more])
    return Report(whole.outcome, report.counts, whole.reasons, whole.figures, whole.tables)


def _test_again(connection: sa.Connection, plan: Plan, kind: Kind, rows: str, values: Mapping[str, Any]) -> None:
    """Raise when an undo's row has been taken back meanwhile, or the kind bars one that it let pass in the preview."""
    tests = []
    if plan.undoes is not None:
        tests.append(("moved", _taken_back(connection, kind, plan.undoes), "'già annullato'"))
    if kind.barred is not None and not kind.volatile and plan.writes > plan.tally.get("create", 0):
        tests.append(("barred", f"r.action <> 'create' AND ({kind.barred}) IS NOT NULL", kind.barred))
    for code, test, why in tests:
        where = f"r.action <> 'conflict' AND {test}"
        if _some(connection, f"{rows} r LEFT JOIN {kind.table} t ON {kind.on} WHERE {where}", values):
            raise _Moved(code, where, why)


def _some(connection: sa.Connection, rows: str, values: Mapping[str, Any] | None = None) -> bool:
    """Counted: asked only whether there is one, the planner would take the way that finds the first soonest, and nearly
    always there is none."""
    return bool(connection.scalar(sa.text(f"SELECT count(*) FROM {rows}"), values))


def _same(left: str, right: str, columns: Iterable[str], prefix: str = "") -> str:
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
    if "updated_at" in plans.column_types(connection, kind.table) and "updated_at" not in was:
        assigned.append("updated_at = :as_of")
    done_ = connection.execute(
        sa.text(f"""
            UPDATE {kind.table} t SET {", ".join(assigned)} FROM {rows} r
            WHERE r.action = :action AND {kind.on} AND {_same("t", "r", was, "was_")}
        """),
        {**values, "action": action},
    ).rowcount
    if not kind.volatile and done_ != expected:
        raise _Moved("moved", _stale(kind, was, action))
    return done_


def _delete(connection: sa.Connection, plan: Plan, kind: Kind, rows: str, was: list[str]) -> int:
    expected = plan.tally.get("delete", 0)
    if not expected:
        return 0
    done_ = connection.execute(
        sa.text(f"""
            DELETE FROM {kind.table} t USING {rows} r
            WHERE r.action = 'delete' AND {kind.on} AND {_same("t", "r", was, "was_")}
        """)
    ).rowcount
    if not kind.volatile and done_ != expected:
        raise _Moved("moved", _stale(kind, was, "delete"))
    return done_


def _create(connection: sa.Connection, plan: Plan, kind: Kind, rows: str) -> int:
    if not plan.tally.get("create"):
        return 0
    ways = () if kind.volatile else (kind.taken, *kind.alike)
    for way in filter(None, ways):
        where = f"r.action = 'create' AND EXISTS (SELECT FROM {kind.table} t WHERE {way})"
        if _some(connection, f"{rows} r WHERE {where}"):
            raise _Moved("exists_already", where, "'c''è già: rifai l''anteprima'")
    columns = ", ".join((*kind.identity, *kind.written))
    return connection.execute(
        sa.text(f"INSERT INTO {kind.table} ({columns}) SELECT {columns} FROM {rows} r WHERE action = 'create'")
    ).rowcount


def _stale(kind: Kind, was: list[str], action: str) -> str:
    return f"""action = '{action}' AND NOT EXISTS (
        SELECT FROM {kind.table} t WHERE {kind.on} AND {_same("t", "r", was, "was_")})"""


def _skip_moved(connection: sa.Connection, plan: Plan, kind: Kind, was: list[str], values: Mapping[str, Any]) -> None:
    """Lock what still is as the plan saw it, in a steady order, and note every other row as skipped."""
    taken = f"OR r.action = 'create' AND NOT EXISTS (SELECT FROM {kind.table} t WHERE {kind.taken or 'false'})"
    connection.execute(
        sa.text(f"""
            WITH held AS MATERIALIZED (
                SELECT r.ordinal FROM {plan.rows} r JOIN {kind.table} t ON {kind.on}
                WHERE r.action <> 'create' AND {_same("t", "r", was, "was_")} AND ({kind.still})
                ORDER BY {", ".join(f"t.{name}" for name in kind.identity)} FOR UPDATE OF t)
            INSERT INTO plan_skip (plan_id, ordinal, reason)
            SELECT :plan_id, r.ordinal, 'cambiato dopo l''anteprima' FROM {plan.rows} r
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
        "past_guards": sorted(set(past_guards) & {guard.name for guard in plan.failed_guards}),
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


def _reverse(connection: sa.Connection, plan: Plan, kind: Kind, as_of: datetime) -> Plan:
    """The plan that takes back what is left of ``plan``: what was edited or came into use since is a conflict."""
    scope = _scope(plan)
    plan_id = plans.next_id(connection)
    types = plans.column_types(connection, plan.rows)
    was = [name.removeprefix("was_") for name in types if name.startswith("was_")]
    kept = [name for name in kind.written if name not in was]
    created = f"r.action = 'create' AND ({_edited(connection, kind)})"
    changed = f"r.action IN ('update', 'retire') AND NOT {_same('t', 'r', was)}"
    gone = " OR ".join(f"t.{name} IS NULL" for name in kind.identity)
    identity = ", ".join(f"r.{name}" for name in kind.identity)
    columns = [identity, *(f"r.{name}" for name in kept), *(f"r.{name}" for name in kind.carried)]
    columns += [f"CASE WHEN r.action = 'create' THEN r.{name} ELSE r.was_{name} END AS {name}" for name in was]
    why = f"""CASE WHEN r.action <> 'delete' AND r.action <> 'link' AND ({gone}) THEN 'non c''è più'
                   WHEN {created} OR {changed} THEN 'modificato dopo l''applicazione'
                   WHEN r.action = 'create' THEN coalesce({kind.held}, {_in_use(connection, kind)})
                   WHEN r.action = 'delete' AND NOT ({gone}) THEN 'c''è di nuovo' END"""
    query = f"""
        SELECT CASE WHEN why IS NOT NULL THEN 'conflict'
                    WHEN action = 'create' THEN 'delete' WHEN action = 'delete' THEN 'create'
                    WHEN action = 'link' THEN 'link' ELSE 'update' END AS action,
               CAST(NULL AS text) AS finding, why AS reason, back.*
        FROM (SELECT r.action AS done, {", ".join(columns)}, {why} AS why, r.action
              FROM {plan.rows} r LEFT JOIN {kind.table} t ON {kind.on}
              WHERE r.action <> 'conflict' AND {KEPT.format(plan=plan.id)}
                AND NOT ({_taken_back(connection, kind, plan.id)})) back
    """
    query = query.replace(
        "back.*", ", ".join(f"back.{name}" for name in (*kind.identity, *kind.written, *kind.carried))
    )
    values = {**plans.parameters(scope, as_of, plan_id), "undoes": plan.id}
    rows = plans.create_rows(connection, kind, plan_id, query, values=values, was=kind.written)
    for statement in (*_together(kind), *kind.undo_reconsider):
        connection.execute(sa.text(statement.format(rows=plans.rows_table(plan_id))), values)
    counted = plans.tally(connection, plan_id)
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
        name = "'alla riga ' || r.ordinal" if kind.private else f"'a «' || {kind.key} || '»'"
        yield f"""
            UPDATE {{rows}} r SET action = 'conflict', reason = 'si annulla solo insieme ' || staying.name
            FROM (SELECT DISTINCT ON (1) {kind.together} AS thing, {name} AS name
                  FROM {{rows}} r WHERE action = 'conflict' ORDER BY 1, ordinal) staying
            WHERE r.action <> 'conflict' AND {kind.together} = staying.thing
        """


def _taken_back(connection: sa.Connection, kind: Kind, plan_id: int) -> str:
    """SQL over ``r``: an undo of the plan ``plan_id`` that was applied holds the same row."""
    undos = connection.scalars(
        sa.text("SELECT id FROM plan WHERE undoes = :id AND state = 'applied' AND rows_kept ORDER BY id"),
        {"id": plan_id},
    )
    ours, theirs = (", ".join(f"{side}.{name}" for name in kind.identity) for side in "ru")
    tests = [
        f"""({ours}) IN (SELECT {theirs} FROM {plans.rows_table(undo)} u
                         WHERE action <> 'conflict' AND {KEPT.format(plan=undo)})"""
        for undo in undos
    ]
    return f"({' OR '.join(tests)})" if tests else "false"


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
    return " OR ".join([f"NOT {_same('t', 'r', kind.written)}", *filled_in])


def _in_use(connection: sa.Connection, kind: Kind) -> str:
    """SQL over ``t``: the Italian reason why a row cannot be deleted because others refer to it, or null."""
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
    tests = [
        f"WHEN EXISTS (SELECT FROM {row.table_name} f WHERE f.{row.column_name} = t.id) THEN 'in uso: {row.table_name}'"
        for row in found
        if row.table_name not in kind.dependents
    ]
    return f"CASE {' '.join(tests)} END" if tests else "CAST(NULL AS text)"
