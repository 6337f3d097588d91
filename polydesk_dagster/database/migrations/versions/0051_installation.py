"""What an installation is called, how often it has gone out to others, and since when a restored copy keeps it in.

Revision ID: 0051
"""

from alembic import op

revision = "0051"
down_revision = "0050"
branch_labels = None
depends_on = None

INSTALLATION = """
CREATE TABLE installation (
    single     boolean PRIMARY KEY DEFAULT true CHECK (single),
    id         uuid NOT NULL DEFAULT gen_random_uuid(),      -- keys of messages are derived from it
    outings    bigint NOT NULL DEFAULT 0,                    -- each home knows how far it has come, too
    place      text,                                         -- server, database and table that this row was written in
    held_since timestamptz,
    held_why   text CHECK (held_why IN ('elsewhere', 'behind', 'another', 'told')),
    CHECK ((held_since IS NULL) = (held_why IS NULL))
);
INSERT INTO installation DEFAULT VALUES;
"""


def upgrade() -> None:
    op.execute(INSTALLATION)
