"""Which rows in conflict and records in quarantine a run has told of already: what is new colours a run, and only that.

Revision ID: 0032
"""

from alembic import op

revision = "0032"
down_revision = "0031"
branch_labels = None
depends_on = None

SET_ASIDE = """
CREATE TABLE set_aside (
    service  text NOT NULL,
    kind     text NOT NULL,
    scope    text NOT NULL,
    row_hash bigint NOT NULL,                     -- of the row's name and what is wrong with it
    plan_id  bigint NOT NULL REFERENCES plan,     -- the first that set it aside
    since    timestamptz NOT NULL,
    PRIMARY KEY (service, kind, scope, row_hash)
);
CREATE INDEX set_aside_plan ON set_aside (plan_id);

ALTER TABLE quarantine ADD COLUMN told_at timestamptz;
UPDATE quarantine SET told_at = first_seen_at;
"""


def upgrade() -> None:
    op.execute(SET_ASIDE)
