"""Make the plans of a workbook, show them, apply them all or none, and take them back.

One transaction plans all sheets in order. A plan gives new rows their ids, so that the sheets after it can refer to
what only the workbook holds; nothing of ours is written until the plans are applied, in one transaction too.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

import sqlalchemy as sa

from polydesk_dagster import changes
from polydesk_dagster.changes import aside, past, plans, registry
from polydesk_dagster.changes.plans import Plan, Scope
from polydesk_dagster.changes.stage import Page
from polydesk_dagster.changes.synchronise import compare
from polydesk_dagster.outcome import WHAT_TO_DO, Counts, Outcome, Reason, Report, combine, done
from polydesk_dagster.sources.practice import places
from polydesk_dagster.sources.practice.comparing import kind_of
from polydesk_dagster.sources.practice.problems import BY_HAND, Problem, conflicts, follows, table, unread, unreadable
from polydesk_dagster.sources.practice.reading import Read, Workbook
from polydesk_dagster.sources.practice.sheets import SHEETS, Members, Sheet
from polydesk_dagster.values import Count, ServiceKey, Several, Term, Value

SERVICE = "practice_workbook"


@dataclass(frozen=True, slots=True)
class Import:
    """The plans of one workbook, in the order in which they are applied."""

    plans: tuple[Plan, ...]
    problems: tuple[Problem, ...] = ()
    passed: tuple[Reason, ...] = ()
    notes: int = 0
    rows: int | None = None
    """What the file holds, readable or not; None where the file itself is no longer known."""
    file: str | None = None
    """Its name, as long as it is known."""

    @property
    def number(self) -> int | None:
        """By what people name the whole: the number of its last plan."""
        return self.plans[-1].id if self.plans else None

    @property
    def does(self) -> bool:
        """Whether applying it would write anything, what is let through by hand included."""
        return any(plan.writes or BY_HAND & {guard.name for guard in plan.holding_guards} for plan in self.plans)

    @property
    def did(self) -> bool:
        """Whether it has written anything that can still be taken back."""
        return any(plan.writes for plan in self.plans if plan.state == "applied")

    @property
    def guards(self) -> dict[str, list[Reason]]:
        """What stops it, or has set rows of it aside, by the guard's name: who goes past one does so on every sheet."""
        found: dict[str, list[Reason]] = {}
        for plan in self.plans:
            for guard in plan.speaking_guards if plan.state == "ready" else ():
                if guard.name not in BY_HAND:
                    found.setdefault(guard.name, []).append(_of_sheet(self, plan, guard.reason))
        return found

    @property
    def next_step(self) -> Reason | None:
        """What a person does next with the whole; None where nothing of it waits for her."""
        waiting = [plan for plan in self.plans if plan.state == "ready" and not plan.expired]
        if any(plan.failed_guards for plan in waiting):
            return _then_pass(self)
        return Reason("workbook_then_apply", {"workbook": self.number}) if waiting and self.does else None


def clinics(connection: sa.Connection) -> tuple[str, ...]:
    """The codes of those that we have, as a file may leave them out: of more than one two are enough to know."""
    return tuple(connection.scalars(sa.text("SELECT code FROM clinic ORDER BY id LIMIT 2")))


def plan(
    connection: sa.Connection,
    book: Workbook,
    *,
    as_of: datetime,
    origin: str,
    snapshot: str,
    file: str | None = None,
) -> Import:
    """The plans that bring us in step with ``book``; nothing else is written. ``origin`` ties them together,
    ``snapshot`` names the file's content, ``file`` is what people call it."""
    made: list[Plan] = []
    given = {read.sheet.key: read for read in book.sheets}
    problems: list[Problem] = []
    places.make_known(connection)
    for sheet in SHEETS:
        found: Plan | None = None
        read = given.get(sheet.key)
        if read is not None and (read.records or read.unreadable):
            scope = Scope(SERVICE, parameters={"sheet": sheet.key}, origin=origin)
            kind = kind_of(sheet, read.present)
            found = compare(connection, kind, scope, _pages(read, snapshot), as_of=as_of)
            problems += [unreadable(sheet, each.key, each.why) for each in read.unreadable]
            problems += conflicts(connection, sheet, found)
            made.append(found)
            made += [
                _members(connection, each, found, scope, as_of) for each in sheet.members if each.column in read.present
            ]
        if sheet.known:
            _make_known(connection, sheet, found)
    kept = tuple(filter(_says_something, made))
    problems = sorted(dict.fromkeys(problems), key=follows)  # a row may be several records
    rows = sum(len(read.records) + len(read.unreadable) for read in book.sheets)
    return Import(kept, tuple(problems), book.passed, sum(read.notes for read in book.sheets), rows, file)


