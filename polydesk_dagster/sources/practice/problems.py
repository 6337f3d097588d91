"""Rows of a workbook that wait for a person: where they stand in it, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from polydesk_dagster.changes import quarantine, undone
from polydesk_dagster.changes.plans import Plan
from polydesk_dagster.changes.why import read as read_reason
from polydesk_dagster.outcome import SHOWN_ROWS, Table
from polydesk_dagster.sources.practice.reading import at
from polydesk_dagster.sources.practice.sheets import Sheet
from polydesk_dagster.values import Reason, Term

BY_HAND = frozenset({undone.GUARD})
"""Guards that do not speak of a file which a person hands over: that she took the same back once is no doubt."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A row of the workbook that waits for a person."""

    sheet: str
    line: int | None
    reason: Reason


def unreadable(sheet: Sheet, key: str | None, why: Reason) -> Problem:
    """A row that could not be read, by the name that it was staged under."""
    line = (key or "").rpartition("/")[2]
    return Problem(sheet.key, int(line) if line.isdigit() else None, why)


def unread(connection: sa.Connection, sheet: Sheet, found: Plan) -> list[Problem]:
    """The rows of the sheet that could not be read when its plan was made."""
    known = [unreadable(sheet, each.key, each.why) for each in quarantine.of_plan(connection, found)]
    return sorted(known, key=lambda problem: problem.line or 0)


def table(problems: Sequence[Problem]) -> Table | None:
    """The first of them, each with its place and what is to be done about it; None where there are none."""
    rows = []
    for each in problems[:SHOWN_ROWS]:
        why = each.reason
        column = why.values.get("column") if why.code == "sheet_cell" else None
        within = why.values["why"] if why.code in _PLACED else why
        rows.append((Term("sheet", each.sheet), each.line, column, within))
    return Table("sheet_problems", ("sheet", "line", "heading", "why"), tuple(rows), len(problems)) if rows else None


_PLACED = frozenset({"sheet_row", "sheet_cell"})
"""Reasons that say where in the workbook another one arose."""


def follows(problem: Problem) -> bool:
    """Whether a row may only lack what another one should have brought: those that stand for themselves come first."""
    why = problem.reason.values.get("why")
    return isinstance(why, Reason) and why.code in {"sheet_unknown", "sheet_unknown_service"}


def conflicts(connection: sa.Connection, sheet: Sheet, found: Plan) -> list[Problem]:
    """Rows of the sheet's plan that contradict something, those apart that are applied by hand all the same."""
    if not found.rows_kept or not found.tally.get("conflict"):
        return []
    rows = connection.execute(
        sa.text(f"""
            SELECT r.line, r.reason, r.finding
            FROM {found.rows} r
            WHERE r.action = 'conflict'
              AND NOT EXISTS (SELECT FROM plan_hold h WHERE h.plan_id = :plan AND h.ordinal = r.ordinal
                                AND h.guards <> '{{}}' AND h.guards <@ CAST(:by_hand AS text[]))
            ORDER BY r.line, r.ordinal"""),
        {"plan": found.id, "by_hand": list(BY_HAND)},
    )
    return [Problem(sheet.key, row.line, _why(sheet, row)) for row in rows]


def _why(sheet: Sheet, row: sa.Row[Any]) -> Reason:
    """Why the row waits, and where it stands."""
    said = read_reason(row.reason) or Reason("finding", {"what": Term("finding", row.finding)})
    return said if said.code in _PLACED else at(sheet.key, row.line, said)
