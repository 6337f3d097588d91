"""Retention and what the clean-up needs.

Revision ID: 0005
"""

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


HOLDS = """
-- Found by "not ended", which no other index offers: with two indexes of pending holds alike in cost, the planner may
-- take the one by expiry and read every pending hold for each visitor.
DROP INDEX hold_visitor;
CREATE INDEX hold_visitor ON hold (visitor_hash) WHERE ended_at IS NULL;

-- How many slots a visitor keeps, and the hold of this token if there is one. The lock lets one request of a visitor
-- in at a time, and being volatile the function then reads what has been committed while it waited, so the limit holds
-- against many requests at once.
CREATE FUNCTION holds_of_visitor(visitor bytea, token bytea, as_of timestamptz, OUT held bigint, OUT known bigint)
LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('hold' || encode(visitor, 'hex'), 0));
    SELECT count(*) INTO held FROM hold
    WHERE visitor_hash = visitor AND ended_at IS NULL AND (state = 'confirming' OR expires_at > as_of);
    SELECT id INTO known FROM hold WHERE token_hash = token;
END $$;

-- What has ended never holds a seat again: its seat may be somebody else's by now.
CREATE FUNCTION hold_ends_once() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'hold % has ended', NEW.id
        USING ERRCODE = 'check_violation', TABLE = 'hold', CONSTRAINT = 'hold_ends_once';
END $$;
CREATE TRIGGER hold_ends_once BEFORE UPDATE ON hold FOR EACH ROW
    WHEN (OLD.ended_at IS NOT NULL AND NEW.state IS DISTINCT FROM OLD.state) EXECUTE FUNCTION hold_ends_once();
"""


def upgrade() -> None:
    op.execute(HOLDS)
