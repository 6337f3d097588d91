"""Who set a record of the quarantine aside for good, and looks at one record of it.

Revision ID: 0048
"""

from alembic import op

revision = "0048"
down_revision = "0047"
branch_labels = None
depends_on = None

SETTLED = """
-- A person has looked and leaves the record out, until the source sends it otherwise: it waits for nobody any more.
ALTER TABLE quarantine
    ADD COLUMN settled_at     timestamptz,
    ADD COLUMN settled_by     text,
    ADD COLUMN settled_reason text,
    ADD CHECK (num_nonnulls(settled_at, settled_by, settled_reason) IN (0, 3));

-- What cannot be read may be about a patient whom nobody here knows: the look names the record then.
ALTER TABLE patient_look ADD COLUMN record_id bigint;
ALTER TABLE patient_look DROP CONSTRAINT patient_look_check;
ALTER TABLE patient_look ADD CHECK (num_nonnulls(patient_id, plan_id, record_id) = 1);
"""


def upgrade() -> None:
    op.execute(SETTLED)
