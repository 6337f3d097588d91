"""A new place is kept for a patient whose booking has lost its own: a hold with a term that she can answer in.

Revision ID: 0054
"""

from alembic import op

revision = "0054"
down_revision = "0053"
branch_labels = None
depends_on = None

OFFERED = """
-- The booking without its place whose patient may have this one; null: a visitor's hold.
ALTER TABLE hold
    ADD COLUMN offered_to bigint REFERENCES appointment,
    DROP CONSTRAINT hold_lifetime,
    ADD CONSTRAINT hold_lifetime CHECK (
        expires_at > created_at
        AND expires_at <= CASE WHEN offered_to IS NOT NULL THEN created_at + interval '7 days'
                               ELSE coalesce(confirming_since, created_at) + interval '30 minutes' END) NOT VALID,
    ADD CONSTRAINT hold_offered_is_no_payment CHECK (offered_to IS NULL OR confirming_since IS NULL) NOT VALID;
CREATE INDEX hold_offers ON hold (offered_to, id) WHERE offered_to IS NOT NULL;
-- One place at a time for each booking.
CREATE UNIQUE INDEX hold_offered ON hold (offered_to) WHERE offered_to IS NOT NULL AND ended_at IS NULL;
"""

PLACE = """
-- Keeps the slots from one on for the patient of a booking, until ``ends``; null where somebody or something is in the
-- way by now. The booking first, then slots, then whom and what it needs, as whoever moves one.
CREATE FUNCTION offer_place(booking bigint, first bigint, as_of timestamptz, ends timestamptz) RETURNS bigint
LANGUAGE plpgsql VOLATILE SET enable_seqscan = off AS $$
#variable_conflict use_variable
DECLARE
    wanted record;
    slots bigint[];
    units integer[];
    until timestamptz;
    offer bigint;
BEGIN
    PERFORM a.id FROM appointment a WHERE a.id = booking FOR NO KEY UPDATE;
    DELETE FROM seat t USING hold h
    WHERE h.offered_to = booking AND h.ended_at IS NULL AND h.expires_at <= as_of AND t.hold_id = h.id;
    UPDATE hold h SET state = 'expired', ended_at = as_of
    WHERE h.offered_to = booking AND h.ended_at IS NULL AND h.expires_at <= as_of;
    SELECT g.id AS agenda, g.specialist_id, g.clinic_id, b.service_id, b.patient_id, s.starts_at,
           v.duration_minutes AS lasts
    INTO wanted
    FROM appointment b JOIN service v ON v.id = b.service_id AND v.active AND v.deleted_at IS NULL
    JOIN slot s ON s.id = first AND s.state = 'free'
    JOIN agenda g ON g.id = s.agenda_id AND g.active AND g.clinic_id = b.clinic_id
    WHERE b.id = booking AND b.status = 'booked' AND s.starts_at > ends
      AND NOT EXISTS (SELECT FROM hold h WHERE h.offered_to = booking AND h.ended_at IS NULL)
      AND (g.service_id = v.id
           OR EXISTS (SELECT FROM agenda_service o WHERE o.agenda_id = g.id AND o.service_id = v.id));
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    SELECT array_agg(r.slot), array_agg(r.unit), max(r.ends_at) INTO slots, units, until
    FROM free_run(first, wanted.lasts, as_of) r;
    IF slots IS NULL OR in_the_way(wanted.agenda, wanted.specialist_id, wanted.service_id, wanted.patient_id,
                                   tstzrange(wanted.starts_at, until), as_of) IS NOT NULL THEN
        RETURN NULL;
    END IF;
    INSERT INTO hold (clinic_id, slot_id, service_id, ends_at, seats, token_hash, visitor_hash, created_at, expires_at,
                      last_activity_at, offered_to)
    VALUES (wanted.clinic_id, first, wanted.service_id, until, cardinality(slots),
            sha256(convert_to(gen_random_uuid()::text || gen_random_uuid()::text, 'UTF8')),
            sha256(convert_to('offer ' || booking, 'UTF8')), as_of, ends, as_of, booking)
    RETURNING id INTO offer;
    INSERT INTO seat (slot_id, unit, hold_id, held_until)
    SELECT n.slot, n.unit, offer, ends FROM unnest(slots, units) n (slot, unit)
    ON CONFLICT (slot_id, unit) DO UPDATE SET hold_id = EXCLUDED.hold_id, appointment_id = NULL,
                                              held_until = EXCLUDED.held_until
        WHERE seat.held_until <= as_of;
    RETURN offer;
END $$;
"""

