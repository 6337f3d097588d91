"""Keep our records in step with a source: stage it, compare, plan, and (unless it is a preview) apply the plan."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import chain, islice
from typing import Any

import sqlalchemy as sa

from polydesk_dagster.changes import aside, flagged, guards, held, plan_rows, plans, quarantine, show, step, undone
from polydesk_dagster.changes import stage as staging
from polydesk_dagster.changes.again import standing
from polydesk_dagster.changes.apply import apply
from polydesk_dagster.changes.audit import is_person
from polydesk_dagster.changes.kind import ACTIONS, Kind, Source
from polydesk_dagster.changes.plans import Plan, Scope
from polydesk_dagster.changes.propose import finish
from polydesk_dagster.changes.stage import DOUBLED, STAGE, WANTED, Page, Staged
from polydesk_dagster.changes.why import why
from polydesk_dagster.database import bulk
from polydesk_dagster.errors import TransientError
from polydesk_dagster.outcome import WHAT_TO_DO, Outcome, Reason, Report, done
from polydesk_dagster.values import Term

READINGS = 4
"""How often a list is read at most before it is said to go on moving; two are enough where it stands still."""


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
    ours: int | None = None,
    source: str | None = None,
    evidence: Evidence | None = None,
) -> Report:
    """Plan from ``pages`` and apply the plan at once; the plan stays where a guard or a moved row stops it,
    and is the same at the next try where that finds the same.

    ``etag`` is asked once the pages are read, and kept as a word of ``source`` when we are in step with it; ``ours`` is
    what of ours had been written by then (``step.written``).
    """
    pages = _begun(pages)
    with engine.begin() as connection:
        made = compare(connection, kind, scope, pages, as_of=as_of, evidence=evidence)
        plan = standing(connection, kind, scope, made)
        seen = show.preview(connection, plan, kind) if preview else None
        if not plan.writes:
            step.remember(connection, kind, scope, plan, as_of=as_of, etag=etag(), ours=ours, source=source)
    if seen is not None:
        return seen
    return settle(engine, kind, scope, plan, as_of=as_of, actor=actor, etag=etag(), ours=ours, source=source)


def _begun(pages: Iterable[Page]) -> Iterable[Page]:
    """``pages`` with the first one read: a source that has not changed says so before anything is made for it."""
    coming = iter(pages)
    return chain(list(islice(coming, 1)), coming)


def settle(
    engine: sa.Engine,
    kind: Kind,
    scope: Scope,
    plan: Plan,
    *,
    as_of: datetime,
    actor: str,
    etag: str | None = None,
    ours: int | None = None,
    source: str | None = None,
    reason: str | None = None,
    past_guards: Collection[str] = (),
) -> Report:
    """Apply ``plan`` in a transaction of its own and give the whole account: what was written, what was set aside.

    One of which guards have set aside everything stays for a person to apply past them.
    """
    with engine.begin() as connection:
        if plan.writes or past_guards or plan.failed_guards or not plan.holding_guards:
            report = apply(connection, plan.id, as_of=as_of, actor=actor, reason=reason, past_guards=past_guards)
        else:
            report = Report(done(plan.counts), plan.counts, plan_id=plan.id)
        by = actor if is_person(actor) else None
        done_now = plan.undoes is None and report.outcome is not Outcome.REFUSED
        if done_now and past_guards:
            plan = plans.load(connection, plan.id)
        if done_now and kind.source is not None and (plan.writes or by is not None):
            step.remember(
                connection, kind, scope, plan, as_of=as_of, etag=etag, ours=ours, source=source, confirmed_by=by
            )
        if done_now:
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


@dataclass(frozen=True, slots=True)
class Evidence:
    """How it is proved that something is gone from a source: the list read once more, or the source's own word."""

    again: Callable[[], Iterable[Page]]
    deleted: Callable[[], Collection[str]] = tuple
    """Keys of records of which the source says by itself that they are gone."""


