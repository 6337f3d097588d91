"""Archives that unpack to more than they say, by everything of ours that opens one, under a bounded memory."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from functools import cache

import pytest

from polydesk_dagster.archives import look_through
from polydesk_dagster.errors import PermanentError
from polydesk_dagster.knowledge.formats import office, sheets
from polydesk_dagster.knowledge.formats.text import UnreadableError
from polydesk_dagster.sources.files import tables
from polydesk_dagster.sources.files.maps import Table
from polydesk_dagster.sources.practice import reading
from polydesk_dagster.told import workbook

TRUE = 32 * 1024**2 + 0x3039  # bytes that stand in it once a header
BEARABLE = 12 * 1024**2


@cache
def packed(method: int) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", method) as made:
        for name in ("xl/workbook.xml", "word/document.xml"):
            made.writestr(name, bytes(TRUE))
    return held.getvalue()


@cache
def archive(claimed: int, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """Members of TRUE bytes that say that they have ``claimed``, with a checksum to match."""
    sizes = struct.pack("<L", TRUE), struct.pack("<L", claimed)
    sums = (struct.pack("<L", zlib.crc32(bytes(size))) for size in (TRUE, min(claimed, TRUE)))
    assert packed(method).count(sizes[0]) == 4
    return packed(method).replace(*sizes).replace(*sums)


LIES: dict[str, Callable[[], bytes]] = {
    "more than it says": lambda: archive(1000),
    "nothing, it says": lambda: archive(0),
    "beyond all bounds": lambda: archive(0xF0000000),
    "packed as Office never does": lambda: archive(TRUE, zipfile.ZIP_BZIP2),
    "cut short": lambda: archive(TRUE + 1),
}


def practice(data: bytes) -> object:
    return reading.read(data, workbook.words())


def table(data: bytes) -> object:
    return list(tables._workbook("x.xlsx", data, Table.model_construct(sheet=None)))


READERS: list[Callable[[bytes], object]] = [practice, table, office.read, sheets.read]


@pytest.mark.parametrize("read", READERS, ids=["practice", "files", "word", "spreadsheet"])
@pytest.mark.parametrize("lie", LIES)
def test_an_archive_that_lies_is_refused_before_it_is_unpacked(read: Callable[[bytes], object], lie: str) -> None:
    data = LIES[lie]()
    with pytest.raises((PermanentError, UnreadableError)):
        read(b"PK")  # what it needs is imported now
    tracemalloc.start()
    try:
        with pytest.raises((PermanentError, UnreadableError)):
            read(data)
        assert tracemalloc.get_traced_memory()[1] < BEARABLE
    finally:
        tracemalloc.stop()


def test_an_honest_archive_is_let_through() -> None:
    import openpyxl

    held = io.BytesIO()
    openpyxl.Workbook().save(held)
    assert "xl/workbook.xml" in look_through(held.getvalue(), 1024**2)
    empty = io.BytesIO()
    with zipfile.ZipFile(empty, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("a", b"")
        made.writestr("b/", b"")
        made.writestr("c", bytes(1024**2))
    assert look_through(empty.getvalue(), 1024**2) == ["a", "b/", "c"]
