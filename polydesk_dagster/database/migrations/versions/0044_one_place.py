"""Who and what is needed is kept at less cost, with pauses before and after and the way between two locations.

Revision ID: 0044
"""

from alembic import op

revision = "0044"
down_revision = "0043"
branch_labels = None
depends_on = None

PAUSES = """
-- Time that a service takes of its doctor, rooms and instruments besides its own: to prepare, to clean up.
ALTER TABLE service ADD COLUMN pause_before_minutes smallint NOT NULL DEFAULT 0
                        CHECK (pause_before_minutes BETWEEN 0 AND 240),
                    ADD COLUMN pause_after_minutes smallint NOT NULL DEFAULT 0
                        CHECK (pause_after_minutes BETWEEN 0 AND 240);

-- How long the way between two locations takes a doctor, either way; none is known where there is no row.
CREATE TABLE travel (
    from_location bigint NOT NULL REFERENCES location ON DELETE CASCADE,
    to_location   bigint NOT NULL REFERENCES location ON DELETE CASCADE,
    minutes       smallint NOT NULL CHECK (minutes BETWEEN 1 AND 480),
    PRIMARY KEY (from_location, to_location),
    CHECK (from_location < to_location)
);
CREATE INDEX travel_to ON travel (to_location);
"""

PLACE = """
-- Occupancy is derived from holds and bookings: all of it is written again below.
TRUNCATE occupancy;
ALTER TABLE occupancy DROP CONSTRAINT occupancy_one_place;

-- Somebody at some time, as a rectangle: core PostgreSQL has a gist class for those, and comparing two of them costs a
-- fraction of comparing ranges. Rectangles that touch overlap, so one ends half a second before its time does.
CREATE FUNCTION spot(who bigint, during tstzrange) RETURNS box LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT box(point(who, CAST(extract(epoch FROM lower(during) AT TIME ZONE 'UTC') AS float8)),
               point(who, CAST(extract(epoch FROM upper(during) AT TIME ZONE 'UTC') AS float8) - 0.5))
$$;
-- Who is where, as a number that no two kinds share.
CREATE FUNCTION occupant_of(kind text, subject bigint) RETURNS bigint LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT 4 * subject + CASE kind WHEN 'doctor' THEN 0 WHEN 'patient' THEN 1 ELSE 2 END
$$;
ALTER TABLE occupancy ADD CONSTRAINT occupancy_one_place EXCLUDE USING gist (
    spot(occupant, during) WITH &&, ((inet '::') + within) inet_ops WITH <>) WHERE (exclusive);
COMMENT ON COLUMN occupancy.within IS
    'what one place is: 4 * agenda for whom an agenda is named after, 4 * agenda + 3 for the pauses there,'
    ' else 4 * hold + 1 or 4 * booking + 2';

-- Whatever has somebody elsewhere than at ``place`` in that time, on purpose or not; a doctor also by being too far
-- away to come in time.
CREATE FUNCTION meeting(who bigint, span tstzrange, place bigint) RETURNS SETOF occupancy LANGUAGE sql STABLE AS $$
    SELECT o.* FROM occupancy o
    WHERE o.exclusive AND spot(o.occupant, o.during) && spot(who, span) AND o.within <> place
    UNION ALL
    SELECT o.* FROM occupancy o
    WHERE NOT o.exclusive AND o.occupant = who AND o.during && span AND o.within <> place
    UNION ALL
    SELECT o.*
    FROM agenda here JOIN travel t ON here.location_id IN (t.from_location, t.to_location)
    JOIN occupancy o ON spot(o.occupant, o.during)
                        && spot(who, tstzrange(lower(span) - t.minutes * interval '1 minute',
                                               upper(span) + t.minutes * interval '1 minute'))
    JOIN agenda there ON there.id = o.within / 4
                     AND there.location_id = t.from_location + t.to_location - here.location_id
    WHERE EXISTS (SELECT FROM travel) AND who % 4 = 0 AND place % 4 IN (0, 3) AND here.id = place / 4
      AND o.exclusive AND o.within % 4 IN (0, 3) AND NOT o.during && span
$$;
"""