def compare(
    connection: sa.Connection,
    kind: Kind,
    scope: Scope,
    pages: Iterable[Page],
    *,
    as_of: datetime,
    evidence: Evidence | None = None,
) -> Plan:
    """Stage ``pages`` and store the plan that would bring us in step, in the caller's transaction.

    With ``evidence`` a list that moved while it was read is read again, and only what two readings miss is retired.

    Raises:
        TransientError: a list that goes on moving.
    """
    source = kind.source
    assert source is not None
    plan_id = plans.next_id(connection)
    values = plans.parameters(scope, as_of, plan_id)
    stage = plan_rows.table(plan_id) if source.judge else STAGE
    if source.judge:
        staged, numbers, repeated = _judge(connection, kind, source, plan_id, pages, values)
    else:
        staged, numbers, repeated = _steady(connection, kind, plan_id, pages, values, evidence)
    ours, *noted = step.count_ours(connection, kind, values, tuple(source.noted.values()))
    held.carry(connection, kind, scope.clinic_id, plan_id)
    for statement in source.reconsider:
        connection.execute(sa.text(statement.format(rows=plan_rows.table(plan_id))), values)
    before = step.known(connection, kind, scope)
    counted = plan_rows.tally(connection, plan_id)
    of_changes = list(guards.of_changes(kind, counted, ours, before))
    repeating = undone.repeating(connection, kind, scope, plan_id) if counted else undone.NOTHING
    if counted and flagged.set_aside(connection, kind, plan_id, values, repeating.query):
        counted = plan_rows.tally(connection, plan_id)
    quarantine.keep(connection, scope.service, kind.name, scope.clinic_id, staged.unreadable, scope.name)
    touched = sum(counted.get(action, 0) for action in ("create", "update", "link", "conflict"))
    counted["unchanged"] = max(0, staged.records - repeated - touched) + staged.passed
    counted["seen"] = staged.seen
    counted["rejected"] = len(staged.unreadable)
    counted |= {f"noted.{code}": many for code, many in zip(source.noted, noted, strict=True)}
    counted["set_aside"] = aside.new(connection, kind, scope, plan_id)
    if staged.unreadable:
        counted["invalid"] = counted.get("invalid", 0) + len(staged.unreadable)
    verdicts = [
        *guards.of_source(kind, staged, ours, before),
        guards.of_text(connection, source, staged, stage),
        guards.of_duplicates(kind, numbers),
        *of_changes,
        undone.verdict(connection, plan_id, repeating),
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


def _steady(
    connection: sa.Connection,
    kind: Kind,
    plan_id: int,
    pages: Iterable[Page],
    values: dict[str, Any],
    evidence: Evidence | None,
) -> tuple[Staged, list[int], int]:
    """Make the plan's rows from a reading that nothing speaks against, what is gone missing in the one before as well:
    the reading, the numbers of records that contradict each other, and how many repetitions were dropped."""
    source = kind.source
    assert source is not None
    columns = [name for name in (*kind.identity, *kind.written) if name != "id"]
    missing: set[int] = set()
    doubled: set[int] = set()
    types = plan_rows.column_types(connection, kind.table)
    connection.execute(sa.text("SET LOCAL enable_mergejoin = off"))  # both lists sorted cost twice what one hashed does
    for reading in range(READINGS):
        if reading and evidence is not None:
            pages = evidence.again()
        staged = staging.stage(connection, source, pages)
        values |= {"snapshot": staged.snapshot, "repeats": staged.repeats}
        values["unreadable"] = sorted({record.key for record in staged.unreadable if record.key is not None})
        _want(connection, kind, source, values, types)
        if source.untold:
            _keep_untold(connection, source, values)
        numbers, repeated = _mark_duplicates(connection, source, staged, columns)
        proves = evidence is not None and source.retire is not None
        moved = _on_two_pages(connection, staged) if proves and (numbers or repeated) else set()
        if moved <= doubled:
            query, was = _difference(kind, source, staged), kind.compared
            told = kind.identity == ("id",)  # else a new row might meet one that is out of scope
            plan_rows.create(connection, kind, plan_id, query, values=values, was=was, told=told, types=types)
            if evidence is None or not proves:
                return staged, numbers, repeated
            gone = _gone(connection, kind, source, plan_id, values, evidence)
            if gone <= missing:
                return staged, numbers, repeated
            missing = gone
            connection.execute(sa.text(f"DROP TABLE {plan_rows.table(plan_id)}"))
        doubled = moved
    raise TransientError("list_unsteady", what=Term("kind", kind.name))


def _on_two_pages(connection: sa.Connection, staged: Staged) -> set[int]:
    """Which keys (their hashes) stood on two pages: the list moved between them, or says them twice."""
    pages: dict[int, set[int]] = {}
    for thing, number in connection.execute(sa.text(f"SELECT thing, n FROM {DOUBLED}")):
        pages.setdefault(thing, set()).add(bisect_right(staged.starts, number))
    return {thing for thing, on in pages.items() if len(on) > 1}


def _gone(
    connection: sa.Connection,
    kind: Kind,
    source: Source,
    plan_id: int,
    values: dict[str, Any],
    evidence: Evidence,
) -> set[int]:
    """What the plan would retire for being absent alone (hashes of its identity): neither did something else that was
    read take its place, nor does the source itself say that it is gone."""
    identity = ", ".join(f"r.{name}" for name in kind.identity)
    absent = f"""SELECT hash_record_extended(ROW({identity}), 0) FROM {plan_rows.table(plan_id)} r
                 WHERE r.action = 'retire' AND r.finding IS DISTINCT FROM 'replaced'"""
    found = set(connection.scalars(sa.text(absent)))
    if not found or not (said := evidence.deleted()):
        return found
    ours = ", ".join(f"c.{name}" for name in kind.identity)
    named = f"SELECT {ours} FROM ({source.current}) c WHERE c.source_key = ANY(CAST(:said AS text[]))"
    query = f"{absent} AND ({identity}) NOT IN ({named})"
    return set(connection.scalars(sa.text(query), {**values, "said": list(said)}))


def _judge(
    connection: sa.Connection, kind: Kind, source: Source, plan_id: int, pages: Iterable[Page], values: dict[str, Any]
) -> tuple[Staged, list[int], int]:
    """Copy the records into the plan's rows as creations, then mark and take out those that are none."""
    rows = plan_rows.table(plan_id)
    plan_rows.create_empty(connection, kind, plan_id)
    columns = ", ".join(("ordinal", *source.columns, "finding", "reason"))
    staged = staging.stage(connection, source, pages, table=rows, columns=columns)
    # A million codes are hashed in memory; that they are all different a small sample shows.
    connection.execute(sa.text(f"SET LOCAL work_mem = '128MB'; {bulk.LOOKED_UP}"))
    bulk.analyze(connection, f"{rows} ({source.indexed or ', '.join(source.columns)}, finding)", target=10)
    said = [name for name in source.columns if name in kind.written or name in kind.carried]
    numbers, repeated = _mark_duplicates(connection, source, staged, said, rows)
    connection.execute(sa.text(f"UPDATE {rows} SET action = 'conflict', id = NULL WHERE finding IS NOT NULL"))
    for statement in source.judge:
        connection.execute(sa.text(statement.format(rows=rows)), values)
    return staged, numbers, repeated


def _want(
    connection: sa.Connection, kind: Kind, source: Source, values: dict[str, Any], types: Mapping[str, str]
) -> None:
    """The table of what the source says, in our columns and types."""
    assert source.desired is not None
    columns = [name for name in (*kind.identity, *kind.written) if name != "id"]
    given = ", ".join(f"CAST(d.{name} AS {types[name]}) AS {name}" for name in columns)
    carried = "".join(f", CAST(d.{name} AS {type_}) AS {name}" for name, type_ in kind.carried.items())
    alone = ", d.alone" if source.alone else ""
    connection.execute(
        sa.text(f"""
            CREATE TEMP TABLE {WANTED} ON COMMIT DROP AS
            SELECT d.n, CAST(d.problem AS text) AS problem, CAST(d.reason AS text) AS reason, {given}{carried}{alone}
            FROM ({source.desired.format(stage=STAGE)}) d
        """),
        values,
    )
    # Building an index counts the rows, which is all that the comparison's plan needs.
    connection.execute(
        sa.text(f"CREATE INDEX ON {WANTED} ({source.indexed})" if source.indexed else f"ANALYZE {WANTED}")
    )


def _keep_untold(connection: sa.Connection, source: Source, values: dict[str, Any]) -> None:
    """What the source says nothing of is wanted as we hold it."""
    kept = ", ".join(f"{name} = c.{name}" for name in source.untold)
    query = f"UPDATE wanted d SET {kept} FROM ({source.current}) c WHERE {_same(source)}"
    connection.execute(sa.text(query), values)


def _same(source: Source) -> str:
    return source.join or " AND ".join(f"{part.format('d')} = {part.format('c')}" for part in source.key)


def _mark_duplicates(
    connection: sa.Connection, source: Source, staged: Staged, columns: list[str], table: str = WANTED
) -> tuple[list[int], int]:
    """Keep one of records that repeat each other word for word, and set aside all of those that contradict each other
    under one key. Returns the numbers of the latter, and how many repetitions were dropped."""
    if not staged.repeats:
        return [], 0
    number, problem = ("n", "problem") if table == WANTED else ("ordinal", "finding")
    key = ", ".join(part.format("d") for part in source.key)
    several = "NOT d.alone" if source.alone else "true"
    content = ", ".join(f"d.{name}" for name in columns)
    found = connection.execute(
        sa.text(f"""
            CREATE TEMP TABLE {DOUBLED} ON COMMIT DROP AS
            WITH repeated AS MATERIALIZED (
                SELECT {key} FROM {table} d WHERE {several} GROUP BY {key} HAVING count(*) > 1)
            SELECT n, thing, same, turn FROM (
                SELECT d.{number} AS n, hash_record_extended(ROW({key}), 0) AS thing,
                       min(hash) OVER w = max(hash) OVER w AS same,
                       row_number() OVER (w ORDER BY d.{number}) AS turn
                FROM (SELECT d.*, hash_record_extended(ROW({content}), 0) AS hash FROM {table} d
                      WHERE {several} AND ({key}) IN (TABLE repeated)) d
                WINDOW w AS (PARTITION BY {key})) twice
        """)
    )
    if not found.rowcount:
        return [], 0
    repeated = connection.execute(
        sa.text(f"DELETE FROM {table} WHERE {number} IN (SELECT n FROM {DOUBLED} WHERE same AND turn > 1)")
    ).rowcount
    contradicts = why("contradicts_another", record=number)
    contradicting = connection.scalars(
        sa.text(f"""
            UPDATE {table}
            SET {problem} = 'duplicate', reason = {contradicts}
            WHERE {number} IN (SELECT n FROM {DOUBLED} WHERE NOT same) RETURNING {number}
        """)
    )
    return sorted(contradicting), repeated


def _difference(kind: Kind, source: Source, staged: Staged) -> str:
    columns = [name for name in (*kind.identity, *kind.written) if name != "id"]
    on = _same(source)
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
    values += [f"c.{name} AS was_{name}" for name in kind.compared]
    identity = "c.id, " if kind.identity == ("id",) else ""
    ours = f"c.{kind.identity[0]}"
    # An unreadable record that does not say which it is could be any of those that seem to be gone.
    hidden = any(record.key is None for record in staged.unreadable)
    kept = f"{source.finding} IS DISTINCT FROM 'replaced'"
    gone = f"({source.retirable})"
    if any(record.key is not None for record in staged.unreadable):
        gone += f" AND NOT (c.source_key = ANY(CAST(:unreadable AS text[])) AND {kept})"
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
                 OR d.n IS NOT NULL AND ROW({differs[0]}) IS DISTINCT FROM ROW({differs[1]})
              OFFSET 0 -- else what stops a change is written into each place that asks for it, and looked up there
             ) change
    """
