"""Keep our records in step with a source: stage it, compare, plan, and (unless it is a preview) apply the plan."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import replace
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from polydesk_dagster.changes import aside, held, plans, quarantine, show, undone
from polydesk_dagster.changes import stage as staging
from polydesk_dagster.changes.apply import apply
from polydesk_dagster.changes.kind import ACTIONS, Kind, Source
from polydesk_dagster.changes.plans import Plan, Scope, Verdict
from polydesk_dagster.changes.propose import finish
from polydesk_dagster.changes.stage import STAGE, UNREADABLE, Page, Staged
from polydesk_dagster.changes.why import why
from polydesk_dagster.outcome import WHAT_TO_DO, Outcome, Reason, Report, done
from polydesk_dagster.values import Count, Several, Term, Value

BROKEN_TEXT = "[\u00c3\u00c2]([\u0080-\u00bf ]|$)|\ufffd|\u00e2\u20ac"
"""UTF-8 read as Windows-1252 (a hard blank may have become a plain one, or gone), or what could not be read."""

BROKEN_SHARE = 0.01


def synchronise(
    engine: sa.Engine,
    kind: Kind,
    scope: Scope,
    pages: Iterable[Page],
    *,
    as_of: datetime,
    actor: str = "dagster",
    preview: bool = False,
    etag: Callable[[], str | None] = lambda: None,
    source: str | None = None,
) -> Report:
    """Plan from ``pages`` and apply the plan at once; the plan stays where a guard or a moved row stops it.

    ``etag`` is asked once the pages are read, and kept as a word of ``source`` when we are in step with it.
    """
    with engine.begin() as connection:
        plan = compare(connection, kind, scope, pages, as_of=as_of)
        seen = show.preview(connection, plan, kind)
        if not plan.writes:
            remember(connection, kind, scope, plan, as_of=as_of, etag=etag(), source=source)
    if preview:
        return seen
    return settle(engine, kind, scope, plan, as_of=as_of, actor=actor, etag=etag(), source=source)


def settle(
    engine: sa.Engine,
    kind: Kind,
    scope: Scope,
    plan: Plan,
    *,
    as_of: datetime,
    actor: str,
    etag: str | None = None,
    source: str | None = None,
    reason: str | None = None,
    past_guards: Collection[str] = (),
) -> Report:
    """Apply ``plan`` in a transaction of its own and give the whole account: what was written, what was set aside."""
    with engine.begin() as connection:
        report = apply(connection, plan.id, as_of=as_of, actor=actor, reason=reason, past_guards=past_guards)
        in_step_now = kind.source is not None and plan.undoes is None and plan.writes
        if in_step_now and report.outcome is not Outcome.REFUSED:
            remember(connection, kind, scope, plan, as_of=as_of, etag=etag, source=source)
        if plan.undoes is None and report.outcome is not Outcome.REFUSED:
            aside.told(connection, kind, plan)
        seen = show.preview(connection, plan, kind)
    if report.outcome is Outcome.REFUSED:
        return replace(report, figures=seen.figures, tables=seen.tables)
    rejected = plan.tally.get("rejected", 0)
    reasons = report.reasons + tuple(reason for reason in seen.reasons if not reason.code.startswith("guard_"))
    if rejected:
        reasons += (Reason("rejected", {}, plan.clinic, rejected),)
    outcome: Outcome = report.outcome
    if new := plan.tally.get("set_aside", 0):
        outcome = done(report.counts, set_aside=new)
    figures = {**report.figures, **{k: v for k, v in seen.figures.items() if k != WHAT_TO_DO}}
    return replace(report, outcome=outcome, reasons=reasons, figures=figures, tables=report.tables + seen.tables)


def compare(connection: sa.Connection, kind: Kind, scope: Scope, pages: Iterable[Page], *, as_of: datetime) -> Plan:
    """Stage ``pages`` and store the plan that would bring us in step, in the caller's transaction."""
    source = kind.source
    assert source is not None
    plan_id = plans.next_id(connection)
    values = plans.parameters(scope, as_of, plan_id)
    if source.judge:
        staged, numbers, repeated = _judge(connection, kind, source, plan_id, pages, values)
        held.carry(connection, kind, scope.clinic_id, plan_id)
        ours, stage = 0, plans.rows_table(plan_id)
    else:
        staged = staging.stage(connection, source, pages)
        values["snapshot"] = staged.snapshot
        _want(connection, kind, source, values)
        columns = [name for name in (*kind.identity, *kind.written) if name != "id"]
        numbers, repeated = _mark_duplicates(connection, source, "wanted", columns, number="n", problem="problem")
        ours, stage = _count_ours(connection, source, values), STAGE
        query = _difference(kind, source, staged)
        plans.create_rows(connection, kind, plan_id, query, values=values, was=kind.compared)
        held.carry(connection, kind, scope.clinic_id, plan_id)
        for statement in source.reconsider:
            connection.execute(sa.text(statement.format(rows=plans.rows_table(plan_id))), values)
    quarantine.keep(connection, scope.service, kind.name, scope.clinic_id, staged.unreadable, scope.name)
    counted = plans.tally(connection, plan_id)
    touched = sum(counted.get(action, 0) for action in ("create", "update", "link", "conflict"))
    counted["unchanged"] = max(0, staged.records - repeated - touched) + staged.passed
    counted["seen"] = staged.seen
    counted["rejected"] = len(staged.unreadable)
    counted["set_aside"] = aside.new(connection, kind, scope, plan_id)
    if staged.unreadable:
        counted["invalid"] = counted.get("invalid", 0) + len(staged.unreadable)
    verdicts = [
        *_source_guards(connection, kind, scope, staged, ours),
        _text_guard(connection, source, staged, stage),
        _duplicate_guard(numbers),
        *_change_guards(kind, counted, ours),
        undone.verdict(connection, kind, source, scope, plan_id),
    ]
    return finish(
        connection,
        kind,
        scope,
        plan_id,
        as_of=as_of,
        counted=counted,
        snapshot=staged.snapshot,
        rows=sum(counted.get(action, 0) for action in ACTIONS),
        verdicts=tuple(verdicts),
    )


