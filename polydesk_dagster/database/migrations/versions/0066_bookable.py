"""A search reads what is offered where as one range of an index, and asks at most once whether a doctor is elsewhere.

Revision ID: 0066
"""

from alembic import op

revision = "0066"
down_revision = "0065"
branch_labels = None
depends_on = None

BOOKABLE = """
-- What each agenda gives online, where and with whom (one person in all clinics): it follows from clinics, locations,
-- services, agendas and specialists. Of the clinics of ``bookable_stale`` it may be behind them; a search works those
-- out itself, and whoever tidies puts them right. So nobody who changes an offer waits for another.
CREATE TABLE bookable (
    agenda_id      bigint NOT NULL REFERENCES agenda ON DELETE CASCADE,
    service_id     bigint NOT NULL REFERENCES service ON DELETE CASCADE,
    clinic_id      bigint NOT NULL,
    location_id    bigint NOT NULL,
    city           text NOT NULL,        -- the cadastral code of the location or, where none is known, of the clinic
    code           text NOT NULL,
    minutes        integer NOT NULL,
    notice_minutes integer NOT NULL,
    person         bigint,
    shared         boolean NOT NULL,     -- it needs more than the doctor's time: a room, an instrument, a pause
    PRIMARY KEY (agenda_id, service_id)
);
CREATE INDEX bookable_in ON bookable (code, city);
CREATE INDEX bookable_at ON bookable (location_id, code);
CREATE INDEX bookable_clinic ON bookable (clinic_id);
CREATE INDEX bookable_person ON bookable (person);
CREATE INDEX bookable_service ON bookable (service_id);

CREATE TABLE bookable_stale (
    clinic_id bigint NOT NULL
);
"""

FOLLOWS = """
-- What ``bookable`` must be of some clinics.
CREATE FUNCTION bookable_of(which bigint[]) RETURNS SETOF bookable LANGUAGE sql STABLE AS $$
    SELECT a.id, v.id, c.id, l.id, coalesce(l.municipality_code, c.municipality_code), v.code, v.duration_minutes,
           a.min_notice_minutes,
           coalesce((SELECT min(o.id) FROM specialist o WHERE upper(o.fiscal_code) = upper(p.fiscal_code)), p.id),
           a.resource_id IS NOT NULL OR v.pause_before_minutes > 0 OR v.pause_after_minutes > 0
           OR EXISTS (SELECT FROM service_resource n WHERE n.service_id = v.id)
    FROM clinic c JOIN service v ON v.clinic_id = c.id
    CROSS JOIN LATERAL (SELECT m.agenda_id FROM agenda_service m WHERE m.service_id = v.id
                        UNION
                        SELECT own.id FROM agenda own WHERE own.service_id = v.id) o (agenda_id)
    JOIN agenda a ON a.id = o.agenda_id AND a.online AND a.active
    JOIN location l ON l.id = a.location_id AND l.active
    LEFT JOIN specialist p ON p.id = a.specialist_id
    WHERE c.id = ANY(which) AND c.active AND v.active AND v.deleted_at IS NULL AND v.bookable_online
      AND (p.id IS NULL OR p.active AND p.deleted_at IS NULL)
$$;

-- The clinics of which ``bookable`` may be behind, with those that share a doctor with one of them; null: none.
CREATE FUNCTION bookable_behind(which bigint[]) RETURNS bigint[] LANGUAGE sql STABLE AS $$
    SELECT array_agg(w.clinic_id)
    FROM (SELECT unnest(which) AS clinic_id
          UNION
          SELECT other.clinic_id
          FROM specialist s JOIN specialist other ON upper(other.fiscal_code) = upper(s.fiscal_code)
          WHERE s.clinic_id = ANY(which)
          UNION
          SELECT b.clinic_id FROM specialist s JOIN bookable b ON b.person = s.id WHERE s.clinic_id = ANY(which)) w
$$;

-- Puts it right, one at a time; how many clinics were behind. What is marked while this is under way stays marked.
CREATE FUNCTION refresh_bookable() RETURNS integer LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    marked bigint[];
    which bigint[];
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('bookable', 0));
    WITH taken AS (DELETE FROM bookable_stale RETURNING clinic_id)
    SELECT array_agg(DISTINCT clinic_id) INTO marked FROM taken;
    IF marked IS NULL THEN
        RETURN 0;
    END IF;
    which := bookable_behind(marked);
    DELETE FROM bookable b
    WHERE b.clinic_id = ANY(which) AND NOT EXISTS (SELECT FROM bookable_of(which) f
                                                   WHERE f.agenda_id = b.agenda_id AND f.service_id = b.service_id
                                                     AND f IS NOT DISTINCT FROM b);
    INSERT INTO bookable SELECT * FROM bookable_of(which) ON CONFLICT DO NOTHING;
    RETURN cardinality(marked);
END $$;
"""

