"""What the links in letters are signed with.

Revision ID: 0031
"""

from alembic import op

revision = "0031"
down_revision = "0030"
branch_labels = None
depends_on = None

LINKS = """
CREATE TABLE message_secret (
    single boolean PRIMARY KEY DEFAULT true CHECK (single),
    secret bytea NOT NULL CHECK (octet_length(secret) >= 32)
);
INSERT INTO message_secret (secret)
SELECT decode(string_agg(replace(CAST(gen_random_uuid() AS text), '-', ''), ''), 'hex') FROM generate_series(1, 3);
"""


def upgrade() -> None:
    op.execute(LINKS)
