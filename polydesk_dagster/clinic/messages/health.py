"""Whether the messages are well: what is in doubt, what fails, who should have been reminded and was not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta

import sqlalchemy as sa

from polydesk_dagster.clinic.messages import hours
from polydesk_dagster.clinic.messages.kinds import REMINDER
from polydesk_dagster.values import Instant

TOO_LONG_UNKNOWN = timedelta(hours=1)
WORST_FAILURE_RATE = 0.05
_FEWEST_FOR_A_RATE = 20


@dataclass(frozen=True, slots=True)
class Unknown:
    """A message of which nobody knows whether it arrived; the address is for people with access to the records."""

    id: int
    clinic: str
    kind: str
    channel: str
    address: str
    since: Instant
    patient_id: int | None
    """Whom it is about; None where it is about nobody's appointment."""


@dataclass(frozen=True, slots=True)
class Day:
    """What became of the messages of a day; ``lost`` failed or are in doubt."""

    day: date
    sent: int
    withheld: int
    lost: int


def unknown(connection: sa.Connection, older_than: datetime | None = None) -> list[Unknown]:
    """Messages in doubt, oldest first."""
    rows = connection.execute(
        sa.text("""
            SELECT m.id, c.code, m.kind, m.channel, m.address, m.changed_at, c.time_zone,
                   (SELECT min(a.patient_id) FROM message_ledger l JOIN appointment a ON a.id = l.subject_id
                    WHERE l.message_id = m.id AND l.subject = 'appointment') AS patient_id
            FROM message m JOIN clinic c ON c.id = m.clinic_id
            WHERE m.state = 'unknown' AND (CAST(:before AS timestamptz) IS NULL OR m.changed_at < :before)
            ORDER BY m.changed_at, m.id"""),
        {"before": older_than},
    )
    return [
        Unknown(
            row.id,
            row.code,
            row.kind,
            row.channel,
            row.address,
            Instant(row.changed_at, row.time_zone),
            row.patient_id,
        )
        for row in rows
    ]


def doubts(connection: sa.Connection, clinics: Sequence[int]) -> int:
    """How many messages of ``clinics`` are in doubt."""
    counted = connection.scalar(
        sa.text("SELECT count(*) FROM message WHERE state = 'unknown' AND clinic_id = ANY (:clinics)"),
        {"clinics": list(clinics)},
    )
    return int(counted or 0)


def failure_rate(connection: sa.Connection, as_of: datetime) -> tuple[int, int]:
    """(failed, all that were tried) of the last 24 hours."""
    failed, tried = connection.execute(
        sa.text("""
            SELECT count(*) FILTER (WHERE state = 'failed' OR delivery = 'undelivered'), count(*) FROM message
            WHERE state IN ('sent', 'failed') AND changed_at > :since"""),
        {"since": as_of - timedelta(days=1)},
    ).one()
    return failed, tried


def failing(failed: int, tried: int) -> bool:
    return tried >= _FEWEST_FOR_A_RATE and failed > WORST_FAILURE_RATE * tried


def without_reminder(connection: sa.Connection, as_of: datetime) -> list[tuple[str, int]]:
    """(clinic code, appointments) that are due a reminder and have no ledger row, looked at one by one: what planning
    does cleverly is here done plainly."""
    clinics = hours.load(connection, as_of)
    due = [
        (clinic.clinic_id, clinic.start_of(clinic.last_day_due(as_of, 1, clinic.reminder_time) + timedelta(days=1)))
        for clinic in clinics
    ]
    rows = connection.execute(
        sa.text("""
            SELECT c.code, count(*)
            FROM unnest(CAST(:clinics AS bigint[]), CAST(:until AS timestamptz[])) AS due (clinic_id, until)
            JOIN clinic c ON c.id = due.clinic_id
            JOIN appointment a ON a.clinic_id = due.clinic_id AND a.starts_at > :as_of AND a.starts_at < due.until
            WHERE a.status = 'booked'
              AND EXISTS (SELECT FROM service_reminder w
                          WHERE w.service_id = a.service_id AND w.lead_days >= 1 AND w.next_minutes IS NULL)
              AND NOT EXISTS (SELECT FROM message_ledger l
                              WHERE l.subject_id = a.id AND l.kind = :kind AND l.version = a.start_version
                                AND l.subject = 'appointment')
            GROUP BY c.code ORDER BY c.code"""),
        {
            "clinics": [clinic_id for clinic_id, _ in due],
            "until": [until for _, until in due],
            "as_of": as_of,
            "kind": REMINDER.key,
        },
    )
    return [(code, count) for code, count in rows]


def days(connection: sa.Connection, kind: str, as_of: datetime, back: int = 14) -> list[Day]:
    """The numbers of the last ``back`` days, for a picture; every day has a row."""
    rows = connection.execute(
        sa.text("""
            WITH counted AS (
                SELECT date_trunc('day', changed_at) AS day, state, count(*) AS n FROM message
                WHERE state IN ('sent', 'withheld', 'failed', 'unknown') AND kind = :kind
                  AND changed_at >= date_trunc('day', CAST(:as_of AS timestamptz)) - make_interval(days => :back)
                GROUP BY 1, 2
            )
            SELECT CAST(d AS date),
                   CAST(coalesce(sum(n) FILTER (WHERE state = 'sent'), 0) AS integer),
                   CAST(coalesce(sum(n) FILTER (WHERE state = 'withheld'), 0) AS integer),
                   CAST(coalesce(sum(n) FILTER (WHERE state IN ('failed', 'unknown')), 0) AS integer)
            FROM generate_series(date_trunc('day', CAST(:as_of AS timestamptz)) - make_interval(days => :back),
                                 CAST(:as_of AS timestamptz), interval '1 day') AS d
            LEFT JOIN counted ON counted.day = d
            GROUP BY d ORDER BY d"""),
        {"as_of": as_of, "back": back - 1, "kind": kind},
    )
    return [Day(*row) for row in rows]