NEEDS = """
DROP FUNCTION needs(bigint, bigint, bigint, bigint);

-- Whether a booking takes more than the time of its doctor and its patient.
CREATE FUNCTION takes_more(agenda bigint, service bigint) RETURNS boolean LANGUAGE plpgsql STABLE AS $$
#variable_conflict use_variable
BEGIN
    RETURN (SELECT a.resource_id IS NOT NULL OR v.pause_before_minutes > 0 OR v.pause_after_minutes > 0
                   OR EXISTS (SELECT FROM service_resource n WHERE n.service_id = service)
            FROM (VALUES (agenda, service)) w (agenda, service)
            LEFT JOIN agenda a ON a.id = w.agenda LEFT JOIN service v ON v.id = w.service);
END $$;

-- Whom and what a booking of a service needs, when, and what is one place for it; of those to be ``chosen`` one of each
-- kind, at the agenda's location. Whom the agenda is named after has pauses of its own there: the longer of two that
-- meet serves both, and with room for several at once they take it together.
CREATE FUNCTION needs(agenda bigint, specialist bigint, service bigint, patient bigint, span tstzrange, place bigint)
RETURNS TABLE (kind text, subject bigint, during tstzrange, within bigint, chosen boolean) LANGUAGE sql STABLE AS $$
    WITH pause AS (
        SELECT coalesce(max(v.pause_before_minutes), 0) * interval '1 minute' AS before,
               coalesce(max(v.pause_after_minutes), 0) * interval '1 minute' AS after
        FROM service v WHERE v.id = service
    ), named AS (
        SELECT 'doctor' AS kind, doctor_of(specialist) AS subject WHERE specialist IS NOT NULL
        UNION ALL
        SELECT r.kind, r.id FROM agenda a JOIN resource r ON r.id = a.resource_id WHERE a.id = agenda
    )
    SELECT n.kind, n.subject, t.during, t.within, false
    FROM named n CROSS JOIN pause p
    CROSS JOIN LATERAL (VALUES (span, coalesce(4 * agenda, place)),
                               (tstzrange(lower(span) - p.before, lower(span)), coalesce(4 * agenda + 3, place)),
                               (tstzrange(upper(span), upper(span) + p.after), coalesce(4 * agenda + 3, place)))
        t (during, within)
    WHERE NOT isempty(t.during)
    UNION ALL
    SELECT 'patient', patient, span, place, false WHERE patient IS NOT NULL
    UNION ALL
    SELECT r.kind, r.id, tstzrange(lower(span) - p.before, upper(span) + p.after), place, true
    FROM pause p CROSS JOIN service_resource n JOIN resource r ON r.id = n.resource_id AND r.active
    JOIN agenda a ON a.id = agenda AND a.location_id = r.location_id
    LEFT JOIN resource own ON own.id = a.resource_id
    WHERE n.service_id = service AND own.kind IS DISTINCT FROM r.kind
$$;
"""

