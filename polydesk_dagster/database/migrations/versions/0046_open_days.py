"""The first free starts of a service are found without reading what is full.

Revision ID: 0046
"""

from alembic import op

revision = "0046"
down_revision = "0045"
branch_labels = None
depends_on = None

SUMMARY = """
-- Where an agenda has room on a day (in UTC, of the slots' starts): its free slots with a unit that nobody has for
-- good. What only holds, or waits to be verified, keeps a seat until an instant and counts as room: the table says
-- where a search may look, never what is free. It follows from slot and seat, and its triggers keep it.
CREATE TABLE open_day (
    agenda_id bigint NOT NULL,
    day       date NOT NULL,
    longest   integer NOT NULL CHECK (longest >= 0),    -- minutes without a gap
    ranges    tstzmultirange NOT NULL,
    slots     bigint[] NOT NULL,                        -- and their starts, in the same order
    starts    timestamptz[] NOT NULL,
    has_room  boolean NOT NULL GENERATED ALWAYS AS (longest > 0) STORED,   -- rarely another: its index stays as it is
    PRIMARY KEY (agenda_id, day)
) WITH (fillfactor = 70);
CREATE INDEX open_day_room ON open_day (agenda_id, day) WHERE has_room;

-- Days that changed while somebody else was changing them: nobody waits for a summary, so nobody waits in a circle.
-- A search reads the slots of such a day, and whoever comes by next puts its summary right.
CREATE TABLE open_day_stale (
    agenda_id bigint NOT NULL,
    day       date NOT NULL
);
CREATE INDEX open_day_stale_day ON open_day_stale (agenda_id, day);

CREATE FUNCTION utc_day(at timestamptz) RETURNS date LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CAST(at AT TIME ZONE 'UTC' AS date);
CREATE FUNCTION utc_midnight(day date) RETURNS timestamptz LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CAST(day AS timestamp) AT TIME ZONE 'UTC';

CREATE FUNCTION longest_of(ranges tstzmultirange) RETURNS integer LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CAST(coalesce(max(extract(epoch FROM upper(r) - lower(r))) / 60, 0) AS integer) FROM unnest(ranges) r
$$;

-- What the summary of a day must be.
CREATE FUNCTION open_slots(agenda bigint, on_day date, OUT ranges tstzmultirange, OUT slots bigint[],
                           OUT starts timestamptz[]) LANGUAGE sql STABLE AS $$
    SELECT coalesce(range_agg(tstzrange(s.starts_at, s.ends_at)), '{}'), coalesce(array_agg(s.id), '{}'),
           coalesce(array_agg(s.starts_at), '{}')
    FROM slot s
    WHERE s.agenda_id = agenda AND s.starts_at >= utc_midnight(on_day) AND s.starts_at < utc_midnight(on_day + 1)
      AND s.state = 'free'
      AND (SELECT count(*) FROM seat t WHERE t.slot_id = s.id AND t.held_until IS NULL) < s.capacity
$$;

-- Works days out anew, each once its row is locked: what is then read is at least as new. Days that somebody else is
-- changing are remembered.
CREATE FUNCTION refresh_open_days(agendas bigint[], days date[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    mine bigint[];
    on_days date[];
BEGIN
    SELECT array_agg(l.agenda_id), array_agg(l.day) INTO mine, on_days
    FROM (SELECT d.agenda_id, d.day
          FROM unnest(agendas, days) w (agenda, on_day)
          JOIN open_day d ON d.agenda_id = w.agenda AND d.day = w.on_day
          ORDER BY 1, 2 FOR NO KEY UPDATE OF d SKIP LOCKED) l;
    UPDATE open_day d SET longest = longest_of(n.ranges), ranges = n.ranges, slots = n.slots, starts = n.starts
    FROM unnest(mine, on_days) m (agenda, on_day) CROSS JOIN LATERAL open_slots(m.agenda, m.on_day) n
    WHERE d.agenda_id = m.agenda AND d.day = m.on_day;
    DELETE FROM open_day_stale t USING unnest(mine, on_days) m (agenda, on_day)
    WHERE t.agenda_id = m.agenda AND t.day = m.on_day;
    IF cardinality(mine) IS DISTINCT FROM cardinality(agendas) THEN
        INSERT INTO open_day_stale (agenda_id, day)
        SELECT w.agenda, w.on_day FROM unnest(agendas, days) w (agenda, on_day)
        EXCEPT SELECT m.agenda, m.on_day FROM unnest(mine, on_days) m (agenda, on_day);
    END IF;
END $$;
"""

