"""Why somebody was told something, or was not: everything that the ledger knows, and what they
answered, in the order of time."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from polydesk_dagster.clinic.messages import codes
from polydesk_dagster.clinic.messages.kinds import Channel
from polydesk_dagster.clinic.messages.text import mask_address
from polydesk_dagster.values import Instant, Value

_STEPS = {
    "appointment": "l.subject = 'appointment' AND l.subject_id = :id",
    "patient": """l.recipient_type = 'patient' AND l.recipient_id = :id
                  OR l.subject = 'appointment' AND l.subject_id IN (SELECT id FROM appointment WHERE patient_id = :id)
                  OR l.subject = 'report' AND l.subject_id IN (SELECT id FROM report WHERE patient_id = :id)""",
}
_STORY = """
    WITH told AS (
        SELECT l.kind, l.starts_at, l.planned_at, l.withheld, l.message_id, c.time_zone
        FROM message_ledger l JOIN clinic c ON c.id = l.clinic_id WHERE {which}
    ), message AS (SELECT m.*, t.kind AS about, t.starts_at, t.time_zone, t.withheld
                   FROM told t JOIN message m ON m.id = t.message_id)
    SELECT at, time_zone, kind, what, reason, channel, address, starts_at, code, message, answer
    FROM (
        SELECT planned_at AS at, time_zone, kind, 'planned' AS what, NULL AS reason, NULL AS channel, NULL AS address,
               starts_at, NULL AS code, 0 AS turn, CAST(NULL AS bigint) AS message, NULL AS answer
        FROM told
        UNION ALL
        SELECT planned_at, time_zone, kind, 'withheld', withheld, NULL, NULL, starts_at, NULL, 1, NULL, NULL
        FROM told WHERE withheld IS NOT NULL AND message_id IS NULL
        UNION ALL
        SELECT a.at, m.time_zone, m.about, 'answer', NULL, a.channel, NULL, m.starts_at,
               a.code, 2, NULL, a.answer
        FROM message m JOIN message_attempt a ON a.message_id = m.id
        UNION ALL
        SELECT coalesce(m.sent_at, m.changed_at), m.time_zone, m.about,
               CASE WHEN m.withheld IS NOT NULL THEN 'withheld' ELSE m.state END, coalesce(m.withheld, m.reason),
               m.channel, m.address, m.starts_at, NULL, 3, m.id, NULL
        FROM message m WHERE m.state <> 'planned' OR m.withheld IS NOT NULL
        UNION ALL
        SELECT m.delivery_at, m.time_zone, m.about, m.delivery, NULL, m.channel, m.address, m.starts_at, NULL, 4, NULL,
               NULL
        FROM message m WHERE m.delivery IS NOT NULL
        UNION ALL
        SELECT m.created_at, m.time_zone, m.about, 'resent', NULL, NULL, NULL, m.starts_at,
               concat_ws(': ', m.resent_by, m.resent_why), 0, NULL, NULL
        FROM message m WHERE m.resent_by IS NOT NULL
        UNION ALL
        SELECT s.at, c.time_zone, NULL, s.said, NULL, CASE s.via WHEN 'sms' THEN 'sms' END, NULL, NULL, NULL, 7, NULL,
               NULL
        FROM appointment_answer s JOIN clinic c ON c.id = s.clinic_id
        WHERE s.appointment_id IN ({appointments})
        UNION ALL
        SELECT r.said_at, m.time_zone, m.about, 'replied', 'reply_' || r.outcome, 'sms', r.address, m.starts_at, NULL,
               7, NULL, NULL
        FROM message m JOIN message_reply r ON r.message_id = m.id
        UNION ALL
        SELECT k.created_at, c.time_zone, k.kind, 'to_call', k.reason, NULL, NULL, k.starts_at, NULL, 5, NULL, NULL
        FROM call_list k JOIN clinic c ON c.id = k.clinic_id
        WHERE k.appointment_id IN ({appointments})
        UNION ALL
        SELECT k.done_at, c.time_zone, k.kind, 'called', NULL, NULL, NULL, k.starts_at, k.outcome, 6, NULL, NULL
        FROM call_list k JOIN clinic c ON c.id = k.clinic_id
        WHERE k.state = 'done' AND k.appointment_id IN ({appointments})
    ) AS step ORDER BY at, turn"""
_APPOINTMENTS = {
    "appointment": "SELECT CAST(:id AS bigint)",
    "patient": "SELECT id FROM appointment WHERE patient_id = :id",
}


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that happened; the address is masked."""

    at: Instant
    kind: str | None
    """None where it is about the appointment itself."""
    what: str
    reason: str | None
    channel: Channel | None
    address: str | None
    start: Instant | None
    """The start that it told."""
    code: str | None
    answer: str | None
    """What the carrier answered, by the ledger's word; ``code`` is then the carrier's own."""
    message: int | None
    """The message whose end this is."""

    @property
    def said(self) -> Value:
        """The carrier's answer as people are told it; None where this is none."""
        if self.answer is None or self.channel is None:
            return None
        return codes.answered(self.channel, self.answer, self.code)


def of(connection: sa.Connection, about: str, number: int) -> list[Step]:
    """The story of an ``appointment``, or of all that was to be told to or about a ``patient``."""
    query = _STORY.format(which=_STEPS[about], appointments=_APPOINTMENTS[about])
    return [
        Step(
            Instant(row.at, row.time_zone),
            row.kind,
            row.what,
            row.reason,
            row.channel,
            mask_address(row.address) if row.address else None,
            Instant(row.starts_at, row.time_zone) if row.starts_at else None,
            row.code,
            row.answer,
            row.message,
        )
        for row in connection.execute(sa.text(query), {"id": number})
    ]
