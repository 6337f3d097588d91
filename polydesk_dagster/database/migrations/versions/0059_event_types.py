"""One question for each type of event that is not known, and one verdict for all of them.

Revision ID: 0059
"""

from alembic import op

revision = "0059"
down_revision = "0058"
branch_labels = None
depends_on = None

TYPES = """
CREATE TABLE event_type (
    type       text PRIMARY KEY,
    clinic_id  bigint NOT NULL REFERENCES clinic,  -- where it was first met
    asked_at   timestamptz NOT NULL,
    ignored_at timestamptz,
    ignored_by text,
    reason     text,
    CHECK (num_nonnulls(ignored_at, ignored_by, reason) IN (0, 3))
);

ALTER TABLE event_inbox DROP CONSTRAINT event_inbox_state_check, DROP CONSTRAINT event_inbox_check1;
ALTER TABLE event_inbox
    ADD CONSTRAINT event_inbox_state_check
        CHECK (state IN ('applied', 'superseded', 'parked', 'waiting', 'dead', 'skipped', 'unknown')) NOT VALID,
    ADD CONSTRAINT event_inbox_check1
        CHECK ((state IN ('parked', 'waiting', 'dead', 'unknown')) = (payload IS NOT NULL)) NOT VALID;
ALTER TABLE event_inbox VALIDATE CONSTRAINT event_inbox_state_check;
ALTER TABLE event_inbox VALIDATE CONSTRAINT event_inbox_check1;
CREATE INDEX event_inbox_unknown ON event_inbox (clinic_id, type) WHERE state = 'unknown';
"""


def upgrade() -> None:
    op.execute(TYPES)
