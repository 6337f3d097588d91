"""What was left out of a message that went is found without reading all that were sent.

Revision ID: 0060
"""

from alembic import op

revision = "0060"
down_revision = "0059"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("""
        CREATE INDEX message_ledger_left_out ON message_ledger (kind, starts_at)
        WHERE withheld IS NOT NULL AND message_id IS NOT NULL""")
