"""What is due is written into the ledger: reminders and preparation notices from the appointments, and whatever
other parts of Polydesk put there with :func:`enqueue`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from polydesk_dagster.clinic.messages.hours import Hours
from polydesk_dagster.clinic.messages.kinds import CONFIRMATION, KINDS, PREPARATION, REMINDER, VERIFICATION
from polydesk_dagster.database.locks import in_turn


@dataclass(frozen=True, slots=True)
class Planned:
    """What planning wrote: messages, the appointments in them, and those withheld at once by (clinic, reason)."""

    messages: int = 0
    appointments: int = 0
    withheld: Mapping[tuple[str, str], int] = field(default_factory=dict)
    kind: str = ""


@dataclass(frozen=True, slots=True)
class Span:
    """Starts of one clinic's appointments that are due by now, for one number of days ahead."""

    clinic_id: int
    lead_days: int
    starts_from: datetime
    starts_until: datetime
    send_after: datetime


_LEAD = {
    REMINDER.key: "1",
    PREPARATION.key: "coalesce(s.preparation_lead_days, c.preparation_lead_days)",
}
_USEFUL_UNTIL = {
    REMINDER.key: "a.starts_at - make_interval(mins => c.reminder_last_minutes)",
    PREPARATION.key: (
        "a.starts_at - make_interval(hours => coalesce(s.preparation_last_hours, c.preparation_last_hours))"
    ),
}
_WANTED = {
    REMINDER.key: "true",
    PREPARATION.key: "s.preparation IS NOT NULL",
}
_KNOWN_ALREADY = {
    # Who booked so shortly before the start, and was told it then: by a confirmation that went out, or at the desk too
    # late for any reminder.
    REMINDER.key: f"""a.start_version = 1 AND a.channel <> 'studiolab'
                 AND a.created_at > a.starts_at - make_interval(hours => c.just_booked_hours)
                 AND (a.created_at >= {_USEFUL_UNTIL[REMINDER.key]}
                      OR EXISTS (SELECT FROM message_ledger k JOIN message n ON n.id = k.message_id
                                 WHERE k.subject = 'appointment' AND k.subject_id = a.id AND k.kind = 'confirmation'
                                   AND k.version = a.start_version AND k.withheld IS NULL AND n.state = 'sent'))""",
    PREPARATION.key: "false",
}


