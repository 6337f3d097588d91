"""Whom and what a booking occupies stays with the hold that it was made from: a confirmation writes less anew.

Revision ID: 0069
"""

from alembic import op

revision = "0069"
down_revision = "0068"
branch_labels = None
depends_on = None

# What a hold occupied gained an owner, by which five indexes got new entries, the dear one of the constraint among
# them. Now it loses its end alone, which no index knows, on a page with room for that.
KEPT = """
COMMENT ON COLUMN occupancy.hold_id IS
    'of a hold that lives, or of the booking that was made from it (hold.appointment_id) while nothing of that moves';
ALTER TABLE occupancy SET (fillfactor = 80);

-- Makes what stays with the confirmed hold of some bookings the bookings' own.
CREATE FUNCTION own_places(bookings bigint[]) RETURNS void LANGUAGE sql VOLATILE AS $$
    UPDATE occupancy o SET hold_id = NULL, appointment_id = h.appointment_id
    FROM hold h WHERE h.appointment_id = ANY(bookings) AND h.state = 'confirmed' AND o.hold_id = h.id
$$;

-- A hold that goes by itself leaves its booking where it is; one whose booking goes too leaves nothing.
CREATE FUNCTION holds_gone() RETURNS trigger LANGUAGE plpgsql SET enable_seqscan = off AS $$
BEGIN
    WITH whose AS MATERIALIZED (
        SELECT r.id, a.id AS booking FROM old_rows r LEFT JOIN appointment a ON a.id = r.appointment_id
        WHERE r.state = 'confirmed'
    ), passed AS (
        UPDATE occupancy o SET hold_id = NULL, appointment_id = w.booking
        FROM whose w WHERE o.hold_id = w.id AND w.booking IS NOT NULL
    )
    DELETE FROM occupancy o USING whose w WHERE o.hold_id = w.id AND w.booking IS NULL;
    RETURN NULL;
END $$;
CREATE TRIGGER holds_gone AFTER DELETE ON hold REFERENCING OLD TABLE AS old_rows
    FOR EACH STATEMENT EXECUTE FUNCTION holds_gone();

-- A booking is not in its own way, wherever what it occupies is written.
CREATE OR REPLACE FUNCTION is_busy(who bigint, span tstzrange, place bigint, as_of timestamptz, own_hold bigint,
                                   own_booking bigint) RETURNS boolean LANGUAGE sql VOLATILE AS $$
    SELECT EXISTS (SELECT FROM meeting(who, span, place) o
                   WHERE coalesce(o.until > as_of, true)
                     AND (own_hold IS NULL OR o.hold_id IS DISTINCT FROM own_hold)
                     AND (own_booking IS NULL
                          OR o.appointment_id IS DISTINCT FROM own_booking
                             AND NOT EXISTS (SELECT FROM hold h
                                             WHERE h.id = o.hold_id AND h.appointment_id = own_booking
                                               AND h.state = 'confirmed')))
$$;

CREATE OR REPLACE FUNCTION booking_occupies() RETURNS trigger LANGUAGE plpgsql SET enable_seqscan = off AS $$
BEGIN
    PERFORM own_places(ARRAY[NEW.id]);
    DELETE FROM occupancy WHERE appointment_id = NEW.id;
    IF NEW.status IN ('unverified', 'booked', 'accepted') THEN
        PERFORM occupy(NEW.agenda_id, NEW.specialist_id, NEW.service_id, NEW.patient_id,
                       tstzrange(NEW.starts_at, NEW.ends_at), 4 * NEW.id + 2, NEW.updated_at, NULL, NEW.id, NULL,
                       NEW.overlap_reason IS NOT NULL);
    END IF;
    RETURN NULL;
END $$;

CREATE OR REPLACE FUNCTION booking_deadline() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE deadline timestamptz := verify_by(NEW);
BEGIN
    UPDATE seat SET held_until = deadline WHERE appointment_id = NEW.id AND held_until IS DISTINCT FROM deadline;
    IF deadline IS NOT NULL THEN
        PERFORM own_places(ARRAY[NEW.id]);  -- with a hold stays only what stands
    END IF;
    UPDATE occupancy SET until = deadline WHERE appointment_id = NEW.id AND until IS DISTINCT FROM deadline;
    RETURN NULL;
END $$;
"""

