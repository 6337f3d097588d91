"""What is known about messages that are due, in two queries a batch."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from polydesk_dagster.clinic.messages.blocks import IN_FORCE
from polydesk_dagster.clinic.messages.judging import Candidate, Item, Person
from polydesk_dagster.clinic.messages.kinds import KINDS
from polydesk_dagster.clinic.messages.text import CLINICAL

_MOBILE = r"'^\+(393[0-9]{8,9}|[124-9][0-9]{6,14}|3[0-8][0-9]{6,13})$'"
"""What may be a mobile number, seen from SQL: not an Italian landline."""

_SHARED = """EXISTS (SELECT FROM patient o
                       WHERE o.id <> person.patient_id AND (o.mobile = person.mobile OR o.phone = person.mobile))"""
_PEOPLE = sa.text(rf"""
    WITH m AS (
        SELECT m.id, m.clinic_id, c.code, c.name, c.phone, c.language, m.kind, m.recipient_type, m.recipient_id,
               m.about_day, m.context, m.template_revision, m.attempts, m.refused_channels,
               CAST(m.idempotency_key AS text) AS key, m.address, m.subject, m.body,
               date_trunc('day', CAST(:at AS timestamptz) AT TIME ZONE c.time_zone) AT TIME ZONE c.time_zone AS today
        FROM message m JOIN clinic c ON c.id = m.clinic_id WHERE m.id = ANY (:ids)
    ), person AS (
        SELECT m.id AS message_id, p.first_name, p.last_name, p.language AS speech,
               CASE WHEN p.mobile ~ {_MOBILE} THEN p.mobile WHEN p.phone ~ {_MOBILE} THEN p.phone END AS mobile,
               p.email, p.preferred_channel AS preferred, p.deceased_on IS NOT NULL AS deceased,
               NULL AS user_state, p.id AS patient_id,
               (SELECT array_agg(o.channel || ':' || o.kind) FROM message_opt_out o
                WHERE o.patient_id = p.id) AS refusals
        FROM m JOIN patient p ON p.id = m.recipient_id WHERE m.recipient_type = 'patient'
        UNION ALL
        SELECT m.id, u.display_name, '', m.language, NULL, u.email, 'email', false, u.state, CAST(NULL AS bigint), NULL
        FROM m JOIN app_user u ON u.id = m.recipient_id WHERE m.recipient_type = 'user'
        UNION ALL
        SELECT m.id, '', '', m.language, CASE WHEN a.contact_phone ~ {_MOBILE} THEN a.contact_phone END,
               a.contact_email, NULL, false, NULL, NULL, NULL
        FROM m JOIN appointment a ON a.id = m.recipient_id WHERE m.recipient_type = 'booking'
    )
    SELECT m.*, person.*, person.message_id IS NOT NULL AS known,
           (SELECT cause FROM message_block b
            WHERE b.channel = 'sms' AND b.address = person.mobile AND {IN_FORCE}) AS sms_blocked,
           (SELECT cause FROM message_block b
            WHERE b.channel = 'email' AND b.address = lower(person.email) AND {IN_FORCE}) AS email_blocked,
           {_SHARED} AS sms_shared,
           EXISTS (SELECT FROM patient o
                   WHERE o.id <> person.patient_id AND lower(o.email) = lower(person.email)) AS email_shared,
           (SELECT count(*) FROM message t
            WHERE t.recipient_id = m.recipient_id AND t.recipient_type = m.recipient_type AND t.sent_at >= m.today
              AND t.kind = ANY (:capped)) AS told_today
    FROM m LEFT JOIN person ON person.message_id = m.id
    ORDER BY m.id""")

_ITEMS = sa.text("""
    SELECT l.message_id, l.subject, l.subject_id, l.version, l.useful_until,
           a.status, a.start_version, a.starts_at, p.id AS patient_id, p.first_name, p.last_name,
           coalesce(p.deceased_on IS NOT NULL, false) AS deceased,
           EXISTS (SELECT FROM patient_link pl
                   WHERE pl.patient_id = p.id AND pl.suspended_at IS NOT NULL) AS suspended, s.name AS service,
           coalesce(s.sensitive OR s.sensitive_decided_at IS NULL AND s.name ~* :clinical, false) AS sensitive,
           s.preparation,
           concat_ws(' ', sp.title, sp.last_name) AS specialist, lo.name AS location, a.verification_expires_at,
           coalesce(other.in_flight, false) AS in_flight, other.told,
           r.version AS report_version, r.withdrawn_at IS NOT NULL AS report_withdrawn, a.ends_at, l.step,
           l.resent, coalesce(lost.lost, false), lost.place
    FROM message_ledger l
    LEFT JOIN report r ON l.subject = 'report' AND r.id = l.subject_id
    LEFT JOIN appointment a ON l.subject = 'appointment' AND a.id = l.subject_id
    LEFT JOIN patient p ON p.id = coalesce(a.patient_id, r.patient_id)
    LEFT JOIN service s ON s.id = a.service_id
    LEFT JOIN specialist sp ON sp.id = a.specialist_id
    LEFT JOIN agenda ag ON ag.id = a.agenda_id
    LEFT JOIN location lo ON lo.id = ag.location_id
    LEFT JOIN LATERAL (
        -- what was said about other starts of the same appointment, and whether this one may have been
        SELECT bool_or(o.state IN ('claimed', 'unknown') AND x.starts_at = a.starts_at) AS in_flight,
               (array_agg(x.starts_at ORDER BY x.version DESC) FILTER (WHERE o.state = 'sent'))[1] AS told
        FROM message_ledger x JOIN message o ON o.id = x.message_id
        WHERE x.subject_id = l.subject_id AND x.kind = l.kind AND x.version < l.version AND x.subject = l.subject
          AND x.step = l.step
          AND x.recipient_id = l.recipient_id AND x.recipient_type = l.recipient_type AND x.withheld IS NULL
    ) other ON l.version > 1 AND l.subject = 'appointment'
    LEFT JOIN LATERAL (
        SELECT has_lost(a.id) AS lost,
               (SELECT h.id FROM hold h WHERE h.offered_to = a.id AND h.ended_at IS NULL) AS place
    ) lost ON l.kind = 'service_notice' AND l.subject = 'appointment'
    WHERE l.message_id = ANY (:ids) AND l.withheld IS NULL
    ORDER BY l.message_id, a.starts_at, l.subject_id""")


def facts(connection: sa.Connection, ids: Sequence[int], now: datetime) -> list[Candidate]:
    """Everything that :func:`judge` needs to know about the messages ``ids``, by id."""
    items: dict[int, list[Item]] = {}
    for row in connection.execute(_ITEMS, {"ids": list(ids), "clinical": CLINICAL}):
        items.setdefault(row[0], []).append(Item(*row[1:]))
    capped = [kind.key for kind in KINDS.values() if kind.capped]
    rows = connection.execute(_PEOPLE, {"ids": list(ids), "at": now, "capped": capped})
    return [
        Candidate(
            row.id,
            row.clinic_id,
            row.code,
            row.name,
            row.phone,
            row.kind,
            row.recipient_type,
            row.recipient_id,
            row.about_day,
            row.context or {},
            row.template_revision,
            row.attempts,
            frozenset(row.refused_channels),
            row.key,
            row.address,
            row.subject,
            row.body,
            _person(row) if row.known else None,
            tuple(items.get(row.id, ())),
        )
        for row in rows
    ]


def _person(row: Any) -> Person:
    pairs = (refusal.split(":", 1) for refusal in row.refusals or ())
    return Person(
        row.first_name,
        row.last_name,
        row.speech,
        row.mobile,
        row.email,
        row.preferred,
        row.deceased,
        row.user_state,
        frozenset(channel for channel, shared in (("sms", row.sms_shared), ("email", row.email_shared)) if shared),
        frozenset((channel, kind) for channel, kind in pairs),
        {
            channel: cause
            for channel, cause in (("sms", row.sms_blocked), ("email", row.email_blocked))
            if cause is not None
        },
        row.told_today,
    )
