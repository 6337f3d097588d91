"""Who looked at patients' data, when and where.

Revision ID: 0028
"""

from __future__ import annotations

from alembic import op

revision = "0028"
down_revision = "0027"
branch_labels = None
depends_on = None

LOOKS = """
-- One line a look and patient; of a plan's rows or a file of them one line that names the plan. Kept for 24 months.
CREATE TABLE patient_look (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at         timestamptz NOT NULL,
    person     text NOT NULL CHECK (person <> ''),
    page       text NOT NULL CHECK (page <> ''),
    patient_id bigint,                                             -- no reference: a look outlives an erased patient
    plan_id    bigint,
    CHECK (num_nonnulls(patient_id, plan_id) = 1)
);
CREATE INDEX patient_look_patient ON patient_look (patient_id, at) WHERE patient_id IS NOT NULL;
CREATE INDEX patient_look_at ON patient_look (at);
"""


def upgrade() -> None:
    op.execute(LOOKS)


def downgrade() -> None:
    op.execute("DROP TABLE patient_look")
