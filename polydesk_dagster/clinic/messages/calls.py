"""The desk's call list: appointments that live, and whose message reached nobody although it should have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import sqlalchemy as sa

from polydesk_dagster.clinic.messages.kinds import NOTICE, TO_CALL
from polydesk_dagster.values import Instant

_LOOK_BACK = timedelta(hours=1)
"""How long before a run began a message may have ended and still be its own: the run's clock goes on while it works."""


@dataclass(frozen=True, slots=True)
class Call:
    """One appointment to telephone about; names and telephones are for people with access to the records."""

    id: int
    appointment_id: int
    clinic: str
    kind: str
    reason: str
    start: Instant
    patient_id: int | None
    patient: str
    guardian: str | None
    phones: tuple[str, ...]
    service: str


# A child's guardian may be dead; a dead patient's appointment is for the desk to cancel, not to remind of.
_LIST = sa.text("""
    WITH unsent AS (
        -- messages that ended unsent, and what was left out of those that went: apart, as each has an index that leads
        -- past the many that were sent
        SELECT l.clinic_id, l.subject_id, l.version, l.kind, l.step, coalesce(l.withheld, m.reason) AS reason,
               m.changed_at
        FROM message m JOIN message_ledger l ON l.message_id = m.id AND l.subject = 'appointment'
        WHERE m.kind = :kind AND m.changed_at >= :since AND m.state IN ('withheld', 'failed')
        UNION ALL
        SELECT l.clinic_id, l.subject_id, l.version, l.kind, l.step, l.withheld, m.changed_at
        FROM message_ledger l JOIN message m ON m.id = l.message_id
        WHERE l.kind = :kind AND l.starts_at > :as_of AND l.withheld IS NOT NULL AND l.message_id IS NOT NULL
          AND l.subject = 'appointment' AND m.changed_at >= :since
    )
    INSERT INTO call_list (clinic_id, appointment_id, start_version, kind, reason, starts_at, created_at)
    SELECT u.clinic_id, u.subject_id, u.version, u.kind, u.reason, a.starts_at,
           greatest(u.changed_at, CAST(:as_of AS timestamptz))
    FROM unsent u
    JOIN appointment a ON a.id = u.subject_id AND a.status = 'booked' AND a.start_version = u.version
    JOIN patient p ON p.id = a.patient_id AND p.deceased_on IS NULL
    WHERE u.reason = ANY (:reasons) AND a.starts_at > :as_of
      -- what a step came too late for, the next one tells
      AND (u.kind <> 'reminder' OR u.reason NOT IN ('too_late', 'quiet_hours')
           OR NOT EXISTS (SELECT FROM service_reminder w WHERE w.service_id = a.service_id AND w.step = u.step
                            AND w.next_minutes IS NOT NULL))
    ON CONFLICT DO NOTHING""")

STANDS_AGAIN = "stands_again"
"""Why to call who was told that an appointment cannot take place, and it can after all."""

_REOPENED_SINCE = timedelta(days=7)
"""How long a lost time may be back before the next run looks."""

# A time that is back while its patient believes, by a message or by the desk's word, that it is lost. What the desk has
# since told her is told, unless she was told again of a loss after that.
_STANDS_AGAIN = sa.text("""
    WITH back AS MATERIALIZED (
        SELECT a.id, a.clinic_id, a.start_version, a.starts_at, max(greatest(told.at, w.said_at)) AS told_at
        FROM orphan o JOIN seat t ON t.slot_id = o.slot_id
        JOIN appointment a ON a.id = t.appointment_id AND a.status = 'booked' AND a.starts_at > :as_of
        LEFT JOIN orphan_word w ON w.orphan_id = o.id AND w.appointment_id = a.id
        CROSS JOIN LATERAL (
            SELECT max(l.planned_at) AS at
            FROM message_ledger l JOIN message m ON m.id = l.message_id AND m.state IN ('unknown', 'sent')
            WHERE l.subject = 'appointment' AND l.subject_id = a.id AND l.kind = :kind AND l.version = a.start_version
              AND l.withheld IS NULL AND l.planned_at BETWEEN o.detected_at AND o.resolved_at) told
        WHERE o.resolved_at > :since AND w.state IS DISTINCT FROM 'kept'
          AND NOT EXISTS (SELECT FROM seat n JOIN orphan lost ON lost.slot_id = n.slot_id AND lost.resolved_at IS NULL
                          WHERE n.appointment_id = a.id)
        GROUP BY a.id
    )
    INSERT INTO call_list AS c (clinic_id, appointment_id, start_version, kind, reason, starts_at, created_at)
    SELECT b.clinic_id, b.id, b.start_version, :kind, :reason, b.starts_at, :as_of
    FROM back b
    LEFT JOIN call_list k ON k.appointment_id = b.id AND k.start_version = b.start_version AND k.kind = :kind
    WHERE b.told_at IS NOT NULL
      AND (k.id IS NULL
           OR k.state = 'done' AND (k.reason <> :reason OR k.done_at < b.told_at OR k.outcome = 'no_longer_so'))
    ORDER BY b.id
    ON CONFLICT (appointment_id, start_version, kind) DO UPDATE
    SET reason = excluded.reason, state = 'open', done_at = NULL, done_by = NULL, outcome = NULL,
        created_at = excluded.created_at
    WHERE c.state = 'done'""")

