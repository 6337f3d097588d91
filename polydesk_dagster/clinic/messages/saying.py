"""What somebody says of an appointment, by a text or on a link's page: written down, and answered where that is due."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Literal

import sqlalchemy as sa

from polydesk_dagster.clinic.messages import planning
from polydesk_dagster.clinic.messages.kinds import CANCELLATION, QUESTION

Said = Literal["confirmed", "cancelled", "other_time"]
Via = Literal["sms", "link"]
OTHER_TIME = "other_time"
"""The reason on the call list of who asks for another time; its kind is the message that gave the link."""


def note(connection: sa.Connection, appointments: Sequence[int], said: Said, via: Via, as_of: datetime) -> None:
    """Keep that ``said`` was said of the present start of each of ``appointments``; said again, nothing changes."""
    if not appointments:
        return
    connection.execute(
        sa.text("""
            INSERT INTO appointment_answer (clinic_id, appointment_id, start_version, said, via, at)
            SELECT clinic_id, id, start_version, :said, :via, :as_of FROM appointment WHERE id = ANY (:ids)
            ON CONFLICT DO NOTHING"""),
        {"ids": list(appointments), "said": said, "via": via, "as_of": as_of},
    )


_ASK = sa.text("""
    WITH wanted AS MATERIALIZED (
        SELECT t.id AS answered, t.recipient_type, t.recipient_id, t.about_day, a.id, a.clinic_id, a.start_version,
               a.starts_at
        FROM message t
        JOIN message_ledger l ON l.message_id = t.id AND l.subject = 'appointment' AND l.withheld IS NULL
        JOIN appointment a ON a.id = l.subject_id AND a.status = 'booked' AND a.start_version = l.version
                          AND a.starts_at > :as_of
        WHERE t.id = ANY (:messages)
    ), envelope AS MATERIALIZED (
        SELECT answered, clinic_id, recipient_type, recipient_id, about_day, min(starts_at) AS first,
               nextval(pg_get_serial_sequence('message', 'id')) AS id
        FROM wanted GROUP BY answered, clinic_id, recipient_type, recipient_id, about_day
    ), entry AS (
        INSERT INTO message_ledger (subject, subject_id, version, kind, recipient_type, recipient_id, clinic_id,
                                    message_id, starts_at, useful_until, planned_at)
        SELECT 'appointment', w.id, w.start_version, :kind, w.recipient_type, w.recipient_id, w.clinic_id, e.id,
               w.starts_at, w.starts_at, :as_of
        FROM wanted w JOIN envelope e USING (answered)
        ON CONFLICT DO NOTHING
        RETURNING message_id
    )
    INSERT INTO message (id, clinic_id, kind, recipient_type, recipient_id, about_day, send_after, expires_at,
                         template_revision, created_at, changed_at)
    SELECT e.id, e.clinic_id, :kind, e.recipient_type, e.recipient_id, e.about_day, :as_of, e.first,
           (SELECT coalesce(max(id), 0) FROM message_template_version), :as_of, :as_of
    FROM envelope e WHERE e.id IN (SELECT message_id FROM entry)""")


def ask(connection: sa.Connection, messages: Sequence[int], as_of: datetime) -> None:
    """Put into the ledger, for each of the texts ``messages``, the question whether its appointments are really to be
    cancelled: once for each start, however often somebody answers «2»."""
    if messages:
        connection.execute(_ASK, {"messages": list(messages), "kind": QUESTION.key, "as_of": as_of})


def tell_cancelled(connection: sa.Connection, appointments: Sequence[int], as_of: datetime) -> None:
    """Put into the ledger that each of ``appointments`` is cancelled, for its patient."""
    if appointments:
        query = """
            SELECT clinic_id, 'appointment' AS subject, id AS subject_id, start_version AS version,
                   'patient' AS recipient_type, patient_id AS recipient_id, starts_at AS expires_at,
                   CAST(NULL AS jsonb) AS context
            FROM appointment WHERE id = ANY (:ids) AND status = 'cancelled' AND patient_id IS NOT NULL"""
        planning.enqueue(connection, CANCELLATION.key, query, {"ids": list(appointments)}, as_of)


def ask_for_another_time(connection: sa.Connection, appointments: Sequence[int], kind: str, as_of: datetime) -> None:
    """Give the desk a call to make: who was told of ``appointments`` by a message of ``kind`` wants another time."""
    connection.execute(
        sa.text("""
            INSERT INTO call_list AS l (clinic_id, appointment_id, start_version, kind, reason, starts_at, created_at)
            SELECT clinic_id, id, start_version, :kind, :reason, starts_at, :as_of
            FROM appointment WHERE id = ANY (:ids) AND status = 'booked' AND starts_at > :as_of
            ON CONFLICT (appointment_id, start_version, kind) DO UPDATE
            SET reason = excluded.reason, state = 'open', done_at = NULL, done_by = NULL, outcome = NULL,
                created_at = excluded.created_at
            WHERE l.state = 'done'"""),
        {"ids": list(appointments), "kind": kind, "reason": OTHER_TIME, "as_of": as_of},
    )
