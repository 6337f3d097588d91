"""Records that could not be read: kept until the source mends them, shown to whom they concern, and left out for good
by who has looked."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from polydesk_dagster.changes import audit, registry
from polydesk_dagster.changes.audit import LEAST_REASON, is_reason
from polydesk_dagster.changes.plans import Plan
from polydesk_dagster.changes.stage import Unreadable
from polydesk_dagster.changes.why import kept, read
from polydesk_dagster.errors import PermanentError
from polydesk_dagster.values import Reason
from polydesk_dagster.wire import storable


def keep(
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

    number: int
    service: str
    kind: str
    clinic: str | None
    key: str
    why: Reason
    since: datetime
    last_seen: datetime
    settled_by: str | None
    """Who left it out for good; None while it waits for a person."""

    @property
    def private(self) -> bool:
        """Whether it may be about a patient, so that looking at it is logged."""
        return self.kind not in registry.WHERE or registry.kind(self.kind).private


_LISTED = """
    SELECT q.id AS number, q.service, q.kind, c.code AS clinic, q.record_key AS key, q.message AS why,
           q.first_seen_at AS since, q.last_seen_at AS last_seen, q.settled_by
    FROM quarantine q LEFT JOIN clinic c ON c.id = q.clinic_id"""


def set_aside(
    connection: sa.Connection,
    *,
    service: str | None = None,
    clinic: str | None = None,
    settled: bool = False,
    limit: int,
) -> list[SetAside]:
    """What the sources still have to mend, the longest waiting first; with ``settled`` also what somebody has left
    out."""
    found = connection.execute(
        sa.text(f"""{_LISTED} WHERE q.resolved_at IS NULL
                    AND (CAST(:service AS text) IS NULL OR q.service = :service)
                    AND (CAST(:clinic AS text) IS NULL OR c.code = :clinic) AND (:settled OR q.settled_at IS NULL)
                    ORDER BY q.first_seen_at, q.id LIMIT :limit"""),
        {"service": service, "clinic": clinic, "settled": settled, "limit": limit},
    )
    return [_set_aside(row) for row in found]


def of_plan(connection: sa.Connection, plan: Plan) -> list[SetAside]:
    """What could not be read when the plan was made, left out or not, as long as it is remembered."""
    if not plan.tally.get("rejected"):
        return []
    found = connection.execute(
        sa.text(f"""{_LISTED} WHERE q.service = :service AND q.kind = :kind
                    AND q.clinic_id IS NOT DISTINCT FROM CAST(:clinic_id AS bigint) AND q.scope = :scope
                    AND q.first_seen_at <= :made AND (q.resolved_at IS NULL OR q.resolved_at > :made)
                    ORDER BY q.id"""),
        {
            "service": plan.service,
            "kind": plan.kind,
            "clinic_id": plan.clinic_id,
            "scope": plan.within.name,
            "made": plan.created_at,
        },
    )
    return [_set_aside(row) for row in found]


def find(connection: sa.Connection, number: int) -> SetAside:
    """One of them, left out or not.

    Raises:
        PermanentError: if there is none of this number, or the source has mended it.
    """
    found = connection.execute(
        sa.text(f"{_LISTED} WHERE q.resolved_at IS NULL AND q.id = :number"), {"number": number}
    ).one_or_none()
    if found is None:
        raise PermanentError("record_not_waiting", record=number)
    return _set_aside(found)


def record(connection: sa.Connection, number: int) -> Any:
    """The record itself, as the source wrote it; for the eyes of whom it concerns."""
    return connection.scalar(sa.text("SELECT record FROM quarantine WHERE id = :number"), {"number": number})


def patients(connection: sa.Connection, number: int) -> set[int]:
    """Whom we know (ids) by the record's number at its source."""
    query = sa.text("""
        SELECT l.patient_id FROM quarantine q JOIN patient_link l
            ON l.clinic_id = q.clinic_id AND l.external_id = q.record_key
        WHERE q.id = :number AND q.kind = 'patient'""")
    return set(connection.scalars(query, {"number": number}))


def settle(
    connection: sa.Connection, number: int, *, actor: str, reason: str, as_of: datetime, undo: bool = False
) -> None:
    """Leave a record out: it waits for nobody any more, until the source sends it otherwise. ``undo``: it waits again.

    Raises:
        PermanentError: without a reason, and where the record is not (or is already) in that state.
    """
    if not is_reason(reason):
        raise PermanentError("reason_missing", least=LEAST_REASON)
    found = find(connection, number)
    changed = connection.execute(
        sa.text("""
            UPDATE quarantine SET settled_at = :at, settled_by = :by, settled_reason = :reason
            WHERE id = :number AND resolved_at IS NULL AND (settled_at IS NULL) <> :undo"""),
        {
            "number": number,
            "undo": undo,
            "at": None if undo else as_of,
            "by": None if undo else actor,
            "reason": None if undo else reason,
        },
    )
    if not changed.rowcount:
        raise PermanentError("record_waits" if undo else "record_left_out", record=number)
    action = "quarantine_reopen" if undo else "quarantine_settle"
    detail = {"record": number, "reason": reason}
    audit.append(
        connection, as_of=as_of, actor=actor, action=action, service=found.service, clinic=found.clinic, detail=detail
    )


def _set_aside(row: sa.Row[Any]) -> SetAside:
    return SetAside(**row._asdict() | {"why": read(row.why)})


def _plain(record: Any) -> Any:
    return record.model_dump() if hasattr(record, "model_dump") else record
