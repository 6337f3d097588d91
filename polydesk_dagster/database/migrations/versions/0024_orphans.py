"""An orphan stands exactly where its slot is one; a slot keeps room for its bookings; two writers of one agenda wait.

Revision ID: 0024
"""

from alembic import op

revision = "0024"
down_revision = "0023"
branch_labels = None
depends_on = None

CAUSES = """
ALTER TABLE orphan DROP CONSTRAINT orphan_cause_check;
ALTER TABLE orphan ADD CONSTRAINT orphan_cause_check
    CHECK (cause IN ('closure', 'rule_changed', 'agenda_ended', 'over_capacity'));

ALTER TABLE agenda_state ADD COLUMN derived_through date;   -- how far generation has looked
UPDATE agenda_state SET derived_through = generated_through;
COMMENT ON COLUMN agenda_state.generated_through IS 'the last day with a free slot';
"""

REPAIR = """
UPDATE orphan o SET state = 'resolved', resolved_at = now()
FROM slot s WHERE s.id = o.slot_id AND s.state <> 'orphan' AND o.resolved_at IS NULL;
INSERT INTO orphan (slot_id, cause, detected_at)
SELECT s.id, 'rule_changed', now() FROM slot s
WHERE s.state = 'orphan' AND NOT EXISTS (SELECT FROM orphan o WHERE o.slot_id = s.id AND o.resolved_at IS NULL);
"""

# Whoever makes a slot something else settles its orphan, without knowing of it; whoever makes it an orphan must say
# why, at the latest when the transaction ends.
ORPHANS = """
CREATE FUNCTION orphan_settled() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE orphan SET state = 'resolved', resolved_at = now() WHERE slot_id = NEW.id AND resolved_at IS NULL;
    RETURN NULL;
END $$;
CREATE TRIGGER orphan_settled AFTER UPDATE OF state ON slot
    FOR EACH ROW WHEN (OLD.state = 'orphan' AND NEW.state <> 'orphan') EXECUTE FUNCTION orphan_settled();

CREATE FUNCTION orphan_is_its_slot() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE about bigint;
BEGIN
    IF TG_TABLE_NAME = 'slot' THEN
        about := NEW.id;
    ELSIF TG_OP = 'DELETE' THEN
        about := OLD.slot_id;
    ELSE
        about := NEW.slot_id;
    END IF;
    IF EXISTS (SELECT FROM slot s WHERE s.id = about AND (s.state = 'orphan') IS DISTINCT FROM
                      EXISTS (SELECT FROM orphan o WHERE o.slot_id = s.id AND o.resolved_at IS NULL)) THEN
        RAISE EXCEPTION 'slot % is an orphan and not listed, or listed and no orphan', about
            USING ERRCODE = 'check_violation', TABLE = 'orphan', CONSTRAINT = 'orphan_is_its_slot';
    END IF;
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER orphan_is_its_slot AFTER INSERT OR UPDATE OF state ON slot
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW WHEN (NEW.state = 'orphan') EXECUTE FUNCTION orphan_is_its_slot();
CREATE CONSTRAINT TRIGGER orphan_is_its_slot AFTER INSERT OR UPDATE OR DELETE ON orphan
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION orphan_is_its_slot();
"""

ROOM = """
CREATE FUNCTION slot_keeps_its_bookings() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM slot s JOIN seat t ON t.slot_id = s.id AND t.unit > s.capacity
               WHERE s.id = NEW.id AND t.appointment_id IS NOT NULL) THEN
        RAISE EXCEPTION 'slot % has bookings beyond its capacity', NEW.id
            USING ERRCODE = 'check_violation', TABLE = 'slot', CONSTRAINT = 'slot_keeps_its_bookings';
    END IF;
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER slot_keeps_its_bookings AFTER UPDATE OF capacity ON slot
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW WHEN (NEW.capacity < OLD.capacity)
    EXECUTE FUNCTION slot_keeps_its_bookings();
"""

# Two transactions do not see each other's new slots. Whoever touches an agenda's slots locks the agenda, so that the
# second looks for overlaps when the first has ended. What is only retired cannot overlap anything.
OVERLAPS = """
CREATE OR REPLACE FUNCTION slot_no_overlap() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE bad record;
BEGIN
    PERFORM FROM agenda WHERE id IN (SELECT agenda_id FROM touched WHERE state <> 'retired')
    ORDER BY id FOR NO KEY UPDATE;
    SELECT w.agenda_id, w.starts_at, w.following INTO bad
    FROM (SELECT s.agenda_id, s.starts_at, s.ends_at,
                 lead(s.starts_at) OVER (PARTITION BY s.agenda_id ORDER BY s.starts_at) AS following
          FROM (SELECT agenda_id, min(starts_at) AS first, max(ends_at) AS last
                FROM touched WHERE state <> 'retired' GROUP BY agenda_id) t
          JOIN slot s ON s.agenda_id = t.agenda_id AND s.state <> 'retired'
                     AND s.starts_at > t.first - interval '8 hours' AND s.starts_at < t.last) w
    WHERE w.following < w.ends_at
    LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'slots of agenda % overlap: % and %', bad.agenda_id, bad.starts_at, bad.following
            USING ERRCODE = 'exclusion_violation', TABLE = 'slot', CONSTRAINT = 'slot_no_overlap';
    END IF;
    RETURN NULL;
END $$;
"""


def upgrade() -> None:
    for ddl in (CAUSES, REPAIR, ORPHANS, ROOM, OVERLAPS):
        op.execute(ddl)