BUSY = """
DROP FUNCTION in_the_way(bigint, bigint, bigint, bigint, tstzrange, timestamptz, bigint, bigint);
DROP FUNCTION is_busy(bigint, tstzrange, bigint, timestamptz, bigint, bigint);
DROP FUNCTION expire(bigint, tstzrange, bigint, timestamptz);

-- Whoever books the same one waits for this transaction.
CREATE FUNCTION wait_for(kind text, subject bigint) RETURNS void LANGUAGE sql VOLATILE AS $$
    SELECT pg_advisory_xact_lock(hashtextextended('occupancy' || kind || subject, 0))
$$;

CREATE FUNCTION is_busy(who bigint, span tstzrange, place bigint, as_of timestamptz, own_hold bigint,
                        own_booking bigint) RETURNS boolean LANGUAGE sql VOLATILE AS $$
    SELECT EXISTS (SELECT FROM meeting(who, span, place) o
                   WHERE coalesce(o.until > as_of, true)
                     AND (own_hold IS NULL OR o.hold_id IS DISTINCT FROM own_hold)
                     AND (own_booking IS NULL OR o.appointment_id IS DISTINCT FROM own_booking))
$$;

-- Whoever is in the way only until before ``as_of`` goes whole: a hold loses its seats, an unverified booking ends.
-- Seats before occupancy, as whoever renews or confirms: what they have made last meanwhile stays.
CREATE FUNCTION expire(who bigint, span tstzrange, place bigint, as_of timestamptz) RETURNS void
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    holds bigint[];
    bookings bigint[];
BEGIN
    SELECT array_agg(o.hold_id), array_agg(o.appointment_id) INTO holds, bookings
    FROM meeting(who, span, place) o WHERE o.until <= as_of;
    IF holds IS NOT NULL THEN
        DELETE FROM seat WHERE hold_id = ANY(holds) AND held_until <= as_of;
        DELETE FROM occupancy WHERE hold_id = ANY(holds) AND until <= as_of;
        UPDATE appointment a SET status = 'expired', expired_at = a.verification_expires_at
        WHERE a.id = ANY(bookings) AND verify_by(a) <= as_of;
    END IF;
END $$;

-- Which kind of those needed is elsewhere at that time, or null. Whoever books the same ones waits for this
-- transaction, and being volatile the function then reads what has been committed meanwhile. Nearly always nobody is
-- in the way of a doctor and a patient, which one look at each tells.
CREATE FUNCTION in_the_way(agenda bigint, specialist bigint, service bigint, patient bigint, span tstzrange,
                           as_of timestamptz, own_hold bigint DEFAULT NULL, own_booking bigint DEFAULT NULL)
RETURNS text LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_variable
DECLARE
    doctor bigint;
    needed record;
    contested boolean := false;
BEGIN
    IF specialist IS NOT NULL THEN
        doctor := doctor_of(specialist);
        PERFORM pg_advisory_xact_lock(hashtextextended('occupancydoctor' || doctor, 0));
        contested := EXISTS (SELECT FROM meeting(4 * doctor, span, coalesce(4 * agenda, -1)));
    END IF;
    IF service IS NOT NULL AND takes_more(agenda, service) THEN
        contested := true;
        FOR needed IN SELECT DISTINCT n.kind, n.subject FROM needs(agenda, NULL, service, NULL, span, -1) n
                      ORDER BY 1, 2 LOOP
            PERFORM wait_for(needed.kind, needed.subject);
        END LOOP;
    END IF;
    IF patient IS NOT NULL THEN
        PERFORM pg_advisory_xact_lock(hashtextextended('occupancypatient' || patient, 0));
        contested := contested OR EXISTS (SELECT FROM meeting(4 * patient + 1, span, -1));
    END IF;
    IF NOT contested THEN
        RETURN NULL;
    END IF;
    PERFORM expire(occupant_of(n.kind, n.subject), n.during, n.within, as_of)
    FROM needs(agenda, specialist, service, patient, span, -1) n;
    RETURN (
        SELECT n.kind
        FROM (SELECT n.kind, n.subject,
                     bool_or(is_busy(occupant_of(n.kind, n.subject), n.during, n.within, as_of, own_hold, own_booking))
                         AS busy
              FROM needs(agenda, specialist, service, patient, span, -1) n GROUP BY n.kind, n.subject) n
        GROUP BY n.kind HAVING bool_and(n.busy) ORDER BY n.kind LIMIT 1);
END $$;
"""

