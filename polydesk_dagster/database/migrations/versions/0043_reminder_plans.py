"""Reminders in steps, by clinic and service: a week, two days, three hours ahead; the ledger tells the steps apart.

Revision ID: 0043
"""

from alembic import op

revision = "0043"
down_revision = "0042"
branch_labels = None
depends_on = None

PLANS = """
-- When people are reminded; the nearest holds: a service's, its clinic's, the chain's, one day ahead.
CREATE TABLE reminder_plan (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    clinic_id  bigint REFERENCES clinic,
    service_id bigint REFERENCES service,
    set_by     text NOT NULL,
    set_at     timestamptz NOT NULL,
    UNIQUE NULLS NOT DISTINCT (clinic_id, service_id),
    CHECK (service_id IS NULL OR clinic_id IS NOT NULL)
);
-- So many days ahead at the clinic's reminder time, or so many minutes before the start.
CREATE TABLE reminder_step (
    plan_id      bigint NOT NULL REFERENCES reminder_plan ON DELETE CASCADE,
    lead_days    integer NOT NULL DEFAULT 0 CHECK (lead_days BETWEEN 0 AND 60),
    lead_minutes integer NOT NULL DEFAULT 0 CHECK (lead_minutes BETWEEN 0 AND 1440),
    PRIMARY KEY (plan_id, lead_days, lead_minutes),
    CHECK ((lead_days = 0) <> (lead_minutes = 0))
);

-- step: how the ledger calls it, 0 for the one that everybody has without a plan; next_minutes: about how long before
-- the start the next one goes, null for the nearest.
CREATE VIEW service_reminder AS
SELECT s.clinic_id, s.id AS service_id, t.lead_days, t.lead_minutes,
       CASE WHEN t.lead_days = 1 THEN 0 ELSE t.lead_days * 1440 + t.lead_minutes END AS step,
       lead(t.lead_days * 1440 + t.lead_minutes) OVER (PARTITION BY s.id ORDER BY t.lead_days DESC, t.lead_minutes DESC)
           AS next_minutes
FROM service s
LEFT JOIN LATERAL (
    SELECT p.id FROM reminder_plan p
    WHERE (p.clinic_id = s.clinic_id OR p.clinic_id IS NULL) AND (p.service_id = s.id OR p.service_id IS NULL)
    ORDER BY p.service_id NULLS LAST, p.clinic_id NULLS LAST LIMIT 1
) plan ON true
JOIN LATERAL (
    SELECT r.lead_days, r.lead_minutes FROM reminder_step r WHERE r.plan_id = plan.id
    UNION ALL
    SELECT 1, 0 WHERE plan.id IS NULL
) t ON true;
"""

STEPS = """
ALTER TABLE message ADD COLUMN step integer NOT NULL DEFAULT 0;
ALTER TABLE message_ledger
    ADD COLUMN step integer NOT NULL DEFAULT 0,
    DROP CONSTRAINT message_ledger_pkey,
    ADD PRIMARY KEY (subject_id, kind, version, subject, recipient_id, recipient_type, step);
ALTER TABLE message_horizon
    ADD COLUMN lead_minutes integer NOT NULL DEFAULT 0,
    DROP CONSTRAINT message_horizon_pkey,
    ADD PRIMARY KEY (clinic_id, kind, lead_days, lead_minutes);
"""


CHANGED = """
-- Of bookings that moved or were cancelled lately: whoever had a confirmation is told.
CREATE INDEX appointment_changed_lately ON appointment (updated_at) WHERE status = 'cancelled' OR start_version > 1;
"""


def upgrade() -> None:
    op.execute(PLANS)
    op.execute(STEPS)
    op.execute(CHANGED)