PERSON = """
CREATE OR REPLACE FUNCTION doctor_is_known() RETURNS trigger LANGUAGE plpgsql SET enable_seqscan = off AS $$
DECLARE
    gone record;
BEGIN
    FOR gone IN
        WITH person AS MATERIALIZED (
            SELECT s.id FROM specialist s
            WHERE s.id = NEW.id OR upper(s.fiscal_code) IN (upper(OLD.fiscal_code), upper(NEW.fiscal_code))
        ), now_whose AS MATERIALIZED (
            SELECT o.ctid AS row, doctor_of(coalesce(a.specialist_id, g.specialist_id)) AS doctor
            FROM occupancy o LEFT JOIN hold h ON h.id = o.hold_id
            LEFT JOIN appointment a ON a.id = coalesce(o.appointment_id, h.appointment_id)
            LEFT JOIN slot s ON s.id = h.slot_id LEFT JOIN agenda g ON g.id = s.agenda_id
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
"""

BOOKED = """
-- One booking: what its hold occupied stays there if the booking stands, whoever made it of the hold.
CREATE OR REPLACE FUNCTION bookings_occupy() RETURNS trigger LANGUAGE plpgsql SET enable_seqscan = off AS $$
DECLARE
    one record;
    deadline timestamptz;
BEGIN
    SELECT n.*, h.id AS hold, (SELECT count(*) FROM new_rows) AS many,
           ARRAY(SELECT o.kind FROM occupancy o WHERE o.hold_id = h.id) AS has,
           EXISTS (SELECT FROM occupancy o WHERE o.hold_id = h.id AND o.until IS NOT NULL) AS ends
    INTO one
    FROM new_rows n LEFT JOIN hold h ON h.appointment_id = n.id AND h.state = 'confirmed' LIMIT 1;
    IF one.many = 1 THEN
        IF one.ends THEN
            deadline := CASE WHEN one.status = 'unverified' AND one.paid_at IS NULL
                             THEN one.verification_expires_at END;
            UPDATE occupancy o
            SET until = deadline, hold_id = CASE WHEN deadline IS NULL THEN o.hold_id END,
                appointment_id = CASE WHEN deadline IS NOT NULL THEN one.id END
            WHERE o.hold_id = one.hold;
        END IF;
        IF one.status NOT IN ('unverified', 'booked', 'accepted') THEN
            RETURN NULL;
        ELSIF one.has = '{}' THEN
            PERFORM occupy(one.agenda_id, one.specialist_id, one.service_id, one.patient_id,
                           tstzrange(one.starts_at, one.ends_at), 4 * one.id + 2, one.updated_at, NULL, one.id, NULL,
                           one.overlap_reason IS NOT NULL);
        ELSIF one.patient_id IS NOT NULL AND 'patient' <> ALL(one.has) THEN
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
"""