OVER = """
-- Takes back what is still offered to some bookings.
CREATE FUNCTION withdraw_offers(bookings bigint[], as_of timestamptz) RETURNS void LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    DELETE FROM seat t USING hold h WHERE h.offered_to = ANY(bookings) AND h.ended_at IS NULL AND t.hold_id = h.id;
    UPDATE hold h SET state = 'released', ended_at = as_of WHERE h.offered_to = ANY(bookings) AND h.ended_at IS NULL;
END $$;

-- A booking that ends or goes elsewhere needs no other place any more.
CREATE FUNCTION booking_needs_no_offer() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM hold h WHERE h.offered_to = NEW.id AND h.ended_at IS NULL) THEN
        PERFORM withdraw_offers(ARRAY[NEW.id], NEW.updated_at);
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER booking_needs_no_offer AFTER UPDATE OF status, slot_id, starts_at ON appointment FOR EACH ROW
    WHEN (OLD.status = 'booked' AND (NEW.status <> 'booked' OR OLD.slot_id IS DISTINCT FROM NEW.slot_id
                                     OR OLD.starts_at <> NEW.starts_at))
    EXECUTE FUNCTION booking_needs_no_offer();

-- Nor one whose slots are all as they were again, or that the desk keeps.
CREATE FUNCTION orphan_needs_no_offer() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    bookings bigint[];
BEGIN
    SELECT array_agg(DISTINCT t.appointment_id) INTO bookings
    FROM seat t JOIN hold h ON h.offered_to = t.appointment_id AND h.ended_at IS NULL
    WHERE t.slot_id = NEW.slot_id
      AND NOT EXISTS (SELECT FROM seat other JOIN orphan o ON o.slot_id = other.slot_id
                      WHERE other.appointment_id = t.appointment_id AND o.resolved_at IS NULL
                        AND o.state IN ('open', 'contacted'));
    IF bookings IS NOT NULL THEN
        PERFORM withdraw_offers(bookings, greatest(NEW.resolved_at, NEW.detected_at));
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER orphan_needs_no_offer AFTER UPDATE ON orphan FOR EACH ROW
    WHEN (OLD.resolved_at IS NULL AND (NEW.resolved_at IS NOT NULL OR NEW.state = 'kept' AND OLD.state <> 'kept'))
    EXECUTE FUNCTION orphan_needs_no_offer();
"""

# What visitors hold is counted, how many of them go on to book; a place that is offered is none of that.
COUNTED = """
CREATE OR REPLACE VIEW counted_hold AS
SELECT clinic_id, created_at, CAST(1 AS bigint) AS holds FROM hold WHERE offered_to IS NULL
UNION ALL
SELECT clinic_id, created_at, holds FROM removed_hold;

CREATE OR REPLACE FUNCTION hold_changed() RETURNS trigger LANGUAGE plpgsql SET enable_nestloop = off AS $$
BEGIN
    IF TG_OP = 'TRUNCATE' THEN
        INSERT INTO statistic_change (topic, clinic_id) SELECT 'funnel', id FROM clinic;
    ELSE
        INSERT INTO removed_hold
        SELECT clinic_id, date_bin('15 minutes', created_at, 'epoch'), count(*) FROM old_rows
        WHERE offered_to IS NULL GROUP BY 1, 2;
        INSERT INTO statistic_change (topic, clinic_id, day)
        SELECT DISTINCT 'funnel', r.clinic_id, CAST(r.created_at AT TIME ZONE c.time_zone AS date)
        FROM old_rows r JOIN clinic c ON c.id = r.clinic_id WHERE r.offered_to IS NULL;
    END IF;
    RETURN NULL;
END $$;
"""


def upgrade() -> None:
    for ddl in (OFFERED, PLACE, OVER, COUNTED):
        op.execute(ddl)
