"""What we hold as a workbook, or an empty one to be filled in: the same sheets, headings and words that are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import date, time
from decimal import Decimal
from typing import IO, TYPE_CHECKING, Any, Protocol

import sqlalchemy as sa

from polydesk_dagster.sources.practice.cells import DOMAINS
from polydesk_dagster.sources.practice.sheets import SHEETS, Column, Sheet

if TYPE_CHECKING:
    from openpyxl import Workbook
    from openpyxl.worksheet.worksheet import Worksheet

BLANK_ROWS = 500
"""Rows of a sheet that offer what may be chosen."""

GUIDE = "guide"


class Labels(Protocol):
    """The words of one language."""

    def term(self, domain: str, code: str) -> str: ...

    def text(self, name: str, /) -> str: ...

    def knows(self, name: str) -> bool: ...


def template(file: IO[bytes], labels: Labels) -> None:
    """Write an empty workbook, with what each column is for."""
    _write(file, labels, lambda _: iter(()))


def export(connection: sa.Connection, file: IO[bytes], labels: Labels) -> int:
    """Write all that a workbook can hold of ours; returns the number of rows."""
    written = 0

    def rows(sheet: Sheet) -> Iterator[Sequence[Any]]:
        nonlocal written
        keys = [column.key for column in sheet.columns]
        for row in connection.execute(sa.text(sheet.exported)).mappings():
            written += 1
            yield [row[key] for key in keys]

    _write(file, labels, rows)
    return written


def heading(labels: Labels, sheet: Sheet, column: Column) -> str:
    """What a column is called; one that a row needs carries a star."""
    own = f"term.sheet_column.{sheet.key}.{column.key}"
    said = labels.text(own) if labels.knows(own) else labels.term("sheet_column", column.key)
    return f"{said} *" if column.required else said


def _write(file: IO[bytes], labels: Labels, rows: Callable[[Sheet], Iterator[Sequence[Any]]]) -> None:
    import openpyxl

    book = openpyxl.Workbook()
    _guide(book, labels)
    for sheet in SHEETS:
        page = book.create_sheet(labels.term("sheet", sheet.key))
        _headings(page, sheet, labels)
        for line, row in enumerate(rows(sheet), 2):
            for place, (value, column) in enumerate(zip(row, sheet.columns, strict=True), 1):
                cell = page.cell(line, place, _cell(value, column, labels))
                if cell.data_type == "f":  # what begins with = is somebody's text, never a formula
                    cell.data_type = "s"
        _styles(page, sheet)
        _choices(page, sheet, labels)
    book.save(file)


def _guide(book: Workbook, labels: Labels) -> None:
    page = book.active
    assert page is not None
    page.title = labels.term("sheet", GUIDE)
    page.column_dimensions["A"].width = 110
    for line in labels.text("sheet_guide").splitlines():
        page.append([line])


def _headings(page: Worksheet, sheet: Sheet, labels: Labels) -> None:
    from openpyxl.comments import Comment
    from openpyxl.styles import Font, PatternFill
    from openpyxl.utils import get_column_letter

    for place, column in enumerate(sheet.columns, 1):
        cell = page.cell(1, place, heading(labels, sheet, column))
        cell.font = Font(bold=True)
        cell.fill = PatternFill("solid", fgColor="DDEBF7" if column.required else "F2F2F2")
        page.column_dimensions[get_column_letter(place)].width = column.cell.width
        help_ = f"sheet_help.{column.key}"
        if labels.knows(help_):
            cell.comment = Comment(labels.text(help_), "Polydesk", width=320, height=120)
    page.freeze_panes = "A2"


def _cell(value: Any, column: Column, labels: Labels) -> Any:
    domain = column.cell.domain
    match value:
        case bool() if domain == "yes_no":
            return labels.term(domain, "yes" if value else "no")
        case str() if domain is not None:
            return labels.term(domain, value)
        case list():
            return "; ".join(value) or None
        case None | str() | int() | float() | Decimal() | date() | time():
            return value
    return str(value)


def _styles(page: Worksheet, sheet: Sheet) -> None:
    from openpyxl.styles import Alignment

    last = max(page.max_row, BLANK_ROWS)
    for place, column in enumerate(sheet.columns, 1):
        wide = column.cell.width > 40
        if column.cell.style is None and not wide:
            continue
        for row in range(2, last + 1):
            cell = page.cell(row, place)
            if column.cell.style is not None:
                cell.number_format = column.cell.style
            if wide:
                cell.alignment = Alignment(wrap_text=True, vertical="top")


def _choices(page: Worksheet, sheet: Sheet, labels: Labels) -> None:
    from openpyxl.utils import get_column_letter
    from openpyxl.worksheet.datavalidation import DataValidation

    last = max(page.max_row, BLANK_ROWS)
    for place, column in enumerate(sheet.columns, 1):
        if column.cell.domain is None:
            continue
        said = ",".join(labels.term(column.cell.domain, code) for code in DOMAINS[column.cell.domain])
        offered = DataValidation("list", formula1=f'"{said}"', allow_blank=True)
        letter = get_column_letter(place)
        offered.add(f"{letter}2:{letter}{last}")
        page.add_data_validation(offered)