def is_part(plan: Plan) -> bool:
    """Whether it is of a workbook, and applied with the whole of it."""
    return plan.service == SERVICE and plan.undoes is None


def load(connection: sa.Connection, number: int) -> Import:
    """The import that the plan ``number`` is of.

    Raises:
        LookupError: if there is no such plan, or it is of no workbook.
    """
    one = plans.load(connection, number)
    if not is_part(one):
        raise LookupError(number)
    ids = connection.scalars(
        sa.text("""
            SELECT p.id FROM plan p JOIN plan one ON one.id = :number AND p.origin = one.origin
            WHERE p.service = :service AND p.undoes IS NULL ORDER BY p.id"""),
        {"number": number, "service": SERVICE},
    ).all()
    made = plans.several(connection, ids)
    problems = [
        problem
        for each in made
        if (sheet := _BY_KIND.get(each.kind)) is not None
        for problem in (*unread(connection, sheet, each), *conflicts(connection, sheet, each))
    ]
    return Import(tuple(filter(_says_something, made)), tuple(sorted(dict.fromkeys(problems), key=follows)))


def _says_something(plan: Plan) -> bool:
    return bool(plan.rows_kept or plan.failed_guards or plan.tally.get("set_aside"))


def shown(connection: sa.Connection, found: Import) -> Report:
    """What applying would do, sheet by sheet."""
    parts = [_placed(found, each, changes.preview(connection, each, registry.kind(each.kind))) for each in found.plans]
    nothing = Report(Outcome.NOTHING_TO_DO, reasons=_why_nothing(found))
    return _told(combine(parts) if parts else nothing, found, parts, preview=True)


def _why_nothing(found: Import) -> tuple[Reason, ...]:
    """What a file is that changes nothing: one that nobody has filled in, or what we hold already."""
    if found.rows is None or found.problems:
        return ()
    return (Reason("workbook_same", {"rows": Count("rows", found.rows)}) if found.rows else Reason("workbook_empty"),)


def apply(
    connection: sa.Connection,
    found: Import,
    *,
    as_of: datetime,
    actor: str,
    reason: str | None = None,
    past_guards: Collection[str] = (),
) -> Report:
    """Apply the plans in order, in the caller's transaction, which is rolled back to where it was if one is refused."""
    waiting = [each for each in found.plans if each.state == "ready"]
    if not waiting:
        return Report(Outcome.NOTHING_TO_DO, plan_id=found.number)
    if (strange := changes.unknown_guards(waiting, past_guards)) is not None:
        return Report(Outcome.REFUSED, reasons=(strange,), plan_id=found.number)
    past_guards = {*past_guards, *BY_HAND}
    stopped = [(each, why) for each in waiting if (why := past.stopped(each, past_guards)) is not None]
    if stopped:
        reasons = [*(_of_sheet(found, each, why) for each, why in stopped)]
        todo = Reason("what_to_do", {"next": _then_pass(found)})
        return _told(Report(Outcome.REFUSED, Counts(), (*reasons, todo)), found, [], preview=False)
    attempt = connection.begin_nested()
    parts: list[Report] = []
    for each in waiting:
        stopping = {guard.name for guard in each.speaking_guards}
        passing = stopping & past_guards
        why = reason or (SERVICE if passing and passing <= BY_HAND else None)
        part = changes.apply(connection, each.id, as_of=as_of, actor=actor, reason=why, past_guards=passing)
        part = _placed(found, each, part)
        if part.outcome is Outcome.REFUSED and each.writes:
            attempt.rollback()
            return _told(Report(Outcome.REFUSED, Counts(), part.reasons), found, [part], preview=False)
        aside.told(connection, registry.kind(each.kind), each)
        parts.append(part)
    attempt.commit()
    counts = sum((part.counts for part in parts), Counts())
    set_aside = sum(each.tally.get("set_aside", 0) for each in waiting)
    reasons = tuple(dict.fromkeys(reason for part in parts for reason in part.reasons))
    return _told(Report(done(counts, set_aside=set_aside), counts, reasons), found, parts, preview=False)