def _judge(
    connection: sa.Connection, kind: Kind, source: Source, plan_id: int, pages: Iterable[Page], values: dict[str, Any]
) -> tuple[Staged, list[int], int]:
    """Copy the records into the plan's rows as creations, then mark and take out those that are none."""
    rows = plans.rows_table(plan_id)
    plans.create_empty_rows(connection, kind, plan_id)
    columns = ", ".join(("ordinal", *source.columns, "finding", "reason"))
    staged = staging.stage(connection, source, pages, table=rows, columns=columns)
    connection.execute(sa.text(f"ANALYZE {rows} ({source.indexed or ', '.join(source.columns)}, finding)"))
    numbers, repeated = _mark_duplicates(
        connection, source, rows, list(source.columns), number="ordinal", problem="finding"
    )
    connection.execute(sa.text(f"UPDATE {rows} SET action = 'conflict', id = NULL WHERE finding IS NOT NULL"))
    connection.execute(sa.text("SET LOCAL work_mem = '128MB'"))  # a million codes are hashed in memory
    for statement in source.judge:
        connection.execute(sa.text(statement.format(rows=rows)), values)
    return staged, numbers, repeated


def _want(connection: sa.Connection, kind: Kind, source: Source, values: dict[str, Any]) -> None:
    """The table of what the source says, in our columns and types."""
    assert source.desired is not None
    types = plans.column_types(connection, kind.table)
    columns = [name for name in (*kind.identity, *kind.written) if name != "id"]
    given = ", ".join(f"CAST(d.{name} AS {types[name]}) AS {name}" for name in columns)
    carried = "".join(f", CAST(d.{name} AS {type_}) AS {name}" for name, type_ in kind.carried.items())
    alone = ", d.alone" if source.alone else ""
    connection.execute(sa.text("DROP TABLE IF EXISTS wanted"))
    connection.execute(
        sa.text(f"""
            CREATE TEMP TABLE wanted ON COMMIT DROP AS
            SELECT d.n, CAST(d.problem AS text) AS problem, CAST(d.reason AS text) AS reason, {given}{carried}{alone}
            FROM ({source.desired.format(stage=STAGE)}) d
        """),
        values,
    )
    # Building an index counts the rows, which is all that the comparison's plan needs.
    connection.execute(sa.text(f"CREATE INDEX ON wanted ({source.indexed})" if source.indexed else "ANALYZE wanted"))


