"""That a source answers is known before its first event; one whose integration was changed is asked at the next look.

Revision ID: 0074
"""

from alembic import op

revision = "0074"
down_revision = "0073"
branch_labels = None
depends_on = None

ANSWERED = """
ALTER TABLE event_cursor
    ADD COLUMN answered_at timestamptz;  -- first, as its integration stands; null: not known to have answered
UPDATE event_cursor SET answered_at = read_at WHERE read_at IS NOT NULL;
"""

# What was known of the address or the token before is not known of this one: neither that it answers nor that it is to
# be left in peace.
CHANGED = """
CREATE FUNCTION integration_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE event_cursor SET answered_at = NULL, quiet_until = NULL WHERE clinic_id = NEW.clinic_id;
    RETURN NULL;
END $$;
CREATE TRIGGER integration_changed AFTER UPDATE OF vendor, base_url, token_env, settings ON integration FOR EACH ROW
    WHEN ((OLD.vendor, OLD.base_url, OLD.token_env, OLD.settings)
          IS DISTINCT FROM (NEW.vendor, NEW.base_url, NEW.token_env, NEW.settings))
    EXECUTE FUNCTION integration_changed();
"""


def upgrade() -> None:
    for ddl in (ANSWERED, CHANGED):
        op.execute(ddl)
