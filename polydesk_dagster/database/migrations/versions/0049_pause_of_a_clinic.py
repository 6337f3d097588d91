"""A pause may be one clinic's, of a service that runs clinic by clinic.

Revision ID: 0049
"""

from alembic import op

revision = "0049"
down_revision = "0048"
branch_labels = None
depends_on = None

PAUSE = """
ALTER TABLE service_switch
    ADD COLUMN clinic_id bigint REFERENCES clinic,                 -- null: the whole chain
    ADD CHECK (clinic_id IS NULL OR action <> 'go_live');
"""


def upgrade() -> None:
    op.execute(PAUSE)
