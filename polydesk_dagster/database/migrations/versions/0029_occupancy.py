"""A booking takes as many slots as its service lasts, and whoever it needs is in one place at a time.

Revision ID: 0029
"""

from alembic import op

revision = "0029"
down_revision = "0028"
branch_labels = None
depends_on = None

RUNS = """
-- A hold names its service and takes all the slots that the service lasts, on one agenda.
ALTER TABLE hold ADD COLUMN service_id bigint REFERENCES service,
                 ADD COLUMN ends_at timestamptz,
                 ADD COLUMN seats smallint NOT NULL DEFAULT 1 CHECK (seats > 0);
ALTER TABLE appointment ADD COLUMN overlap_reason text;  -- why the desk let its patient be in two places

ALTER TABLE seat DROP CONSTRAINT seat_hold_id_key, DROP CONSTRAINT seat_appointment_id_key;
CREATE INDEX seat_hold ON seat (hold_id) WHERE hold_id IS NOT NULL;
CREATE INDEX seat_appointment ON seat (appointment_id) WHERE appointment_id IS NOT NULL;

-- The consecutive slots that something of so many minutes takes from a slot on, each with its first free unit; no row
-- where one of them is missing or full. Locks them, and being volatile then reads what was committed while it waited.
-- The seats of the booking ``own`` count as free.
CREATE FUNCTION free_run(first bigint, lasts integer, as_of timestamptz, own bigint DEFAULT NULL)
RETURNS TABLE (slot bigint, unit integer, ends_at timestamptz) LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    agenda bigint;
    begins timestamptz;
    until timestamptz;
BEGIN
    SELECT s.agenda_id, s.starts_at, s.starts_at + lasts * interval '1 minute' INTO agenda, begins, until
    FROM slot s WHERE s.id = first;
    PERFORM s.id FROM slot s WHERE s.agenda_id = agenda AND s.starts_at >= begins AND s.starts_at < until
    ORDER BY s.id FOR NO KEY UPDATE;
    RETURN QUERY
    SELECT w.id, w.unit, w.last
    FROM (SELECT l.id, l.unit, min(l.starts_at) OVER () AS first, max(l.ends_at) OVER () AS last,
                 bool_and(l.unit IS NOT NULL AND l.state = 'free' AND coalesce(l.before = l.starts_at, true)) OVER ()
                     AS whole
          FROM (SELECT s.id, s.state, s.starts_at, s.ends_at, lag(s.ends_at) OVER (ORDER BY s.starts_at) AS before,
                       (SELECT u.unit FROM generate_series(1, s.capacity) AS u (unit)
                        LEFT JOIN seat t ON t.slot_id = s.id AND t.unit = u.unit
                        WHERE t.slot_id IS NULL OR t.held_until <= as_of OR t.appointment_id = own
                        ORDER BY t.slot_id IS NOT NULL, u.unit LIMIT 1) AS unit
                FROM slot s
                WHERE s.agenda_id = agenda AND s.starts_at >= begins AND s.starts_at < until
                  AND s.state <> 'retired') l) w
    WHERE w.whole AND w.first = begins AND w.last >= until;
END $$;

-- Gives a booking the run of slots from ``first`` on, whole, and takes what it had; returns its end, or null.
CREATE FUNCTION seat_booking(booking bigint, first bigint, lasts integer, as_of timestamptz) RETURNS timestamptz
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    slots bigint[];
    units integer[];
    ends timestamptz;
BEGIN
    SELECT array_agg(r.slot), array_agg(r.unit), max(r.ends_at) INTO slots, units, ends
    FROM free_run(first, lasts, as_of, booking) r;
    IF slots IS NULL THEN
        RETURN NULL;
    END IF;
    DELETE FROM seat WHERE appointment_id = booking;
    INSERT INTO seat (slot_id, unit, appointment_id)
    SELECT n.slot, n.unit, booking FROM unnest(slots, units) n (slot, unit)
    ON CONFLICT (slot_id, unit) DO UPDATE SET appointment_id = booking, hold_id = NULL, held_until = NULL
        WHERE seat.held_until <= as_of;
    RETURN ends;
END $$;

-- How many seats a hold still has, once nobody can take one any more.
CREATE FUNCTION seats_of_hold(which bigint) RETURNS bigint LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    PERFORM s.id FROM slot s WHERE s.id IN (SELECT t.slot_id FROM seat t WHERE t.hold_id = which)
    ORDER BY s.id FOR NO KEY UPDATE;
    RETURN (SELECT count(*) FROM seat t WHERE t.hold_id = which);
END $$;
"""

