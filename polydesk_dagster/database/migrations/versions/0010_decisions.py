"""What a person has decided stays decided: doubtful patients that are not to be imported, and plans taken back.

Revision ID: 0010
"""

from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

REVIEWS = """
--   open: waits for a person     linked: it is somebody we know     created: it is somebody new
--   dismissed: not to be imported; the import leaves it alone until it is opened again
ALTER TABLE patient_review DROP CONSTRAINT patient_review_state_check,
    ADD CONSTRAINT patient_review_state_check CHECK (state IN ('open', 'linked', 'created', 'dismissed')),
    ADD COLUMN reason text;                    -- why, in the words of who decided
CREATE UNIQUE INDEX patient_review_dismissed ON patient_review (clinic_id, external_id) WHERE state = 'dismissed';
"""

UNDONE = "CREATE INDEX plan_undoes ON plan (undoes) WHERE undoes IS NOT NULL"


def upgrade() -> None:
    op.execute(REVIEWS)
    op.execute(UNDONE)
