"""What is due is written into the ledger: reminders and preparation notices from the appointments, and whatever
other parts of Polydesk put there with :func:`enqueue`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import sqlalchemy as sa

from polydesk_dagster.clinic.messages.hours import Hours
from polydesk_dagster.clinic.messages.kinds import (
    CANCELLATION,
    CONFIRMATION,
    KINDS,
    PREPARATION,
    REMINDER,
    VERIFICATION,
)
from polydesk_dagster.clinic.messages.wanted import LEADS, SPAN, WANTED
from polydesk_dagster.database.locks import in_turn


@dataclass(frozen=True, slots=True)
class Planned:
    """What planning wrote: messages, the appointments in them, and those withheld at once by (clinic, reason)."""

    messages: int = 0
    appointments: int = 0
    withheld: Mapping[tuple[str, str], int] = field(default_factory=dict)
    kind: str = ""


class Lead(NamedTuple):
    """How long ahead: so many days, at the clinic's time of day; or so many minutes."""

    days: int
    minutes: int = 0


@dataclass(frozen=True, slots=True)
class Span:
    """Starts of one clinic's appointments that are due by now, for one number of days, or of minutes, ahead."""

    clinic_id: int
    lead: Lead
    starts_from: datetime
    starts_until: datetime
    send_after: datetime


# A step is of use until the next one takes over; the last of minutes for half of them.
_USEFUL_UNTIL = {
    REMINDER.key: """a.starts_at - make_interval(mins => CASE
        WHEN w.next_minutes IS NOT NULL THEN w.next_minutes
        WHEN w.lead_minutes > 0 THEN w.lead_minutes / 2 ELSE c.reminder_last_minutes END)""",
    PREPARATION.key: (
        "a.starts_at - make_interval(hours => coalesce(s.preparation_last_hours, c.preparation_last_hours))"
    ),
}
_KNOWN_ALREADY = {
    # Who booked so shortly before the start, and was told it then: by a confirmation that went out, or at the desk too
    # late for any reminder.
    REMINDER.key: f"""a.start_version = 1 AND a.channel <> 'studiolab'
                 AND a.created_at > a.starts_at - CASE
                     WHEN w.lead_minutes > 0
                     THEN make_interval(mins => least(2 * w.lead_minutes, c.just_booked_hours * 60))
                     ELSE make_interval(hours => c.just_booked_hours) END
                 AND (a.created_at >= {_USEFUL_UNTIL[REMINDER.key]}
                      OR EXISTS (SELECT FROM message_ledger k JOIN message n ON n.id = k.message_id
                                 WHERE k.subject = 'appointment' AND k.subject_id = a.id AND k.kind = 'confirmation'
                                   AND k.version = a.start_version AND k.withheld IS NULL AND n.state = 'sent'))""",
    PREPARATION.key: "false",
}


