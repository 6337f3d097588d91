"""A clinic's source is of a vendor, with settings of its own; what is resumed names the source that it belongs to.

Revision ID: 0040
"""

from alembic import op

revision = "0040"
down_revision = "0039"
branch_labels = None
depends_on = None

INTEGRATION = """
ALTER TABLE integration
    ADD COLUMN vendor text NOT NULL DEFAULT 'studiolab' CHECK (vendor ~ '^[a-z][a-z0-9_]*$'),
    ADD COLUMN settings jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(settings) = 'object'),
    ADD COLUMN source text,                           -- whose cursor, ETags, counters and links we hold; null: none yet
    ADD COLUMN generation integer NOT NULL DEFAULT 1, -- how many sources there were, one after the other
    ALTER COLUMN base_url DROP NOT NULL,
    ALTER COLUMN token_env DROP NOT NULL,
    DROP CONSTRAINT integration_base_url_check,
    DROP CONSTRAINT integration_token_name,
    ADD CONSTRAINT integration_address CHECK (base_url ~ '^(https?|sftp)://'),
    ADD CONSTRAINT integration_token_name CHECK (token_env ~ '^POLYDESK_[A-Z0-9]+_TOKEN_[A-Z0-9_]+$') NOT VALID,
    ADD CONSTRAINT integration_studiolab CHECK (vendor <> 'studiolab' OR num_nulls(base_url, token_env) = 0)
"""

RESUMED = """
ALTER TABLE event_cursor
    ADD COLUMN source text,   -- null: as it stood before sources were told apart
    ADD COLUMN history text;  -- what the source calls this history of itself
ALTER TABLE source_state ADD COLUMN source text;

-- The numbers that we give to the events of a source that does not count them. After the event with a token the source
-- is asked with that token; number 0 is no event.
CREATE TABLE feed_number (
    clinic_id bigint NOT NULL REFERENCES clinic,
    sequence  bigint NOT NULL CHECK (sequence >= 0),
    event_id  uuid,
    token     text,
    PRIMARY KEY (clinic_id, sequence),
    UNIQUE (clinic_id, event_id),
    CHECK ((event_id IS NULL) = (sequence = 0))
);

-- Names that a source which was replaced had for our records.
CREATE TABLE source_name_ended (
    clinic_id   bigint NOT NULL REFERENCES clinic,
    source      text NOT NULL,
    record      text NOT NULL CHECK (record IN ('service', 'specialist', 'agreement', 'agenda')),
    record_id   bigint NOT NULL,
    external_id text NOT NULL,
    ended_at    timestamptz NOT NULL,
    PRIMARY KEY (clinic_id, record, record_id, ended_at)
);
"""

REVIEWS = """
-- ended: the source that it was about has been replaced
ALTER TABLE patient_review DROP CONSTRAINT patient_review_state_check,
    ADD CONSTRAINT patient_review_state_check CHECK (state IN ('open', 'linked', 'created', 'dismissed', 'ended'));
"""


def upgrade() -> None:
    op.execute(INTEGRATION)
    op.execute(RESUMED)
    op.execute(REVIEWS)