def _mark_duplicates(
    connection: sa.Connection, source: Source, table: str, columns: list[str], *, number: str, problem: str
) -> tuple[list[int], int]:
    """Keep one of records that repeat each other word for word, and set aside all of those that contradict each other
    under one key. Returns the numbers of the latter, and how many repetitions were dropped."""
    key = ", ".join(part.format("d") for part in source.key)
    several = "NOT d.alone" if source.alone else "true"
    content = ", ".join(f"d.{name}" for name in columns)
    connection.execute(sa.text("DROP TABLE IF EXISTS doubled"))
    connection.execute(
        sa.text(f"""
            CREATE TEMP TABLE doubled ON COMMIT DROP AS
            WITH repeated AS MATERIALIZED (
                SELECT {key} FROM {table} d WHERE {several} GROUP BY {key} HAVING count(*) > 1)
            SELECT n, same, turn FROM (
                SELECT d.{number} AS n, min(hash) OVER w = max(hash) OVER w AS same,
                       row_number() OVER (w ORDER BY d.{number}) AS turn
                FROM (SELECT d.*, hash_record_extended(ROW({content}), 0) AS hash FROM {table} d
                      WHERE {several} AND ({key}) IN (TABLE repeated)) d
                WINDOW w AS (PARTITION BY {key})) twice
        """)
    )
    repeated = connection.execute(
        sa.text(f"DELETE FROM {table} WHERE {number} IN (SELECT n FROM doubled WHERE same AND turn > 1)")
    ).rowcount
    contradicts = why("contradicts_another", record=number)
    contradicting = connection.scalars(
        sa.text(f"""
            UPDATE {table}
            SET {problem} = 'duplicate', reason = {contradicts}
            WHERE {number} IN (SELECT n FROM doubled WHERE NOT same) RETURNING {number}
        """)
    )
    return sorted(contradicting), repeated


def _duplicate_guard(numbers: list[int]) -> Verdict:
    values: dict[str, Value] = {"value": Count("records", len(numbers)), "first": Several(tuple(numbers[:10]))}
    return Verdict("duplicate_keys", not numbers, len(numbers), 0, values)


def _count_ours(connection: sa.Connection, source: Source, values: dict[str, Any]) -> int:
    if source.current is None:
        return 0
    counted = connection.execute(
        sa.text(f"SELECT count(*) FROM ({source.current}) c WHERE {source.retirable}"), values
    ).scalar_one()
    return int(counted)


