"""Which part of a list a record in quarantine came with, so that the year or clinic beside it does not mend it.

Revision ID: 0038
"""

from alembic import op

revision = "0038"
down_revision = "0037"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("ALTER TABLE quarantine ADD COLUMN scope text")
