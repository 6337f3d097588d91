"""What reminders are good for: no-shows by how often and how long before somebody was reminded, and what people
answered.

These two are read from the records themselves, not from published numbers: the ledger outlives the appointments' day by
two years, and what a plan did is asked for a period at a time.
"""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from polydesk_dagster.clinic.statistics.reading import Period, Ratio
from polydesk_dagster.outcome import Table
from polydesk_dagster.values import Several, Term, Value

# Days are local: the range around them is only there to find the rows.
_OF_PERIOD = """
    SELECT a.id, a.clinic_id, a.status, a.start_version, a.patient_id, a.service_id
    FROM appointment a JOIN clinic c ON c.id = a.clinic_id
    WHERE a.starts_at >= CAST(:first AS timestamp) AT TIME ZONE 'UTC' - interval '1 day'
      AND a.starts_at < CAST(CAST(:last AS date) + 1 AS timestamp) AT TIME ZONE 'UTC' + interval '1 day'
      AND CAST(a.starts_at AT TIME ZONE c.time_zone AS date) BETWEEN :first AND :last
      AND (CAST(:clinic AS bigint) IS NULL OR a.clinic_id = :clinic)"""

_PLANS = sa.text(f"""
    SELECT coalesce(told.steps, '{{}}') AS steps, count(*) AS ended,
           count(*) FILTER (WHERE a.status = 'no_show') AS no_shows
    FROM ({_OF_PERIOD}) a
    LEFT JOIN LATERAL (
        SELECT array_agg(DISTINCT CASE l.step WHEN 0 THEN 1440 ELSE l.step END
                         ORDER BY CASE l.step WHEN 0 THEN 1440 ELSE l.step END DESC) AS steps
        FROM message_ledger l JOIN message m ON m.id = l.message_id AND m.state = 'sent'
        WHERE l.subject = 'appointment' AND l.subject_id = a.id AND l.kind = 'reminder' AND l.withheld IS NULL
          AND l.version = a.start_version
    ) told ON true
    WHERE a.status IN ('completed', 'no_show')
    GROUP BY 1 ORDER BY 2 DESC, 1""")


def by_plan(connection: sa.Connection, period: Period) -> Table:
    """No-shows of the visits that were due, by the reminders that had gone out."""
    rows = connection.execute(_PLANS, period.values).all()
    shown = tuple((_steps(row.steps), row.ended, row.no_shows, Ratio(row.no_shows, row.ended).told) for row in rows)
    columns = ("reminder_steps", "statistic_ended", "statistic_no_shows", "statistic_share")
    return Table("statistic_by_plan", columns, shown, len(shown))


def _steps(steps: Sequence[int]) -> Value:
    """Minutes before the start, the farthest first, as a plan is written."""
    if not steps:
        return Term("reminders", "none")
    return Several(
        tuple(
            f"{step // 1440}d" if step % 1440 == 0 else f"{step // 60}h" if step % 60 == 0 else f"{step}m"
            for step in steps
        )
    )


_ANSWERS = sa.text(f"""
    SELECT count(*) AS appointments,
           count(*) FILTER (WHERE EXISTS (SELECT FROM appointment_answer s
                                          WHERE s.appointment_id = a.id AND s.said = 'confirmed')) AS confirmed,
           count(*) FILTER (WHERE gone.at IS NOT NULL) AS cancelled,
           count(*) FILTER (WHERE gone.at IS NOT NULL AND EXISTS (
               SELECT FROM appointment n
               WHERE n.patient_id = a.patient_id AND n.service_id = a.service_id AND n.id <> a.id
                 AND n.created_at >= gone.at AND n.status NOT IN ('unverified', 'expired'))) AS rebooked,
           count(*) FILTER (WHERE EXISTS (SELECT FROM appointment_answer s
                                          WHERE s.appointment_id = a.id AND s.said = 'other_time')) AS other_time
    FROM ({_OF_PERIOD}) a
    LEFT JOIN LATERAL (SELECT max(s.at) AS at FROM appointment_answer s
                       WHERE s.appointment_id = a.id AND s.said = 'cancelled') gone ON true
    WHERE a.status NOT IN ('unverified', 'expired')""")


def by_answer(connection: sa.Connection, period: Period) -> Table:
    """Appointments by what their patients answered: confirmed, cancelled, of these booked again, another time."""
    found = connection.execute(_ANSWERS, period.values).one()
    said = ("confirmed", "cancelled", "rebooked", "other_time")
    shown = tuple(
        (Term("answered", key), getattr(found, key), Ratio(getattr(found, key), found.appointments).told)
        for key in said
        if found.appointments
    )
    return Table("statistic_by_answer", ("answered", "how_many", "statistic_share"), shown, len(shown))