MARKS = """
-- Marks the clinics of rows that came, went, or changed in one of the columns that are named, the clinic's first.
CREATE FUNCTION bookable_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO bookable_stale SELECT DISTINCT CAST(to_jsonb(n) ->> TG_ARGV[0] AS bigint) FROM new_rows n;
    ELSIF TG_OP = 'DELETE' THEN
        INSERT INTO bookable_stale SELECT DISTINCT CAST(to_jsonb(o) ->> TG_ARGV[0] AS bigint) FROM old_rows o;
    ELSE
        INSERT INTO bookable_stale
        WITH before AS MATERIALIZED (
            SELECT (SELECT jsonb_agg(to_jsonb(o) -> name) FROM unnest(TG_ARGV) name) AS r FROM old_rows o
        ), after AS MATERIALIZED (
            SELECT (SELECT jsonb_agg(to_jsonb(n) -> name) FROM unnest(TG_ARGV) name) AS r FROM new_rows n
        )
        SELECT DISTINCT CAST(r ->> 0 AS bigint)
        FROM ((TABLE before EXCEPT TABLE after) UNION ALL (TABLE after EXCEPT TABLE before)) m;
    END IF;
    RETURN NULL;
END $$;
"""

FOLLOWED = {
    "clinic": ("id", "active", "municipality_code"),
    "location": ("clinic_id", "id", "active", "municipality_code"),
    "service": (
        *("clinic_id", "id", "active", "deleted_at", "bookable_online", "code", "duration_minutes"),
        *("pause_before_minutes", "pause_after_minutes"),
    ),
    "agenda": (
        *("clinic_id", "id", "active", "online", "location_id", "specialist_id", "service_id", "resource_id"),
        "min_notice_minutes",
    ),
    "agenda_service": ("clinic_id", "agenda_id", "service_id"),
    "specialist": ("clinic_id", "id", "active", "deleted_at", "fiscal_code"),
    "service_resource": ("clinic_id", "service_id"),
}
"""By table, the columns of which ``bookable`` depends."""

# Looked up by whoever asks whether a doctor is anywhere but where an agenda has her.
ELSEWHERE = """
CREATE INDEX occupancy_doctor ON occupancy (occupant, within) WHERE occupant % 4 = 0;
"""