STATUS = """
-- A booking that no longer stands keeps no seat, whoever ends it and however.
CREATE FUNCTION booking_ended() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM seat WHERE appointment_id = NEW.id;
    RETURN NULL;
END $$;
CREATE TRIGGER booking_ended AFTER UPDATE OF status ON appointment FOR EACH ROW
    WHEN (NEW.status IN ('cancelled', 'expired') AND OLD.status NOT IN ('cancelled', 'expired'))
    EXECUTE FUNCTION booking_ended();

-- Looked at when the transaction ends: what brings a booking back may seat it first.
CREATE FUNCTION seat_of_standing() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM seat t JOIN appointment a ON a.id = t.appointment_id
               WHERE t.slot_id = NEW.slot_id AND t.unit = NEW.unit AND t.appointment_id = NEW.appointment_id
                 AND a.status IN ('cancelled', 'expired')) THEN
        RAISE EXCEPTION 'booking % does not stand and can have no seat', NEW.appointment_id
            USING ERRCODE = 'check_violation', TABLE = 'seat', CONSTRAINT = 'seat_of_standing';
    END IF;
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER seat_of_standing AFTER INSERT OR UPDATE OF appointment_id ON seat
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW WHEN (NEW.appointment_id IS NOT NULL)
    EXECUTE FUNCTION seat_of_standing();

-- A booking that nobody has verified yet can be cancelled too: it has no patient.
DO $$ DECLARE name text; BEGIN
    SELECT conname INTO STRICT name FROM pg_constraint
    WHERE conrelid = CAST('appointment' AS regclass) AND contype = 'c'
      AND pg_get_constraintdef(oid) LIKE '%patient_id IS NOT NULL%';
    EXECUTE format('ALTER TABLE appointment DROP CONSTRAINT %I', name);
END $$;
ALTER TABLE appointment ADD CONSTRAINT appointment_patient
    CHECK (patient_id IS NOT NULL OR status IN ('unverified', 'expired', 'cancelled')) NOT VALID;
ALTER TABLE appointment VALIDATE CONSTRAINT appointment_patient;
"""