def _difference(kind: Kind, source: Source, staged: Staged) -> str:
    columns = [name for name in (*kind.identity, *kind.written) if name != "id"]
    on = source.join or " AND ".join(f"{part.format('d')} = {part.format('c')}" for part in source.key)
    differs = ", ".join(f"d.{name}" for name in kind.compared), ", ".join(f"c.{name}" for name in kind.compared)
    retire = source.retire or {}
    values = []
    for name in columns:
        ours = retire.get(name, f"c.{name}")
        kept = f"coalesce(c.{name}, d.{name})" if name in kind.fixed else f"d.{name}"
        values.append(f"CASE WHEN d.n IS NULL THEN {ours} ELSE {kept} END AS {name}")
    values += [
        f"CASE WHEN d.n IS NULL THEN {retire.get(name, 'NULL')} ELSE d.{name} END AS {name}" for name in kind.carried
    ]
    identity = "c.id, " if kind.identity == ("id",) else ""
    ours = f"c.{kind.identity[0]}"
    # An unreadable record that does not say which it is could be any of those that seem to be gone.
    hidden = any(record.key is None for record in staged.unreadable)
    unread = f"c.source_key IN (SELECT key FROM {UNREADABLE} WHERE key IS NOT NULL)"
    kept = f"{source.finding} IS DISTINCT FROM 'replaced'"
    gone = f"({source.retirable}) AND NOT ({unread} AND {kept})"
    withheld = f"CASE WHEN {kept} THEN 'maybe_unreadable' END" if hidden else "NULL"
    if source.retire is None:
        gone = "false"
    return f"""
        SELECT CASE WHEN problem IS NOT NULL OR stopped IS NOT NULL THEN 'conflict' WHEN known IS NULL THEN 'create'
                    WHEN n IS NULL THEN 'retire' ELSE 'update' END AS action,
               coalesce(problem, CASE WHEN stopped IS NULL THEN special END) AS finding,
               coalesce(because, stopped, usual) AS reason, change.*
        FROM (SELECT d.n, d.problem, d.reason AS because, {ours} AS known, {source.finding} AS special,
                     {source.reason} AS usual,
                     CASE WHEN {ours} IS NOT NULL THEN
                          coalesce({source.blocked}, CASE WHEN d.n IS NULL THEN {withheld} END) END AS stopped,
                     {identity}{", ".join(values)}
              FROM wanted d FULL JOIN ({source.current}) c ON {on}
              WHERE d.problem IS NOT NULL OR {ours} IS NULL OR d.n IS NULL AND {gone}
                 OR d.n IS NOT NULL AND ROW({differs[0]}) IS DISTINCT FROM ROW({differs[1]})) change
    """


def _source_guards(connection: sa.Connection, kind: Kind, scope: Scope, staged: Staged, ours: int) -> Iterator[Verdict]:
    limits = kind.limits
    before = connection.scalar(
        sa.text("SELECT records FROM source_state WHERE service = :service AND scope = :scope"),
        {"service": _source_name(kind, scope), "scope": scope.name},
    )
    reference = int(before) if before is not None else ours
    least = max(limits.minimum, min(1, max(reference, ours)))
    seen = Count("records", staged.seen)
    yield Verdict("source_empty", staged.seen >= least, staged.seen, least, {"seen": seen, "least": least})
    least = math.ceil(reference * (1 - limits.shrink))
    yield Verdict("source_short", staged.seen >= least, staged.seen, least, {"seen": seen, "before": reference})
    if staged.total is not None:
        announced = Count("records", staged.total)
        values: dict[str, Value] = {"seen": seen, "announced": announced}
        yield Verdict("source_incomplete", staged.seen >= staged.total, staged.seen, staged.total, values)
    unreadable = len(staged.unreadable)
    most = max(limits.rejected * staged.seen, min(limits.few, staged.seen - unreadable))
    values = {"value": Count("unreadable_records", unreadable), "seen": staged.seen}
    yield Verdict("source_shape", unreadable <= most, unreadable, most, values)


def _text_guard(connection: sa.Connection, source: Source, staged: Staged, stage: str) -> Verdict:
    broken = 0
    if source.text:
        # Plain letters, which nearly all are, are told by their length alone.
        tests = " OR ".join(f"octet_length({name}) <> length({name}) AND {name} ~ :broken" for name in source.text)
        broken = connection.execute(
            sa.text(f"SELECT count(*) FROM {stage} WHERE {tests}"), {"broken": BROKEN_TEXT}
        ).scalar_one()
    most = max(1.0, BROKEN_SHARE * staged.records)
    return Verdict("source_encoding", broken <= most, broken, most, {"value": Count("records", broken)})


