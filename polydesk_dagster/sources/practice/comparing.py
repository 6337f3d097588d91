"""How the rows of a sheet become comparable with what we hold, and what SQL finds wrong with one of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from polydesk_dagster.changes.kind import Kind, Source
from polydesk_dagster.changes.why import day, nested, term, why
from polydesk_dagster.sources.practice.kinds import BLOCKED
from polydesk_dagster.sources.practice.reading import Record
from polydesk_dagster.sources.practice.sheets import Sheet
from polydesk_dagster.sources.practice.sheets.shape import Reference


def kind_of(sheet: Sheet, present: frozenset[str]) -> Kind:
    """The sheet's record kind, with how its rows become comparable."""
    keys = [column.key for column in sheet.columns]

    def prepare(record: Record) -> tuple[Any, ...]:
        return (record.line, *(record.values.get(key) for key in keys))

    columns = {"line": "integer", **{column.key: column.cell.sql for column in sheet.columns}}
    source = Source(
        columns=columns,
        prepare=prepare,
        label=lambda record: f"{sheet.key}/{record.line}",
        key=("{}.thing",),
        join="d.target = c.id",
        desired=_desired(sheet, present).replace("{", "{{").replace("}", "}}").replace("{{stage}}", "{stage}"),
        current=f"SELECT t.*, CAST(t.id AS text) AS source_key FROM {sheet.kind.table} t WHERE {sheet.living}",
        blocked=BLOCKED.get(sheet.kind.name, "CAST(NULL AS text)"),
        reconsider=_reconsider(sheet),
        text=tuple(column.key for column in sheet.columns if column.cell.sql == "text"),
    )
    return replace(sheet.kind, source=source)


def _desired(sheet: Sheet, present: frozenset[str]) -> str:
    """What the sheet says, in our columns: a cell, what it refers to, or where its column is missing what we hold."""
    kind = sheet.kind
    by_target = {column.target or column.key: column for column in sheet.columns}
    written = []
    for name in (*kind.fixed, *kind.owned):
        column = by_target.get(name)
        said = sheet.written.get(name)
        if said is None and column is not None:
            said = f"s.{column.key}" if column.default is None else f"coalesce(s.{column.key}, {column.default})"
        if said is None:
            said = "k.id"  # the clinic, which every sheet of a clinic's names
        if column is not None and column.key not in present:
            said = f"CASE WHEN m.id IS NULL THEN {said} ELSE m.{name} END"
        written.append(f"{said} AS {name}")
    number = "s.number" if sheet.numbered else "CAST(NULL AS integer)"
    problems, reasons = _problems(sheet, present)
    return f"""
        SELECT s.n, s.line, {", ".join(written)}, hit.id AS target, {sheet.name} AS name_of_row,
               coalesce('#' || hit.id, {sheet.natural}, 'record ' || s.n) AS thing,
               CASE WHEN s.problem IS NOT NULL THEN s.problem {problems} END AS problem,
               CASE WHEN s.problem IS NOT NULL THEN s.reason {reasons} END AS reason
        FROM {{stage}} s {sheet.joins}
        LEFT JOIN LATERAL (
            SELECT min(t.id) AS id FROM {kind.table} t
            WHERE {sheet.living}
              AND ({number} IS NOT NULL AND t.id = {number} OR {number} IS NULL AND ({sheet.match}))) hit ON true
        LEFT JOIN {kind.table} m ON m.id = hit.id
    """


def _problems(sheet: Sheet, present: frozenset[str]) -> tuple[str, str]:
    flags = {column.key: "true" if column.key in present else "false" for column in sheet.columns}
    tests = []
    if sheet.numbered:
        tests.append(Reference("number", "s.number IS NOT NULL AND hit.id IS NULL", "sheet_no_such_number"))
    lacking = (column.key for column in sheet.columns if column.new and column.key not in present)
    tests += [Reference(key, "hit.id IS NULL", "sheet_new_lacks") for key in lacking]
    tests += [replace(each, missing=_filled(each.missing, flags)) for each in sheet.references]
    if sheet.numbered:
        for name in sheet.kind.fixed:
            test = f"m.id IS NOT NULL AND m.{name} IS DISTINCT FROM {sheet.written.get(name, 'k.id')}"
            tests.append(Reference("number", test, "sheet_number_elsewhere"))
    problems = " ".join(f"WHEN {each.missing} THEN 'unmapped'" for each in tests)
    reasons = " ".join(f"WHEN {each.missing} THEN {_said(sheet, each)}" for each in tests)
    return problems, reasons


def _filled(sql: str, flags: Mapping[str, str]) -> str:
    """``sql`` with each ``{column}`` replaced by whether the sheet has it."""
    return re.sub(r"\{([a-z_]+)\}", lambda found: flags[found[1]], sql)


def _said(sheet: Sheet, about: Reference) -> str:
    """SQL for the reason of ``about`` the row ``s``."""
    cell = next(each.cell for each in sheet.columns if each.key == about.column)
    written = about.which or f"s.{about.column}"
    if cell.sql == "date":
        value = day(written)
    elif cell.sql.endswith("[]") and about.which is None:
        value = f"left(array_to_string({written}, '; '), 100)"
    else:
        value = f"left(CAST({written} AS text), 100)"
    place = {"sheet": term("sheet", f"'{sheet.key}'"), "row": "s.line"}
    column = term("sheet_column", f"'{about.column}'")
    return why("sheet_cell", **place, column=column, why=nested(about.code, value=value))


def _reconsider(sheet: Sheet) -> tuple[str, ...]:
    """Of rows that contradict each other each names the other; a row that would take the name of another one, which
    keeps it, is a conflict."""
    kind = sheet.kind
    other = (
        "(SELECT min(o.line) FROM {rows} o WHERE o.finding = 'duplicate' AND o.thing = r.thing AND o.line <> r.line)"
    )
    place = {"sheet": term("sheet", f"'{sheet.key}'"), "row": "r.line"}
    twice = f"""UPDATE {{rows}} r SET reason = {why("sheet_row", **place, why=nested("sheet_twice_told", other=other))}
                WHERE r.finding = 'duplicate' AND {other} IS NOT NULL"""
    if kind.taken is None:
        return (twice,)
    return (
        twice,
        f"""UPDATE {{rows}} r SET action = 'conflict', finding = 'duplicate', reason = 'sheet_name_of_another',
                id = CASE r.action WHEN 'create' THEN NULL ELSE r.id END
            WHERE r.action IN ('create', 'update') AND EXISTS (
                SELECT FROM {kind.table} t WHERE {kind.taken} AND t.id IS DISTINCT FROM r.id
                  AND t.id NOT IN (SELECT x.id FROM {{rows}} x WHERE x.action = 'update'))""",
    )