SEATS = """
-- A seat that is taken for good, or no longer is, closes or opens its slot.
CREATE FUNCTION seat_opens() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    which bigint := coalesce(NEW.slot_id, OLD.slot_id);
    here record;
BEGIN
    SELECT d.agenda_id, d.day,
           EXISTS (SELECT FROM open_day_stale t WHERE t.agenda_id = d.agenda_id AND t.day = d.day) AS stale INTO here
    FROM slot s JOIN open_day d ON d.agenda_id = s.agenda_id AND d.day = utc_day(s.starts_at)
    WHERE s.id = which FOR NO KEY UPDATE OF d SKIP LOCKED;
    IF NOT FOUND THEN
        INSERT INTO open_day_stale (agenda_id, day)
        SELECT s.agenda_id, utc_day(s.starts_at) FROM slot s WHERE s.id = which;
    ELSIF here.stale THEN
        PERFORM refresh_open_days(ARRAY[here.agenda_id], ARRAY[here.day]);
    ELSE
        -- The slot alone: what is read from here on is at least as new as the lock.
        UPDATE open_day d
        SET (ranges, longest, slots, starts) = (
            SELECT n.ranges, (SELECT coalesce(max(CAST(extract(epoch FROM upper(r) - lower(r)) / 60 AS integer)), 0)
                              FROM unnest(n.ranges) r), n.slots, n.starts
            FROM (SELECT CASE WHEN x.room THEN d.ranges + x.span ELSE d.ranges - x.span END AS ranges,
                         array_remove(d.slots, x.id) || CASE WHEN x.room THEN ARRAY[x.id] END AS slots,
                         array_remove(d.starts, x.starts_at) || CASE WHEN x.room THEN ARRAY[x.starts_at] END AS starts
                  FROM (SELECT s.id, s.starts_at, tstzmultirange(tstzrange(s.starts_at, s.ends_at)) AS span,
                               s.state = 'free' AND (SELECT count(*) FROM seat t WHERE t.slot_id = s.id
                                                     AND t.held_until IS NULL) < s.capacity AS room
                        FROM slot s WHERE s.id = which) x) n)
        WHERE d.agenda_id = here.agenda_id AND d.day = here.day;
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER seat_opens_insert AFTER INSERT ON seat FOR EACH ROW WHEN (NEW.held_until IS NULL)
    EXECUTE FUNCTION seat_opens();
CREATE TRIGGER seat_opens_update AFTER UPDATE OF held_until ON seat FOR EACH ROW
    WHEN ((OLD.held_until IS NULL) <> (NEW.held_until IS NULL)) EXECUTE FUNCTION seat_opens();
CREATE TRIGGER seat_opens_delete AFTER DELETE ON seat FOR EACH ROW WHEN (OLD.held_until IS NULL)
    EXECUTE FUNCTION seat_opens();
"""

SLOTS = """
CREATE FUNCTION slots_open() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    agendas bigint[];
    days date[];
BEGIN
    IF TG_OP = 'INSERT' THEN
        -- Of a day that is new here these are all the slots, and nobody sits on them.
        WITH fresh AS MATERIALIZED (
            SELECT n.agenda_id, utc_day(n.starts_at) AS day,
                   coalesce(range_agg(tstzrange(n.starts_at, n.ends_at)) FILTER (WHERE n.state = 'free'), '{}')
                       AS ranges,
                   coalesce(array_agg(n.id) FILTER (WHERE n.state = 'free'), '{}') AS slots,
                   coalesce(array_agg(n.starts_at) FILTER (WHERE n.state = 'free'), '{}') AS starts
            FROM new_rows n GROUP BY 1, 2
        ), made AS (
            INSERT INTO open_day (agenda_id, day, longest, ranges, slots, starts)
            SELECT n.agenda_id, n.day, longest_of(n.ranges), n.ranges, n.slots, n.starts
            FROM fresh n ORDER BY n.agenda_id, n.day
            ON CONFLICT DO NOTHING RETURNING agenda_id, day
        )
        SELECT array_agg(n.agenda_id), array_agg(n.day) INTO agendas, days
        FROM fresh n LEFT JOIN made m ON m.agenda_id = n.agenda_id AND m.day = n.day WHERE m.day IS NULL;
    ELSIF TG_OP = 'UPDATE' THEN
        SELECT array_agg(c.agenda_id), array_agg(c.day) INTO agendas, days
        FROM (SELECT DISTINCT x.agenda_id, utc_day(x.starts_at) AS day
              FROM old_rows o JOIN new_rows n ON n.id = o.id
              CROSS JOIN LATERAL (VALUES (o.agenda_id, o.starts_at), (n.agenda_id, n.starts_at))
                  x (agenda_id, starts_at)
              WHERE (o.agenda_id, o.starts_at, o.ends_at, o.state, o.capacity)
                    IS DISTINCT FROM (n.agenda_id, n.starts_at, n.ends_at, n.state, n.capacity)) c;
    ELSE
        DELETE FROM open_day d USING (SELECT DISTINCT agenda_id, utc_day(starts_at) AS day FROM old_rows) o
        WHERE d.agenda_id = o.agenda_id AND d.day = o.day
          AND NOT EXISTS (SELECT FROM slot s WHERE s.agenda_id = o.agenda_id AND s.starts_at >= utc_midnight(o.day)
                                               AND s.starts_at < utc_midnight(o.day + 1));
        SELECT array_agg(d.agenda_id), array_agg(d.day) INTO agendas, days
        FROM (SELECT DISTINCT agenda_id, utc_day(starts_at) AS day FROM old_rows) o
        JOIN open_day d ON d.agenda_id = o.agenda_id AND d.day = o.day;
    END IF;
    IF agendas IS NOT NULL THEN
        PERFORM refresh_open_days(agendas, days);
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER slots_open_insert AFTER INSERT ON slot REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION slots_open();
CREATE TRIGGER slots_open_update AFTER UPDATE ON slot REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION slots_open();
CREATE TRIGGER slots_open_delete AFTER DELETE ON slot REFERENCING OLD TABLE AS old_rows
    FOR EACH STATEMENT EXECUTE FUNCTION slots_open();
"""

