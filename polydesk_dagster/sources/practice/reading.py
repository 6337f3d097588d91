"""Find the sheets and headings of a workbook as people keep it: titles above, merged cells, notes below, any order."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polydesk_dagster.archives import ArchiveTooLargeError, look_through
from polydesk_dagster.changes.stage import Unreadable
from polydesk_dagster.errors import PermanentError
from polydesk_dagster.sources.practice.cells import Terms, UnfitError, folded
from polydesk_dagster.sources.practice.sheets import CLINIC, SHEETS, Sheet
from polydesk_dagster.values import Reason, Several, Term, Value

if TYPE_CHECKING:
    from openpyxl.worksheet.worksheet import Worksheet

UNPACKED = 200 * 1024**2
LARGEST = 50 * 1024**2
"""Bytes of a workbook, unpacked and as it comes."""

MOST_ROWS = 200_000
HEADING_WITHIN = 30
"""Rows above a heading: titles, dates, a logo."""

_WIDEST = 200


@dataclass(frozen=True, slots=True)
class Words:
    """What people call things, folded, in every language of ours: sheets, the headings of each, terms."""

    titles: Mapping[str, str]
    headings: Mapping[str, Mapping[str, str]]
    terms: Terms
    also: Mapping[str, Mapping[str, str]]
    """What people call columns besides, where no heading of ours is meant."""

    def column(self, sheet: str, said: str) -> str | None:
        return self.headings[sheet].get(said) or self.also[sheet].get(said)


@dataclass(frozen=True, slots=True)
class Record:
    """A row as it was read: its number in the spreadsheet, and a value by column; a blank cell is None."""

    line: int
    values: Mapping[str, Any]


@dataclass(slots=True)
class Read:
    """What one sheet held. ``present`` are the columns that it has."""

    sheet: Sheet
    present: frozenset[str]
    records: list[Record] = field(default_factory=list)
    unreadable: list[Unreadable] = field(default_factory=list)
    notes: int = 0
    """Rows that were passed over because they say something else than the table."""


@dataclass(frozen=True, slots=True)
class Workbook:
    """The sheets of a file in the order in which they are imported, and what was not understood of it."""

    sheets: tuple[Read, ...]
    passed: tuple[Reason, ...]


def content(path: Path) -> bytes:
    """What the file holds, as it stood at one moment.

    Raises:
        PermanentError: it is too large, may not be read, or somebody wrote it meanwhile.
    """
    try:
        with path.open("rb") as opened:
            before = os.fstat(opened.fileno())
            data = opened.read(LARGEST + 1)
        after = path.stat()
    except PermissionError:
        raise PermanentError("workbook_not_ours", file=path.name) from None
    except OSError:
        raise PermanentError("workbook_gone", file=path.name) from None
    if len(data) > LARGEST:
        raise PermanentError("workbook_too_large", most=LARGEST // 1024**2)
    was, now = ((it.st_ino, it.st_size, it.st_mtime_ns) for it in (before, after))
    if was != now or len(data) != before.st_size:
        raise PermanentError("workbook_being_written", file=path.name)
    return data


def read(data: bytes, words: Words, clinics: Collection[str] = ()) -> Workbook:
    """The sheets that we know of the ``.xlsx`` in ``data``. ``clinics`` are the codes of those that we have: where they
    and the file's own are one, rows that name none are its.

    A sheet is known by its title, or by its headings where they are those of one sheet alone.

    A sheet that cannot be taken (it lacks a column, is there twice, is too long) is one unreadable record, and stops no
    other; one without a word in it is as if it were not there.

    Raises:
        PermanentError: if it is no workbook, too large, or has no sheet of ours.
    """
    book = _open(data)
    found: dict[str, Read] = {}
    passed: list[Reason] = []
    without: list[tuple[Sheet, int, list[list[Any]], dict[str, int]]] = []
    for page in book.worksheets:
        if page.sheet_state != "visible":
            continue
        cells = _cells(page)
        if not any(value is not None for row in cells for value in row):
            continue
        sheet, heading = _recognised(page.title, cells, words)
        if sheet is None:
            if words.titles.get(folded(page.title)) != "guide":
                passed.append(Reason("sheet_unknown_title", {"title": page.title}))
            continue
        said = Term("sheet", sheet.key)
        places, strangers = _places(sheet, cells[heading] if heading is not None else [], words)
        missing = sheet.identifying - places.keys()
        if sheet.key in found:
            found[sheet.key] = _untaken(sheet, None, Reason("sheet_twice", {"sheet": said}))
        elif missing - {CLINIC.key} or heading is None:
            found[sheet.key] = _lacking(sheet, heading, missing)
        elif len(cells) > MOST_ROWS:
            why = Reason("sheet_too_long", {"sheet": said, "most": MOST_ROWS})
            found[sheet.key] = _untaken(sheet, None, why)
        else:
            passed += [Reason("sheet_unknown_column", {"sheet": said, "title": title}) for title in strangers]
            found[sheet.key] = Read(sheet, frozenset(places))
            without.append((sheet, heading, cells, places))
    if not found:
        raise PermanentError("workbook_of_another_kind")
    ours = set(clinics)
    for sheet, heading, cells, places in sorted(without, key=lambda each: each[0].key != "clinics"):
        if found[sheet.key].unreadable:  # it is there twice
            continue
        known = len(ours) == 1 and not ("clinics" in found and found["clinics"].unreadable)
        only = next(iter(ours)) if known else None
        if only is None and CLINIC.key in sheet.identifying - places.keys():
            found[sheet.key] = _lacking(sheet, heading, frozenset({CLINIC.key}))
            continue
        found[sheet.key] = _rows(sheet, cells[heading + 1 :], heading + 2, places, words.terms, only)
        if sheet.key == "clinics":
            ours.update(each.values["code"] for each in found[sheet.key].records)
    return Workbook(tuple(found[sheet.key] for sheet in SHEETS if sheet.key in found), tuple(passed))


def _lacking(sheet: Sheet, heading: int | None, missing: Collection[str]) -> Read:
    """The sheet as the columns that it lacks; of one without a heading all."""
    columns = [heading_of(column.key) for column in sheet.columns if column.key in missing]
    why = Reason("sheet_lacks_column", {"columns": Several(tuple(columns))}, count=len(columns))
    return _untaken(sheet, (heading or 0) + 1, at(sheet.key, (heading or 0) + 1, why))


def _untaken(sheet: Sheet, line: int | None, why: Reason) -> Read:
    """The sheet as the one thing that is wrong with it."""
    key = sheet.key if line is None else f"{sheet.key}/{line}"
    return Read(sheet, frozenset(), unreadable=[Unreadable(key, "invalid", why, None)])


def heading_of(column: str) -> Term:
    """What a column is called, for a reason."""
    return Term("sheet_column", column)


def at(sheet: str, line: int, why: Reason, column: str | None = None) -> Reason:
    """``why``, with the place in the workbook where it arose."""
    values: dict[str, Value] = {"sheet": Term("sheet", sheet), "row": line, "why": why}
    return (
        Reason("sheet_row", values)
        if column is None
        else Reason("sheet_cell", {**values, "column": heading_of(column)})
    )


def _open(data: bytes) -> Any:
    import openpyxl
    from openpyxl.utils.exceptions import InvalidFileException

    if len(data) > LARGEST:
        raise PermanentError("workbook_too_large", most=LARGEST // 1024**2)
    try:
        look_through(data, UNPACKED)
        return openpyxl.load_workbook(io.BytesIO(data), data_only=True)
    except ArchiveTooLargeError:
        raise PermanentError("workbook_too_large", most=UNPACKED // 1024**2) from None
    except (InvalidFileException, zipfile.BadZipFile, KeyError, ValueError, TypeError, AttributeError, IndexError):
        raise PermanentError("workbook_unreadable") from None


def _cells(page: Worksheet) -> list[list[Any]]:
    """The values of a sheet, row by row, and of one that is too long one row too many; a merged range holds its value
    in all of its cells."""
    found = islice(page.iter_rows(values_only=True, max_col=min(page.max_column, _WIDEST)), MOST_ROWS + 1)
    rows = [[_bare(value) for value in row] for row in found]
    for merged in page.merged_cells.ranges:
        value = page.cell(merged.min_row, merged.min_col).value
        for row in rows[merged.min_row - 1 : merged.max_row]:
            row[merged.min_col - 1 : merged.max_col] = [_bare(value)] * len(row[merged.min_col - 1 : merged.max_col])
    return rows


def _bare(value: Any) -> Any:
    return None if isinstance(value, str) and not value.strip() else value


def _recognised(title: str, cells: Sequence[Sequence[Any]], words: Words) -> tuple[Sheet | None, int | None]:
    """Which sheet this is, and which of its rows holds the headings."""
    named = words.titles.get(folded(title))
    candidates = [sheet for sheet in SHEETS if sheet.key == named] or ([] if named else list(SHEETS))
    best: list[tuple[int, int, Sheet]] = []
    for sheet in candidates:
        meant = [{words.column(sheet.key, said) for said in _said(row)} - {None} for row in cells[:HEADING_WITHIN]]
        score, place = max(((len(keys), -number) for number, keys in enumerate(meant)), default=(0, 0))
        keys = meant[-place] if meant else set()
        if score and (named or sheet.required <= keys or sheet.identifying < keys):
            best.append((score, -place, sheet))
    if not best:
        return (candidates[0], None) if named and candidates else (None, None)
    best.sort(key=lambda each: each[0], reverse=True)
    if len(best) > 1 and best[0][0] == best[1][0]:
        return None, None
    return best[0][2], best[0][1]


def _said(row: Sequence[Any]) -> Iterator[str]:
    return (folded(value.replace("*", " ")) for value in row if isinstance(value, str))


def _places(sheet: Sheet, row: Sequence[Any], words: Words) -> tuple[dict[str, int], list[str]]:
    """Where each column stands, and the headings that are none of ours."""
    said = [
        (number, value, folded(value.replace("*", " "))) for number, value in enumerate(row) if isinstance(value, str)
    ]
    places: dict[str, int] = {}
    for known in (words.headings[sheet.key], words.also[sheet.key]):
        for number, _, name in said:
            if name in known and number not in places.values():
                places.setdefault(known[name], number)
    strangers = [
        value.strip()
        for number, value, name in said
        if name not in words.headings[sheet.key] and number not in places.values()
    ]
    return places, strangers


def _rows(
    sheet: Sheet,
    rows: Sequence[Sequence[Any]],
    first: int,
    places: Mapping[str, int],
    terms: Terms,
    only: str | None,
) -> Read:
    """``only`` is the clinic of rows that name none, where there is no other."""
    given = {CLINIC.key: only} if only is not None and CLINIC.key in sheet.required else {}
    found = Read(sheet, frozenset(places) | given.keys())
    place = places.get(CLINIC.key, _WIDEST)
    named = any(place < len(row) and row[place] is not None for row in rows)
    needed = sheet.required if named else sheet.required - given.keys()
    columns = [(column, places[column.key]) for column in sheet.columns if column.key in places]
    for line, row in enumerate(rows, first):
        held = {column.key: row[place] for column, place in columns if place < len(row) and row[place] is not None}
        if not held:
            continue
        if _is_note(needed, held):
            found.notes += 1
            continue
        try:
            found.records += (Record(line, values) for values in _read_row(found, line, given | held, terms))
        except _UnfitRowError as unfit:
            shown = {key: str(value)[:200] for key, value in held.items()}
            found.unreadable.append(Unreadable(f"{sheet.key}/{line}", "invalid", unfit.reason, shown))
    return found


def _is_note(needed: Collection[str], held: Mapping[str, Any]) -> bool:
    """Whether a row stands beside the table: it fills none of the cells that a row needs, or one of several."""
    return not held.keys() & needed or (len(held) == 1 and len(needed) > 1)


class _UnfitRowError(Exception):
    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.code)
        self.reason = reason


def _read_row(of: Read, line: int, held: Mapping[str, Any], terms: Terms) -> list[dict[str, Any]]:
    """What a row says: one record, or as many as its cell of days names."""
    sheet = of.sheet
    values: dict[str, Any] = {}
    for column in sheet.columns:
        if column.key not in held:
            if column.required and column.key in of.present:
                raise _UnfitRowError(at(sheet.key, line, Reason("cell_blank"), column.key))
            continue
        try:
            values[column.key] = column.cell.read(held[column.key], terms)
        except UnfitError as unfit:
            raise _UnfitRowError(at(sheet.key, line, unfit.reason, column.key)) from None
    if sheet.check is not None and (reason := sheet.check(values)) is not None:
        raise _UnfitRowError(at(sheet.key, line, reason))
    found = [values]
    for column in (each for each in sheet.columns if each.cell.spread and each.key in values):
        if len(values[column.key]) > 1 and values.get("number") is not None:
            raise _UnfitRowError(at(sheet.key, line, Reason("sheet_number_of_several"), column.key))
        found = [{**each, column.key: one} for each in found for one in each[column.key]]
    return found