def _plan_sql(kind: str) -> str:
    return f"""
WITH span AS (
    SELECT * FROM unnest(CAST(:clinics AS bigint[]), CAST(:leads AS integer[]), CAST(:starts_from AS timestamptz[]),
                         CAST(:starts_until AS timestamptz[]), CAST(:send_after AS timestamptz[]))
             AS span (clinic_id, lead_days, starts_from, starts_until, send_after)
), recheck AS (
    DELETE FROM message_recheck r
    WHERE r.kind = :kind
      AND NOT EXISTS (SELECT FROM appointment a WHERE a.id = r.appointment_id AND a.clinic_id <> ALL (:clinics))
    RETURNING r.appointment_id
), candidate AS (
    SELECT a.id
    FROM span JOIN appointment a
      ON a.clinic_id = span.clinic_id AND a.starts_at >= span.starts_from AND a.starts_at < span.starts_until
    WHERE a.status = 'booked' AND span.starts_from < span.starts_until
    UNION
    SELECT appointment_id FROM recheck
), due AS MATERIALIZED (
    SELECT a.id, a.clinic_id, c.code, a.start_version, a.starts_at, span.send_after,
           CAST(a.starts_at AT TIME ZONE c.time_zone AS date) AS day,
           CASE WHEN p.guardian_id IS NOT NULL
                     AND p.birth_date + interval '18 years' > a.starts_at AT TIME ZONE c.time_zone
                THEN p.guardian_id ELSE p.id END AS recipient_id,
           {_USEFUL_UNTIL[kind]} AS useful_until,
           {_KNOWN_ALREADY[kind]} AS known_already
    FROM candidate
    JOIN appointment a ON a.id = candidate.id
    JOIN service s ON s.id = a.service_id
    JOIN clinic_message_policy c ON c.clinic_id = a.clinic_id
    JOIN patient p ON p.id = a.patient_id
    JOIN span ON span.clinic_id = a.clinic_id AND span.lead_days = {_LEAD[kind]}
    WHERE a.status = 'booked' AND a.starts_at > :as_of AND a.starts_at < span.starts_until AND {_WANTED[kind]}
), judged AS MATERIALIZED (
    SELECT due.*,
           CASE WHEN known_already THEN 'just_booked'
                WHEN useful_until <= :as_of THEN 'too_late'
                WHEN send_after >= useful_until THEN 'quiet_hours' END AS withheld
    FROM due
    WHERE NOT EXISTS (
        SELECT FROM message_ledger l
        WHERE l.subject_id = due.id AND l.kind = :kind AND l.version = due.start_version
          AND l.subject = 'appointment' AND l.recipient_id = due.recipient_id AND l.recipient_type = 'patient')
), envelope AS (
    -- one message for each person and day, however many appointments it tells
    INSERT INTO message (clinic_id, kind, recipient_type, recipient_id, about_day, send_after, expires_at,
                         template_revision, created_at, changed_at)
    SELECT clinic_id, :kind, 'patient', recipient_id, day, min(send_after), max(useful_until),
           (SELECT coalesce(max(id), 0) FROM message_template_version), :as_of, :as_of
    FROM judged WHERE withheld IS NULL
    GROUP BY clinic_id, recipient_id, day
    RETURNING id, clinic_id, recipient_id, about_day
), entry AS (
    INSERT INTO message_ledger (subject, subject_id, version, kind, recipient_type, recipient_id, clinic_id,
                                message_id, withheld, starts_at, useful_until, planned_at)
    SELECT 'appointment', j.id, j.start_version, :kind, 'patient', j.recipient_id, j.clinic_id,
           e.id, j.withheld, j.starts_at, j.useful_until, :as_of
    FROM judged j
    LEFT JOIN envelope e ON j.withheld IS NULL AND e.clinic_id = j.clinic_id AND e.recipient_id = j.recipient_id
                        AND e.about_day = j.day
), to_call AS (
    INSERT INTO call_list (clinic_id, appointment_id, start_version, kind, reason, starts_at, created_at)
    SELECT clinic_id, id, start_version, :kind, withheld, starts_at, :as_of
    FROM judged WHERE withheld <> 'just_booked'
    ON CONFLICT DO NOTHING
), looked AS (
    INSERT INTO message_horizon (clinic_id, kind, lead_days, looked_until)
    SELECT clinic_id, :kind, lead_days, starts_until FROM span WHERE starts_from < starts_until
    ON CONFLICT (clinic_id, kind, lead_days) DO UPDATE SET looked_until = excluded.looked_until
)
SELECT j.code, j.withheld, count(*) AS appointments FROM judged j GROUP BY j.code, j.withheld
UNION ALL
SELECT NULL, NULL, count(*) FROM envelope
"""


PLANNED = {kind: sa.text(_plan_sql(kind)) for kind in (REMINDER.key, PREPARATION.key)}


def plan(connection: sa.Connection, kind: str, as_of: datetime, clinics: Sequence[Hours]) -> Planned:
    """Put into the ledger what of ``kind`` is due by ``as_of`` and not there yet, in one statement.

    Cheap when nothing is: each appointment is looked at when its day comes within reach, and again when it changes.
    """
    spans = due_spans(connection, kind, as_of, clinics)
    if not spans:
        return Planned(kind=kind)
    # One planner of a kind at a time, also where one works for a clinic and one for all; the second sees what the
    # first wrote.
    in_turn(connection, "message planning", kind)
    columns = {
        "clinics": [span.clinic_id for span in spans],
        "leads": [span.lead_days for span in spans],
        "starts_from": [span.starts_from for span in spans],
        "starts_until": [span.starts_until for span in spans],
        "send_after": [span.send_after for span in spans],
    }
    rows = connection.execute(PLANNED[kind], {"kind": kind, "as_of": as_of, **columns}).all()
    withheld = Counter({(row.code, row.withheld): row.appointments for row in rows if row.withheld})
    return Planned(
        sum(row.appointments for row in rows if row.code is None),
        sum(row.appointments for row in rows if row.code is not None and row.withheld is None),
        withheld,
        kind,
    )


