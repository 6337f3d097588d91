"""A plan for people: its rows before and after, in full for those who may see them, masked where everybody reads."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, TextIO

import sqlalchemy as sa

from polydesk_dagster import inert
from polydesk_dagster.changes import past
from polydesk_dagster.changes.fields import AMOUNTS, KINDS, LISTS, MEANINGLESS, WEEKDAYS
from polydesk_dagster.changes.kind import FINDINGS, Kind
from polydesk_dagster.changes.plans import Plan
from polydesk_dagster.changes.why import read
from polydesk_dagster.outcome import SHOWN_ROWS, WHAT_TO_DO, Outcome, Reason, Report, Table
from polydesk_dagster.values import Duration, Instant, Money, Several, Term, Value

MASK = "•••"
"""What stands where a value is not everybody's to read."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a plan. ``before`` and ``after`` hold the fields that differ (all of them for what is created or
    deleted), by column."""

    ordinal: int
    action: str
    key: str | Reason
    """How people call it: as it is written, or in words."""
    finding: str | None
    reason: Reason | None
    before: dict[str, Any]
    after: dict[str, Any]
    held: bool = False
    """Whether a person holds it back."""
    told: str = ""
    """Its action, as people are told."""

    def as_dict(self) -> dict[str, Any]:
        return {
            "row": self.ordinal,
            "action": self.action,
            "key": self.key.as_dict() if isinstance(self.key, Reason) else self.key,
            "finding": self.finding,
            "reason": self.reason and self.reason.as_dict(),
            "before": self.before,
            "after": self.after,
            "held": self.held,
        }


@dataclass(frozen=True, slots=True)
class Name:
    """How a row is called in a message that everybody may read."""

    name: Value
    reason: Reason | None


@dataclass(frozen=True, slots=True)
class Found:
    rows: tuple[Name, ...]
    total: int


def row_names(
    connection: sa.Connection,
    plan: Plan,
    kind: Kind,
    where: str,
    limit: int,
    *,
    why: str = "r.reason",
    values: Mapping[str, Any] | None = None,
) -> Found:
    """The first ``limit`` rows of ``plan`` (alias ``r``, its target ``t``) that satisfy ``where``, each with ``why``,
    and how many there are. ``values`` are what the two bind."""
    if not plan.rows_kept:
        return Found((), 0)
    name = "r.ordinal" if kind.private else f"CAST({kind.key} AS text)"
    found = connection.execute(
        sa.text(f"""
            SELECT {name} AS name, {why} AS reason, count(*) OVER () AS total
            FROM {plan.rows} r LEFT JOIN {kind.table} t ON {kind.on} WHERE {where} ORDER BY r.ordinal LIMIT :limit
        """),
        {**(values or {}), "limit": limit},
    ).all()
    names = tuple(Name(_name(plan, row.name, kind), read(row.reason)) for row in found)
    return Found(names, found[0].total if found else 0)


def _name(plan: Plan, name: Any, kind: Kind) -> Value:
    return Reason("row_of_plan", {"row": name, "plan": plan.id}) if kind.private else _called(name, kind)


def _called(name: Any, kind: Kind) -> str | Reason:
    """A row's name; one that was written before it was told in words stays as it is."""
    said = read(name) if kind.told and name else None
    return str(name or "") if said is None or said.code == "as_written" else said


def rows(
    connection: sa.Connection, plan: Plan, kind: Kind, *, limit: int | None = None, start: int = 0
) -> Iterator[Row]:
    """The rows of ``plan`` in full, streamed, ``start`` of them passed over; patient data included, so never for
    Dagster or a log."""
    if not plan.rows_kept:
        return
    found = connection.execute(
        sa.text(f"""
            SELECT r.*, CAST({kind.key} AS text) AS row_key,
                   EXISTS (SELECT FROM plan_hold p WHERE p.plan_id = :plan_id AND p.ordinal = r.ordinal) AS is_held
            FROM {plan.rows} r ORDER BY r.action, r.ordinal LIMIT :limit OFFSET :start
        """),
        {"limit": limit, "start": start, "plan_id": plan.id},
        execution_options={"stream_results": True, "max_row_buffer": 1000},
    )
    columns = tuple(found.keys())
    shown = [name for name in columns if name in kind.written or name in kind.carried]
    if kind.identity != ("id",):
        shown = [*kind.identity, *shown]
    for row in found.mappings():
        after = {name: row[name] for name in shown}
        before = {name: row[f"was_{name}"] for name in shown if f"was_{name}" in columns}
        if row["action"] == "create":
            before = {}
        elif row["action"] == "delete":
            before, after = {**after, **before}, {}
        else:
            moved = {name for name, value in before.items() if after[name] != value}
            before = {name: value for name, value in before.items() if name in moved}
            if row["action"] != "conflict":
                after = {name: value for name, value in after.items() if name in moved}
        said = read(row["reason"])
        if said is None and plan.undoes is not None:
            said = Reason("back_before_plan", {"plan": plan.undoes}, plan.clinic)
        key = _called(row["row_key"], kind)
        action = "order" if kind.orders and row["action"] == "create" else row["action"]
        yield Row(row["ordinal"], row["action"], key, row["finding"], said, before, after, row["is_held"], action)


def table(connection: sa.Connection, plan: Plan, kind: Kind) -> Table:
    """The first rows for everybody: of a private kind only what happens and why, never who."""
    columns: tuple[str, ...] = ("row", "action", "what", "difference", "why")
    if kind.private:
        columns = ("row", "action", "why")
    cells = []
    for row in rows(connection, plan, kind, limit=SHOWN_ROWS):
        action = Term("action", row.told)
        cells.append(
            (row.ordinal, action, because(row))
            if kind.private
            else (row.ordinal, action, row.key, difference(row, kind.masked), because(row))
        )
    return Table("plan_rows", columns, tuple(cells), plan.writes + plan.tally.get("conflict", 0))