def _told(report: Report, found: Import, parts: Sequence[Report], *, preview: bool) -> Report:
    wrong = table(found.problems)
    tables = () if wrong is None else (wrong,)
    figures: dict[str, Value] = {"notes_passed_over": found.notes} if found.notes else {}
    if preview and (todo := found.next_step) is not None:
        figures[WHAT_TO_DO] = todo
    return replace(
        report,
        reasons=tuple(dict.fromkeys((*report.reasons, *found.passed))),
        figures=figures,
        tables=tables + (tuple(each for part in parts for each in part.tables) if preview else ()),
        plan_id=found.number,
        preview=preview,
    )


def _placed(found: Import, each: Plan, report: Report) -> Report:
    """``report`` of one plan, with the sheet of which a guard speaks."""
    said = (_of_sheet(found, each, why) if why.code.startswith("guard") else why for why in report.reasons)
    return replace(report, reasons=tuple(said))


def _then_pass(found: Import) -> Reason:
    """That whoever has looked at the sheets that are stopped imports the whole past all that stops them."""
    stopped = [plan for plan in found.plans if plan.state == "ready" and plan.failed_guards]
    names = dict.fromkeys(guard.name for plan in stopped for guard in plan.failed_guards)
    seen: Value = Several(tuple(plan.id for plan in stopped))
    values: dict[str, Value] = {"plan": seen, "workbook": found.number, "guards": past.options(names)}
    return Reason("workbook_then_pass", values, count=len(stopped))


def _of_sheet(found: Import, each: Plan, why: Reason) -> Reason:
    """What a guard says of one plan, with the sheet of which it speaks, and the file as long as that is known."""
    sheet = _BY_KIND.get(each.kind)
    if sheet is None:
        return why
    place: dict[str, Value] = {"sheet": Term("sheet", sheet.key), "why": why}
    if found.file is None:
        return Reason("sheet_stopped", place, why.clinic, why.count)
    return Reason("sheet_of_file_stopped", {**place, "file": found.file}, why.clinic, why.count)


def take(
    connection: sa.Connection,
    found: Import,
    *,
    as_of: datetime,
    actor: str,
    reason: str | None,
    past_guards: Collection[str],
    preview: bool = False,
) -> Report:
    """Apply the whole, for who was shown one of its plans: its sheets refer to each other. A ``preview`` shows it."""
    if preview:
        return shown(connection, found)
    report = apply(connection, found, as_of=as_of, actor=actor, reason=reason, past_guards=past_guards)
    changed = {_BY_KIND[each.kind].key for each in found.plans if each.writes and each.kind in _BY_KIND}
    if not changed & _OF_TIMES or not report.counts.changed:
        return report
    # Nobody makes the slots at once: what they are made of shows with the next ones.
    return replace(report, reasons=(*report.reasons, Reason("slots_wait", {"service": ServiceKey("generate_slots")})))


_OF_TIMES = frozenset({"agendas", "turns", "closures"})
"""Sheets that slots are made of."""


def _pages(read: Read, snapshot: str) -> list[Page]:
    return [Page(1, read.records, read.unreadable, snapshot)]


