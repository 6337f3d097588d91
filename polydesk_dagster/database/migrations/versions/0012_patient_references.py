"""Whoever refers to a patient is found by an index: taking back an import looks for each of its patients everywhere.

Revision ID: 0012
"""

from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

INDEXES = """
CREATE INDEX patient_guardian ON patient (guardian_id) WHERE guardian_id IS NOT NULL;
CREATE INDEX app_user_patient ON app_user (patient_id) WHERE patient_id IS NOT NULL;
CREATE INDEX package_patient ON package (patient_id);
CREATE INDEX patient_discrepancy_patient ON patient_discrepancy (patient_id);
"""


def upgrade() -> None:
    op.execute(INDEXES)