OCCUPY = """
DROP FUNCTION occupy(bigint, bigint, bigint, bigint, tstzrange, bigint, timestamptz, bigint, bigint, timestamptz,
                     boolean);

-- Puts somebody somewhere, unless that collides: then nothing is written and the answer is false.
CREATE FUNCTION claim(what text, who bigint, span tstzrange, place bigint, hold bigint, booking bigint,
                      ends timestamptz) RETURNS boolean LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    number bigint := occupant_of(what, who);
BEGIN
    IF EXISTS (SELECT FROM occupancy o
               WHERE NOT o.exclusive AND o.occupant = number AND o.during && span AND o.within <> place)
       OR EXISTS (SELECT FROM travel) AND EXISTS (SELECT FROM meeting(number, span, place)) THEN
        RETURN false;
    END IF;
    INSERT INTO occupancy (kind, subject, during, within, hold_id, appointment_id, until)
    VALUES (what, who, span, place, hold, booking, ends)
    ON CONFLICT ON CONSTRAINT occupancy_one_place DO NOTHING;
    RETURN FOUND;
END $$;

-- Puts somebody somewhere; where that collides, or is allowed to, it is kept and is not ``exclusive``.
CREATE FUNCTION take(what text, who bigint, span tstzrange, place bigint, as_of timestamptz, hold bigint,
                     booking bigint, ends timestamptz, allowed boolean) RETURNS void LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    IF NOT allowed THEN
        FOR attempt IN 1..2 LOOP
            IF claim(what, who, span, place, hold, booking, ends) THEN
                RETURN;
            END IF;
            PERFORM expire(occupant_of(what, who), span, place, as_of);
        END LOOP;
    END IF;
    PERFORM wait_for(what, who);
    INSERT INTO occupancy (kind, subject, during, within, hold_id, appointment_id, until, exclusive)
    VALUES (what, who, span, place, hold, booking, ends, false);
END $$;

-- Puts everybody where a hold or a booking needs them; of several that serve, the first that is free.
CREATE FUNCTION occupy(agenda bigint, specialist bigint, service bigint, patient bigint, span tstzrange, place bigint,
                       as_of timestamptz, hold bigint, booking bigint, ends timestamptz, allowed boolean)
RETURNS void LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_variable
DECLARE
    has text[];
    needed record;
BEGIN
    IF booking IS NOT NULL THEN
        has := ARRAY(SELECT o.kind FROM occupancy o WHERE o.appointment_id = booking);
    END IF;
    IF takes_more(agenda, service) THEN
        FOR needed IN
            SELECT n.* FROM needs(agenda, specialist, service, patient, span, place) n
            WHERE NOT n.chosen AND n.kind <> ALL(coalesce(has, '{}'))
            UNION ALL
            SELECT * FROM (
                SELECT DISTINCT ON (n.kind) n.* FROM needs(agenda, specialist, service, patient, span, place) n
                WHERE n.chosen AND n.kind <> ALL(coalesce(has, '{}'))
                ORDER BY n.kind, is_busy(occupant_of(n.kind, n.subject), n.during, n.within, as_of, hold, booking),
                         n.subject) c
        LOOP
            PERFORM take(needed.kind, needed.subject, needed.during, needed.within, as_of, hold, booking, ends,
                         allowed AND needed.kind = 'patient');
        END LOOP;
        RETURN;
    END IF;
    IF specialist IS NOT NULL AND (has IS NULL OR 'doctor' <> ALL(has)) THEN
        PERFORM take('doctor', doctor_of(specialist), span, coalesce(4 * agenda, place), as_of, hold, booking, ends,
                     false);
    END IF;
    IF patient IS NOT NULL AND (has IS NULL OR 'patient' <> ALL(has)) THEN
        PERFORM take('patient', patient, span, place, as_of, hold, booking, ends, allowed);
    END IF;
END $$;

CREATE OR REPLACE FUNCTION hold_occupies() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        IF EXISTS (SELECT FROM occupancy o WHERE o.hold_id = NEW.id) THEN
            RETURN NULL;  -- whoever placed it has seen to that
        END IF;
        PERFORM occupy(a.id, a.specialist_id, NEW.service_id, NULL,
                       tstzrange(s.starts_at, coalesce(NEW.ends_at, s.ends_at)), 4 * NEW.id + 1, NEW.created_at,
                       NEW.id, NULL, NEW.expires_at, false)
        FROM slot s JOIN agenda a ON a.id = s.agenda_id WHERE s.id = NEW.slot_id;
    ELSIF NEW.ended_at IS NULL THEN
        UPDATE occupancy SET until = NEW.expires_at WHERE hold_id = NEW.id;
    ELSE
        DELETE FROM occupancy WHERE hold_id = NEW.id;
    END IF;
    RETURN NULL;
END $$;

-- What its hold had passes to a booking; what it lacks it is given. Bookings come one at a time, or in thousands.
CREATE OR REPLACE FUNCTION bookings_occupy() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    one appointment;
    passed bigint;
BEGIN
    IF (SELECT count(*) FROM new_rows) = 1 THEN
        SELECT * INTO one FROM new_rows;
        UPDATE occupancy
        SET hold_id = NULL, appointment_id = one.id,
            until = CASE WHEN one.status = 'unverified' AND one.paid_at IS NULL THEN one.verification_expires_at END
        WHERE hold_id = (SELECT h.id FROM hold h WHERE h.appointment_id = one.id AND h.state = 'confirmed');
        GET DIAGNOSTICS passed = ROW_COUNT;
        IF one.status NOT IN ('unverified', 'booked', 'accepted') THEN
            RETURN NULL;
        ELSIF passed = 0 THEN
            PERFORM occupy(one.agenda_id, one.specialist_id, one.service_id, one.patient_id,
                           tstzrange(one.starts_at, one.ends_at), 4 * one.id + 2, one.updated_at, NULL, one.id, NULL,
                           one.overlap_reason IS NOT NULL);
        ELSIF one.patient_id IS NOT NULL THEN
            PERFORM take('patient', one.patient_id, tstzrange(one.starts_at, one.ends_at), 4 * one.id + 2,
                         one.updated_at, NULL, one.id, NULL, one.overlap_reason IS NOT NULL);
        END IF;
        RETURN NULL;
    END IF;
    UPDATE occupancy o
    SET hold_id = NULL, appointment_id = n.id,
        until = CASE WHEN n.status = 'unverified' AND n.paid_at IS NULL THEN n.verification_expires_at END
    FROM new_rows n JOIN hold h ON h.appointment_id = n.id AND h.state = 'confirmed'
    WHERE o.hold_id = h.id;
    INSERT INTO occupancy (kind, subject, during, within, appointment_id)
    SELECT n.kind, n.subject, n.during, n.within, n.id
    FROM (SELECT 'doctor' AS kind, doctor_of(r.specialist_id) AS subject,
                 tstzrange(r.starts_at, r.ends_at) AS during, coalesce(4 * r.agenda_id, 4 * r.id + 2) AS within, r.id
          FROM new_rows r
          WHERE r.specialist_id IS NOT NULL AND r.status IN ('unverified', 'booked', 'accepted')
            AND NOT EXISTS (SELECT FROM occupancy o WHERE o.appointment_id = r.id AND o.kind = 'doctor')
            AND NOT EXISTS (SELECT FROM travel) AND NOT takes_more(r.agenda_id, r.service_id)
          UNION ALL
          SELECT 'patient', r.patient_id, tstzrange(r.starts_at, r.ends_at), 4 * r.id + 2, r.id
          FROM new_rows r
          WHERE r.patient_id IS NOT NULL AND r.overlap_reason IS NULL
            AND r.status IN ('unverified', 'booked', 'accepted')) n
    WHERE NOT EXISTS (SELECT FROM occupancy o
                      WHERE NOT o.exclusive AND o.occupant = occupant_of(n.kind, n.subject)
                        AND o.during && n.during AND o.within <> n.within)
    ON CONFLICT ON CONSTRAINT occupancy_one_place DO NOTHING;
    -- What is left: rooms and instruments, pauses, an overlap that is allowed, and what collides.
    PERFORM occupy(r.agenda_id, r.specialist_id, r.service_id, r.patient_id, tstzrange(r.starts_at, r.ends_at),
                   4 * r.id + 2, r.updated_at, NULL, r.id, NULL, r.overlap_reason IS NOT NULL)
    FROM new_rows r
    WHERE r.status IN ('unverified', 'booked', 'accepted')
      AND (num_nonnulls(r.specialist_id, r.patient_id)
           > (SELECT count(DISTINCT o.kind) FROM occupancy o WHERE o.appointment_id = r.id)
           OR takes_more(r.agenda_id, r.service_id));
    RETURN NULL;
END $$;

CREATE OR REPLACE FUNCTION booking_occupies() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM occupancy WHERE appointment_id = NEW.id;
    IF NEW.status IN ('unverified', 'booked', 'accepted') THEN
        PERFORM occupy(NEW.agenda_id, NEW.specialist_id, NEW.service_id, NEW.patient_id,
                       tstzrange(NEW.starts_at, NEW.ends_at), 4 * NEW.id + 2, NEW.updated_at, NULL, NEW.id, NULL,
                       NEW.overlap_reason IS NOT NULL);
    END IF;
    RETURN NULL;
END $$;
"""