def _make_known(connection: sa.Connection, sheet: Sheet, found: Plan | None) -> None:
    """By what the sheets that follow refer to this one's rows: as they will be once the plan is applied, and, where
    it renames one, as it was called before, unless somebody else is called so then."""
    table = sheet.kind.table
    connection.execute(sa.text(f"DROP TABLE IF EXISTS known_{table}"))
    ours = f"(SELECT t.* FROM {table} t WHERE {sheet.living}) t"
    columns = ", ".join(f"t.{name}" for name in sheet.known)
    query = f"SELECT t.id, {columns} FROM {ours}"
    if found is not None and found.rows_kept:
        # The engine keeps what a column was where a plan does not change it.
        new = ", ".join(f"CASE WHEN r.id IS NULL THEN t.{name} ELSE r.{name} END AS {name}" for name in sheet.known)
        query = f"""SELECT coalesce(r.id, t.id) AS id, {new} FROM {ours}
                    FULL JOIN (SELECT * FROM {found.rows} WHERE action IN ('create', 'update')) r ON r.id = t.id"""
        called = f"lower(CAST(ROW({', '.join(f'{{}}.{name}' for name in sheet.known)}) AS text))"
        query = f"""
            WITH now AS ({query})
            SELECT * FROM now UNION ALL
            SELECT t.id, {columns} FROM {ours} JOIN {found.rows} r ON r.id = t.id AND r.action = 'update'
            WHERE {called.replace("{}", "t")} NOT IN (SELECT {called.replace("{}", "n")} FROM now n)"""
    connection.execute(sa.text(f"CREATE TEMP TABLE known_{table} ON COMMIT DROP AS {query}"))
    connection.execute(sa.text(f"ANALYZE known_{table}"))


def _members(connection: sa.Connection, each: Members, found: Plan, scope: Scope, as_of: datetime) -> Plan:
    """The plan that makes a list in a cell all that belongs to its row."""
    kind = each.kind
    clinic = "clinic_id" if "clinic_id" in kind.owned else None
    created = "NULL"
    join = ""
    if found.rows_kept:
        join = f"LEFT JOIN {found.rows} r ON r.action = 'create' AND r.line = d.line"
        created = "r.id"
    of_clinic = "d.clinic_id" if clinic else "CAST(NULL AS bigint)"
    connection.execute(sa.text("DROP TABLE IF EXISTS listed"))
    connection.execute(
        sa.text(f"""
            CREATE TEMP TABLE listed ON COMMIT DROP AS
            SELECT coalesce(d.target, {created}) AS owner, {of_clinic} AS clinic_id, d.name_of_row,
                   s.{each.column} AS names
            FROM wanted d JOIN staged s ON s.n = d.n {join}
            WHERE d.problem IS NULL AND coalesce(d.target, {created}) IS NOT NULL""")
    )
    owner, member = each.owner, each.member
    query = f"""
        SELECT CASE WHEN w.owner IS NULL THEN 'delete' ELSE 'create' END AS action, CAST(NULL AS text) AS finding,
               CAST(NULL AS text) AS reason, coalesce(w.owner, c.{owner}) AS {owner},
               coalesce(w.member, c.{member}) AS {member},
               {f"coalesce(w.clinic_id, c.{clinic}) AS {clinic}," if clinic else ""}
               coalesce(w.name_of_row || ' · ' || w.name,
                        (SELECT min(l.name_of_row) FROM listed l WHERE l.owner = c.{owner})) AS name_of_row
        FROM (SELECT DISTINCT ON (w.owner, v.id) w.*, v.id AS member
              FROM (SELECT l.owner, l.clinic_id, l.name_of_row, n.name, n.place FROM listed l
                    CROSS JOIN LATERAL unnest(l.names) WITH ORDINALITY AS n(name, place)) w
              JOIN {each.among} v ON {each.known} ORDER BY w.owner, v.id) w
        FULL JOIN (SELECT * FROM {kind.table} WHERE {owner} IN (SELECT owner FROM listed)
                     AND {member} IN (SELECT id FROM {each.among})) c
            ON c.{owner} = w.owner AND c.{member} = w.member
        WHERE w.owner IS NULL OR c.{owner} IS NULL"""
    return changes.propose(connection, kind, replace(scope, parameters={"sheet": kind.name}), query, as_of=as_of)


_BY_KIND: Mapping[str, Sheet] = {sheet.kind.name: sheet for sheet in SHEETS}
