"""Messages blame the right party: blocks that end and say who lifted them, calls with their outcome, what a text costs,
services whose sensitivity somebody decided.

Revision ID: 0025
"""

from alembic import op

revision = "0025"
down_revision = "0024"
branch_labels = None
depends_on = None

BLOCKS = """
-- until: a soft block ends by itself; one strike is remembered as a block that has ended.
ALTER TABLE message_block
    ADD COLUMN until timestamptz,
    ADD COLUMN strikes smallint NOT NULL DEFAULT 0 CHECK (strikes >= 0),
    ADD COLUMN code text,
    ADD COLUMN lifted_at timestamptz,
    ADD COLUMN lifted_by text,
    ADD COLUMN lift_reason text,
    ADD CHECK (num_nonnulls(lifted_at, lifted_by, lift_reason) IN (0, 3));
"""

CALLS = """
ALTER TABLE call_list ADD COLUMN done_by text, ADD COLUMN outcome text;
CREATE INDEX call_list_open ON call_list (starts_at) WHERE state = 'open';
CREATE INDEX message_ended ON message (kind, changed_at) WHERE state IN ('withheld', 'failed');
"""

POLICY = """
ALTER TABLE message_policy
    ADD COLUMN confirmations boolean,
    ADD COLUMN sms_most_segments smallint CHECK (sms_most_segments BETWEEN 1 AND 30),   -- chain only, like the cost
    ADD COLUMN sms_segment_cost numeric(8, 4) CHECK (sms_segment_cost >= 0),            -- EUR
    ADD CHECK (clinic_id IS NULL OR num_nonnulls(sms_most_segments, sms_segment_cost) = 0),
    ADD CHECK (clinic_id IS NOT NULL OR num_nulls(confirmations, sms_most_segments) = 0) NOT VALID;
UPDATE message_policy SET confirmations = false, sms_most_segments = 6 WHERE clinic_id IS NULL;

CREATE OR REPLACE VIEW clinic_message_policy AS
SELECT c.id AS clinic_id, c.code, c.time_zone, c.region, c.municipality_code,
       coalesce(o.reminder_time, p.reminder_time) AS reminder_time,
       coalesce(o.reminder_last_minutes, p.reminder_last_minutes) AS reminder_last_minutes,
       coalesce(o.preparation_time, p.preparation_time) AS preparation_time,
       coalesce(o.preparation_lead_days, p.preparation_lead_days) AS preparation_lead_days,
       coalesce(o.preparation_last_hours, p.preparation_last_hours) AS preparation_last_hours,
       coalesce(o.just_booked_hours, p.just_booked_hours) AS just_booked_hours,
       coalesce(o.quiet_from, p.quiet_from) AS quiet_from,
       coalesce(o.quiet_to, p.quiet_to) AS quiet_to,
       coalesce(o.quiet_rest_days, p.quiet_rest_days) AS quiet_rest_days,
       coalesce(o.person_daily_cap, p.person_daily_cap) AS person_daily_cap,
       coalesce(o.portal_url, p.portal_url) AS portal_url,
       coalesce(o.confirmations, p.confirmations) AS confirmations
FROM clinic c
JOIN message_policy p ON p.clinic_id IS NULL
LEFT JOIN message_policy o ON o.clinic_id = c.id;
"""

PRIVACY = """
-- Until somebody has decided, a name that tells of somebody's health counts as sensitive.
ALTER TABLE service
    ADD COLUMN sensitive_decided_at timestamptz,
    ADD COLUMN sensitive_decided_by text,
    ADD CHECK ((sensitive_decided_at IS NULL) = (sensitive_decided_by IS NULL));
CREATE INDEX patient_phone ON patient (phone) WHERE phone IS NOT NULL;
CREATE INDEX patient_email ON patient (lower(email)) WHERE email IS NOT NULL;
"""

TEMPLATES = """
ALTER TABLE message_template ADD CHECK (char_length(body) <= 8000) NOT VALID;
"""


def upgrade() -> None:
    for statements in (BLOCKS, CALLS, POLICY, PRIVACY, TEMPLATES):
        op.execute(statements)
