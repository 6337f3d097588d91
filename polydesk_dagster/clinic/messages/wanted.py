"""What each service's patients are told, and how long ahead."""

from __future__ import annotations

import sqlalchemy as sa

from polydesk_dagster.clinic.messages.kinds import PREPARATION, REMINDER

_STEPS = {
    REMINDER.key: "SELECT * FROM service_reminder WHERE clinic_id = ANY (:clinics)",
    PREPARATION.key: """
        SELECT s.clinic_id, s.id AS service_id, coalesce(s.preparation_lead_days, c.preparation_lead_days) AS lead_days,
               0 AS lead_minutes, 0 AS step, CAST(NULL AS integer) AS next_minutes
        FROM service s JOIN clinic_message_policy c ON c.clinic_id = s.clinic_id
        WHERE s.preparation IS NOT NULL AND s.clinic_id = ANY (:clinics)""",
}
"""When each service's patients are told."""
LEADS = {
    REMINDER.key: """
        SELECT c.id AS clinic_id, 1 AS lead_days, 0 AS lead_minutes FROM clinic c WHERE c.id = ANY (:clinics)
        UNION ALL
        SELECT c.id, t.lead_days, t.lead_minutes FROM clinic c
        JOIN reminder_plan p ON p.clinic_id = c.id OR p.clinic_id IS NULL
        JOIN reminder_step t ON t.plan_id = p.id WHERE c.id = ANY (:clinics)""",
    PREPARATION.key: _STEPS[PREPARATION.key],
}
"""The leads of each clinic that may be wanted, without asking every service where that can be helped."""

SPAN = """
    SELECT * FROM unnest(CAST(:clinics AS bigint[]), CAST(:days AS integer[]), CAST(:minutes AS integer[]),
                         CAST(:starts_from AS timestamptz[]), CAST(:starts_until AS timestamptz[]),
                         CAST(:send_after AS timestamptz[]))
             AS span (clinic_id, lead_days, lead_minutes, starts_from, starts_until, send_after)"""


def _wanted_sql(kind: str) -> tuple[sa.TextClause, ...]:
    """What each service's patients are told in the spans, counted first. What follows compares none with all: a FULL
    JOIN never does, nor what is looked up one by one (OFFSET 0), however few the planner thinks there are."""
    return (
        sa.text("DROP TABLE IF EXISTS pg_temp.wanted"),
        sa.text(f"""
            CREATE TEMP TABLE wanted ON COMMIT DROP AS
            SELECT w.*, span.starts_until, span.send_after
            FROM ({_STEPS[kind]}) w
            JOIN ({SPAN}) span ON span.clinic_id = w.clinic_id AND span.lead_days = w.lead_days
                               AND span.lead_minutes = w.lead_minutes"""),
        sa.text("ANALYZE wanted"),
    )


WANTED = {kind: _wanted_sql(kind) for kind in _STEPS}