RUN = """
-- The consecutive slots that something of so many minutes takes from a slot on, each with its first free unit; no row
-- where one of them is missing or full. Locks them, and being volatile then reads what was committed while it waited.
-- The seats of the booking ``own`` count as free. Nearly always the slot alone is long enough, and nobody has it.
CREATE OR REPLACE FUNCTION free_run(first bigint, lasts integer, as_of timestamptz, own bigint DEFAULT NULL)
RETURNS TABLE (slot bigint, unit integer, ends_at timestamptz) LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    agenda bigint;
    begins timestamptz;
    until timestamptz;
    alone boolean;
    here slot;
BEGIN
    SELECT s.agenda_id, s.starts_at, s.starts_at + lasts * interval '1 minute',
           s.ends_at >= s.starts_at + lasts * interval '1 minute'
    INTO agenda, begins, until, alone FROM slot s WHERE s.id = first;
    IF alone THEN
        SELECT * INTO here FROM slot s WHERE s.id = first FOR NO KEY UPDATE;
        IF here.state = 'free' AND here.ends_at >= until AND NOT EXISTS (SELECT FROM seat t WHERE t.slot_id = first)
        THEN
            RETURN QUERY VALUES (first, 1, here.ends_at);
            RETURN;
        END IF;
    END IF;
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
"""

