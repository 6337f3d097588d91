"""A plan for people: its rows before and after, in full for those who may see them, masked where everybody reads."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TextIO

import sqlalchemy as sa

from polydesk_dagster.changes import plans
from polydesk_dagster.changes.fields import FIELD_NAMES, MEANINGLESS
from polydesk_dagster.changes.kind import ACTION_NAMES, FINDING_NAMES, Kind
from polydesk_dagster.changes.plans import Plan
from polydesk_dagster.outcome import SHOWN_ROWS, WHAT_TO_DO, Outcome, Reason, Report, Table


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a plan. ``before`` and ``after`` hold the fields that differ (all of them for what is created or
    deleted), by column."""

    ordinal: int
    action: str
    key: str
    finding: str | None
    reason: str | None
    before: dict[str, Any]
    after: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        return {
            "row": self.ordinal,
            "action": self.action,
            "key": self.key,
            "finding": self.finding,
            "reason": self.reason,
            "before": self.before,
            "after": self.after,
        }


@dataclass(frozen=True, slots=True)
class Name:
    """How a row is called in a message that everybody may read."""

    name: str
    reason: str


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
    name = f"'riga ' || r.ordinal || ' del piano {plan.id}'" if kind.private else f"CAST({kind.key} AS text)"
    found = connection.execute(
        sa.text(f"""
            SELECT {name} AS name, {why} AS reason, count(*) OVER () AS total
            FROM {plan.rows} r LEFT JOIN {kind.table} t ON {kind.on} WHERE {where} ORDER BY r.ordinal LIMIT :limit
        """),
        {**(values or {}), "limit": limit},
    ).all()
    return Found(tuple(Name(row.name, row.reason) for row in found), found[0].total if found else 0)


def rows(connection: sa.Connection, plan: Plan, kind: Kind, *, limit: int | None = None) -> Iterator[Row]:
    """The rows of ``plan`` in full, streamed; patient data included, so never for Dagster or a log."""
    if not plan.rows_kept:
        return
    types = plans.column_types(connection, plan.rows)
    shown = [name for name in types if name in kind.written or name in kind.carried]
    if kind.identity != ("id",):
        shown = [*kind.identity, *shown]
    found = connection.execute(
        sa.text(f"""
            SELECT r.*, CAST({kind.key} AS text) AS row_key FROM {plan.rows} r ORDER BY r.action, r.ordinal LIMIT :limit
        """),
        {"limit": limit},
        execution_options={"stream_results": True, "max_row_buffer": 1000},
    )
    for row in found.mappings():
        after = {name: row[name] for name in shown}
        before = {name: row[f"was_{name}"] for name in shown if f"was_{name}" in types}
        if row["action"] == "create":
            before = {}
        elif row["action"] == "delete":
            before, after = {**after, **before}, {}
        else:
            moved = {name for name, value in before.items() if after[name] != value}
            before = {name: value for name, value in before.items() if name in moved}
            if row["action"] != "conflict":
                after = {name: value for name, value in after.items() if name in moved}
        yield Row(row["ordinal"], row["action"], row["row_key"] or "", row["finding"], row["reason"], before, after)


def table(connection: sa.Connection, plan: Plan, kind: Kind) -> Table:
    """The first rows for everybody: of a private kind only what happens and why, never who."""
    columns: tuple[str, ...] = ("Riga", "Azione", "Che cosa", "Prima → dopo", "Perché")
    if kind.private:
        columns = ("Riga", "Azione", "Perché")
    cells = []
    for row in rows(connection, plan, kind, limit=SHOWN_ROWS):
        action = ACTION_NAMES[row.action]
        why = row.reason or FINDING_NAMES.get(row.finding or "", "")
        cells.append(
            (row.ordinal, action, why)
            if kind.private
            else (row.ordinal, action, row.key, difference(row, kind.masked), why)
        )
    total = plan.writes + plan.tally.get("conflict", 0)
    return Table(f"Piano {plan.id}: {kind.label}", columns, tuple(cells), total)


