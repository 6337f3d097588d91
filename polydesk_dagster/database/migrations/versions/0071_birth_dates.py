"""Who may be the same is looked for by date of birth, and compared by name: no statement asked the index for names.

Revision ID: 0071
"""

from alembic import op

revision = "0071"
down_revision = "0070"
branch_labels = None
depends_on = None

BIRTH_DATES = """
CREATE INDEX patient_birth_date ON patient (birth_date);
DROP INDEX patient_identity;
"""


def upgrade() -> None:
    op.execute(BIRTH_DATES)