def _plan_sql(kind: str) -> str:
    return f"""
WITH span AS ({SPAN}
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
    SELECT a.id, a.clinic_id, c.code, a.start_version, a.starts_at, w.send_after, w.step,
           w.next_minutes IS NULL AS nearest,
           CAST(a.starts_at AT TIME ZONE c.time_zone AS date) AS day,
           CASE WHEN p.guardian_id IS NOT NULL
                     AND p.birth_date + interval '18 years' > a.starts_at AT TIME ZONE c.time_zone
                THEN p.guardian_id ELSE p.id END AS recipient_id,
           {_USEFUL_UNTIL[kind]} AS useful_until,
           {_KNOWN_ALREADY[kind]} AS known_already
    FROM candidate
    CROSS JOIN LATERAL (SELECT * FROM appointment x WHERE x.id = candidate.id OFFSET 0) a
    JOIN service s ON s.id = a.service_id
    JOIN clinic_message_policy c ON c.clinic_id = a.clinic_id
    JOIN patient p ON p.id = a.patient_id
    JOIN wanted w ON w.service_id = a.service_id
    WHERE a.status = 'booked' AND a.starts_at > :as_of AND a.starts_at < w.starts_until
      AND (w.next_minutes IS NULL OR a.created_at < a.starts_at - make_interval(days => w.lead_days,
                                                                               mins => w.lead_minutes))
), judged AS MATERIALIZED (
    SELECT due.*,
           CASE WHEN known_already THEN 'just_booked'
                WHEN useful_until <= :as_of THEN 'too_late'
                WHEN send_after >= useful_until THEN 'quiet_hours' END AS withheld
    FROM due
    WHERE (nearest OR greatest(send_after, CAST(:as_of AS timestamptz)) < useful_until)
      AND NOT EXISTS (
        SELECT FROM message_ledger l
        WHERE l.subject_id = due.id AND l.kind = :kind AND l.version = due.start_version AND l.step = due.step
          AND l.subject = 'appointment' AND l.recipient_id = due.recipient_id AND l.recipient_type = 'patient')
), envelope AS (
    -- one message for each person, day and step, however many appointments it tells
    INSERT INTO message (clinic_id, kind, step, recipient_type, recipient_id, about_day, send_after, expires_at,
                         template_revision, created_at, changed_at)
    SELECT clinic_id, :kind, step, 'patient', recipient_id, day, min(send_after), max(useful_until),
           (SELECT coalesce(max(id), 0) FROM message_template_version), :as_of, :as_of
    FROM judged WHERE withheld IS NULL
    GROUP BY clinic_id, recipient_id, day, step
    RETURNING id, clinic_id, recipient_id, about_day, step
), entry AS (
    INSERT INTO message_ledger (subject, subject_id, version, kind, step, recipient_type, recipient_id, clinic_id,
                                message_id, withheld, starts_at, useful_until, planned_at)
    SELECT 'appointment', j.id, j.start_version, :kind, j.step, 'patient', j.recipient_id, j.clinic_id,
           e.id, j.withheld, j.starts_at, j.useful_until, :as_of
    FROM judged j
    FULL JOIN envelope e ON j.withheld IS NULL AND e.clinic_id = j.clinic_id AND e.recipient_id = j.recipient_id
                        AND e.about_day = j.day AND e.step = j.step
), to_call AS (
    INSERT INTO call_list (clinic_id, appointment_id, start_version, kind, reason, starts_at, created_at)
    SELECT clinic_id, id, start_version, :kind, withheld, starts_at, :as_of
    FROM judged j WHERE withheld <> 'just_booked'
      AND NOT EXISTS (SELECT FROM message_ledger l JOIN message m ON m.id = l.message_id
                      WHERE l.subject = 'appointment' AND l.subject_id = j.id AND l.kind = :kind
                        AND l.version = j.start_version AND l.withheld IS NULL
                        AND m.state NOT IN ('withheld', 'failed'))
    ON CONFLICT DO NOTHING
), looked AS (
    INSERT INTO message_horizon (clinic_id, kind, lead_days, lead_minutes, looked_until)
    SELECT clinic_id, :kind, lead_days, lead_minutes, starts_until FROM span WHERE starts_from < starts_until
    ON CONFLICT (clinic_id, kind, lead_days, lead_minutes) DO UPDATE SET looked_until = excluded.looked_until
)
SELECT j.code, j.withheld, count(*) AS appointments FROM judged j GROUP BY j.code, j.withheld
UNION ALL
SELECT NULL, NULL, count(*) FROM envelope
"""


PLANNED = {kind: sa.text(_plan_sql(kind)) for kind in (REMINDER.key, PREPARATION.key)}


