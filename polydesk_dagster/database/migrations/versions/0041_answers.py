"""What comes back to a text: what became of it, and what people answer; and what they said of their appointments.

Revision ID: 0041
"""

from alembic import op

revision = "0041"
down_revision = "0040"
branch_labels = None
depends_on = None

ARRIVALS = """
-- What the gateway tells of texts that it took. One about a text that is not in the ledger yet waits for it.
CREATE TABLE message_receipt (
    external_id text PRIMARY KEY,
    reference   text NOT NULL,                  -- the gateway's name for the text
    status      text NOT NULL CHECK (status IN ('accepted', 'delivered', 'undeliverable')),
    code        text,
    bad_address boolean NOT NULL,               -- the number can never receive anything, by the gateway's word
    strike      boolean NOT NULL,               -- refused in a way that speaks of the number, but not for good
    at          timestamptz NOT NULL,           -- when it came so, by the gateway
    received_at timestamptz NOT NULL,
    tried_at    timestamptz,                    -- when nothing in the ledger had that name
    settled_at  timestamptz
);
CREATE INDEX message_receipt_open ON message_receipt (received_at) WHERE settled_at IS NULL;
CREATE INDEX message_receipt_reference ON message_receipt (reference);
CREATE INDEX message_reference ON message (provider_reference) WHERE channel = 'sms';

-- What people text back. Without an address the sender's number could not be read.
CREATE TABLE message_reply (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    external_id text NOT NULL UNIQUE,
    address     text,
    body        text NOT NULL,
    reading     text CHECK (reading IN ('confirm', 'cancel', 'stop', 'start')),   -- null: only a person understands it
    said_at     timestamptz NOT NULL,
    received_at timestamptz NOT NULL,
    settled_at  timestamptz,
    outcome     text CHECK (outcome IN ('confirmed', 'asked', 'cancelled', 'stopped', 'started', 'repeated', 'desk')),
    reason      text,                           -- why the desk has to read it
    message_id  bigint REFERENCES message ON DELETE SET NULL,    -- the text that it answers
    clinic_id   bigint REFERENCES clinic,
    handled_at  timestamptz,
    handled_by  text,
    CHECK ((settled_at IS NULL) = (outcome IS NULL)),
    CHECK ((outcome = 'desk') = (reason IS NOT NULL)),
    CHECK ((handled_at IS NULL) = (handled_by IS NULL))
);
CREATE INDEX message_reply_open ON message_reply (received_at) WHERE settled_at IS NULL;
CREATE INDEX message_reply_desk ON message_reply (received_at) WHERE outcome = 'desk' AND handled_at IS NULL;
CREATE INDEX message_reply_address ON message_reply (address, said_at);
CREATE INDEX message_texted ON message (address) WHERE channel = 'sms' AND address IS NOT NULL;
"""

SAID = """
-- What somebody said of an appointment's start, by a text or on the link's page; it outlives the appointment.
CREATE TABLE appointment_answer (
    id             bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    clinic_id      bigint NOT NULL REFERENCES clinic,
    appointment_id bigint NOT NULL,
    start_version  integer NOT NULL,
    said           text NOT NULL CHECK (said IN ('confirmed', 'cancelled', 'other_time')),
    via            text NOT NULL CHECK (via IN ('sms', 'link')),
    at             timestamptz NOT NULL,
    UNIQUE (appointment_id, start_version, said)
);
"""


def upgrade() -> None:
    op.execute(ARRIVALS)
    op.execute(SAID)