def due_spans(connection: sa.Connection, kind: str, as_of: datetime, clinics: Sequence[Hours]) -> list[Span]:
    """The spans to look at, or none where no day came within reach and no appointment changed."""
    state = connection.execute(
        sa.text("""
            SELECT (SELECT jsonb_agg(jsonb_build_array(clinic_id, lead_days, extract(epoch FROM looked_until)))
                    FROM message_horizon WHERE kind = :kind) AS looked,
                   (SELECT jsonb_agg(DISTINCT jsonb_build_array(clinic_id, preparation_lead_days)) FROM service
                    WHERE preparation IS NOT NULL AND :kind = 'preparation') AS leads,
                   EXISTS (SELECT FROM message_recheck r JOIN appointment a ON a.id = r.appointment_id
                           WHERE r.kind = :kind AND a.clinic_id = ANY (:clinics)) AS changed"""),
        {"kind": kind, "clinics": [clinic.clinic_id for clinic in clinics]},
    ).one()
    looked = {(clinic_id, lead): epoch for clinic_id, lead, epoch in state.looked or ()}
    leads: dict[int, set[int | None]] = {}
    for clinic_id, lead in state.leads or ():
        leads.setdefault(clinic_id, set()).add(lead)
    spans = []
    opened = bool(state.changed)
    for clinic in clinics:
        if kind == REMINDER.key:
            wanted, at = {1}, clinic.reminder_time
        else:
            default = clinic.preparation_lead_days
            wanted = {default if lead is None else lead for lead in leads.get(clinic.clinic_id, ())}
            at = clinic.preparation_time
        for lead in sorted(wanted):
            until = clinic.start_of(clinic.last_day_due(as_of, lead, at) + timedelta(days=1))
            epoch = looked.get((clinic.clinic_id, lead))
            since = as_of if epoch is None else max(as_of, datetime.fromtimestamp(float(epoch), as_of.tzinfo))
            opened = opened or since < until
            # A horizon never moves back, whatever the policy now says: what lies before it was looked at.
            spans.append(Span(clinic.clinic_id, lead, since, max(since, until), clinic.next_allowed(as_of)))
    return spans if opened else []


_ENQUEUE = """
WITH wanted AS MATERIALIZED (
    -- what concerns a child is told to the guardian
    SELECT nextval(pg_get_serial_sequence('message', 'id')) AS message_id, asked.clinic_id, asked.subject,
           asked.subject_id, asked.version, asked.recipient_type, asked.expires_at, asked.context,
           coalesce(child.guardian_id, asked.recipient_id) AS recipient_id
    FROM ({query}) AS asked
    LEFT JOIN patient child ON asked.recipient_type = 'patient' AND child.id = asked.recipient_id
         AND child.guardian_id IS NOT NULL AND child.birth_date + interval '18 years' > :as_of
), entry AS (
    INSERT INTO message_ledger (subject, subject_id, version, kind, recipient_type, recipient_id, clinic_id,
                                message_id, starts_at, useful_until, planned_at)
    SELECT subject, subject_id, version, :kind, recipient_type, recipient_id, clinic_id, message_id, NULL,
           expires_at, :as_of
    FROM wanted
    ON CONFLICT DO NOTHING
    RETURNING message_id
)
INSERT INTO message (id, clinic_id, kind, recipient_type, recipient_id, context, send_after, expires_at,
                     template_revision, created_at, changed_at)
SELECT message_id, clinic_id, :kind, recipient_type, recipient_id, context, :as_of, expires_at,
       (SELECT coalesce(max(id), 0) FROM message_template_version), :as_of, :as_of
FROM wanted JOIN entry USING (message_id)
"""


