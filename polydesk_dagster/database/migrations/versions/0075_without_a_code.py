"""Each person that a list brings is compared with those without a codice fiscale who were born on her day: few, and the
whole chain was read for them.

Revision ID: 0075
"""

from alembic import op

revision = "0075"
down_revision = "0074"
branch_labels = None
depends_on = None

WITHOUT_CODE = """
CREATE INDEX patient_without_code ON patient (birth_date) WHERE fiscal_code_kind IS DISTINCT FROM 'CF';
"""


def upgrade() -> None:
    op.execute(WITHOUT_CODE)