def difference(row: Row, masked: tuple[str, ...] = (), *, english: bool = False) -> str:
    """``importo 23.00 → 25.00, …``; for what is created or deleted its filled fields that mean something."""

    def label(name: str) -> str:
        return name if english else FIELD_NAMES.get(name, name)

    def cell(name: str, value: object) -> str:
        if value is None:
            return "—"
        if name in masked:
            return "•••"
        if isinstance(value, bool) and not english:
            return "sì" if value else "no"
        return ", ".join(map(str, value)) if isinstance(value, list) else str(value)

    if row.action in {"update", "retire", "link"}:
        before = row.before
        changed = row.after.items()
        return ", ".join(
            f"{label(name)} {cell(name, before.get(name))} → {cell(name, value)}" for name, value in changed
        )
    filled = (row.before if row.action == "delete" else row.after).items()
    said = ((name, value) for name, value in filled if name not in MEANINGLESS and value not in (None, [], ""))
    return ", ".join(f"{label(name)} {cell(name, value)}" for name, value in said)


def preview(connection: sa.Connection, plan: Plan, kind: Kind) -> Report:
    """What applying ``plan`` would do, for the preview's page: counts, findings, guards, and what to do next."""
    figures: dict[str, int | float | str] = {}
    for finding, label in FINDING_NAMES.items():
        if plan.tally.get(finding):
            figures[f"Discrepanze: {label}"] = plan.tally[finding]
    if plan.tally.get("link"):
        figures["Tra i modificati: solo collegati, dati invariati"] = plan.tally["link"]
    if plan.tally.get("rejected"):
        figures["Record in quarantena"] = plan.tally["rejected"]
    reasons = [Reason(f"guard:{guard.name}", guard.message, plan.clinic) for guard in plan.failed_guards]
    if plan.tally.get("conflict"):
        many = plan.tally["conflict"]
        said = (
            "1 riga in conflitto: non verrà scritta"
            if many == 1
            else f"{many} righe in conflitto: non verranno scritte"
        )
        reasons.append(Reason("conflict", f"{said}, vedi il piano {plan.id}", plan.clinic, many))
    figures[WHAT_TO_DO] = _next(plan)
    if not plan.writes:
        outcome = Outcome.PARTIAL if plan.tally.get("rejected") else Outcome.NOTHING_TO_DO
    else:
        outcome = Outcome.PARTIAL if plan.tally.get("rejected") else Outcome.OK
    tables = (table(connection, plan, kind),) if plan.rows_kept else ()
    return Report(outcome, plan.counts, tuple(reasons), figures, tables, plan.id)


def _next(plan: Plan) -> str:
    if plan.state != "ready" or plan.expired:
        why = {"applied": "è già stato applicato", "undone": "è già stato annullato"}.get(plan.state, "è scaduto")
        return f"Il piano {plan.id} {why}: rifai l'anteprima."
    see = f"polydesk plan show {plan.id}"
    if not plan.writes:
        if plan.failed_guards:
            return "Niente da applicare, ma un controllo non è passato: guarda la fonte."
        if plan.tally.get("conflict"):
            return f"Niente da applicare: guarda che cosa è in conflitto ({see})."
        if plan.tally.get("rejected"):
            return "Niente da applicare: guarda i record che non si leggono (polydesk plan quarantine)."
        return "Niente da applicare: siamo allineati."
    if plan.failed_guards:
        names = " ".join(f"--past-guard {guard.name}" for guard in plan.failed_guards)
        apply = f"polydesk plan apply {plan.id} {names} --reason '…'"
        return f"Guarda le righe ({see}); se sono giuste: {apply}"
    return f"Se le righe sono giuste: polydesk plan apply {plan.id}; per vederle tutte: {see} --csv FILE"


def write_csv(connection: sa.Connection, plan: Plan, kind: Kind, file: TextIO) -> int:
    """The whole plan, one line a row; returns how many."""
    writer = csv.writer(file)
    writer.writerow(("row", "action", "key", "finding", "reason", "before", "after"))
    written = 0
    for row in rows(connection, plan, kind):
        before, after = (json.dumps(side, default=str, ensure_ascii=False) for side in (row.before, row.after))
        writer.writerow((row.ordinal, row.action, row.key, row.finding, row.reason, before, after))
        written += 1
    return written
