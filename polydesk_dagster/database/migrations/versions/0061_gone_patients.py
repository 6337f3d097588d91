"""Since when a linked patient is missing from the source's list.

Revision ID: 0061
"""

from alembic import op

revision = "0061"
down_revision = "0060"
branch_labels = None
depends_on = None

MISSING = """
ALTER TABLE patient_link ADD COLUMN missing_since timestamptz;   -- the first whole reading that did not have it
CREATE INDEX patient_link_missing ON patient_link (clinic_id) WHERE missing_since IS NOT NULL;
"""


def upgrade() -> None:
    op.execute(MISSING)