# Few statements: each has its price, which is most of what a booking costs besides its rows.
REQUESTS = """
-- Nearly always one slot is long enough, nobody has it, and a doctor alone is needed, who is free: such a slot is found
-- and locked by one statement, and taken by another, which sees what was committed while the first waited. ``bookable``
-- tells what is offered, unless it may be behind. All else, and why not, is asked step by step.
CREATE OR REPLACE FUNCTION place_hold(first bigint, service bigint, token bytea, visitor bytea, as_of timestamptz,
                                      lifetime interval, per_visitor integer,
                                      OUT answer text, OUT hold bigint, OUT expires timestamptz)
LANGUAGE plpgsql VOLATILE SET enable_seqscan = off AS $$
#variable_conflict use_variable
DECLARE
    mine boolean := pg_advisory_xact_lock(hashtextextended('hold' || encode(visitor, 'hex'), 0)) IS NOT NULL;
    wanted record;
    slots bigint[];
    units integer[];
    ends timestamptz;
    doctor bigint;
    clear boolean := true;
BEGIN
    SELECT s.starts_at, s.ends_at, tstzrange(s.starts_at, s.ends_at) AS span, b.clinic_id, b.person,
           4 * b.agenda_id AS place, EXISTS (SELECT FROM travel) AS travels
    INTO wanted
    FROM slot s JOIN bookable b ON b.agenda_id = s.agenda_id AND b.service_id = service
    WHERE s.id = first AND s.state = 'free' AND NOT b.shared AND b.person IS NOT NULL
      AND s.ends_at >= s.starts_at + b.minutes * interval '1 minute'
      AND s.starts_at > as_of + b.notice_minutes * interval '1 minute'
      AND NOT EXISTS (SELECT FROM bookable_stale)
      AND NOT EXISTS (SELECT FROM hold h WHERE h.token_hash = token)
      AND (SELECT count(*) FROM hold h
           WHERE h.visitor_hash = visitor AND h.ended_at IS NULL AND h.expires_at > as_of) < per_visitor
    FOR NO KEY UPDATE OF s;
    IF FOUND THEN
        mine := pg_advisory_xact_lock(hashtextextended('occupancydoctor' || wanted.person, 0)) IS NOT NULL;
        hold := nextval('hold_id_seq');
        expires := least(as_of + lifetime, wanted.starts_at);
        IF wanted.travels THEN
            clear := NOT EXISTS (SELECT FROM meeting(4 * wanted.person, wanted.span, wanted.place));
        END IF;
        WITH free AS MATERIALIZED (
            SELECT
            WHERE clear AND NOT EXISTS (SELECT FROM seat t WHERE t.slot_id = first)
              AND NOT EXISTS (SELECT FROM occupancy o
                              WHERE NOT o.exclusive AND o.occupant = 4 * wanted.person AND o.during && wanted.span
                                AND o.within <> wanted.place)
        ), there AS (
            INSERT INTO occupancy (kind, subject, during, within, hold_id, until)
            SELECT 'doctor', wanted.person, wanted.span, wanted.place, hold, expires
            FROM free
            ON CONFLICT ON CONSTRAINT occupancy_one_place DO NOTHING
            RETURNING subject
        ), kept AS (
            INSERT INTO hold (id, clinic_id, slot_id, service_id, ends_at, token_hash, visitor_hash, created_at,
                              expires_at, last_activity_at)
            SELECT hold, wanted.clinic_id, first, service, wanted.ends_at, token, visitor, as_of, expires, as_of
            FROM there
            RETURNING id
        )
        INSERT INTO seat (slot_id, unit, hold_id, held_until) SELECT first, 1, kept.id, expires FROM kept;
        IF FOUND THEN
            answer := 'placed';
            RETURN;
        END IF;
    END IF;
    clear := false;
    expires := NULL;
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

-- The patient is claimed in the name of the hold first, which asks and writes at once; only where she is not to be had
-- so, what is in her way is looked at. Where the seat turns out to be somebody else's, nothing is written.
CREATE OR REPLACE FUNCTION confirm_hold(token bytea, service bigint, patient bigint, agreement bigint, price numeric,
                                        email text, phone text, paid boolean, as_of timestamptz, verification interval,
                                        before_start interval, shortest interval,
                                        OUT answer text, OUT hold bigint, OUT booking bigint)
LANGUAGE plpgsql VOLATILE SET enable_seqscan = off AS $$
#variable_conflict use_column
DECLARE
    h record;
    place record;
    mine boolean;
    deadline timestamptz;
    unverified boolean := patient IS NULL AND NOT paid;
BEGIN
    SELECT hold.id, hold.slot_id, hold.service_id, hold.seats, a.id AS agenda, a.clinic_id, a.specialist_id,
           slot.starts_at, coalesce(hold.ends_at, slot.ends_at) AS ends_at, hold.state = 'confirming' AS paying,
           slot.state = 'free' AND slot.starts_at > as_of AS open,
           hold.state IN ('live', 'confirming') AND hold.expires_at > as_of AS kept,
           b.clinic_id IS NOT NULL AND NOT EXISTS (SELECT FROM bookable_stale) AS offered
    INTO h
    FROM hold JOIN slot ON slot.id = hold.slot_id JOIN agenda a ON a.id = slot.agenda_id
    LEFT JOIN bookable b ON b.agenda_id = a.id AND b.service_id = service
    WHERE hold.token_hash = token
    FOR NO KEY UPDATE OF hold, slot;
    IF NOT FOUND THEN
        answer := 'unknown';
        RETURN;
    END IF;
    hold := h.id;
    IF NOT h.kept OR h.seats > 1 AND seats_of_hold(h.id) <> h.seats THEN
        answer := 'over';
        RETURN;
    END IF;
    deadline := least(as_of + verification, h.starts_at - before_start);
    answer := CASE WHEN NOT (h.paying OR h.open) THEN 'slot_closed'
                   WHEN h.service_id <> service THEN 'service_not_offered'
                   WHEN unverified AND deadline < as_of + shortest THEN 'too_late_to_verify'
                   ELSE 'confirmed' END;
    IF NOT h.paying AND h.open AND h.seats > 1 AND EXISTS (SELECT FROM seat t JOIN slot s ON s.id = t.slot_id
                                                           WHERE t.hold_id = h.id AND s.state <> 'free') THEN
        answer := 'slot_closed';
    ELSIF NOT h.offered AND answer IN ('confirmed', 'too_late_to_verify') THEN
        SELECT c.active AND a.active AS working,
               (v.active AND v.deleted_at IS NULL AND v.bookable_online
                AND (v.id = a.service_id
                     OR EXISTS (SELECT FROM agenda_service o WHERE o.agenda_id = a.id AND o.service_id = v.id)))
               IS TRUE AS served
        INTO place
        FROM agenda a JOIN clinic c ON c.id = a.clinic_id JOIN service v ON v.id = service AND v.clinic_id = c.id
        WHERE a.id = h.agenda;
        IF NOT FOUND OR NOT (h.paying OR place.served) THEN
            answer := 'service_not_offered';
        ELSIF NOT (h.paying OR place.working) THEN
            answer := 'slot_closed';
        END IF;
    END IF;
    IF answer = 'confirmed' THEN
        booking := nextval('appointment_id_seq');
        IF patient IS NOT NULL THEN
            mine := pg_advisory_xact_lock(hashtextextended('occupancypatient' || patient, 0)) IS NOT NULL;
            INSERT INTO occupancy (kind, subject, during, within, hold_id)
            SELECT 'patient', patient, tstzrange(h.starts_at, h.ends_at), 4 * booking + 2, h.id
            WHERE NOT EXISTS (SELECT FROM occupancy o
                              WHERE NOT o.exclusive AND o.occupant = 4 * patient + 1
                                AND o.during && tstzrange(h.starts_at, h.ends_at))
            ON CONFLICT ON CONSTRAINT occupancy_one_place DO NOTHING;
            IF NOT FOUND AND in_the_way(NULL, NULL, NULL, patient, tstzrange(h.starts_at, h.ends_at), as_of)
                             IS NOT NULL AND NOT paid THEN
                answer := 'elsewhere';
                booking := NULL;
            END IF;
        END IF;
    END IF;
    IF answer <> 'confirmed' THEN
        IF NOT EXISTS (SELECT FROM seat t WHERE t.hold_id = h.id) THEN
            answer := 'over';
        END IF;
        RETURN;
    END IF;
    WITH seated AS (
        UPDATE seat SET hold_id = NULL, appointment_id = booking, held_until = CASE WHEN unverified THEN deadline END
        WHERE seat.hold_id = h.id
        RETURNING seat.slot_id
    ), consumed AS (
        UPDATE hold SET state = 'confirmed', ended_at = as_of, last_activity_at = as_of, appointment_id = booking
        WHERE hold.id = h.id AND EXISTS (SELECT FROM seated)
    ), standing AS (
        UPDATE occupancy SET until = NULL
        WHERE occupancy.hold_id = h.id AND until IS NOT NULL AND NOT unverified AND EXISTS (SELECT FROM seated)
    )
    INSERT INTO appointment (id, clinic_id, agenda_id, slot_id, service_id, specialist_id, patient_id, agreement_id,
                             starts_at, ends_at, status, channel, quoted_price, contact_email, contact_phone,
                             verification_expires_at, paid_at, created_at, updated_at)
    SELECT booking, h.clinic_id, h.agenda, h.slot_id, service, h.specialist_id, patient, agreement,
           h.starts_at, h.ends_at, CASE WHEN patient IS NULL THEN 'unverified' ELSE 'booked' END, 'online', price,
           email, phone, CASE WHEN patient IS NULL THEN deadline END, CASE WHEN paid THEN as_of END, as_of, as_of
    WHERE EXISTS (SELECT FROM seated);
    IF NOT FOUND THEN
        answer := 'over';
        booking := NULL;
        DELETE FROM occupancy WHERE hold_id = h.id AND kind = 'patient';
    END IF;
END $$;
"""

LOGS = """
-- One booking has one or two days to count again; thousands have few, which are told apart first.
CREATE OR REPLACE FUNCTION appointment_booked() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO statistic_change (topic, clinic_id, day)
    SELECT t.topic, c.id, CAST(t.at AT TIME ZONE c.time_zone AS date)
    FROM (SELECT n.*, count(*) OVER () AS many FROM new_rows n LIMIT 1) r JOIN clinic c ON c.id = r.clinic_id
    CROSS JOIN LATERAL (VALUES ('appointments', r.starts_at),
                               ('funnel', CASE r.channel WHEN 'online' THEN r.created_at END)) t (topic, at)
    WHERE t.at IS NOT NULL AND r.many = 1;
    IF FOUND THEN
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


def upgrade() -> None:
    for ddl in (KEPT, PERSON, BOOKED, REQUESTS, LOGS):
        op.execute(ddl)
