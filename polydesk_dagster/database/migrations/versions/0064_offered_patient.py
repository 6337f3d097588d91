"""A patient to whom a place is offered is there while it is: nobody books her elsewhere at that time.

Revision ID: 0064
"""

from alembic import op

revision = "0064"
down_revision = "0063"
branch_labels = None
depends_on = None

OCCUPIED = """
-- The offer to a booking is one place with that booking, which it is to take the place of: they never collide.
CREATE FUNCTION offer_occupies() RETURNS trigger LANGUAGE plpgsql SET enable_seqscan = off AS $$
BEGIN
    PERFORM take('patient', b.patient_id, tstzrange(s.starts_at, coalesce(NEW.ends_at, s.ends_at)), 4 * b.id + 2,
                 NEW.created_at, NEW.id, NULL, NEW.expires_at, false)
    FROM appointment b JOIN slot s ON s.id = NEW.slot_id WHERE b.id = NEW.offered_to AND b.patient_id IS NOT NULL;
    RETURN NULL;
END $$;
-- By its name after ``hold_occupies``, which takes a hold that somebody is for already as seen to.
CREATE TRIGGER hold_occupies_patient AFTER INSERT ON hold FOR EACH ROW
    WHEN (NEW.ended_at IS NULL AND NEW.offered_to IS NOT NULL) EXECUTE FUNCTION offer_occupies();

-- Whose booking it is may be put right meanwhile.
CREATE FUNCTION offer_follows() RETURNS trigger LANGUAGE plpgsql SET enable_seqscan = off AS $$
BEGIN
    DELETE FROM occupancy o USING hold h
    WHERE h.offered_to = NEW.id AND h.ended_at IS NULL AND o.hold_id = h.id AND o.kind = 'patient';
    PERFORM take('patient', NEW.patient_id, tstzrange(s.starts_at, coalesce(h.ends_at, s.ends_at)), 4 * NEW.id + 2,
                 NEW.updated_at, h.id, NULL, h.expires_at, false)
    FROM hold h JOIN slot s ON s.id = h.slot_id
    WHERE h.offered_to = NEW.id AND h.ended_at IS NULL AND NEW.patient_id IS NOT NULL;
    RETURN NULL;
END $$;
CREATE TRIGGER offer_follows AFTER UPDATE OF patient_id ON appointment FOR EACH ROW
    WHEN (OLD.patient_id IS DISTINCT FROM NEW.patient_id) EXECUTE FUNCTION offer_follows();
"""

PLACE = """
-- Keeps the slots from one on for the patient of a booking, until ``ends``; null where somebody or something is in the
-- way by now: the patient's own booking is not, its doctor and what else it has are. The booking first, then slots,
-- then whom and what it needs, as whoever moves one.
CREATE OR REPLACE FUNCTION offer_place(booking bigint, first bigint, as_of timestamptz, ends timestamptz) RETURNS bigint
LANGUAGE plpgsql VOLATILE SET enable_seqscan = off AS $$
#variable_conflict use_variable
DECLARE
    wanted record;
    slots bigint[];
    units integer[];
    until timestamptz;
    span tstzrange;
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
    span := tstzrange(wanted.starts_at, until);
    IF slots IS NULL
       OR in_the_way(wanted.agenda, wanted.specialist_id, wanted.service_id, NULL, span, as_of) IS NOT NULL
       OR in_the_way(NULL, NULL, NULL, wanted.patient_id, span, as_of, NULL, booking) IS NOT NULL THEN
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

# The offers of today, as if each had been made now.
PRESENT = """
SELECT take('patient', b.patient_id, tstzrange(s.starts_at, coalesce(h.ends_at, s.ends_at)), 4 * b.id + 2, now(), h.id,
            NULL, h.expires_at, false)
FROM hold h JOIN appointment b ON b.id = h.offered_to AND b.patient_id IS NOT NULL JOIN slot s ON s.id = h.slot_id
WHERE h.ended_at IS NULL AND h.expires_at > now();
"""


def upgrade() -> None:
    for ddl in (OCCUPIED, PLACE, PRESENT):
        op.execute(ddl)