def because(row: Row) -> Value:
    """Why the row is what it is: its reason, or else what kind of discrepancy it is."""
    return row.reason or (Term("finding", row.finding) if row.finding else None)


def difference(row: Row, masked: tuple[str, ...] = ()) -> Several:
    """What becomes of each field that changes; for what is created or deleted its filled fields that mean something."""
    sides = row.before | row.after
    currency = str(sides.get("currency") or "EUR")

    def cell(name: str, value: object) -> Value:
        return MASK if name in masked and value is not None else typed(name, value, currency)

    if row.action in {"update", "retire", "link"}:
        before = row.before
        return Several(
            tuple(
                Reason(
                    "field_changes",
                    {"field": Term("field", name), "before": cell(name, before.get(name)), "after": cell(name, value)},
                )
                for name, value in row.after.items()
            )
        )
    filled = (row.before if row.action == "delete" else row.after).items()
    said = ((name, value) for name, value in filled if name not in MEANINGLESS and value not in (None, [], ""))
    return Several(
        tuple(Reason("field_is", {"field": Term("field", name), "value": cell(name, value)}) for name, value in said)
    )


def typed(name: str, value: object, currency: str = "EUR") -> Value:
    """The field ``name`` of a row as a value that can be told."""
    match value:
        case Decimal() if name in AMOUNTS:
            return Money(value, currency)
        case int() if name == "weekday":
            return Term("weekday", WEEKDAYS[value - 1])
        case str() if name == "kind" and value in KINDS:
            return Term(KINDS[value], value)
        case str() if name in LISTS:
            return Term(LISTS[name], value)
        case datetime():
            return Instant(value)
        case timedelta():
            return Duration(value.total_seconds())
        case list():
            return Several(tuple(typed(name, each) for each in value))
        case None | bool() | int() | float() | Decimal() | str() | date() | time():
            return value
        case _:
            return str(value)


def preview(connection: sa.Connection, plan: Plan, kind: Kind) -> Report:
    """What applying ``plan`` would do, for the preview's page: counts, findings, guards, and what to do next."""
    figures: dict[str, Value] = {}
    for finding in FINDINGS:
        if plan.tally.get(finding):
            figures[f"finding.{finding}"] = plan.tally[finding]
    if plan.tally.get("link"):
        figures["linked_only"] = plan.tally["link"]
    if plan.tally.get("rejected"):
        figures["quarantined"] = plan.tally["rejected"]
    reasons = [Reason(guard.reason.code, guard.reason.values, plan.clinic) for guard in plan.failed_guards]
    needed = past.together(connection, plan)
    for guard in plan.holding_guards:
        names = sorted(needed[guard.name])
        beyond = Reason("past_guards", {"guards": Several(tuple(names))}, count=len(names))
        told: dict[str, Value] = {"guard": beyond, "why": guard.reason}
        reasons.append(Reason("rows_set_aside", told, plan.clinic, guard.held))
    noted = kind.source.noted if kind.source is not None else ()
    said = ((code, plan.tally.get(f"noted.{code}", 0)) for code in noted)
    reasons.extend(Reason(code, {}, plan.clinic, many) for code, many in said if many)
    if plan.tally.get("conflict"):
        reasons.append(Reason("conflict", {"plan": plan.id}, plan.clinic, plan.tally["conflict"]))
    figures[WHAT_TO_DO] = next_step(plan)
    outcome = Outcome.OK if plan.writes else Outcome.NOTHING_TO_DO
    if plan.tally.get("set_aside"):
        outcome = Outcome.PARTIAL
    tables = (table(connection, plan, kind),) if plan.rows_kept else ()
    return Report(outcome, plan.counts, tuple(reasons), figures, tables, plan.id, preview=True)


def next_step(plan: Plan) -> Reason:
    """What a person does next with ``plan``."""
    if plan.state != "ready" or plan.expired:
        code = {"applied": "plan_applied", "undone": "plan_undone"}.get(plan.state, "plan_expired")
        return Reason(code, {"plan": plan.id})
    if stopping := past.needed(plan):
        return then_pass(plan, [guard.name for guard in stopping])
    if plan.writes:
        return Reason("look_then_apply", {"plan": plan.id})
    if plan.tally.get("conflict"):
        return Reason("look_at_conflicts", {"plan": plan.id})
    return Reason("look_at_quarantine" if plan.tally.get("rejected") else "in_step")


def then_pass(plan: Plan, guards: Collection[str]) -> Reason:
    """That whoever has looked applies ``plan`` past ``guards``."""
    code = "look_then_pass" if plan.writes or plan.holding_guards else "look_at_source"
    return Reason(code, {"plan": plan.id, "guards": past.options(guards)}, count=len(guards))


def write_csv(connection: sa.Connection, plan: Plan, kind: Kind, file: TextIO, *, say: Callable[[Reason], str]) -> int:
    """The whole plan, one line a row, its reason as ``say`` tells it; returns how many. What a spreadsheet would take
    for a formula is text."""
    writer = csv.writer(file)
    writer.writerow(("row", "action", "key", "finding", "reason", "before", "after"))
    written = 0
    for row in rows(connection, plan, kind):
        before, after = (json.dumps(side, default=str, ensure_ascii=False) for side in (row.before, row.after))
        reason = say(row.reason) if row.reason else None
        key = say(row.key) if isinstance(row.key, Reason) else row.key
        cells = (row.ordinal, row.action, key, row.finding, reason, before, after)
        writer.writerow(tuple(map(inert.cell, cells)))
        written += 1
    return written