# A function keeps the plans of its statements, and sees at each what was committed while it waited at the one before.
REQUESTS = """
DROP FUNCTION holds_of_visitor(bytea, bytea, timestamptz);

-- Keeps for a visitor the slots that a service takes from one on, or answers why not: placed, known (a hold of this
-- token), full, too_many, too_soon, not_offered, service_not_offered. One request of a visitor at a time, so that the
-- limit holds against many at once.
CREATE FUNCTION place_hold(first bigint, service bigint, token bytea, visitor bytea, as_of timestamptz,
                           lifetime interval, per_visitor integer,
                           OUT answer text, OUT hold bigint, OUT expires timestamptz)
LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_variable
DECLARE
    wanted record;
    slots bigint[];
    units integer[];
    ends timestamptz;
    doctor bigint;
    clear boolean := false;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('hold' || encode(visitor, 'hex'), 0));
    hold := (SELECT h.id FROM hold h WHERE h.token_hash = token);
    IF hold IS NOT NULL THEN
        answer := 'known';
        RETURN;
    END IF;
    SELECT s.starts_at, a.id AS agenda, a.specialist_id, a.clinic_id, v.duration_minutes AS lasts,
           a.resource_id IS NULL AND v.pause_before_minutes = 0 AND v.pause_after_minutes = 0
           AND NOT EXISTS (SELECT FROM service_resource n WHERE n.service_id = v.id) AS plain,
           CASE WHEN NOT (s.state = 'free' AND a.online AND a.active AND c.active) THEN 'not_offered'
                WHEN (v.active AND v.deleted_at IS NULL AND v.bookable_online
                      AND (v.id = a.service_id OR EXISTS (SELECT FROM agenda_service o
                                                          WHERE o.agenda_id = a.id AND o.service_id = v.id)))
                     IS NOT TRUE THEN 'service_not_offered'
                WHEN s.starts_at <= as_of + a.min_notice_minutes * interval '1 minute' THEN 'too_soon'
                WHEN (SELECT count(*) FROM hold h
                      WHERE h.visitor_hash = visitor AND h.ended_at IS NULL AND h.expires_at > as_of) >= per_visitor
                THEN 'too_many' END AS refused
    INTO wanted
    FROM slot s JOIN agenda a ON a.id = s.agenda_id JOIN clinic c ON c.id = a.clinic_id
    LEFT JOIN service v ON v.id = service AND v.clinic_id = a.clinic_id
    WHERE s.id = first;
    IF NOT FOUND OR wanted.refused IS NOT NULL THEN
        answer := coalesce(wanted.refused, 'not_offered');
        RETURN;
    END IF;
    SELECT array_agg(r.slot), array_agg(r.unit), max(r.ends_at) INTO slots, units, ends
    FROM free_run(first, wanted.lasts, as_of) r;
    hold := nextval('hold_id_seq');
    expires := least(as_of + lifetime, wanted.starts_at);
    -- Nearly always a doctor alone is needed, and is free.
    IF wanted.plain AND slots IS NOT NULL THEN
        doctor := doctor_of(wanted.specialist_id);
        PERFORM pg_advisory_xact_lock(hashtextextended('occupancydoctor' || doctor, 0)) WHERE doctor IS NOT NULL;
        clear := doctor IS NULL OR claim('doctor', doctor, tstzrange(wanted.starts_at, ends), 4 * wanted.agenda, hold,
                                         NULL, expires);
    END IF;
    IF slots IS NULL OR NOT clear AND in_the_way(wanted.agenda, wanted.specialist_id, service, NULL,
                                                 tstzrange(wanted.starts_at, ends), as_of) IS NOT NULL THEN
        answer := 'full';
        hold := NULL;
        expires := NULL;
        RETURN;
    END IF;
    INSERT INTO hold (id, clinic_id, slot_id, service_id, ends_at, seats, token_hash, visitor_hash, created_at,
                      expires_at, last_activity_at)
    VALUES (hold, wanted.clinic_id, first, service, ends, cardinality(slots), token, visitor, as_of, expires, as_of);
    INSERT INTO seat (slot_id, unit, hold_id, held_until)
    SELECT n.slot, n.unit, hold, expires FROM unnest(slots, units) n (slot, unit)
    ON CONFLICT (slot_id, unit) DO UPDATE SET hold_id = EXCLUDED.hold_id, appointment_id = NULL,
                                              held_until = EXCLUDED.held_until
        WHERE seat.held_until <= as_of;
    answer := 'placed';
END $$;

-- Gives a hold's seats to a new appointment, or answers why not: confirmed, over (the hold no longer keeps its seats),
-- unknown, service_not_offered, slot_closed, elsewhere, too_late_to_verify; nothing is written unless it does. A seat
-- that somebody took over after the expiry, by a clock a moment ahead of ours, is no longer the hold's. Once a payment
-- is under way, what the clinic takes off its offer no longer counts; that the patient is elsewhere counts until it is
-- paid. What is paid asks all the same: others who book the patient wait for it, and then see it.
CREATE FUNCTION confirm_hold(token bytea, service bigint, patient bigint, agreement bigint, price numeric, email text,
                             phone text, paid boolean, as_of timestamptz, verification interval, before_start interval,
                             shortest interval, OUT answer text, OUT hold bigint, OUT booking bigint)
LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    h record;
    place record;
    deadline timestamptz;
    unverified boolean := patient IS NULL AND NOT paid;
BEGIN
    SELECT hold.id, hold.slot_id, hold.service_id, hold.seats, slot.agenda_id, slot.starts_at,
           coalesce(hold.ends_at, slot.ends_at) AS ends_at, hold.state = 'confirming' AS paying,
           slot.state = 'free' AND slot.starts_at > as_of AS open,
           hold.state IN ('live', 'confirming') AND hold.expires_at > as_of AS kept
    INTO h FROM hold JOIN slot ON slot.id = hold.slot_id WHERE hold.token_hash = token
    FOR NO KEY UPDATE OF hold, slot;
    IF NOT FOUND THEN
        answer := 'unknown';
        RETURN;
    END IF;
    hold := h.id;
    IF NOT h.kept OR h.seats > 1 AND seats_of_hold(h.id) <> h.seats
       OR NOT EXISTS (SELECT FROM seat t WHERE t.hold_id = h.id) THEN
        answer := 'over';
        RETURN;
    END IF;
    IF NOT h.paying AND (NOT h.open OR h.seats > 1 AND EXISTS (SELECT FROM seat t JOIN slot s ON s.id = t.slot_id
                                                               WHERE t.hold_id = h.id AND s.state <> 'free')) THEN
        answer := 'slot_closed';
        RETURN;
    END IF;
    SELECT a.id AS agenda, a.clinic_id, a.specialist_id, a.active AND c.active AS working,
           (v.active AND v.deleted_at IS NULL AND v.bookable_online
            AND (v.id = a.service_id
                 OR EXISTS (SELECT FROM agenda_service o WHERE o.agenda_id = a.id AND o.service_id = v.id)))
           IS TRUE AS served
    INTO place
    FROM agenda a JOIN clinic c ON c.id = a.clinic_id JOIN service v ON v.id = service AND v.clinic_id = a.clinic_id
    WHERE a.id = h.agenda_id;
    IF NOT FOUND OR coalesce(h.service_id, service) <> service OR NOT (h.paying OR place.served) THEN
        answer := 'service_not_offered';
        RETURN;
    END IF;
    deadline := least(as_of + verification, h.starts_at - before_start);
    answer := CASE WHEN NOT (h.paying OR place.working) THEN 'slot_closed'
                   WHEN patient IS NOT NULL
                        AND in_the_way(NULL, NULL, NULL, patient, tstzrange(h.starts_at, h.ends_at), as_of) IS NOT NULL
                        AND NOT paid THEN 'elsewhere'
                   WHEN unverified AND deadline < as_of + shortest THEN 'too_late_to_verify'
                   ELSE 'confirmed' END;
    IF answer <> 'confirmed' THEN
        RETURN;
    END IF;
    booking := nextval('appointment_id_seq');
    WITH seated AS (
        UPDATE seat SET hold_id = NULL, appointment_id = booking, held_until = CASE WHEN unverified THEN deadline END
        WHERE seat.hold_id = h.id
    ), consumed AS (
        UPDATE hold SET state = 'confirmed', ended_at = as_of, last_activity_at = as_of, appointment_id = booking
        WHERE hold.id = h.id
    )
    INSERT INTO appointment (id, clinic_id, agenda_id, slot_id, service_id, specialist_id, patient_id, agreement_id,
                             starts_at, ends_at, status, channel, quoted_price, contact_email, contact_phone,
                             verification_expires_at, paid_at, created_at, updated_at)
    VALUES (booking, place.clinic_id, place.agenda, h.slot_id, service, place.specialist_id, patient, agreement,
            h.starts_at, h.ends_at, CASE WHEN patient IS NULL THEN 'unverified' ELSE 'booked' END, 'online', price,
            email, phone, CASE WHEN patient IS NULL THEN deadline END, CASE WHEN paid THEN as_of END, as_of, as_of);
END $$;
"""

