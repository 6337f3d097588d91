"""An integration names a token that is meant for a source, and no other secret of the house.

Rows from before are looked at where they are read: one that names something else is refused there by name.

Revision ID: 0033
"""

from alembic import op

revision = "0033"
down_revision = "0032"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(
        "UPDATE integration SET token_env = 'POLYDESK_STUDIOLAB_TOKEN_DEMO' "
        "WHERE token_env = 'POLYDESK_DEMO_STUDIOLAB_TOKEN'"
    )
    op.execute(
        "ALTER TABLE integration ADD CONSTRAINT integration_token_name "
        "CHECK (token_env ~ '^POLYDESK_STUDIOLAB_TOKEN_[A-Z0-9_]+$') NOT VALID"
    )
