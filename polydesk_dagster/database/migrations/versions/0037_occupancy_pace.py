"""What nobody else wants is found free by one look, and written by one statement.

Revision ID: 0037
"""

from alembic import op

revision = "0037"
down_revision = "0036"
branch_labels = None
depends_on = None

IN_THE_WAY = """
CREATE OR REPLACE FUNCTION in_the_way(agenda bigint, specialist bigint, service bigint, patient bigint, span tstzrange,
                                      as_of timestamptz, own_hold bigint DEFAULT NULL, own_booking bigint DEFAULT NULL)
RETURNS text LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_variable
DECLARE
    needed record;
    contested boolean := false;
BEGIN
    FOR needed IN
        SELECT n.kind, n.subject,
               4 * n.subject + CASE n.kind WHEN 'doctor' THEN 0 WHEN 'patient' THEN 1 ELSE 2 END AS who,
               CASE WHEN n.named AND n.kind <> 'patient' THEN agenda ELSE -1 END AS place
        FROM needs(agenda, specialist, service, patient) n ORDER BY 1, 2
    LOOP
        PERFORM pg_advisory_xact_lock(hashtextextended('occupancy' || needed.kind || needed.subject, 0));
        PERFORM FROM occupancy o
        WHERE o.exclusive AND int8range(o.occupant, o.occupant, '[]') && int8range(needed.who, needed.who, '[]')
          AND o.during && span AND o.within <> needed.place;
        contested := contested OR FOUND;
    END LOOP;
    IF NOT contested THEN
        RETURN NULL;
    END IF;
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
"""

OCCUPY = """
CREATE OR REPLACE FUNCTION occupy(agenda bigint, specialist bigint, service bigint, patient bigint, span tstzrange,
                                  place bigint, as_of timestamptz, hold bigint, booking bigint, ends timestamptz,
                                  allowed boolean)
RETURNS void LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_variable
DECLARE
    needed record;
BEGIN
    FOR needed IN
        SELECT DISTINCT ON (n.kind) n.kind, n.subject, b.busy, p.place, p.occupant
        FROM needs(agenda, specialist, service, patient) n
        CROSS JOIN LATERAL (
            SELECT CASE WHEN n.named AND n.kind <> 'patient' THEN agenda ELSE place END AS place,
                   4 * n.subject + CASE n.kind WHEN 'doctor' THEN 0 WHEN 'patient' THEN 1 ELSE 2 END AS occupant) p
        CROSS JOIN LATERAL (
            SELECT NOT n.named AND is_busy(p.occupant, span, p.place, as_of, hold, booking) AS busy) b
        WHERE booking IS NULL
           OR NOT EXISTS (SELECT FROM occupancy o WHERE o.appointment_id = booking AND o.kind = n.kind)
        ORDER BY n.kind, b.busy, n.subject
    LOOP
        FOR attempt IN 1..2 LOOP
            INSERT INTO occupancy (kind, subject, during, within, hold_id, appointment_id, until, exclusive)
            VALUES (needed.kind, needed.subject, span, needed.place, hold, booking, ends,
                    NOT (allowed AND needed.kind = 'patient'))
            ON CONFLICT ON CONSTRAINT occupancy_one_place DO NOTHING;
            EXIT WHEN FOUND;
            IF attempt = 1 THEN
                PERFORM expire(needed.occupant, span, needed.place, as_of);
            ELSE
                INSERT INTO occupancy (kind, subject, during, within, hold_id, appointment_id, until, exclusive)
                VALUES (needed.kind, needed.subject, span, needed.place, hold, booking, ends, false);
            END IF;
        END LOOP;
    END LOOP;
END $$;

CREATE OR REPLACE FUNCTION bookings_occupy() RETURNS trigger LANGUAGE plpgsql AS $$
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
            AND NOT EXISTS (SELECT FROM occupancy o WHERE o.appointment_id = r.id AND o.kind = 'doctor')
          UNION ALL
          SELECT 'patient', r.patient_id, tstzrange(r.starts_at, r.ends_at), 2 * r.id + 1, r.id
          FROM new_rows r
          WHERE r.patient_id IS NOT NULL AND r.overlap_reason IS NULL
            AND r.status IN ('unverified', 'booked', 'accepted')) n
    ON CONFLICT ON CONSTRAINT occupancy_one_place DO NOTHING;
    -- What is left: rooms and instruments, an overlap that is allowed, and what collides.
    PERFORM occupy(r.agenda_id, r.specialist_id, r.service_id, r.patient_id, tstzrange(r.starts_at, r.ends_at),
                   2 * r.id + 1, r.updated_at, NULL, r.id, NULL, r.overlap_reason IS NOT NULL)
    FROM new_rows r JOIN agenda a ON a.id = r.agenda_id
    WHERE r.status IN ('unverified', 'booked', 'accepted')
      AND (a.resource_id IS NOT NULL OR EXISTS (SELECT FROM service_resource n WHERE n.service_id = r.service_id)
           OR num_nonnulls(r.specialist_id, r.patient_id)
              > (SELECT count(*) FROM occupancy o WHERE o.appointment_id = r.id));
    RETURN NULL;
END $$;
"""

# A session keeps the plans that it made while the tables were small: they must not be those that read all of them.
BY_INDEX = """
DO $$ DECLARE f regprocedure; BEGIN
    FOR f IN SELECT p.oid FROM pg_proc p
             WHERE p.pronamespace = CAST('public' AS regnamespace)
               AND p.proname IN ('in_the_way', 'occupy', 'bookings_occupy', 'hold_occupies', 'free_run') LOOP
        EXECUTE format('ALTER FUNCTION %s SET enable_seqscan = off', f);
    END LOOP;
END $$;
"""


def upgrade() -> None:
    op.execute(IN_THE_WAY)
    op.execute(OCCUPY)
    op.execute(BY_INDEX)