_CLOSE = sa.text("""
    UPDATE call_list l SET state = 'done', done_at = :as_of, outcome = CASE WHEN l.starts_at <= :as_of THEN 'past'
                                                                            ELSE 'no_longer_so' END
    WHERE l.state = 'open'
      AND (l.starts_at <= :as_of
           OR NOT EXISTS (SELECT FROM appointment a WHERE a.id = l.appointment_id AND a.status = 'booked'
                            AND a.start_version = l.start_version)
           OR l.reason = :stands_again AND has_lost(l.appointment_id))""")


def refresh(connection: sa.Connection, kind: str, as_of: datetime) -> None:
    """List whose message of ``kind`` could not be sent since about ``as_of``, and who was told of a lost time that is
    back; close what is past or no longer so."""
    asked = {"kind": kind, "as_of": as_of, "since": as_of - _LOOK_BACK, "reasons": [str(why) for why in TO_CALL[kind]]}
    connection.execute(_LIST, asked)
    back = {"kind": NOTICE.key, "reason": STANDS_AGAIN, "as_of": as_of, "since": as_of - _REOPENED_SINCE}
    connection.execute(_STANDS_AGAIN, back)
    connection.execute(_CLOSE, {"as_of": as_of, "stands_again": STANDS_AGAIN})


def waiting(connection: sa.Connection, kind: str, clinics: Sequence[int]) -> Counter[str]:
    """How many calls are open, by clinic code."""
    rows = connection.execute(
        sa.text("""
            SELECT c.code, count(*) AS calls FROM call_list l JOIN clinic c ON c.id = l.clinic_id
            WHERE l.state = 'open' AND l.kind = :kind AND l.clinic_id = ANY (:clinics) GROUP BY c.code"""),
        {"kind": kind, "clinics": list(clinics)},
    )
    return Counter({row.code: row.calls for row in rows})


def to_make(connection: sa.Connection, as_of: datetime, clinic: str | None = None) -> list[Call]:
    """The open calls whose appointment is still ahead, soonest first."""
    rows = connection.execute(
        sa.text("""
            SELECT l.id, l.appointment_id, c.code, l.kind, l.reason, l.starts_at, c.time_zone,
                   p.id AS patient_id, concat_ws(' ', p.first_name, p.last_name) AS patient,
                   nullif(concat_ws(' ', g.first_name, g.last_name), '') AS guardian,
                   array_remove(ARRAY[g.mobile, g.phone, p.mobile, p.phone], NULL) AS phones,
                   coalesce(s.name, '') AS service
            FROM call_list l
            JOIN clinic c ON c.id = l.clinic_id
            JOIN appointment a ON a.id = l.appointment_id AND a.status = 'booked'
                              AND a.start_version = l.start_version
            LEFT JOIN patient p ON p.id = a.patient_id
            LEFT JOIN patient g ON g.id = p.guardian_id AND g.deceased_on IS NULL
                               AND p.birth_date + interval '18 years' > a.starts_at
            LEFT JOIN service s ON s.id = a.service_id
            WHERE l.state = 'open' AND l.starts_at > :as_of AND (CAST(:clinic AS text) IS NULL OR c.code = :clinic)
            ORDER BY l.starts_at, l.id"""),
        {"as_of": as_of, "clinic": clinic},
    )
    return [
        Call(
            row.id,
            row.appointment_id,
            row.code,
            row.kind,
            row.reason,
            Instant(row.starts_at, row.time_zone),
            row.patient_id,
            row.patient,
            row.guardian,
            tuple(dict.fromkeys(row.phones)),
            row.service,
        )
        for row in rows
    ]


def done(connection: sa.Connection, number: int, *, who: str, outcome: str, at: datetime) -> bool:
    """Somebody has telephoned, and what came of it. Returns False where the call is not open (any more)."""
    return bool(
        connection.execute(
            sa.text("""
                UPDATE call_list SET state = 'done', done_at = :at, done_by = :who, outcome = :outcome
                WHERE id = :id AND state = 'open'"""),
            {"id": number, "who": who, "outcome": outcome, "at": at},
        ).rowcount
    )