LOGS = """
-- Looked at in the order in which it is likely to be over soonest.
CREATE OR REPLACE FUNCTION seat_of_standing() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM appointment a WHERE a.id = NEW.appointment_id AND a.status IN ('cancelled', 'expired'))
       AND EXISTS (SELECT FROM seat t WHERE t.slot_id = NEW.slot_id AND t.unit = NEW.unit
                                        AND t.appointment_id = NEW.appointment_id) THEN
        RAISE EXCEPTION 'booking % does not stand and can have no seat', NEW.appointment_id
            USING ERRCODE = 'check_violation', TABLE = 'seat', CONSTRAINT = 'seat_of_standing';
    END IF;
    RETURN NULL;
END $$;

-- One booking has one or two days to count again; thousands have few, which are told apart first.
CREATE OR REPLACE FUNCTION appointment_booked() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF (SELECT count(*) FROM new_rows) = 1 THEN
        INSERT INTO statistic_change (topic, clinic_id, day)
        SELECT t.topic, c.id, CAST(t.at AT TIME ZONE c.time_zone AS date)
        FROM new_rows r JOIN clinic c ON c.id = r.clinic_id
        CROSS JOIN LATERAL (VALUES ('appointments', r.starts_at),
                                   ('funnel', CASE r.channel WHEN 'online' THEN r.created_at END)) t (topic, at)
        WHERE t.at IS NOT NULL;
        RETURN NULL;
    END IF;
    INSERT INTO statistic_change (topic, clinic_id, day)
    SELECT DISTINCT q.topic, q.clinic_id,
           CAST(q.at AT TIME ZONE (SELECT c.time_zone FROM clinic c WHERE c.id = q.clinic_id) AS date)
    FROM (SELECT DISTINCT t.topic, r.clinic_id, date_bin('15 minutes', t.at, 'epoch') AS at
          FROM new_rows r,
               LATERAL (VALUES ('appointments', r.starts_at),
                               ('funnel', CASE r.channel WHEN 'online' THEN r.created_at END)) t (topic, at)
          WHERE t.at IS NOT NULL) q;
    RETURN NULL;
END $$;
"""

