"""The events that have come: what became of each, what is tried again when, and what a person decides."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from polydesk_dagster.changes.why import read
from polydesk_dagster.errors import PermanentError
from polydesk_dagster.sources.events.cursor import by_clinic
from polydesk_dagster.values import Reason

RETRY_AFTER_MINUTES = (1, 5, 30, 360)
"""After each failure of a parked event; one failure more and it waits for a person."""

KNOWN = """
WITH known AS (
    DELETE FROM news n USING event_inbox i WHERE i.clinic_id = :clinic AND i.event_id = n.event_id RETURNING 1)
SELECT count(*) FROM known"""

_NEXT_TRY = " ".join(f"WHEN {n} THEN interval '{m} minutes'" for n, m in enumerate(RETRY_AFTER_MINUTES, 1))

INBOX = f"""
INSERT INTO event_inbox AS i (clinic_id, event_id, sequence, type, version, occurred_at, entity, state, reason,
                              attempts, next_try_at, payload, payload_hash, received_at, changed_at)
SELECT :clinic, n.event_id, n.sequence, n.type, n.version, n.occurred_at, n.entity, t.state,
       CASE WHEN t.state IN ('parked', 'dead', 'unknown') THEN n.problem ELSE n.reason END, t.attempts,
       CASE t.state WHEN 'parked' THEN CAST(:as_of AS timestamptz) + CASE t.attempts {_NEXT_TRY} END END,
       CASE WHEN t.state IN ('parked', 'waiting', 'dead', 'unknown') THEN n.payload END,
       CASE WHEN t.state IN ('parked', 'waiting', 'dead') THEN sha256(convert_to(CAST(n.payload AS text), 'UTF8')) END,
       :as_of, :as_of
FROM (SELECT n.event_id, coalesce(k.attempts, 0) + CAST(n.verdict = 'parked' AS integer) AS attempts,
             CASE WHEN n.verdict = 'parked' AND coalesce(k.attempts, 0) >= {len(RETRY_AFTER_MINUTES)} THEN 'dead'
                  ELSE n.verdict END AS state
      FROM news n LEFT JOIN event_inbox k ON k.clinic_id = :clinic AND k.event_id = n.event_id) t
JOIN news n USING (event_id)
ON CONFLICT (clinic_id, event_id) DO UPDATE
SET state = excluded.state, reason = excluded.reason, attempts = excluded.attempts, next_try_at = excluded.next_try_at,
    payload = excluded.payload, payload_hash = coalesce(i.payload_hash, excluded.payload_hash),
    changed_at = excluded.changed_at
RETURNING state, (xmax = 0) AS fresh"""


# Given up because somebody or something was not known here, and it is now: a list, a workbook or a person has named it.
NAMED_NOW = """
UPDATE event_inbox i SET state = 'parked', attempts = 0, next_try_at = :as_of, changed_at = :as_of
FROM (SELECT event_id, payload -> 'data' AS said, payload -> 'entity' ->> 'id' AS about FROM event_inbox
      WHERE clinic_id = :clinic AND state = 'dead') d
WHERE i.clinic_id = :clinic AND i.event_id = d.event_id AND CASE i.reason
      WHEN 'patient_not_imported'
      THEN EXISTS (SELECT FROM patient_link l WHERE l.clinic_id = :clinic
                   AND l.external_id = coalesce(d.said ->> 'patient_id', d.about))
      WHEN 'identity_suspended'
      THEN EXISTS (SELECT FROM patient_link l WHERE l.clinic_id = :clinic AND l.suspended_at IS NULL
                   AND l.external_id = coalesce(d.said ->> 'patient_id', d.about))
      WHEN 'service_unknown'
      THEN EXISTS (SELECT FROM service s WHERE s.clinic_id = :clinic AND s.external_id = d.said ->> 'service_id')
      WHEN 'collaborator_unknown'
      THEN EXISTS (SELECT FROM specialist s
                   WHERE s.clinic_id = :clinic AND s.external_id = d.said ->> 'collaborator_id')
      WHEN 'agenda_unknown'
      THEN EXISTS (SELECT FROM agenda a WHERE a.clinic_id = :clinic AND a.external_id = d.said ->> 'agenda_id')
      WHEN 'appointment_unknown'
      THEN EXISTS (SELECT FROM appointment a
                   WHERE a.clinic_id = :clinic AND a.external_id = d.said ->> 'appointment_id') END"""

# The unsettled events of every entity whose first one is due. A first one that only waits has nobody before it any
# more: what it waited for was settled by a person.
DUE = """
WITH head AS (
    SELECT DISTINCT ON (coalesce(entity, CAST(event_id AS text))) event_id, entity, state, next_try_at
    FROM event_inbox WHERE clinic_id = :clinic AND state IN ('parked', 'waiting', 'dead')
    ORDER BY coalesce(entity, CAST(event_id AS text)), sequence),