SEARCH = """
-- The first starts, in order, at which a service can be placed; a filter that is null is none. ``bookable`` and the
-- summary of days say where to look. Nearly always nothing is in the way of what a day has open, which one look at each
-- doctor tells. Where something may be (a hold, the doctor elsewhere, a room or an instrument, a visit over midnight, a
-- summary that is being changed) the starts are tested one by one on slots, seats and occupancy.
-- Its plans are made once, for any installation: by index, row by row.
CREATE OR REPLACE FUNCTION first_starts(
    code text, clinics bigint[], city text, place bigint, doctor bigint, agreement bigint, earliest timestamptz,
    before timestamptz, as_of timestamptz, wanted integer)
RETURNS TABLE (slot bigint, starts_at timestamptz, agenda bigint, service bigint)
LANGUAGE plpgsql STABLE SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off
SET enable_hashjoin = off SET enable_mergejoin = off SET enable_material = off SET enable_memoize = off
AS $$
#variable_conflict use_column
DECLARE
    behind bigint[];
    offers bookable[];
    stale boolean;
    changed boolean;
    today date := utc_day(greatest(earliest, as_of)) - 1;
    last date := utc_day(before);
    midnight timestamptz;
    here integer;
BEGIN
    SELECT EXISTS (SELECT FROM open_day_stale), EXISTS (SELECT FROM bookable_stale) INTO stale, changed;
    IF changed THEN
        behind := bookable_behind(ARRAY(SELECT DISTINCT m.clinic_id FROM bookable_stale m));
    END IF;
    IF place IS NOT NULL THEN
        offers := ARRAY(SELECT b FROM bookable b WHERE b.location_id = place AND b.code = first_starts.code);
    ELSIF city IS NOT NULL THEN
        offers := ARRAY(SELECT b FROM bookable b WHERE b.code = first_starts.code AND b.city = first_starts.city);
    ELSE
        offers := ARRAY(SELECT b FROM bookable b WHERE b.code = first_starts.code);
    END IF;
    IF behind IS NOT NULL THEN
        offers := ARRAY(SELECT o FROM unnest(offers) o WHERE o.clinic_id <> ALL(behind)
                        UNION ALL
                        SELECT b FROM bookable_of(behind) b
                        WHERE b.code = first_starts.code
                          AND CASE WHEN place IS NULL THEN coalesce(first_starts.city, b.city) = b.city
                                   ELSE b.location_id = place END);
    END IF;
    IF clinics IS NOT NULL OR doctor IS NOT NULL THEN
        offers := ARRAY(SELECT o FROM unnest(offers) o
                        WHERE (clinics IS NULL OR o.clinic_id = ANY(clinics))
                          AND (doctor IS NULL OR o.person = doctor_of(doctor)));
    END IF;
    LOOP
        here := 0;
        IF NOT stale AND agreement IS NULL THEN
            RETURN QUERY
            WITH day AS MATERIALIZED (
                SELECT d.day, utc_midnight(d.day + 1) AS midnight, d.ranges, d.slots, d.starts,
                       o.minutes * interval '1 minute' AS lasts, o.agenda_id, o.service_id, o.person, o.shared,
                       greatest(earliest, as_of + o.notice_minutes * interval '1 minute'
                                          + interval '1 microsecond') AS since
                FROM unnest(offers) o
                CROSS JOIN LATERAL (SELECT d.day, d.ranges, d.slots, d.starts FROM open_day d
                                    WHERE d.agenda_id = o.agenda_id AND d.day > today AND d.day <= last AND d.has_room
                                      AND (d.longest >= o.minutes OR upper(d.ranges) >= utc_midnight(d.day + 1))
                                    ORDER BY d.day LIMIT 1) d
                ORDER BY d.day FETCH FIRST ROW WITH TIES
            ), soonest AS MATERIALIZED (
                SELECT u.slot, u.at, u.at + d.lasts > d.midnight AS over_midnight, d.agenda_id, d.service_id
                FROM day d CROSS JOIN LATERAL unnest(d.slots, d.starts) u (slot, at)
                WHERE u.at >= d.since AND u.at < before
                  AND (d.ranges @> tstzrange(u.at, u.at + d.lasts) OR u.at + d.lasts > d.midnight)
                ORDER BY u.at, u.slot LIMIT wanted
            )
            SELECT s.slot, s.at, s.agenda_id, s.service_id FROM soonest s
            WHERE NOT (SELECT bool_or(x.over_midnight) FROM soonest x)
              AND NOT EXISTS (
                SELECT FROM day x
                WHERE x.agenda_id = ANY(ARRAY(SELECT agenda_id FROM soonest))
                  AND (x.shared
                       OR EXISTS (SELECT FROM seat t WHERE t.slot_id = ANY(x.slots) AND t.held_until > as_of)
                       OR EXISTS (SELECT FROM occupancy p
                                  WHERE p.occupant % 4 = 0 AND p.occupant = 4 * x.person AND p.within < 4 * x.agenda_id)
                       OR EXISTS (SELECT FROM occupancy p
                                  WHERE p.occupant % 4 = 0 AND p.occupant = 4 * x.person
                                    AND p.within > 4 * x.agenda_id)));
            GET DIAGNOSTICS here = ROW_COUNT;
            EXIT WHEN here >= wanted;
        END IF;
        SELECT min(n.day) INTO today
        FROM unnest(offers) o
        CROSS JOIN LATERAL (
            (SELECT d.day FROM open_day d
             WHERE d.agenda_id = o.agenda_id AND d.day > today AND d.day <= last AND d.has_room
               AND (d.longest >= o.minutes OR upper(d.ranges) >= utc_midnight(d.day + 1))
             ORDER BY d.day LIMIT 1)
            UNION ALL
            (SELECT t.day FROM open_day_stale t
             WHERE stale AND t.agenda_id = o.agenda_id AND t.day > today AND t.day <= last
             ORDER BY t.day LIMIT 1)) n;
        EXIT WHEN today IS NULL;
        midnight := utc_midnight(today + 1);
        IF here = 0 THEN
            RETURN QUERY
            SELECT c.slot, c.at, c.agenda_id, c.service_id
            FROM (SELECT u.slot, u.at, u.at + o.minutes * interval '1 minute' AS until, o.agenda_id, o.service_id,
                         d.ranges,
                         o.shared OR stale
                         OR EXISTS (SELECT FROM seat t WHERE t.slot_id = ANY(d.slots) AND t.held_until > as_of)
                         OR EXISTS (SELECT FROM occupancy p WHERE NOT p.exclusive AND p.occupant = 4 * o.person)
                         OR EXISTS (SELECT FROM travel)
                            AND EXISTS (SELECT FROM occupancy p
                                        WHERE p.occupant % 4 = 0 AND p.occupant = 4 * o.person
                                          AND p.within <> 4 * o.agenda_id)
                         OR EXISTS (SELECT FROM occupancy p
                                    WHERE p.exclusive
                                      AND spot(p.occupant, p.during)
                                          && spot(4 * o.person, tstzrange(utc_midnight(today), midnight))
                                      AND (inet '::') + p.within <> (inet '::') + 4 * o.agenda_id) AS contested
                  FROM unnest(offers) o
                  CROSS JOIN LATERAL (
                      SELECT d.ranges, d.slots, d.starts FROM open_day d
                      WHERE NOT stale AND d.agenda_id = o.agenda_id AND d.day = today
                      UNION ALL
                      SELECT d.ranges, d.slots, d.starts FROM open_slots(o.agenda_id, today) d WHERE stale) d
                  CROSS JOIN LATERAL unnest(d.slots, d.starts) u (slot, at)
                  WHERE u.at >= greatest(earliest, as_of + o.notice_minutes * interval '1 minute'
                                                   + interval '1 microsecond')
                    AND u.at < before
                  ORDER BY u.at, u.slot OFFSET 0) c
            WHERE CASE WHEN c.contested OR c.until > midnight
                       THEN can_be_placed(c.agenda_id, c.service_id, c.at, c.until, as_of)
                       ELSE c.ranges @> tstzrange(c.at, c.until) END
              AND (agreement IS NULL OR is_priced(c.agenda_id, c.service_id, c.at, agreement))
            LIMIT wanted;
            GET DIAGNOSTICS here = ROW_COUNT;
        END IF;
        wanted := wanted - here;
        EXIT WHEN wanted <= 0;
    END LOOP;
END $$;

DROP FUNCTION offers_of(bigint, timestamptz, timestamptz);
"""

PRESENT = """
INSERT INTO bookable SELECT * FROM bookable_of(ARRAY(SELECT id FROM clinic));
"""


def upgrade() -> None:
    op.execute(BOOKABLE)
    op.execute(FOLLOWS)
    op.execute(MARKS)
    for table, columns in FOLLOWED.items():
        named = ", ".join(f"'{column}'" for column in columns)
        for event, rows in (
            ("INSERT", "NEW TABLE AS new_rows"),
            ("UPDATE", "OLD TABLE AS old_rows NEW TABLE AS new_rows"),
            ("DELETE", "OLD TABLE AS old_rows"),
        ):
            op.execute(
                f"""CREATE TRIGGER bookable_{event.lower()} AFTER {event} ON {table} REFERENCING {rows}
                    FOR EACH STATEMENT EXECUTE FUNCTION bookable_changed({named})"""
            )
    op.execute(ELSEWHERE)
    op.execute(SEARCH)
    op.execute(PRESENT)