INDEXES = """
CREATE INDEX service_code ON service (code) WHERE deleted_at IS NULL;
CREATE INDEX agenda_service_service ON agenda_service (service_id, agenda_id);
CREATE INDEX agenda_of_service ON agenda (service_id) WHERE service_id IS NOT NULL;
CREATE INDEX location_municipality ON location (municipality_code, clinic_id);
CREATE INDEX clinic_municipality ON clinic (municipality_code);
CREATE INDEX seat_held ON seat (slot_id) WHERE held_until IS NOT NULL;
"""

SEARCH = """
-- Its plans are made once, for any installation: by index, row by row.
-- The first starts, in order, at which a service can be placed; a filter that is null is none. The summary says where
-- to look. A day on which something may be in the way (a hold, the doctor elsewhere, a room or an instrument, a visit
-- over midnight, a summary that is being changed) has each of its starts tested on slots, seats and occupancy.
CREATE FUNCTION first_starts(code text, clinics bigint[], city text, place bigint, doctor bigint, agreement bigint,
                             earliest timestamptz, before timestamptz, as_of timestamptz, wanted integer)
RETURNS TABLE (slot bigint, starts_at timestamptz, agenda bigint, service bigint)
LANGUAGE plpgsql STABLE SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off
SET enable_hashjoin = off SET enable_mergejoin = off SET enable_material = off SET enable_memoize = off
AS $$
#variable_conflict use_column
DECLARE
    agendas bigint[];
    services bigint[];
    lengths integer[];
    since timestamptz[];
    doctors bigint[];
    shared boolean[];
    today date := utc_day(greatest(earliest, as_of)) - 1;
    last date := utc_day(before);
    stale boolean;
    unusual boolean;
    here integer;
BEGIN
    IF place IS NOT NULL OR city IS NOT NULL THEN
        SELECT array_agg(o.agenda), array_agg(o.service), array_agg(o.lasts), array_agg(o.since), array_agg(o.person),
               array_agg(o.shared)
        INTO agendas, services, lengths, since, doctors, shared
        FROM (SELECT l.id, l.clinic_id FROM location l WHERE place IS NOT NULL AND l.id = place AND l.active
              UNION ALL
              SELECT l.id, l.clinic_id FROM location l WHERE place IS NULL AND l.municipality_code = city AND l.active
              UNION ALL
              SELECT l.id, l.clinic_id FROM clinic c JOIN location l ON l.clinic_id = c.id
              WHERE place IS NULL AND c.municipality_code = city AND l.municipality_code IS NULL AND l.active) l
        JOIN service v ON v.clinic_id = l.clinic_id AND v.code = first_starts.code AND v.deleted_at IS NULL
        CROSS JOIN LATERAL offers_of(v.id, as_of, earliest) o
        WHERE o.place = l.id AND (clinics IS NULL OR v.clinic_id = ANY(clinics))
          AND (doctor IS NULL OR o.person = doctor_of(doctor));
    ELSE
        SELECT array_agg(o.agenda), array_agg(o.service), array_agg(o.lasts), array_agg(o.since), array_agg(o.person),
               array_agg(o.shared)
        INTO agendas, services, lengths, since, doctors, shared
        FROM service v CROSS JOIN LATERAL offers_of(v.id, as_of, earliest) o
        WHERE v.code = first_starts.code AND v.deleted_at IS NULL AND (clinics IS NULL OR v.clinic_id = ANY(clinics))
          AND (doctor IS NULL OR o.person = doctor_of(doctor));
    END IF;
    stale := EXISTS (SELECT FROM open_day_stale);
    -- The way from one place to another, and whoever is in two places on purpose, are left to the test of each start.
    unusual := EXISTS (SELECT FROM travel) OR EXISTS (SELECT FROM occupancy WHERE NOT exclusive);
    LOOP
        SELECT min(n.day) INTO today
        FROM unnest(agendas, lengths) o (agenda, lasts)
        CROSS JOIN LATERAL (
            (SELECT d.day FROM open_day d
             WHERE d.agenda_id = o.agenda AND d.day > today AND d.day <= last AND d.has_room
               AND (d.longest >= o.lasts OR upper(d.ranges) >= utc_midnight(d.day + 1))
             ORDER BY d.day LIMIT 1)
            UNION ALL
            (SELECT t.day FROM open_day_stale t
             WHERE stale AND t.agenda_id = o.agenda AND t.day > today AND t.day <= last
             ORDER BY t.day LIMIT 1)) n;
        EXIT WHEN today IS NULL;
        IF stale THEN
            RETURN QUERY
            SELECT c.slot, c.at, c.agenda, c.service
            FROM (SELECT u.slot, u.at, u.at + o.lasts * interval '1 minute' AS until, o.agenda, o.service
                  FROM unnest(agendas, services, lengths, since) o (agenda, service, lasts, since)
                  CROSS JOIN LATERAL open_slots(o.agenda, today) d
                  CROSS JOIN LATERAL unnest(d.slots, d.starts) u (slot, at)
                  WHERE u.at >= o.since AND u.at < before
                  ORDER BY u.at, u.slot OFFSET 0) c
            WHERE can_be_placed(c.agenda, c.service, c.at, c.until, as_of)
              AND (agreement IS NULL OR is_priced(c.agenda, c.service, c.at, agreement))
            LIMIT wanted;
        ELSE
            RETURN QUERY
            SELECT c.slot, c.at, c.agenda, c.service
            FROM (SELECT u.slot, u.at, u.at + o.lasts * interval '1 minute' AS until, o.agenda, o.service, d.ranges,
                         d.contested
                  FROM unnest(agendas, services, lengths, since, doctors, shared)
                      o (agenda, service, lasts, since, person, shared)
                  CROSS JOIN LATERAL (
                      SELECT d.ranges, d.slots, d.starts,
                             o.shared OR unusual
                             OR EXISTS (SELECT FROM seat t WHERE t.slot_id = ANY(d.slots) AND t.held_until > as_of)
                             OR EXISTS (SELECT FROM occupancy x
                                        WHERE x.exclusive AND spot(x.occupant, x.during) && spot(
                                                  4 * o.person,
                                                  tstzrange(utc_midnight(today), utc_midnight(today + 1)))
                                          AND (inet '::') + x.within <> (inet '::') + 4 * o.agenda) AS contested
                      FROM open_day d WHERE d.agenda_id = o.agenda AND d.day = today) d
                  CROSS JOIN LATERAL unnest(d.slots, d.starts) u (slot, at)
                  WHERE u.at >= o.since AND u.at < before
                  ORDER BY u.at, u.slot OFFSET 0) c
            WHERE CASE WHEN c.contested OR c.until > utc_midnight(today + 1)
                       THEN can_be_placed(c.agenda, c.service, c.at, c.until, as_of)
                       ELSE c.ranges @> tstzrange(c.at, c.until) END
              AND (agreement IS NULL OR is_priced(c.agenda, c.service, c.at, agreement))
            LIMIT wanted;
        END IF;
        GET DIAGNOSTICS here = ROW_COUNT;
        wanted := wanted - here;
        EXIT WHEN wanted <= 0;
    END LOOP;
END $$;
"""

