"""A run keeps the figures and tables of its report too, so that the command shows what the web page shows.

Revision ID: 0017
"""

from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None

DETAILS = """
ALTER TABLE service_run
    ADD COLUMN figures jsonb NOT NULL DEFAULT '{}',    -- number or text by Italian label
    ADD COLUMN tables  jsonb NOT NULL DEFAULT '[]';    -- [{title, columns, rows, total}], the first rows of each
"""


def upgrade() -> None:
    op.execute(DETAILS)
