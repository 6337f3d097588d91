"""Why the last reading of a source failed stands beside since when none has succeeded.

Revision ID: 0073
"""

from alembic import op

revision = "0073"
down_revision = "0072"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("ALTER TABLE event_cursor ADD COLUMN down_reason text")
