"""A file as rows of text: its encoding, separator, sheet and headings found, its notes and blank rows told apart."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from polydesk_dagster.archives import ArchiveTooLargeError, look_through
from polydesk_dagster.errors import PermanentError
from polydesk_dagster.sources.files.maps import Table
from polydesk_dagster.wire import comparable

if TYPE_CHECKING:
    import pandas as pd

LARGEST = 64 * 1024 * 1024
"""Bytes of a file."""
LARGEST_UNPACKED = 512 * 1024 * 1024
"""Bytes of a workbook's parts, which are packed."""
HEADINGS_WITHIN = 40
"""Rows among which the headings are looked for."""
SEPARATORS = (";", ",", "\t", "|")


@dataclass(frozen=True, slots=True)
class Row:
    """A row with something in it; ``number`` as a spreadsheet shows it, cells by field."""

    number: int
    cells: dict[str, str]


@dataclass(frozen=True, slots=True)
class Sheet:
    """What was read: where, and the rows below the headings."""

    file: str
    sheet: str | None
    headings: dict[str, str]
    """By field, as the file has them."""
    rows: tuple[Row, ...]
    notes: int
    """Rows with something in them that is no record."""


def read(name: str, data: bytes, table: Table, key: str | None) -> Sheet:
    """The rows of ``table`` in the file ``name``. ``key`` is the field that identifies a record, if one does.

    Raises:
        PermanentError: too large, unreadable, or no row has all the headings: nothing of it can be taken for the list.
    """
    if len(data) > LARGEST:
        raise PermanentError("file_too_large", file=name, mib=LARGEST // 2**20)
    best: tuple[str | None, list[str]] = (None, [column.heading for column in table.columns.values()])
    for sheet, frame in _frames(name, data, table):
        found = _headings(frame, table)
        if isinstance(found, list):
            best = (sheet, found) if len(found) <= len(best[1]) else best
            continue
        below, places, headings = found
        rows = tuple(_rows(frame, below, places))
        kept = tuple(row for row in rows if not _is_note(row, key))
        return Sheet(name, sheet, headings, kept, len(rows) - len(kept))
    missing = ", ".join(sorted(best[1]))
    if best[0] is None:
        raise PermanentError("file_headings", file=name, columns=missing)
    raise PermanentError("sheet_headings", file=name, sheet=best[0], columns=missing)


def _frames(name: str, data: bytes, table: Table) -> Iterator[tuple[str | None, pd.DataFrame]]:
    if data[:2] == b"PK":
        yield from _workbook(name, data, table)
        return
    if data[:8] == b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1":
        raise PermanentError("file_old_excel", file=name)
    text = _decoded(name, data, table.encoding)
    for separator in SEPARATORS:
        if separator in text and (frame := _csv(text, separator)) is not None:
            yield None, frame


def _decoded(name: str, data: bytes, said: str | None) -> str:
    """UTF-8 where it is that, or what its mark says, else Windows-1252, as an Italian Excel saves by itself."""
    marked = data[:2] in {b"\xff\xfe", b"\xfe\xff"}
    for encoding in [said] if said else ["utf-16"] if marked else ["utf-8-sig", "cp1252"]:
        try:
            return data.decode("utf-8-sig" if encoding == "utf-8" else str(encoding))
        except UnicodeDecodeError:
            continue
    raise PermanentError("file_encoding", file=name)


def _csv(text: str, separator: str) -> pd.DataFrame | None:
    """The table that ``separator`` makes of the text; None where it makes none."""
    import pandas as pd

    width = 1 + max(line.count(separator) for line in text.splitlines())
    try:
        return pd.read_csv(
            io.StringIO(text),
            sep=separator,
            header=None,
            names=list(range(width)),
            dtype=str,
            keep_default_na=False,
            skip_blank_lines=False,
            index_col=False,
        )
    except (pd.errors.ParserError, pd.errors.EmptyDataError):
        return None


def _workbook(name: str, data: bytes, table: Table) -> Iterator[tuple[str | None, pd.DataFrame]]:
    import pandas as pd

    try:
        look_through(data, LARGEST_UNPACKED)
        with pd.ExcelFile(io.BytesIO(data), engine="openpyxl") as book:
            if table.sheet is not None and table.sheet not in book.sheet_names:
                raise PermanentError("sheet_missing", file=name, sheet=table.sheet)
            for sheet in [table.sheet] if table.sheet is not None else book.sheet_names:
                frame = pd.read_excel(book, sheet_name=sheet, header=None, dtype=str, keep_default_na=False)
                yield str(sheet), frame
    except ArchiveTooLargeError:
        raise PermanentError("file_too_large", file=name, mib=LARGEST_UNPACKED // 2**20) from None
    except (zipfile.BadZipFile, KeyError, ValueError, OSError, EOFError) as error:
        raise PermanentError("file_unreadable", file=name, error=type(error).__name__) from error


def _headings(frame: pd.DataFrame, table: Table) -> tuple[int, dict[str, int], dict[str, str]] | list[str]:
    """The row below the headings, each field's column and its heading as it stands there; or which headings the best
    row lacks. Two rows may make one heading, the upper one merged over several columns."""
    wanted = {field: comparable(column.heading) for field, column in table.columns.items()}
    lacking = list({column.heading for column in table.columns.values()})
    rows: list[list[str]] = frame.head(HEADINGS_WITHIN).values.tolist()
    for number, row in enumerate(rows):
        for upper in ([], _spread(rows[number - 1])) if number else ([],):
            names = [_names(cell, upper[place] if upper else "") for place, cell in enumerate(row)]
            places = {field: [n for n, said in enumerate(names) if name in said] for field, name in wanted.items()}
            missing = [table.columns[field].heading for field, found in places.items() if not found]
            if not missing:
                first = {field: found[0] for field, found in places.items()}
                titles = {field: _title(row[place], upper[place] if upper else "") for field, place in first.items()}
                return number + 1, first, titles
            lacking = min(lacking, sorted(set(missing)), key=len)
    return lacking


def _spread(row: Sequence[str]) -> list[str]:
    """A row whose merged cells say in each of their columns what they say in the first."""
    said, spread = "", []
    for cell in row:
        said = cell.strip() or said
        spread.append(said)
    return spread


def _names(cell: str, upper: str) -> set[str]:
    lower = comparable(cell)
    return {name for name in (lower, f"{comparable(upper)} {lower}".strip() if upper else lower) if name}


def _title(cell: str, upper: str) -> str:
    return " ".join(f"{upper} {cell}".split())


def _rows(frame: pd.DataFrame, below: int, places: dict[str, int]) -> Iterator[Row]:
    fields, columns = list(places), sorted(set(places.values()))
    cells: list[list[Any]] = frame.iloc[below:, columns].values.tolist()
    where = [columns.index(places[field]) for field in fields]
    for number, row in enumerate(cells, below + 1):
        if any(cell and not cell.isspace() for cell in row):
            yield Row(number, {field: row[place] for field, place in zip(fields, where, strict=True)})


def _is_note(row: Row, key: str | None) -> bool:
    """Whether it is a sentence below the table, or a title among its rows: one cell alone says something, and that is
    no name of a record. A record that has nothing but its name is one, and a wrong one."""
    said = {cell.strip() for cell in row.cells.values() if cell.strip()}
    named = row.cells.get(key or "", "").strip()
    return len(said) <= 1 and not (named and " " not in named)
