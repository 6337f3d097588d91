"""What is set aside says of which list it is, and two bad records under one key are two.

A service may read several lists: each then settles only its own records. The price list has many records of one
service, hence the record itself among what tells two apart.

Revision ID: 0020
"""

from alembic import op

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None

QUARANTINE = """
ALTER TABLE quarantine ADD COLUMN kind text NOT NULL DEFAULT '';
ALTER TABLE quarantine ALTER COLUMN kind DROP DEFAULT;
DROP INDEX quarantine_open;
CREATE UNIQUE INDEX quarantine_open
    ON quarantine (service, kind, coalesce(clinic_id, 0), record_key, code, md5(coalesce(CAST(record AS text), '')))
    WHERE resolved_at IS NULL;
"""


def upgrade() -> None:
    op.execute(QUARANTINE)
