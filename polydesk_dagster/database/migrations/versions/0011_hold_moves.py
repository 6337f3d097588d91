"""A hold's day changes only if its clinic or its creation does, which nobody does to the thousands that end in a day.

Ending a hold therefore no longer compares whole statements before and after: a row's own trigger, which costs nothing
while its condition is false, logs the two days if ever they differ.

Revision ID: 0011
"""

from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

HOLD_MOVES = """
DROP TRIGGER hold_changed_update ON hold;

CREATE OR REPLACE FUNCTION hold_changed() RETURNS trigger LANGUAGE plpgsql SET enable_nestloop = off AS $$
BEGIN
    IF TG_OP = 'TRUNCATE' THEN
        INSERT INTO statistic_change (topic, clinic_id) SELECT 'funnel', id FROM clinic;
    ELSIF TG_OP = 'INSERT' THEN
        INSERT INTO statistic_change (topic, clinic_id, day)
        SELECT DISTINCT 'funnel', r.clinic_id, CAST(r.created_at AT TIME ZONE c.time_zone AS date)
        FROM new_rows r JOIN clinic c ON c.id = r.clinic_id;
    ELSIF TG_OP = 'DELETE' THEN
        INSERT INTO removed_hold
        SELECT clinic_id, date_bin('15 minutes', created_at, 'epoch'), count(*) FROM old_rows GROUP BY 1, 2;
        INSERT INTO statistic_change (topic, clinic_id, day)
        SELECT DISTINCT 'funnel', r.clinic_id, CAST(r.created_at AT TIME ZONE c.time_zone AS date)
        FROM old_rows r JOIN clinic c ON c.id = r.clinic_id;
    END IF;
    RETURN NULL;
END $$;

CREATE FUNCTION hold_moved() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO statistic_change (topic, clinic_id, day)
    SELECT 'funnel', c.id, CAST(moved.created_at AT TIME ZONE c.time_zone AS date)
    FROM (VALUES (OLD.clinic_id, OLD.created_at), (NEW.clinic_id, NEW.created_at)) moved (clinic_id, created_at)
    JOIN clinic c ON c.id = moved.clinic_id;
    RETURN NULL;
END $$;
CREATE TRIGGER hold_moved AFTER UPDATE ON hold FOR EACH ROW
    WHEN (OLD.clinic_id <> NEW.clinic_id OR OLD.created_at <> NEW.created_at) EXECUTE FUNCTION hold_moved();
ALTER TABLE hold ENABLE ALWAYS TRIGGER hold_moved;
"""


def upgrade() -> None:
    op.execute(HOLD_MOVES)
