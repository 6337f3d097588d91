"""What the gateway told lately is found by its time.

Revision ID: 0063
"""

from alembic import op

revision = "0063"
down_revision = "0062"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("CREATE INDEX message_attempt_lost ON message_attempt (at) WHERE answer = 'undelivered'")
    op.execute("CREATE INDEX message_delivered ON message (delivery_at) WHERE delivery = 'delivered'")


def downgrade() -> None:
    op.execute("DROP INDEX message_delivered")
    op.execute("DROP INDEX message_attempt_lost")
