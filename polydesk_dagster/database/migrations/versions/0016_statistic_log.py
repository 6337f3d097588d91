"""The log of what changed under the statistics costs its writers less: whoever places a hold or books writes to it.

Its rows are read and deleted as a set, so nothing needs their number or its index; and a domain's check is prepared
once a session, a table's at every statement.

Revision ID: 0016
"""

from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None

LOG = """
CREATE DOMAIN statistic_topic AS text
    CHECK (VALUE IN ('appointments', 'offer', 'funnel', 'messages', 'reports'));
ALTER TABLE statistic_change
    DROP COLUMN id,
    DROP CONSTRAINT statistic_change_topic_check,
    ALTER COLUMN topic TYPE statistic_topic;
"""


def upgrade() -> None:
    op.execute(LOG)
