"""What the desk agreed is kept for each booking of a lost slot; one doctor is one as soon as her code says so.

Revision ID: 0065
"""

from alembic import op

revision = "0065"
down_revision = "0064"
branch_labels = None
depends_on = None

WORDS = """
-- A slot may have several bookings: what was agreed with one patient says nothing of the next.
CREATE TABLE orphan_word (
    orphan_id      bigint NOT NULL REFERENCES orphan ON DELETE CASCADE,
    appointment_id bigint NOT NULL REFERENCES appointment ON DELETE CASCADE,
    state          text NOT NULL CHECK (state IN ('contacted', 'kept')),
    said_at        timestamptz NOT NULL,
    PRIMARY KEY (orphan_id, appointment_id)
);
CREATE INDEX orphan_word_appointment ON orphan_word (appointment_id);

-- How far the desk is with a booking of an orphan; what was written before words were kept apart goes for all.
CREATE FUNCTION said_of(o orphan, booking bigint) RETURNS text LANGUAGE sql STABLE AS $$
    SELECT coalesce((SELECT w.state FROM orphan_word w WHERE w.orphan_id = o.id AND w.appointment_id = booking),
                    o.state)
$$;
-- Whether a booking has lost a slot, and nobody has said that the visit takes place all the same.
CREATE FUNCTION has_lost(booking bigint) RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT EXISTS (SELECT FROM seat t JOIN orphan o ON o.slot_id = t.slot_id AND o.resolved_at IS NULL
                   WHERE t.appointment_id = booking AND said_of(o, booking) <> 'kept')
$$;
"""

OVER = """
CREATE OR REPLACE FUNCTION orphan_needs_no_offer() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    bookings bigint[];
BEGIN
    SELECT array_agg(DISTINCT t.appointment_id) INTO bookings
    FROM seat t JOIN hold h ON h.offered_to = t.appointment_id AND h.ended_at IS NULL
    WHERE t.slot_id = NEW.slot_id AND NOT has_lost(t.appointment_id);
    IF bookings IS NOT NULL THEN
        PERFORM withdraw_offers(bookings, greatest(NEW.resolved_at, NEW.detected_at));
    END IF;
    RETURN NULL;
END $$;

CREATE FUNCTION kept_needs_no_offer() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NOT has_lost(NEW.appointment_id) THEN
        PERFORM withdraw_offers(ARRAY[NEW.appointment_id], NEW.said_at);
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER kept_needs_no_offer AFTER INSERT OR UPDATE ON orphan_word FOR EACH ROW WHEN (NEW.state = 'kept')
    EXECUTE FUNCTION kept_needs_no_offer();
"""

PERSON = """
-- A fiscal code that is written or put right makes two doctors one, or one two: whatever has her is hers then, and what
-- collides by that is kept and found.
CREATE FUNCTION doctor_is_known() RETURNS trigger LANGUAGE plpgsql SET enable_seqscan = off AS $$
DECLARE
    gone record;
BEGIN
    FOR gone IN
        WITH person AS MATERIALIZED (
            SELECT s.id FROM specialist s
            WHERE s.id = NEW.id OR upper(s.fiscal_code) IN (upper(OLD.fiscal_code), upper(NEW.fiscal_code))
        ), now_whose AS MATERIALIZED (
            SELECT o.ctid AS row, doctor_of(coalesce(a.specialist_id, g.specialist_id)) AS doctor
            FROM occupancy o LEFT JOIN appointment a ON a.id = o.appointment_id
            LEFT JOIN hold h ON h.id = o.hold_id LEFT JOIN slot s ON s.id = h.slot_id
            LEFT JOIN agenda g ON g.id = s.agenda_id
            WHERE o.kind = 'doctor' AND o.subject IN (SELECT id FROM person)
        )
        DELETE FROM occupancy o USING now_whose w WHERE o.ctid = w.row AND w.doctor <> o.subject
        RETURNING o.*, w.doctor
    LOOP
        PERFORM take('doctor', gone.doctor, gone.during, gone.within, NEW.updated_at, gone.hold_id,
                     gone.appointment_id, gone.until, false);
    END LOOP;
    RETURN NULL;
END $$;
CREATE TRIGGER doctor_is_known AFTER UPDATE OF fiscal_code ON specialist FOR EACH ROW
    WHEN (upper(OLD.fiscal_code) IS DISTINCT FROM upper(NEW.fiscal_code)) EXECUTE FUNCTION doctor_is_known();
"""


def upgrade() -> None:
    for ddl in (WORDS, OVER, PERSON):
        op.execute(ddl)