due AS (SELECT event_id, entity FROM head
        WHERE state = 'waiting' OR (state = 'parked' AND next_try_at <= CAST(:as_of AS timestamptz)))
SELECT i.event_id, i.payload FROM event_inbox i
WHERE i.clinic_id = :clinic AND i.state IN ('parked', 'waiting')
  AND (i.event_id IN (SELECT event_id FROM due) OR i.entity IN (SELECT entity FROM due))
ORDER BY i.sequence LIMIT :limit"""


@dataclass(frozen=True, slots=True)
class Unsettled:
    """An event that waits for time or for a person; nothing of its payload."""

    clinic: str
    event_id: str
    sequence: int | None
    type: str
    entity: str | None
    state: str
    reason: Reason | None
    attempts: int
    next_try_at: datetime | None
    received_at: datetime


def unsettled(connection: sa.Connection, clinic: str | None = None) -> list[Unsettled]:
    """What is parked, waiting or dead, in one clinic or all, entity by entity in order."""
    rows = connection.execute(
        sa.text("""
            SELECT c.code AS clinic, CAST(i.event_id AS text) AS event_id, i.sequence, i.type, i.entity, i.state,
                   i.reason, i.attempts, i.next_try_at, i.received_at
            FROM event_inbox i JOIN clinic c ON c.id = i.clinic_id
            WHERE i.state IN ('parked', 'waiting', 'dead')
              AND (CAST(:clinic AS text) IS NULL OR c.code = :clinic)
            ORDER BY c.code, min(i.sequence) OVER (PARTITION BY c.code, coalesce(i.entity, CAST(i.event_id AS text))),
                     i.sequence, i.event_id"""),
        {"clinic": clinic},
    )
    return [Unsettled(**row._asdict() | {"reason": read(row.reason)}) for row in rows]


def retry(connection: sa.Connection, clinic: str, event_id: str, as_of: datetime) -> None:
    """Have a parked or dead event tried again by the next run, with all its attempts before it.

    Raises:
        PermanentError: no such event waits in that clinic.
    """
    _decide(connection, "state = 'parked', attempts = 0, next_try_at = :as_of", clinic, event_id, as_of)


def skip(connection: sa.Connection, clinic: str, event_id: str, reason: str, as_of: datetime) -> None:
    """Let a parked or dead event have no effect, for ``reason``; what waits behind it goes on with the next run.

    Raises:
        PermanentError: no such event waits in that clinic.
    """
    change = "state = 'skipped', reason = :reason, next_try_at = NULL, payload = NULL"
    _decide(connection, change, clinic, event_id, as_of, reason=reason)


def _decide(
    connection: sa.Connection, change: str, clinic: str, event_id: str, as_of: datetime, **more: object
) -> None:
    changed = connection.execute(
        sa.text(f"""
            UPDATE event_inbox SET {change}, changed_at = :as_of
            WHERE clinic_id = (SELECT id FROM clinic WHERE code = :clinic) AND CAST(event_id AS text) = lower(:event)
              AND state IN ('parked', 'dead')"""),
        {"clinic": clinic, "event": event_id, "as_of": as_of, **more},
    )
    if not changed.rowcount:
        raise PermanentError("event_not_waiting", clinic=clinic, event=event_id)


def dead_letters(connection: sa.Connection) -> dict[str, int]:
    """How many events of each clinic (code) wait for a person."""
    return by_clinic(connection, "SELECT clinic_id, count(*) AS value FROM event_inbox WHERE state = 'dead' GROUP BY 1")
