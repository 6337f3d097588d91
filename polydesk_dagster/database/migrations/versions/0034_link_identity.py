"""A link is a claim with evidence: whom it was seen to be, and whether that still holds.

Revision ID: 0034
"""

from alembic import op

revision = "0034"
down_revision = "0033"
branch_labels = None
depends_on = None

IDENTITY = """
ALTER TABLE patient_link
    ADD COLUMN identity         bigint,       -- hash of who the source said it is, the last time that it agreed
    ADD COLUMN suspended_at     timestamptz,  -- the source now says somebody else: a person decides
    ADD COLUMN suspended_reason text,
    ADD CHECK ((suspended_at IS NULL) = (suspended_reason IS NULL));
CREATE INDEX patient_link_suspended ON patient_link (patient_id) WHERE suspended_at IS NOT NULL;

-- What was in step says nothing of who people are: each list is read once more.
UPDATE source_state SET etag = NULL WHERE service = 'import_patients:patient';
"""


def upgrade() -> None:
    op.execute(IDENTITY)
