"""What follows from a hold that is placed is one trigger's work: each has its price before it does anything.

Revision ID: 0072
"""

from alembic import op

revision = "0072"
down_revision = "0071"
branch_labels = None
depends_on = None

PLACED = """
DROP TRIGGER hold_occupies ON hold;
DROP TRIGGER hold_occupies_patient ON hold;
DROP FUNCTION offer_occupies();

CREATE OR REPLACE FUNCTION hold_placed() RETURNS trigger LANGUAGE plpgsql SET enable_seqscan = off AS $$
DECLARE
    seen_to boolean;  -- by whoever placed it
BEGIN
    INSERT INTO statistic_change (topic, clinic_id, day)
    SELECT 'funnel', c.id, CAST(NEW.created_at AT TIME ZONE c.time_zone AS date)
    FROM clinic c WHERE c.id = NEW.clinic_id
    RETURNING EXISTS (SELECT FROM occupancy o WHERE o.hold_id = NEW.id) INTO seen_to;
    IF NEW.ended_at IS NOT NULL THEN
        RETURN NULL;
    END IF;
    IF NOT seen_to THEN
        PERFORM occupy(a.id, a.specialist_id, NEW.service_id, NULL,
                       tstzrange(s.starts_at, coalesce(NEW.ends_at, s.ends_at)), 4 * NEW.id + 1, NEW.created_at,
                       NEW.id, NULL, NEW.expires_at, false)
        FROM slot s JOIN agenda a ON a.id = s.agenda_id WHERE s.id = NEW.slot_id;
    END IF;
    IF NEW.offered_to IS NOT NULL THEN
        PERFORM take('patient', b.patient_id, tstzrange(s.starts_at, coalesce(NEW.ends_at, s.ends_at)), 4 * b.id + 2,
                     NEW.created_at, NEW.id, NULL, NEW.expires_at, false)
        FROM appointment b JOIN slot s ON s.id = NEW.slot_id WHERE b.id = NEW.offered_to AND b.patient_id IS NOT NULL;
    END IF;
    RETURN NULL;
END $$;

CREATE OR REPLACE FUNCTION hold_occupies() RETURNS trigger LANGUAGE plpgsql SET enable_seqscan = off AS $$
BEGIN
    IF NEW.ended_at IS NULL THEN
        UPDATE occupancy SET until = NEW.expires_at WHERE hold_id = NEW.id;
    ELSE
        DELETE FROM occupancy WHERE hold_id = NEW.id;
    END IF;
    RETURN NULL;
END $$;
"""

# A condition is read anew at each statement; that a column is not written is known without.
MOVED = """
DROP TRIGGER hold_moved ON hold;
CREATE TRIGGER hold_moved AFTER UPDATE OF clinic_id, created_at ON hold FOR EACH ROW
    WHEN (OLD.clinic_id <> NEW.clinic_id OR OLD.created_at <> NEW.created_at) EXECUTE FUNCTION hold_moved();
"""


def upgrade() -> None:
    op.execute(PLACED)
    op.execute(MOVED)