# A session keeps the plans that it made while the tables were small: they must not be those that read all of them.
BY_INDEX = """
DO $$ DECLARE f regprocedure; BEGIN
    FOR f IN SELECT p.oid FROM pg_proc p
             WHERE p.pronamespace = CAST('public' AS regnamespace)
               AND p.proname IN ('in_the_way', 'occupy', 'bookings_occupy', 'booking_occupies', 'hold_occupies',
                                 'free_run', 'place_hold', 'confirm_hold') LOOP
        EXECUTE format('ALTER FUNCTION %s SET enable_seqscan = off', f);
    END LOOP;
END $$;
"""

# The bookings and holds of today, as if each had been written now.
PRESENT = """
SELECT occupy(a.agenda_id, a.specialist_id, a.service_id, a.patient_id, tstzrange(a.starts_at, a.ends_at), 4 * a.id + 2,
              now(), NULL, a.id, a.deadline, a.overlap_reason IS NOT NULL)
FROM (SELECT a.*, verify_by(a) AS deadline FROM appointment a
      WHERE a.status IN ('unverified', 'booked', 'accepted') AND a.ends_at > now() ORDER BY a.id) a;
SELECT occupy(g.id, g.specialist_id, h.service_id, NULL, tstzrange(s.starts_at, coalesce(h.ends_at, s.ends_at)),
              4 * h.id + 1, now(), h.id, NULL, h.expires_at, false)
FROM hold h JOIN slot s ON s.id = h.slot_id JOIN agenda g ON g.id = s.agenda_id
WHERE h.ended_at IS NULL AND h.expires_at > now();
"""


def upgrade() -> None:
    for ddl in (PAUSES, PLACE, NEEDS, BUSY, OCCUPY, RUN, REQUESTS, LOGS, BY_INDEX, PRESENT):
        op.execute(ddl)
