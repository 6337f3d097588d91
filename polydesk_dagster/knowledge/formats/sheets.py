"""Spreadsheets: what a person would see of them, as she would see it."""

from __future__ import annotations

import datetime as dt
import io
import re
import zipfile
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from polydesk_dagster.knowledge.formats.office import check
from polydesk_dagster.knowledge.formats.text import Loss, Text, UnreadableError

if TYPE_CHECKING:
    from openpyxl.cell import Cell
    from openpyxl.workbook import Workbook
    from openpyxl.worksheet.worksheet import Worksheet

_CURRENCY = re.compile(r"(€|EUR|\$|£|CHF)")
_NAMED = re.compile(r"\[\$([^\]\-]+)(?:-[^\]]*)?\]")
"""A currency as Excel writes one it was asked for by name: ``[$€-410]``."""
_DECIMALS = re.compile(r"0[.,](0+)")
_LITERAL = re.compile(r'"[^"]*"|\\.|_.|\*.|\[(?!\$)[^\]]*\]')


def read(data: bytes) -> Text:
    """The visible cells of a ``.xlsx``, a heading a sheet, a table a block of rows; numbers as their formats show them.

    Raises:
        UnreadableError: if it cannot be opened.
    """
    check(data, ".xlsx")
    book = _open(data, values=True)
    losses: Counter[str] = Counter()
    parts: list[str] = []
    for sheet in book.worksheets:
        if sheet.sheet_state != "visible":
            losses["hidden_sheets"] += 1
            continue
        parts.append("\n".join([f"# {sheet.title}", "", *_lines(sheet, losses)]))
    if missing := _without_value(data, book):
        losses["formulas_without_value"] = missing
    return Text([(None, "\n\n".join(parts))], None, [Loss(code, count) for code, count in losses.items()])


def _open(data: bytes, *, values: bool) -> Workbook:
    import openpyxl
    from openpyxl.utils.exceptions import InvalidFileException

    try:
        return openpyxl.load_workbook(io.BytesIO(data), data_only=values)
    except (InvalidFileException, KeyError, ValueError, TypeError, AttributeError, IndexError, zipfile.BadZipFile):
        raise UnreadableError("damaged") from None


def _lines(sheet: Worksheet, losses: Counter[str]) -> Iterator[str]:
    columns = set(_hidden_columns(sheet))
    hidden_columns: set[int] = set()
    for row in sheet.iter_rows():
        filled = [cell for cell in row if cell.value not in (None, "")]
        if filled and sheet.row_dimensions[filled[0].row].hidden:
            losses["hidden_rows"] += 1
            continue
        hidden_columns |= {cell.column for cell in filled if cell.column in columns}
        seen = [shown(cell) for cell in row if cell.column not in columns]
        said = [text for text in seen if text]
        if len(said) > 1:
            yield "| " + " | ".join(text.replace("|", "\\|") for text in seen) + " |"
        elif said:
            yield f"\n{said[0]}\n"
        else:
            yield ""
    if hidden_columns:
        losses["hidden_columns"] += len(hidden_columns)


def _hidden_columns(sheet: Worksheet) -> Iterator[int]:
    for dimension in sheet.column_dimensions.values():
        if dimension.hidden and dimension.min and dimension.max:
            yield from range(dimension.min, min(dimension.max, sheet.max_column) + 1)


def shown(cell: Cell | Any) -> str:
    """A cell as its format shows it, in Italian ways: 15%, 130,00 €, 31/12/2026."""
    value, pattern = cell.value, _LITERAL.sub("", str(cell.number_format).split(";", maxsplit=1)[0])
    match value:
        case None:
            return ""
        case bool():
            return "sì" if value else "no"
        case dt.datetime():
            return f"{value:%d/%m/%Y}" if value.time() == dt.time() else f"{value:%d/%m/%Y %H:%M}"
        case dt.date():
            return f"{value:%d/%m/%Y}"
        case dt.timedelta():
            minutes = round(value.total_seconds() / 60)
            return f"{minutes // 60}:{minutes % 60:02d}"
        case dt.time():
            return f"{value:%H:%M}"
        case int() | float():
            return _number(value, pattern, str(cell.number_format))
        case _:
            return " ".join(str(value).split())


def _number(value: float, pattern: str, whole: str) -> str:
    places = _DECIMALS.search(pattern)
    decimals = len(places.group(1)) if places else 0
    if "%" in pattern:
        return f"{_italian(value * 100, decimals)}%"
    if currency := _NAMED.search(whole) or _CURRENCY.search(whole):
        return f"{_italian(value, decimals)} {currency.group(1).replace('EUR', '€')}"
    if re.fullmatch(r"0{2,}", pattern):
        return f"{round(value):0{len(pattern)}d}"
    return _italian(value, decimals) if places else f"{value:.10g}".replace(".", ",")


def _italian(value: float, decimals: int) -> str:
    return f"{value:.{decimals}f}".replace(".", ",")


def _without_value(data: bytes, book: Workbook) -> int:
    """Formulas on visible sheets whose result the file does not hold."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        sheets = [name for name in archive.namelist() if name.startswith("xl/worksheets/")]
        if not any(b"<f" in archive.read(name) for name in sheets):
            return 0
    formulas = _open(data, values=False)
    return sum(
        cell.data_type == "f" and book[sheet.title][cell.coordinate].value is None
        for sheet in formulas.worksheets
        if sheet.sheet_state == "visible"
        for row in sheet.iter_rows()
        for cell in row
    )
