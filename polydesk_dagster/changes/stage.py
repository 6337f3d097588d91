"""Bring a source's pages into a temporary table by COPY, page by page, and set aside what cannot be read."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import psycopg
import sqlalchemy as sa

from polydesk_dagster.changes.kind import Reject, Source
from polydesk_dagster.changes.why import kept, read
from polydesk_dagster.database import bulk
from polydesk_dagster.values import Reason
from polydesk_dagster.wire import LONGEST, clean, storable

STAGE = "staged"
UNREADABLE = "unreadable"


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

    @property
    def seen(self) -> int:
        return self.records + len(self.unreadable) + self.passed


def stage(
    connection: sa.Connection, source: Source, pages: Iterable[Page], *, table: str = STAGE, columns: str | None = None
) -> Staged:
    """Fill ``table`` of this transaction from ``pages``, and the temporary table ``unreadable``.

    The table ``staged`` is made here; another one is the caller's, who names its ``columns`` for record number, staged
    columns, problem and reason. Whatever the pages raise goes through; nothing of them then stays.
    """
    connection.execute(sa.text(f"DROP TABLE IF EXISTS {UNREADABLE}"))
    connection.execute(sa.text(f"CREATE TEMP TABLE {UNREADABLE} (key text) ON COMMIT DROP"))
    if columns is None:
        typed = ", ".join(f"{name} {type_}" for name, type_ in source.columns.items())
        connection.execute(sa.text(f"DROP TABLE IF EXISTS {table}"))
        connection.execute(
            sa.text(f"CREATE TEMP TABLE {table} (n bigint, {typed}, problem text, reason text) ON COMMIT DROP")
        )
    target = table if columns is None else f"{table} ({columns})"
    driver = connection.connection.driver_connection
    assert isinstance(driver, psycopg.Connection)
    coming = iter(pages)
    page = next(coming, None)
    staged = Staged()
    while page is not None:
        staged = Staged(snapshot=page.snapshot)
        with driver.cursor() as cursor:
            cursor.execute(f"TRUNCATE {table}")
            with cursor.copy(f"COPY {target} FROM STDIN") as copy:
                while page is not None:
                    copy.write(bulk.lines(_prepared(source, page, staged)))
                    staged.total = page.total
                    staged.passed += page.passed
                    page = next(coming, None)
                    if page is not None and page.number == 1:
                        break
    with driver.cursor() as cursor, cursor.copy(f"COPY {UNREADABLE} FROM STDIN") as copy:
        copy.write(bulk.lines([(record.key,) for record in staged.unreadable]))
    return staged


def _prepared(source: Source, page: Page, staged: Staged) -> list[Sequence[Any]]:
    staged.unreadable.extend(page.unreadable)
    rows: list[Sequence[Any]] = []
    number = staged.seen - len(page.unreadable)
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


def quarantine(
    connection: sa.Connection,
    service: str,
    kind: str,
    clinic_id: int | None,
    unreadable: Sequence[Unreadable],
    scope: str = "",
) -> None:
    """Keep the records that were set aside until the source mends them; each is listed once. What came with another
    ``scope`` of the list, a year or an area, stays as it is."""
    values = {"service": service, "kind": kind, "clinic_id": clinic_id, "scope": scope}
    rows = [
        {
            "record_key": record.key or "?",
            "code": record.code,
            "message": kept(record.why),
            "record": storable(_plain(record.record)),
        }
        for record in unreadable
    ]
    typed = sa.text("""
        WITH seen AS (SELECT DISTINCT ON (record_key, code, md5(coalesce(CAST(record AS text), ''))) *
                      FROM jsonb_to_recordset(CAST(:rows AS jsonb))
                           AS s(record_key text, code text, message text, record jsonb)),
        mended AS (
            UPDATE quarantine q SET resolved_at = now()
            WHERE service = :service AND kind = :kind
              AND clinic_id IS NOT DISTINCT FROM CAST(:clinic_id AS bigint)
              AND coalesce(scope, :scope) = :scope AND resolved_at IS NULL
              AND NOT EXISTS (SELECT FROM seen s
                              WHERE s.record_key = q.record_key AND s.code = q.code
                                AND s.record IS NOT DISTINCT FROM q.record))
        INSERT INTO quarantine (service, kind, clinic_id, scope, record_key, code, message, record,
                                first_seen_at, last_seen_at)
        SELECT :service, :kind, CAST(:clinic_id AS bigint), :scope, record_key, code, message, record, now(), now()
        FROM seen
        ON CONFLICT (service, kind, coalesce(clinic_id, 0), record_key, code, md5(coalesce(CAST(record AS text), '')))
        WHERE resolved_at IS NULL
        DO UPDATE SET scope = excluded.scope, last_seen_at = excluded.last_seen_at,
                      message = excluded.message
    """)
    connection.execute(typed, {**values, "rows": json.dumps(rows, ensure_ascii=False, default=str)})


@dataclass(frozen=True, slots=True)
class SetAside:
    """A record in the quarantine; ``why`` holds no patient data, the record itself stays where it is."""

    service: str
    kind: str
    clinic: str | None
    key: str
    why: Reason
    since: datetime
    last_seen: datetime


def set_aside(
    connection: sa.Connection, *, service: str | None = None, clinic: str | None = None, limit: int
) -> list[SetAside]:
    """What the sources still have to mend, the longest waiting first."""
    found = connection.execute(
        sa.text("""
            SELECT q.service, q.kind, c.code AS clinic, q.record_key AS key, q.message AS why, q.first_seen_at AS since,
                   q.last_seen_at AS last_seen
            FROM quarantine q LEFT JOIN clinic c ON c.id = q.clinic_id
            WHERE q.resolved_at IS NULL AND (CAST(:service AS text) IS NULL OR q.service = :service)
              AND (CAST(:clinic AS text) IS NULL OR c.code = :clinic)
            ORDER BY q.first_seen_at, q.id LIMIT :limit"""),
        {"service": service, "clinic": clinic, "limit": limit},
    )
    return [SetAside(**{**row._mapping, "why": read(row.why)}) for row in found]


def _plain(record: Any) -> Any:
    return record.model_dump() if hasattr(record, "model_dump") else record
