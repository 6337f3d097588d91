"""The test of a claimed message as it leaves, a second or a minute after it was judged: is what it tells still so, and
has nobody said meanwhile that it is not wanted?"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import sqlalchemy as sa

from polydesk_dagster.clinic.messages.blocks import IN_FORCE

_DEPART = sa.text(f"""
    WITH asked AS (
        SELECT m.id, m.channel, m.kind, m.address, m.recipient_type, m.recipient_id, m.context FROM message m
        WHERE m.id = ANY (:ids) AND m.state = 'claimed' AND m.dispatcher = :dispatcher
    ), look AS MATERIALIZED (
        SELECT q.id, q.channel,
               NOT EXISTS (
                   SELECT FROM message_ledger l
                   LEFT JOIN appointment a ON l.subject = 'appointment' AND a.id = l.subject_id
                   LEFT JOIN report r ON l.subject = 'report' AND r.id = l.subject_id
                   WHERE l.message_id = q.id AND l.withheld IS NULL
                     AND ((l.kind IN ('reminder', 'preparation', 'confirmation', 'cancel_question')
                                   OR l.kind = 'service_notice' AND l.subject = 'appointment')
                              AND (a.status = 'booked' AND a.start_version = l.version AND a.starts_at > :at)
                                  IS NOT TRUE
                          OR l.kind = 'service_notice' AND q.context ? 'posto'
                              AND NOT (has_lost(a.id)
                                       AND coalesce((SELECT h.offered_to = a.id AND h.ended_at IS NULL FROM hold h
                                                     WHERE h.id = CAST(q.context ->> 'posto' AS bigint)),
                                                    q.context ->> 'posto' IS NULL))
                          OR l.kind = 'cancellation' AND a.status <> 'cancelled'
                          OR l.kind = 'verification_nudge' AND a.status <> 'unverified'
                          OR l.subject = 'report' AND (r.withdrawn_at IS NULL AND r.version = l.version) IS NOT TRUE))
               AND NOT EXISTS (SELECT FROM message_block b
                               WHERE b.channel = q.channel AND b.address = lower(q.address) AND {IN_FORCE})
               AND NOT EXISTS (SELECT FROM message_opt_out o
                               WHERE q.recipient_type = 'patient' AND o.patient_id = q.recipient_id
                                 AND o.channel = q.channel AND o.kind IN (q.kind, 'any') AND q.kind <> 'service_notice')
               AND NOT EXISTS (SELECT FROM patient_link pl
                               WHERE q.recipient_type = 'patient' AND pl.patient_id = q.recipient_id
                                 AND pl.suspended_at IS NOT NULL)
               AND NOT EXISTS (SELECT FROM patient p
                               WHERE q.recipient_type = 'patient' AND p.id = q.recipient_id
                                 AND p.deceased_on IS NOT NULL) AS ok
        FROM asked q
    ), moved AS (
        UPDATE message m
        SET on_wire_at = CASE WHEN look.ok THEN CAST(:at AS timestamptz) END,
            state = CASE WHEN look.ok THEN 'claimed' WHEN attempts > 0 THEN 'retry' ELSE 'planned' END,
            dispatcher = CASE WHEN look.ok THEN dispatcher END
        FROM look WHERE m.id = look.id AND (look.channel = 'email' OR NOT look.ok)
    )
    SELECT id FROM look WHERE ok""")


def free(connection: sa.Connection, messages: Sequence[int], dispatcher: int, at: datetime) -> set[int]:
    """Which of ``messages``, claimed by ``dispatcher``, may leave now. E-mails among them are written down as being
    on the wire; those of both that may not are given back, to be looked at anew. The caller commits."""
    return set(connection.scalars(_DEPART, {"ids": messages, "at": at, "dispatcher": dispatcher}))
