"""Which system a clinic's cursor, ETags, counters and links belong to, and what becomes of them when it is another.

A source says by its ``epoch`` which one it is. Where that is not the one whose state we hold, nothing is read until a
person has said whether it is the same system under another address, or a new one.
"""

from __future__ import annotations

from datetime import datetime

import sqlalchemy as sa

from polydesk_dagster.changes import audit
from polydesk_dagster.errors import PermanentError
from polydesk_dagster.sources.events import cursor


class SourceChangedError(PermanentError):
    """The clinic's state belongs to another source than the one that its integration names now."""

    def __init__(self, clinic: str) -> None:
        super().__init__("source_changed", clinic=clinic)


_KNOWN = "SELECT i.source FROM integration i JOIN clinic c ON c.id = i.clinic_id WHERE c.code = :clinic"
_MET = """
    UPDATE integration i SET source = coalesce(i.source, :epoch) FROM clinic c
    WHERE c.id = i.clinic_id AND c.code = :clinic RETURNING i.source"""


def meet(connection: sa.Connection, clinic: str, epoch: str) -> None:
    """Take ``epoch`` for the clinic's source where there was none yet. Raises SourceChangedError where it is not it."""
    values = {"clinic": clinic, "epoch": epoch}
    known = connection.scalar(sa.text(_KNOWN), values) or connection.scalar(sa.text(_MET), values)
    if known is not None and known != epoch:
        raise SourceChangedError(clinic)


_SAME = (
    "UPDATE integration SET source = :epoch WHERE clinic_id = :clinic",
    "UPDATE event_cursor SET source = :epoch WHERE clinic_id = :clinic",
    # An ETag is a word of one server: under another address the list is read once more.
    "UPDATE source_state SET source = :epoch, etag = NULL WHERE source = :known AND scope IN (:code, '')",
)

_ENDED = """
    WITH named AS (
        UPDATE {record} t SET external_id = NULL FROM {record} b
        WHERE t.clinic_id = :clinic AND t.external_id IS NOT NULL AND b.id = t.id
        RETURNING t.id, b.external_id)
    INSERT INTO source_name_ended (clinic_id, source, record, record_id, external_id, ended_at)
    SELECT :clinic, :known, '{record}', id, external_id, :as_of FROM named
"""

# What came from it stays, under a name that no other source can give: a booking without any would count as unverified.
_FROM_BEFORE = """
    UPDATE {record} t SET external_id = i.generation || '|' || t.external_id FROM integration i
    WHERE t.clinic_id = :clinic AND i.clinic_id = :clinic AND t.external_id IS NOT NULL
      AND t.external_id !~ '^[0-9]+[|]'
"""

_NEW = (
    cursor.FORGET_NUMBERS,
    """UPDATE event_cursor SET sequence = 0, anchor = NULL, history = NULL, source = NULL, stopped_at = NULL,
                               stopped_reason = NULL, failures = 0, quiet_until = NULL, down_since = NULL,
                               down_reason = NULL, answered_at = NULL
       WHERE clinic_id = :clinic""",
    "DELETE FROM feed_number WHERE clinic_id = :clinic",
    "DELETE FROM source_state WHERE source = :known AND scope IN (:code, '')",
    *(_ENDED.format(record=record) for record in ("service", "specialist", "agreement", "agenda")),
    *(_FROM_BEFORE.format(record=record) for record in ("appointment", "report")),
    """WITH ended AS (DELETE FROM patient_link WHERE clinic_id = :clinic RETURNING *)
       INSERT INTO patient_link_ended (clinic_id, external_id, patient_id, made_by, made_at, ended_at, reason)
       SELECT clinic_id, external_id, patient_id, made_by, made_at, :as_of, 'source_replaced' FROM ended""",
    """UPDATE patient_review SET state = 'ended', decided_at = :as_of, decided_by = :actor, reason = :reason
       WHERE clinic_id = :clinic AND state IN ('open', 'dismissed')""",
    "UPDATE integration SET source = :epoch, generation = generation + 1 WHERE clinic_id = :clinic",
)


def decide(
    connection: sa.Connection, clinic: str, epoch: str, *, same: bool, actor: str, reason: str, as_of: datetime
) -> bool:
    """Carry out a person's word on whether ``epoch`` is the system that the clinic's state belongs to; returns whether
    there was anything to decide.

    ``same``: everything goes on under the new name. Otherwise its numbers, links and names of records are put away
    (``patient_link_ended``, ``source_name_ended``), bookings and reports stay, and the new one is met for the first
    time.
    """
    row = connection.execute(
        sa.text("""
            SELECT i.clinic_id, i.source FROM integration i JOIN clinic c ON c.id = i.clinic_id
            WHERE c.code = :clinic AND i.source <> :epoch FOR UPDATE OF i"""),
        {"clinic": clinic, "epoch": epoch},
    ).one_or_none()
    if row is None:
        return False
    values = {
        "clinic": row.clinic_id,
        "code": clinic,
        "known": row.source,
        "epoch": epoch,
        "as_of": as_of,
        "actor": actor,
        "reason": reason,
    }
    for statement in _SAME if same else _NEW:
        connection.execute(sa.text(statement), values)
    action = "source_same" if same else "source_replaced"
    detail = {"reason": reason, "before": row.source, "now": epoch}
    audit.append(
        connection, as_of=as_of, actor=actor, action=action, service="integration", clinic=clinic, detail=detail
    )
    return True