OCCUPANCY = """
-- Who and what is where: a doctor (one person in all clinics, by fiscal code), a patient, a room, an instrument or a
-- technician cannot be in two places at a time. ``within`` says what one place is: the agenda for its doctor and its
-- own resource, which the capacity of its slots shares out, else the booking itself.
-- What collides all the same (it came from outside, or the desk allowed it) is not ``exclusive``: kept, and found.
-- A hold goes by itself, so nothing refers to it here: that would cost its clean-up a look for each row.
CREATE TABLE occupancy (
    kind           text NOT NULL CHECK (kind IN ('doctor', 'patient', 'room', 'instrument', 'technician')),
    subject        bigint NOT NULL,
    occupant       bigint NOT NULL GENERATED ALWAYS AS
                   (4 * subject + CASE kind WHEN 'doctor' THEN 0 WHEN 'patient' THEN 1 ELSE 2 END) STORED,
    during         tstzrange NOT NULL CHECK (NOT isempty(during)),
    within         bigint NOT NULL,
    hold_id        bigint,
    appointment_id bigint REFERENCES appointment ON DELETE CASCADE,
    until          timestamptz,                -- of a hold: its end; by then the place is free
    exclusive      boolean NOT NULL DEFAULT true,
    CHECK (num_nonnulls(hold_id, appointment_id) = 1),
    -- Core PostgreSQL has no gist class for integers; a range of one and an address serve.
    CONSTRAINT occupancy_one_place EXCLUDE USING gist (
        int8range(occupant, occupant, '[]') WITH &&,
        during WITH &&,
        ((inet '::') + within) inet_ops WITH <>) WHERE (exclusive)
);
CREATE INDEX occupancy_hold ON occupancy (hold_id) WHERE hold_id IS NOT NULL;
CREATE INDEX occupancy_appointment ON occupancy (appointment_id) WHERE appointment_id IS NOT NULL;
CREATE INDEX occupancy_collides ON occupancy (occupant) WHERE NOT exclusive;

CREATE INDEX specialist_person ON specialist (upper(fiscal_code), id) WHERE fiscal_code IS NOT NULL;

-- Until when an unverified booking keeps its seat by itself; null for one that stands, by whatever.
CREATE FUNCTION verify_by(a appointment) RETURNS timestamptz LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN a.status = 'unverified'
                 AND num_nonnulls(a.confirmed_by_staff_at, a.paid_at, a.accepted_at, a.verified_at, a.external_id) = 0
                THEN a.verification_expires_at END
$$;

-- The first specialist's id of all that are the same person.
CREATE FUNCTION doctor_of(specialist_id bigint) RETURNS bigint LANGUAGE sql STABLE AS $$
    SELECT coalesce((SELECT min(o.id) FROM specialist o WHERE upper(o.fiscal_code) = upper(s.fiscal_code)), s.id)
    FROM specialist s WHERE s.id = specialist_id
$$;

-- Whom and what a booking of a service needs; of those not ``named`` one of each kind, at the agenda's location.
CREATE FUNCTION needs(agenda bigint, specialist bigint, service bigint, patient bigint)
RETURNS TABLE (kind text, subject bigint, named boolean) LANGUAGE sql STABLE AS $$
    SELECT 'doctor', doctor_of(specialist), true WHERE specialist IS NOT NULL
    UNION ALL SELECT 'patient', patient, true WHERE patient IS NOT NULL
    UNION ALL SELECT r.kind, r.id, true FROM agenda a JOIN resource r ON r.id = a.resource_id WHERE a.id = agenda
    UNION ALL
    SELECT r.kind, r.id, false
    FROM service_resource n JOIN resource r ON r.id = n.resource_id AND r.active
    JOIN agenda a ON a.id = agenda AND a.location_id = r.location_id
    LEFT JOIN resource own ON own.id = a.resource_id
    WHERE n.service_id = service AND own.kind IS DISTINCT FROM r.kind
$$;

CREATE FUNCTION is_busy(which bigint, span tstzrange, place bigint, as_of timestamptz, own_hold bigint,
                        own_booking bigint) RETURNS boolean LANGUAGE sql VOLATILE AS $$
    SELECT EXISTS (SELECT FROM occupancy o
                   WHERE o.exclusive AND int8range(o.occupant, o.occupant, '[]') && int8range(which, which, '[]')
                     AND o.during && span AND o.within <> place AND coalesce(o.until > as_of, true)
                     AND (own_hold IS NULL OR o.hold_id IS DISTINCT FROM own_hold)
                     AND (own_booking IS NULL OR o.appointment_id IS DISTINCT FROM own_booking))
$$;

-- Whoever is in the way only until before ``as_of`` goes whole: a hold loses its seats, an unverified booking ends.
-- Seats before occupancy, as whoever renews or confirms: what they have made last meanwhile stays.
CREATE FUNCTION expire(which bigint, span tstzrange, place bigint, as_of timestamptz) RETURNS void
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    holds bigint[];
    bookings bigint[];
BEGIN
    SELECT array_agg(o.hold_id), array_agg(o.appointment_id) INTO holds, bookings
    FROM occupancy o
    WHERE o.exclusive AND int8range(o.occupant, o.occupant, '[]') && int8range(which, which, '[]')
      AND o.during && span AND o.within <> place AND o.until <= as_of;
    IF holds IS NOT NULL THEN
        DELETE FROM seat WHERE hold_id = ANY(holds) AND held_until <= as_of;
        DELETE FROM occupancy WHERE hold_id = ANY(holds) AND until <= as_of;
        UPDATE appointment a SET status = 'expired', expired_at = a.verification_expires_at
        WHERE a.id = ANY(bookings) AND verify_by(a) <= as_of;
    END IF;
END $$;

-- Which kind of those needed is elsewhere at that time, or null. Whoever books the same ones waits for this
-- transaction, and being volatile the function then reads what has been committed meanwhile.
CREATE FUNCTION in_the_way(agenda bigint, specialist bigint, service bigint, patient bigint, span tstzrange,
                           as_of timestamptz, own_hold bigint DEFAULT NULL, own_booking bigint DEFAULT NULL)
RETURNS text LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_variable
DECLARE
    needed record;
BEGIN
    FOR needed IN SELECT n.kind, n.subject FROM needs(agenda, specialist, service, patient) n ORDER BY 1, 2 LOOP
        PERFORM pg_advisory_xact_lock(hashtextextended('occupancy' || needed.kind || needed.subject, 0));
    END LOOP;
    PERFORM expire(4 * n.subject + CASE n.kind WHEN 'doctor' THEN 0 WHEN 'patient' THEN 1 ELSE 2 END, span,
                   CASE WHEN n.named AND n.kind <> 'patient' THEN agenda ELSE -1 END, as_of)
    FROM needs(agenda, specialist, service, patient) n;
    RETURN (
        SELECT n.kind
        FROM needs(agenda, specialist, service, patient) n
        CROSS JOIN LATERAL (
            SELECT is_busy(4 * n.subject + CASE n.kind WHEN 'doctor' THEN 0 WHEN 'patient' THEN 1 ELSE 2 END, span,
                           CASE WHEN n.named AND n.kind <> 'patient' THEN agenda ELSE -1 END, as_of, own_hold,
                           own_booking) AS busy) b
        GROUP BY n.kind HAVING bool_and(b.busy) ORDER BY n.kind LIMIT 1);
END $$;

-- One row for whom it needs; of several that serve, the first that is free. ``place`` tells one booking from another.
CREATE FUNCTION occupy(agenda bigint, specialist bigint, service bigint, patient bigint, span tstzrange, place bigint,
                       as_of timestamptz, hold bigint, booking bigint, ends timestamptz, allowed boolean)
RETURNS void LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_variable
DECLARE
    needed record;
BEGIN
    FOR needed IN
        SELECT DISTINCT ON (n.kind) n.kind, n.subject, b.busy, p.place,
               4 * n.subject + CASE n.kind WHEN 'doctor' THEN 0 WHEN 'patient' THEN 1 ELSE 2 END AS occupant
        FROM needs(agenda, specialist, service, patient) n
        CROSS JOIN LATERAL (SELECT CASE WHEN n.named AND n.kind <> 'patient' THEN agenda ELSE place END AS place) p
        CROSS JOIN LATERAL (
            SELECT is_busy(4 * n.subject + CASE n.kind WHEN 'doctor' THEN 0 WHEN 'patient' THEN 1 ELSE 2 END, span,
                           p.place, as_of, hold, booking) AS busy) b
        WHERE NOT EXISTS (SELECT FROM occupancy o WHERE o.appointment_id = booking AND o.kind = n.kind)
        ORDER BY n.kind, b.busy, n.subject
    LOOP
        PERFORM expire(needed.occupant, span, needed.place, as_of);
        INSERT INTO occupancy (kind, subject, during, within, hold_id, appointment_id, until, exclusive)
        VALUES (needed.kind, needed.subject, span, needed.place, hold, booking, ends,
                NOT (allowed AND needed.kind = 'patient'))
        ON CONFLICT ON CONSTRAINT occupancy_one_place DO NOTHING;
        IF NOT FOUND THEN
            INSERT INTO occupancy (kind, subject, during, within, hold_id, appointment_id, until, exclusive)
            VALUES (needed.kind, needed.subject, span, needed.place, hold, booking, ends, false);
        END IF;
    END LOOP;
END $$;

CREATE FUNCTION hold_occupies() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        PERFORM occupy(a.id, a.specialist_id, NEW.service_id, NULL,
                       tstzrange(s.starts_at, coalesce(NEW.ends_at, s.ends_at)), 2 * NEW.id, NEW.created_at,
                       NEW.id, NULL, NEW.expires_at, false)
        FROM slot s JOIN agenda a ON a.id = s.agenda_id WHERE s.id = NEW.slot_id;
    ELSIF NEW.ended_at IS NULL THEN
        UPDATE occupancy SET until = NEW.expires_at WHERE hold_id = NEW.id;
    ELSE
        DELETE FROM occupancy WHERE hold_id = NEW.id;
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER hold_occupies AFTER INSERT ON hold FOR EACH ROW WHEN (NEW.ended_at IS NULL)
    EXECUTE FUNCTION hold_occupies();
CREATE TRIGGER hold_occupies_on AFTER UPDATE ON hold FOR EACH ROW
    WHEN (OLD.ended_at IS NULL AND NEW.state <> 'confirmed'
          AND (NEW.ended_at IS NOT NULL OR NEW.expires_at <> OLD.expires_at))
    EXECUTE FUNCTION hold_occupies();

-- What its hold had passes to a booking; what it lacks it is given.
CREATE FUNCTION bookings_occupy() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE occupancy o
    SET hold_id = NULL, appointment_id = n.id,
        until = CASE WHEN n.status = 'unverified' AND n.paid_at IS NULL THEN n.verification_expires_at END
    FROM new_rows n JOIN hold h ON h.appointment_id = n.id AND h.state = 'confirmed'
    WHERE o.hold_id = h.id;
    INSERT INTO occupancy (kind, subject, during, within, appointment_id)
    SELECT n.kind, n.subject, n.during, n.within, n.id
    FROM (SELECT 'doctor' AS kind, doctor_of(r.specialist_id) AS subject, tstzrange(r.starts_at, r.ends_at) AS during,
                 r.agenda_id AS within, r.id
          FROM new_rows r
          WHERE r.specialist_id IS NOT NULL AND r.agenda_id IS NOT NULL
            AND r.status IN ('unverified', 'booked', 'accepted')
          UNION ALL
          SELECT 'patient', r.patient_id, tstzrange(r.starts_at, r.ends_at), 2 * r.id + 1, r.id
          FROM new_rows r
          WHERE r.patient_id IS NOT NULL AND r.overlap_reason IS NULL
            AND r.status IN ('unverified', 'booked', 'accepted')) n
    WHERE NOT EXISTS (SELECT FROM occupancy o WHERE o.appointment_id = n.id AND o.kind = n.kind)
    ON CONFLICT ON CONSTRAINT occupancy_one_place DO NOTHING;
    PERFORM occupy(r.agenda_id, r.specialist_id, r.service_id, r.patient_id, tstzrange(r.starts_at, r.ends_at),
                   2 * r.id + 1, r.updated_at, NULL, r.id, NULL, r.overlap_reason IS NOT NULL)
    FROM new_rows r
    WHERE r.status IN ('unverified', 'booked', 'accepted')
      AND ((SELECT count(DISTINCT n.kind) FROM needs(r.agenda_id, r.specialist_id, r.service_id, r.patient_id) n)
           > (SELECT count(*) FROM occupancy o WHERE o.appointment_id = r.id));
    RETURN NULL;
END $$;
CREATE TRIGGER bookings_occupy AFTER INSERT ON appointment REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION bookings_occupy();

CREATE FUNCTION booking_occupies() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM occupancy WHERE appointment_id = NEW.id;
    IF NEW.status IN ('unverified', 'booked', 'accepted') THEN
        PERFORM occupy(NEW.agenda_id, NEW.specialist_id, NEW.service_id, NEW.patient_id,
                       tstzrange(NEW.starts_at, NEW.ends_at), 2 * NEW.id + 1, NEW.updated_at, NULL, NEW.id, NULL,
                       NEW.overlap_reason IS NOT NULL);
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER booking_occupies AFTER UPDATE ON appointment FOR EACH ROW
    WHEN (((OLD.status IN ('unverified', 'booked', 'accepted')) IS DISTINCT FROM
           (NEW.status IN ('unverified', 'booked', 'accepted')))
          OR (OLD.starts_at, OLD.ends_at, OLD.agenda_id, OLD.specialist_id, OLD.service_id, OLD.patient_id,
              OLD.overlap_reason)
             IS DISTINCT FROM (NEW.starts_at, NEW.ends_at, NEW.agenda_id, NEW.specialist_id, NEW.service_id,
                               NEW.patient_id, NEW.overlap_reason))
    EXECUTE FUNCTION booking_occupies();
"""

# The bookings and holds of today, as if each had been written now.
PRESENT = """
SELECT occupy(a.agenda_id, a.specialist_id, a.service_id, a.patient_id, tstzrange(a.starts_at, a.ends_at), 2 * a.id + 1,
              now(), NULL, a.id, NULL, false)
FROM appointment a WHERE a.status IN ('unverified', 'booked', 'accepted') AND a.ends_at > now();
SELECT occupy(g.id, g.specialist_id, NULL, NULL, tstzrange(s.starts_at, s.ends_at), 2 * h.id, now(), h.id, NULL,
              h.expires_at, false)
FROM hold h JOIN slot s ON s.id = h.slot_id JOIN agenda g ON g.id = s.agenda_id
WHERE h.ended_at IS NULL AND h.expires_at > now();
"""


def upgrade() -> None:
    for ddl in (RUNS, STATUS, OCCUPANCY, PRESENT):
        op.execute(ddl)
