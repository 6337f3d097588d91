"""Files as a source: each list is read whole, as it stood at one moment, or not at all."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from polydesk_dagster.errors import PermanentError
from polydesk_dagster.sources import restarts
from polydesk_dagster.sources.files import tables
from polydesk_dagster.sources.files.cells import ERRORS, value
from polydesk_dagster.sources.files.folders import File, Folder
from polydesk_dagster.sources.files.maps import Column, FilesSettings, Table
from polydesk_dagster.sources.files.tables import Row, Sheet
from polydesk_dagster.sources.port import RECORDS, Capabilities, Merged, News, Page, Unchanged
from polydesk_dagster.values import Reason, Several, Value
from polydesk_dagster.wire import Rejected, is_number, sort_records

PAGE = 5000
"""Records of a page."""
KEYS = {"prices": "service_id"}
"""The field that names a row where none identifies it."""


class Files:
    """The files of one clinic."""

    def __init__(self, settings: FilesSettings, epoch: str, folder: Folder, system: Reason) -> None:
        self.settings, self.epoch, self.folder, self.system = settings, epoch, folder, system
        untold = {
            name: frozenset(RECORDS[name].__struct_fields__) - {*table.columns, *table.fixed}
            for name, table in settings.lists.items()
        }
        self.capabilities = Capabilities(frozenset(settings.lists), untold=untold)

    def close(self) -> None:
        """Nothing stays open between two lists."""

    def news(self, token: str | None, limit: int) -> News:  # noqa: ARG002
        """Files tell nothing of what happened."""
        raise PermanentError("news_not_offered")

    def merged(self) -> tuple[Merged, ...]:
        """Files do not say."""
        return ()

    def deleted(self, kind: str) -> tuple[str, ...]:  # noqa: ARG002
        """Files do not say."""
        return ()

    def list(self, kind: str, *, etag: str | None = None) -> Iterator[Page[Any]]:
        """The list ``kind``; its ETag is of what the file holds and of how its columns are read.

        Raises:
            Unchanged: before the first page, where ``etag`` still holds.
            TransientError: where the file keeps changing, or the folder does not answer.
            PermanentError: where there is no such file, or it is no table with those headings.
        """
        pattern = self.settings.lists[kind].file
        yield from restarts.read(lambda _: self._once(kind, etag), self.system, pattern)

    def _once(self, kind: str, etag: str | None) -> Iterator[Page[Any]]:
        table, model = self.settings.lists[kind], RECORDS[kind]
        file, data = self._still(table.file)
        state = hashlib.sha256(data + table.model_dump_json().encode()).hexdigest()
        if etag == state:
            raise Unchanged
        key = model.KEY or KEYS.get(kind)
        sheet = tables.read(file.name, data, table, key)
        stamp = datetime.fromtimestamp(file.changed_at, UTC).isoformat()
        fixed = ({"updated_at": stamp} if "updated_at" in model.__struct_fields__ else {}) | _fixed(table)
        total = len(sheet.rows)
        for number, first in enumerate(range(0, max(total, 1), PAGE), 1):
            rows = sheet.rows[first : first + PAGE]
            items = [fixed | _record(row, table) for row in rows]
            read = sort_records(model, items, key)
            rejected = tuple(_named(record, rows[record.position], sheet, first) for record in read.rejected)
            valid: tuple[Any, ...] = read.valid
            if kind == "patients":
                wrong = {record.position for record in read.rejected}
                valid = tuple(item for place, item in enumerate(items) if place not in wrong)
            yield Page(number, valid, rejected, total, state, state if number == 1 else None)

    def _still(self, pattern: str) -> tuple[File, bytes]:
        """A file as it was before and after it was read."""
        file = self.folder.find(pattern)
        if file is None:
            raise PermanentError("file_missing", system=self.system, file=pattern)
        data = self.folder.read(file)
        if len(data) != file.size or self.folder.find(pattern) != file:
            raise restarts.Moved
        return file, data


def _fixed(table: Table) -> dict[str, Any]:
    """What is the same in every row; a text or a number is read as a cell would be."""
    read = Column(heading="-")
    return {
        field: value(field, read, str(given)) if isinstance(given, str) or is_number(given) else given
        for field, given in table.fixed.items()
    }


def _record(row: Row, table: Table) -> dict[str, Any]:
    return {field: value(field, table.columns[field], cell) for field, cell in row.cells.items()}


def _named(rejected: Rejected, row: Row, sheet: Sheet, first: int) -> Rejected:
    """What is wrong with a row, by file, sheet, row and the heading of its column."""
    failed = sorted(sheet.headings[field] for field, cell in row.cells.items() if cell.strip().upper() in ERRORS)
    why: Value = _by_heading(rejected.reason, sheet)
    if failed:
        why = Reason("cell_failed", {"columns": ", ".join(failed)})
    values: dict[str, Value] = {"file": sheet.file, "row": row.number, "why": why}
    reason = (
        Reason("row_wrong", values)
        if sheet.sheet is None
        else Reason("row_of_sheet_wrong", values | {"sheet": sheet.sheet})
    )
    return replace(rejected, position=rejected.position + first, reason=reason, raw=row.cells)


def _by_heading(reason: Reason, sheet: Sheet) -> Reason:
    """``reason`` with the file's headings for the names of fields."""
    values = dict(reason.values)
    if isinstance(field := values.get("field"), str):
        values["field"] = sheet.headings.get(field, field)
    if isinstance(several := values.get("problems"), Several):
        values["problems"] = Several(
            tuple(_by_heading(part, sheet) if isinstance(part, Reason) else part for part in several.items)
        )
    return replace(reason, values=values)