# What ``first_starts`` stands on. ``free_run`` and ``in_the_way`` ask the same for good, and lock.
PARTS = """
-- The agendas on which a service is offered online: how long it lasts, from when on, who the doctor is (one person in
-- all clinics), and whether it needs more than her time.
CREATE FUNCTION offers_of(which bigint, as_of timestamptz, earliest timestamptz)
RETURNS TABLE (agenda bigint, service bigint, place bigint, lasts integer, since timestamptz, person bigint,
               shared boolean) LANGUAGE sql STABLE AS $$
    SELECT a.id, v.id, a.location_id, v.duration_minutes,
           greatest(earliest, as_of + a.min_notice_minutes * interval '1 minute' + interval '1 microsecond'),
           coalesce((SELECT min(o.id) FROM specialist o WHERE upper(o.fiscal_code) = upper(p.fiscal_code)), p.id),
           a.resource_id IS NOT NULL OR v.pause_before_minutes > 0 OR v.pause_after_minutes > 0
           OR EXISTS (SELECT FROM service_resource n WHERE n.service_id = v.id)
    FROM service v JOIN clinic c ON c.id = v.clinic_id AND c.active
    CROSS JOIN LATERAL (SELECT m.agenda_id FROM agenda_service m WHERE m.service_id = v.id
                        UNION ALL
                        SELECT own.id FROM agenda own
                        WHERE own.service_id = v.id
                          AND NOT EXISTS (SELECT FROM agenda_service m
                                          WHERE m.agenda_id = own.id AND m.service_id = v.id)) o (agenda_id)
    JOIN agenda a ON a.id = o.agenda_id AND a.online AND a.active
    LEFT JOIN specialist p ON p.id = a.specialist_id
    WHERE v.id = which AND v.active AND v.deleted_at IS NULL AND v.bookable_online
      AND (p.id IS NULL OR p.active AND p.deleted_at IS NULL)
$$;

-- Whether the slots of an agenda between two instants follow each other and have a unit each, and whom and what the
-- service needs is nowhere else.
CREATE FUNCTION can_be_placed(agenda bigint, service bigint, begins timestamptz, until timestamptz, as_of timestamptz)
RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT coalesce(r.whole, false) AND NOT EXISTS (
        SELECT FROM (
            SELECT n.kind,
                   bool_or(is_busy(occupant_of(n.kind, n.subject), n.during, n.within, as_of, NULL, NULL)) AS busy
            FROM needs(agenda, (SELECT a.specialist_id FROM agenda a WHERE a.id = agenda), service, NULL,
                       tstzrange(begins, r.ends_at), -1) n
            GROUP BY n.kind, n.subject) n
        GROUP BY n.kind HAVING bool_and(n.busy))
    FROM (SELECT max(l.ends_at) AS ends_at,
                 bool_and(l.state = 'free' AND l.room AND coalesce(l.before = l.starts_at, true))
                 AND max(l.ends_at) >= until AS whole
          FROM (SELECT s.state, s.starts_at, s.ends_at, lag(s.ends_at) OVER (ORDER BY s.starts_at) AS before,
                       (SELECT count(*) FROM seat t
                        WHERE t.slot_id = s.id AND coalesce(t.held_until > as_of, true)) < s.capacity AS room
                FROM slot s
                WHERE s.agenda_id = agenda AND s.starts_at >= begins AND s.starts_at < until
                  AND s.state <> 'retired') l) r
$$;

-- Whether a price under an agreement is in force for a service and a doctor on the day.
CREATE FUNCTION is_priced(agenda bigint, service bigint, at timestamptz, agreement bigint) RETURNS boolean
LANGUAGE sql STABLE AS $$
    SELECT EXISTS (
        SELECT FROM agenda a JOIN clinic c ON c.id = a.clinic_id
        JOIN price p ON p.service_id = service AND p.agreement_id = agreement
                    AND (p.specialist_id IS NULL OR p.specialist_id = a.specialist_id)
                    AND daterange(p.valid_from, p.valid_to) @> CAST(at AT TIME ZONE c.time_zone AS date)
        WHERE a.id = agenda)
$$;
"""

PRESENT = """
INSERT INTO open_day (agenda_id, day, longest, ranges, slots, starts)
SELECT d.agenda_id, d.day, longest_of(n.ranges), n.ranges, n.slots, n.starts
FROM (SELECT DISTINCT agenda_id, utc_day(starts_at) AS day FROM slot) d
CROSS JOIN LATERAL open_slots(d.agenda_id, d.day) n;
"""


def upgrade() -> None:
    for ddl in (SUMMARY, SEATS, SLOTS, INDEXES, PARTS, SEARCH, PRESENT):
        op.execute(ddl)