def enqueue(connection: sa.Connection, kind: str, query: str, parameters: Mapping[str, Any], as_of: datetime) -> int:
    """Put one message of ``kind`` into the ledger for each row of ``query``, in the caller's transaction.

    ``query`` is SQL with the columns ``clinic_id``, ``subject`` ('appointment', 'user' or 'report'), ``subject_id``,
    ``version`` (1 unless the same thing is to be said again), ``recipient_type`` ('patient', 'user', or 'booking' for
    the contacts that an online booking left), ``recipient_id``, ``expires_at`` and ``context`` (jsonb of further
    values for the text, or null). Who was told already is passed over. Returns how many were put there.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown kind of message: {kind}")
    statement = sa.text(_ENQUEUE.format(query=query))
    return connection.execute(statement, {**parameters, "kind": kind, "as_of": as_of}).rowcount


# Who booked lately, and is to come later than the confirmation takes to be read.
TO_CONFIRM = """
    SELECT a.clinic_id, 'appointment' AS subject, a.id AS subject_id, a.start_version AS version,
           'patient' AS recipient_type, a.patient_id AS recipient_id, a.starts_at AS expires_at,
           CAST(NULL AS jsonb) AS context
    FROM appointment a
    JOIN clinic_message_policy c ON c.clinic_id = a.clinic_id AND c.confirmations
    WHERE a.status = 'booked' AND a.start_version = 1 AND a.channel <> 'studiolab' AND a.patient_id IS NOT NULL
      AND a.created_at > CAST(:as_of AS timestamptz) - interval '1 day' AND a.created_at <= :as_of
      AND a.starts_at > CAST(:as_of AS timestamptz) + interval '1 hour' AND a.clinic_id = ANY (:clinics)
      AND NOT EXISTS (SELECT FROM message_ledger l
                      WHERE l.subject = 'appointment' AND l.subject_id = a.id AND l.kind = 'confirmation')"""


def confirm(connection: sa.Connection, as_of: datetime, clinics: Sequence[Hours]) -> int:
    """Put into the ledger one confirmation for each appointment booked in the last day, where the clinic's policy
    wants them."""
    wanted = {"clinics": [clinic.clinic_id for clinic in clinics]}
    return enqueue(connection, CONFIRMATION.key, TO_CONFIRM, wanted, as_of)


# Who booked online and has not answered, at half time of the window; never one whom the desk, a payment or
# studiolab vouches for.
TO_NUDGE = """
    SELECT a.clinic_id, 'appointment' AS subject, a.id AS subject_id, 1 AS version, 'booking' AS recipient_type,
           a.id AS recipient_id, a.verification_expires_at AS expires_at, CAST(NULL AS jsonb) AS context
    FROM appointment a
    WHERE a.status = 'unverified' AND a.verification_expires_at > :as_of AND a.starts_at > :as_of
      AND a.created_at + (a.verification_expires_at - a.created_at) / 2 <= :as_of
      AND num_nonnulls(a.verified_at, a.confirmed_by_staff_at, a.paid_at, a.external_id) = 0
      AND num_nonnulls(a.contact_phone, a.contact_email) > 0 AND a.clinic_id = ANY (:clinics)
      AND NOT EXISTS (SELECT FROM message_ledger l
                      WHERE l.subject = 'appointment' AND l.subject_id = a.id AND l.kind = 'verification_nudge')"""


def nudge(connection: sa.Connection, as_of: datetime, clinics: Sequence[Hours]) -> int:
    """Put into the ledger one nudge, the only one ever, for each unverified booking past half of its window."""
    wanted = {"clinics": [clinic.clinic_id for clinic in clinics]}
    return enqueue(connection, VERIFICATION.key, TO_NUDGE, wanted, as_of)
