"""What events ask for is answered by a list that was read, which a run that exists is not yet.

Revision ID: 0076
"""

from alembic import op

revision = "0076"
down_revision = "0075"
branch_labels = None
depends_on = None

ANSWERED = """
ALTER TABLE service_request ADD COLUMN answered_at timestamptz,
    ADD CHECK (answered_at IS NULL OR taken_at IS NOT NULL);

-- What was taken before this counts as answered: nobody knows any more when its run began.
UPDATE service_request SET answered_at = taken_at WHERE taken_at IS NOT NULL;

CREATE INDEX service_request_unanswered ON service_request (service, clinic_id) WHERE answered_at IS NULL;
"""


def upgrade() -> None:
    op.execute(ANSWERED)
