"""Bring a source's pages into a temporary table by COPY, page by page, and set aside what cannot be read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

import psycopg
import sqlalchemy as sa

from polydesk_dagster.changes.kind import Reject, Source
from polydesk_dagster.database import bulk
from polydesk_dagster.values import Reason
from polydesk_dagster.wire import LONGEST, clean

STAGE, WANTED, DOUBLED = "staged", "wanted", "doubled"
"""The tables of one reading, which are temporary: as it came, in our columns, and what of it is there twice."""


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A record that was set aside. ``key`` is its identity where that could be read; ``why`` holds no patient data;
    ``record`` is kept in the database only."""

    key: str | None
    code: str
    why: Reason
    record: Any

    def __post_init__(self) -> None:
        # As it would be had the record been read: what we hold under it is looked up by it.
        object.__setattr__(self, "key", clean(self.key or "")[:LONGEST] or None)


@dataclass(frozen=True, slots=True)
class Page:
    """Some records of a source. ``number`` 1 begins the list, anew if it changed under the reader; ``total`` is what
    the source says the whole list holds."""

    number: int
    records: Sequence[Any]
    unreadable: Sequence[Unreadable] = ()
    snapshot: str | None = None
    total: int | None = None
    passed: int = 0
    """Records of this page that were left out of ``records`` because nothing can come of them."""


@dataclass(slots=True)
class Staged:
    """What came: readable records, those set aside, and the state of the source."""

    records: int = 0
    unreadable: list[Unreadable] = field(default_factory=list)
    snapshot: str | None = None
    total: int | None = None
    passed: int = 0
    starts: list[int] = field(default_factory=list)
    """The number of the first record of each page."""
    things: set[int] = field(default_factory=set)
    """Hashes of what tells records ``apart``."""

    @property
    def repeats(self) -> bool:
        """Whether two records may be the same thing: they have a hash in common, or nothing is known of them."""
        return len(self.things) < self.records

    @property
    def seen(self) -> int:
        return self.records + len(self.unreadable) + self.passed


def stage(
    connection: sa.Connection, source: Source, pages: Iterable[Page], *, table: str = STAGE, columns: str | None = None
) -> Staged:
    """Fill ``table`` of this transaction from ``pages``; the temporary tables of a reading before it go.

    The table ``staged`` is made here; another one is the caller's, who names its ``columns`` for record number, staged
    columns, problem and reason. Whatever the pages raise goes through; nothing of them then stays.
    """
    gone = f"DROP TABLE IF EXISTS {STAGE}, {WANTED}, {DOUBLED}"
    if columns is None:
        typed = ", ".join(f"{name} {type_}" for name, type_ in source.columns.items())
        gone += f"; CREATE TEMP TABLE {table} (n bigint, {typed}, problem text, reason text) ON COMMIT DROP"
    connection.execute(sa.text(gone))
    target = table if columns is None else f"{table} ({columns})"
    driver = connection.connection.driver_connection
    assert isinstance(driver, psycopg.Connection)
    apart = itemgetter(*(1 + list(source.columns).index(name) for name in source.apart)) if source.apart else None
    coming = iter(pages)
    page = next(coming, None)
    staged, begun = Staged(), False
    while page is not None:
        staged = Staged(snapshot=page.snapshot)
        with driver.cursor() as cursor:
            if begun:
                cursor.execute(f"TRUNCATE {table}".encode())
            begun = True  # in a table made or emptied just now rows may be frozen: no look at them asks whose they are
            with cursor.copy(f"COPY {target} FROM STDIN WITH (FREEZE)".encode()) as copy:
                while page is not None:
                    rows = _prepared(source, page, staged)
                    copy.write(bulk.lines(rows))
                    if apart is not None:
                        staged.things.update(map(hash, map(apart, rows)))
                    staged.total = page.total
                    staged.passed += page.passed
                    page = next(coming, None)
                    if page is not None and page.number == 1:
                        break
    return staged


def _prepared(source: Source, page: Page, staged: Staged) -> list[Sequence[Any]]:
    staged.unreadable.extend(page.unreadable)
    rows: list[Sequence[Any]] = []
    number = staged.seen - len(page.unreadable)
    staged.starts.append(number + 1)
    prepare = source.prepare
    short = len(source.columns)
    for record in page.records:
        number += 1
        try:
            values = prepare(record)
        except Reject as reject:
            staged.unreadable.append(Unreadable(source.label(record), reject.code, reject.why, record))
            continue
        rows.append((str(number), *values) if len(values) > short else (str(number), *values, None, None))
    staged.records += len(rows)
    return rows
