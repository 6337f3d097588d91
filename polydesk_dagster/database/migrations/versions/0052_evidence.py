"""What guards set aside row by row, and the state of a source that a person last confirmed.

Revision ID: 0052
"""

from alembic import op

revision = "0052"
down_revision = "0051"
branch_labels = None
depends_on = None

EVIDENCE = """
ALTER TABLE plan_hold ADD COLUMN guards text[] NOT NULL DEFAULT '{}';   -- empty: a person holds the row back

ALTER TABLE source_state
    ADD COLUMN confirmed_records bigint,           -- that the source had then
    ADD COLUMN confirmed_ours    bigint,           -- our records in force then; null: not counted yet
    ADD COLUMN confirmed_at      timestamptz,
    ADD COLUMN confirmed_by      text;             -- null: its first state, which nobody had to confirm
UPDATE source_state SET confirmed_records = records, confirmed_at = seen_at;
ALTER TABLE source_state ALTER COLUMN confirmed_records SET NOT NULL, ALTER COLUMN confirmed_at SET NOT NULL;
"""


def upgrade() -> None:
    op.execute(EVIDENCE)
