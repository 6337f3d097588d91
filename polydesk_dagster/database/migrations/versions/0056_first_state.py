"""The first state of a source is one that nobody had to confirm, also where the program of before writes it.

Revision ID: 0056
"""

from alembic import op

revision = "0056"
down_revision = "0055"
branch_labels = None
depends_on = None

FIRST = """
CREATE FUNCTION source_state_first() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    NEW.confirmed_records := coalesce(NEW.confirmed_records, NEW.records);
    NEW.confirmed_at := coalesce(NEW.confirmed_at, NEW.seen_at);
    RETURN NEW;
END $$;
CREATE TRIGGER source_state_first BEFORE INSERT ON source_state FOR EACH ROW EXECUTE FUNCTION source_state_first();
ALTER TABLE source_state ALTER COLUMN confirmed_records DROP NOT NULL, ALTER COLUMN confirmed_at DROP NOT NULL;
"""


def upgrade() -> None:
    op.execute(FIRST)