def plan(connection: sa.Connection, kind: str, as_of: datetime, clinics: Sequence[Hours]) -> Planned:
    """Put into the ledger what of ``kind`` is due by ``as_of`` and not there yet.

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
        "days": [span.lead.days for span in spans],
        "minutes": [span.lead.minutes for span in spans],
        "starts_from": [span.starts_from for span in spans],
        "starts_until": [span.starts_until for span in spans],
        "send_after": [span.send_after for span in spans],
    }
    for statement in WANTED[kind]:
        connection.execute(statement, columns)
    rows = connection.execute(PLANNED[kind], {"kind": kind, "as_of": as_of, **columns}).all()
    withheld = Counter({(row.code, row.withheld): row.appointments for row in rows if row.withheld})
    return Planned(
        sum(row.appointments for row in rows if row.code is None),
        sum(row.appointments for row in rows if row.code is not None and row.withheld is None),
        withheld,
        kind,
    )


def due_spans(connection: sa.Connection, kind: str, as_of: datetime, clinics: Sequence[Hours]) -> list[Span]:
    """The spans to look at, or none where no appointment came within reach and none changed."""
    state = connection.execute(
        sa.text(f"""
            SELECT (SELECT jsonb_agg(jsonb_build_array(clinic_id, lead_days, lead_minutes,
                                                       extract(epoch FROM looked_until)))
                    FROM message_horizon WHERE kind = :kind) AS looked,
                   (SELECT jsonb_agg(DISTINCT jsonb_build_array(clinic_id, lead_days, lead_minutes))
                    FROM ({LEADS[kind]}) w) AS leads,
                   EXISTS (SELECT FROM message_recheck r JOIN appointment a ON a.id = r.appointment_id
                           WHERE r.kind = :kind AND a.clinic_id = ANY (:clinics)) AS changed"""),
        {"kind": kind, "clinics": [clinic.clinic_id for clinic in clinics]},
    ).one()
    looked = {(clinic_id, Lead(days, minutes)): epoch for clinic_id, days, minutes, epoch in state.looked or ()}
    leads: dict[int, set[Lead]] = {}
    for clinic_id, days, minutes in state.leads or ():
        leads.setdefault(clinic_id, set()).add(Lead(days, minutes))
    spans = []
    opened = bool(state.changed)
    for clinic in clinics:
        at = clinic.reminder_time if kind == REMINDER.key else clinic.preparation_time
        for lead in sorted(leads.get(clinic.clinic_id, ())):
            until = as_of + timedelta(minutes=lead.minutes)
            if not lead.minutes:
                until = clinic.start_of(clinic.last_day_due(as_of, lead.days, at) + timedelta(days=1))
            epoch = looked.get((clinic.clinic_id, lead))
            since = as_of if epoch is None else max(as_of, datetime.fromtimestamp(float(epoch), as_of.tzinfo))
            # A horizon never moves back, whatever the policy now says: what lies before it was looked at.
            spans.append(Span(clinic.clinic_id, lead, since, max(since, until), clinic.next_allowed(as_of)))
            opened = opened or (since < until and not lead.minutes)
    return spans if opened or _within_minutes(connection, spans) else []


def _within_minutes(connection: sa.Connection, spans: Sequence[Span]) -> bool:
    """Whether a start came within the minutes of a step since somebody looked: those spans open all the time."""
    open_now = [span for span in spans if span.lead.minutes and span.starts_from < span.starts_until]
    if not open_now:
        return False
    return bool(
        connection.scalar(
            sa.text("""
                SELECT EXISTS (
                    SELECT FROM unnest(CAST(:clinics AS bigint[]), CAST(:since AS timestamptz[]),
                                       CAST(:until AS timestamptz[])) AS span (clinic_id, since, until)
                    JOIN appointment a ON a.clinic_id = span.clinic_id AND a.starts_at >= span.since
                                      AND a.starts_at < span.until AND a.status = 'booked')"""),
            {
                "clinics": [span.clinic_id for span in open_now],
                "since": [span.starts_from for span in open_now],
                "until": [span.starts_until for span in open_now],
            },
        )
    )


_ENQUEUE = """
WITH wanted AS MATERIALIZED (
    -- what concerns a child is told to the guardian
    SELECT nextval(pg_get_serial_sequence('message', 'id')) AS message_id, asked.clinic_id, asked.subject,
           asked.subject_id, asked.version, asked.recipient_type, asked.expires_at, asked.context, {step} AS step,
           coalesce(child.guardian_id, asked.recipient_id) AS recipient_id,
           (SELECT a.starts_at FROM appointment a WHERE asked.subject = 'appointment' AND a.id = asked.subject_id)
               AS starts_at
    FROM ({query}) AS asked
    LEFT JOIN patient child ON asked.recipient_type = 'patient' AND child.id = asked.recipient_id
         AND child.guardian_id IS NOT NULL AND child.birth_date + interval '18 years' > :as_of
), entry AS (
    INSERT INTO message_ledger (subject, subject_id, version, kind, step, recipient_type, recipient_id, clinic_id,
                                message_id, starts_at, useful_until, planned_at)
    SELECT subject, subject_id, version, :kind, step, recipient_type, recipient_id, clinic_id, message_id, starts_at,
           expires_at, :as_of
    FROM wanted
    ON CONFLICT DO NOTHING
    RETURNING message_id
)
INSERT INTO message (id, clinic_id, kind, step, recipient_type, recipient_id, context, send_after, expires_at,
                     template_revision, created_at, changed_at)
SELECT message_id, clinic_id, :kind, step, recipient_type, recipient_id, context, :as_of, expires_at,
       (SELECT coalesce(max(id), 0) FROM message_template_version), :as_of, :as_of