def _change_guards(kind: Kind, counted: dict[str, int], ours: int) -> Iterator[Verdict]:
    limits = kind.limits
    for name, share, number in (
        ("too_many_retired", limits.retired, counted.get("missing_there", 0)),
        ("too_many_changed", limits.changed, counted.get("differs", 0)),
    ):
        if share is not None:
            most = max(share * ours, limits.few)
            what = Term("kind", kind.name)
            values: dict[str, Value] = {"value": number, "what": what, "ours": ours, "limit": int(most)}
            yield Verdict(name, number <= most, number, most, values)


def _source_name(kind: Kind, scope: Scope) -> str:
    return f"{scope.service}:{kind.name}"


def _local_version(connection: sa.Connection, kind: Kind, values: dict[str, Any]) -> str:
    """Changes with any write to our rows in scope."""
    assert kind.source is not None
    if kind.source.version is not None:
        return str(connection.scalar(sa.text(kind.source.version), values))
    # The system column of a row is its last writer; it survives vacuum, and a restored backup only costs one reading.
    hashed = f"hash_record_extended(ROW({', '.join(f't.{name}' for name in kind.identity)}, t.xmin), 0)"
    where = "WHERE t.clinic_id = :clinic_id" if "clinic_id" in kind.fixed else ""
    version = sa.text(f"SELECT count(*) || ':' || coalesce(bit_xor({hashed}), 0) FROM {kind.table} t {where}")
    return str(connection.scalar(version, values))


def remember(
    connection: sa.Connection,
    kind: Kind,
    scope: Scope,
    plan: Plan,
    *,
    as_of: datetime,
    etag: str | None,
    source: str | None = None,
) -> None:
    """Note what ``source`` looked like now that we are in step; its ETag only if nothing of it was left out."""
    if plan.failed_guards and not plan.writes:
        return
    left_out = plan.tally.get("conflict", 0) + plan.tally.get("rejected", 0)
    values = plans.parameters(scope, as_of, plan.id)
    connection.execute(
        sa.text("""
            INSERT INTO source_state (service, scope, records, snapshot, etag, local_version, plan_id, seen_at, source)
            VALUES (:service, :scope, :records, :snapshot, :etag, :version, :plan_id, now(), :source)
            ON CONFLICT (service, scope) DO UPDATE SET records = excluded.records, snapshot = excluded.snapshot,
                etag = excluded.etag, local_version = excluded.local_version, plan_id = excluded.plan_id,
                seen_at = excluded.seen_at, source = coalesce(excluded.source, source_state.source)
        """),
        {
            "service": _source_name(kind, scope),
            "scope": scope.name,
            "records": plan.tally.get("seen", 0),
            "snapshot": plan.snapshot,
            "etag": None if left_out else etag,
            "source": source,
            "version": _local_version(connection, kind, values),
            "plan_id": plan.id,
        },
    )


def known_etag(connection: sa.Connection, kind: Kind, scope: Scope, *, as_of: datetime, source: str) -> str | None:
    """The ETag of the source's state that our rows are in step with; None when they, or what we know, have moved, or
    when it is the word of another source."""
    known = connection.execute(
        sa.text("""
            SELECT etag, local_version FROM source_state
            WHERE service = :service AND scope = :scope AND source = :source"""),
        {"service": _source_name(kind, scope), "scope": scope.name, "source": source},
    ).one_or_none()
    if known is None or known.etag is None:
        return None
    version = _local_version(connection, kind, plans.parameters(scope, as_of, 0))
    return str(known.etag) if version == known.local_version else None


def in_step(kind: Kind, scope: Scope) -> Report:
    """The report where the source says that it has not changed since we were last in step with it."""
    reason = Reason("not_modified", {"what": Term("kind", kind.name)}, scope.clinic)
    return Report(Outcome.NOTHING_TO_DO, reasons=(reason,))
