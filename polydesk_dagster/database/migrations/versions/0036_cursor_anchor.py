"""The event that the cursor stands on, by its id: under the same number another history would be another source.

Revision ID: 0036
"""

from alembic import op

revision = "0036"
down_revision = "0035"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("ALTER TABLE event_cursor ADD COLUMN anchor uuid")
