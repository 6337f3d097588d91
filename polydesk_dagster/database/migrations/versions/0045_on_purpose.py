"""What a person decides about messages is bound to what she saw, and signed: an unusual day, a message sent again.

Revision ID: 0045
"""

from alembic import op

revision = "0045"
down_revision = "0044"
branch_labels = None
depends_on = None

APPROVAL = """
ALTER TABLE message_approval ADD COLUMN who text, ADD COLUMN why text, ADD CHECK (num_nonnulls(who, why) IN (0, 2));
"""

AGAIN = """
-- A message is sent again at most once; whoever wants it a third time says so of the second.
ALTER TABLE message
    ADD COLUMN resent_of bigint UNIQUE REFERENCES message ON DELETE SET NULL,
    ADD COLUMN resent_by text,
    ADD COLUMN resent_why text,
    ADD CHECK (num_nonnulls(resent_by, resent_why) IN (0, 2));
ALTER TABLE message_ledger
    ADD COLUMN resent smallint NOT NULL DEFAULT 0 CHECK (resent >= 0),      -- how many times on purpose
    DROP CONSTRAINT message_ledger_pkey,
    ADD PRIMARY KEY (subject_id, kind, version, subject, recipient_id, recipient_type, step, resent);
"""


TIDY = """
ALTER TABLE message_receipt ADD COLUMN id bigint GENERATED ALWAYS AS IDENTITY UNIQUE;   -- clean-up goes by it
"""


def upgrade() -> None:
    op.execute(APPROVAL)
    op.execute(AGAIN)
    op.execute(TIDY)