FROM wanted JOIN entry USING (message_id)
"""


def enqueue(
    connection: sa.Connection,
    kind: str,
    query: str,
    parameters: Mapping[str, Any],
    as_of: datetime,
    *,
    step: str = "0",
) -> int:
    """Put one message of ``kind`` into the ledger for each row of ``query``, in the caller's transaction.

    ``query`` is SQL with the columns ``clinic_id``, ``subject`` ('appointment', 'user' or 'report'), ``subject_id``,
    ``version`` (1 unless the same thing is to be said again), ``recipient_type`` ('patient', 'user', or 'booking' for
    the contacts that an online booking left), ``recipient_id``, ``expires_at`` and ``context`` (jsonb of further
    values for the text, or null). ``step``, SQL over ``asked``, tells what is said of the same thing one after the
    other. Who was told already is passed over. Returns how many were put there.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown kind of message: {kind}")
    statement = sa.text(_ENQUEUE.format(query=query, step=step))
    return connection.execute(statement, {**parameters, "kind": kind, "as_of": as_of}).rowcount


# Who booked lately, and is to come later than the confirmation takes to be read.
_TO_CONFIRM = """
    SELECT a.clinic_id, 'appointment' AS subject, a.id AS subject_id, a.start_version AS version,
           'patient' AS recipient_type, a.patient_id AS recipient_id, a.starts_at AS expires_at,
           CAST(NULL AS jsonb) AS context
    FROM appointment a
    WHERE a.status = 'booked' AND a.start_version = 1 AND a.channel <> 'studiolab' AND a.patient_id IS NOT NULL
      AND a.created_at > CAST(:as_of AS timestamptz) - interval '1 day' AND a.created_at <= :as_of
      AND a.starts_at > CAST(:as_of AS timestamptz) + interval '1 hour' AND a.clinic_id = ANY (:clinics)
      AND NOT EXISTS (SELECT FROM message_ledger l
                      WHERE l.subject = 'appointment' AND l.subject_id = a.id AND l.kind = 'confirmation')"""
# Whose appointment has moved, or is no longer, since a confirmation told it: their calendar says so too.
_CONFIRMED_BEFORE = """
    SELECT a.clinic_id, 'appointment' AS subject, a.id AS subject_id, a.start_version AS version,
           'patient' AS recipient_type, a.patient_id AS recipient_id, a.starts_at AS expires_at,
           CAST(NULL AS jsonb) AS context
    FROM appointment a
    WHERE a.updated_at > CAST(:as_of AS timestamptz) - interval '1 day' AND a.updated_at <= :as_of
      AND {changed} AND a.starts_at > CAST(:as_of AS timestamptz) + interval '1 hour' AND a.clinic_id = ANY (:clinics)
      AND EXISTS (SELECT FROM message_ledger l JOIN message m ON m.id = l.message_id
                  WHERE l.subject = 'appointment' AND l.subject_id = a.id AND l.kind = 'confirmation'
                    AND l.withheld IS NULL AND m.state = 'sent')
      AND NOT EXISTS (SELECT FROM message_ledger l
                      WHERE l.subject = 'appointment' AND l.subject_id = a.id AND l.kind = '{kind}'
                        AND l.version = a.start_version)"""
_CONFIRMING = (
    (CONFIRMATION.key, _TO_CONFIRM),
    (
        CONFIRMATION.key,
        _CONFIRMED_BEFORE.format(changed="a.status = 'booked' AND a.start_version > 1", kind=CONFIRMATION.key),
    ),
    (CANCELLATION.key, _CONFIRMED_BEFORE.format(changed="a.status = 'cancelled'", kind=CANCELLATION.key)),
)


def _confirming(clinics: Sequence[Hours]) -> list[int]:
    return [clinic.clinic_id for clinic in clinics if clinic.confirmations]


def confirm(connection: sa.Connection, as_of: datetime, clinics: Sequence[Hours]) -> int:
    """Put into the ledger, where the clinic's policy wants confirmations, one for each appointment booked in the last
    day, and what became of those that were confirmed."""
    wanted = _confirming(clinics)
    if not wanted:
        return 0
    return sum(enqueue(connection, kind, query, {"clinics": wanted}, as_of) for kind, query in _CONFIRMING)


def nothing_to_confirm(connection: sa.Connection, as_of: datetime, clinics: Sequence[Hours]) -> bool:
    """Whether no booking wants a confirmation, and none that had one has changed."""
    wanted = _confirming(clinics)
    if not wanted:
        return True
    queries = " OR ".join(f"EXISTS ({query})" for _, query in _CONFIRMING)
    return not connection.scalar(sa.text(f"SELECT {queries}"), {"as_of": as_of, "clinics": wanted})


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
