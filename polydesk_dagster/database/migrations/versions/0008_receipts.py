"""Delivery receipts: what became of a text after the gateway took it.

Revision ID: 0008
"""

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

RECEIPTS = """
ALTER TABLE message
    ADD COLUMN delivery       text CHECK (delivery IN ('delivered', 'undelivered')),   -- null: nobody knows
    ADD COLUMN delivery_at    timestamptz,                          -- when it was told
    ADD COLUMN delivery_asked smallint NOT NULL DEFAULT 0,          -- times that the gateway was asked
    ADD COLUMN ask_after      timestamptz,                          -- null: not to be asked (any more)
    ADD CHECK ((delivery IS NULL) = (delivery_at IS NULL)),
    ADD CHECK (ask_after IS NULL OR state = 'sent');
CREATE INDEX message_to_ask ON message (ask_after, id) WHERE ask_after IS NOT NULL;
"""


def upgrade() -> None:
    op.execute(RECEIPTS)
