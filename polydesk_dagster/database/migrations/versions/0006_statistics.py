"""Statistics with the log of what changed under them, and the caches that a browser loads first.

The logs are append-only: a writer's own transaction adds rows, a refresh deletes exactly the rows that its snapshot
saw. So a change that commits while a refresh runs keeps its row for the next one; nothing depends on clocks or on the
order of ids. Triggers fire always, in replica sessions too.

Revision ID: 0006
"""

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

CHANGE_LOG = """
CREATE TABLE statistic_change (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    topic      text NOT NULL CHECK (topic IN ('appointments', 'offer', 'funnel', 'messages', 'reports')),
    clinic_id  bigint NOT NULL,                -- no foreign key: the log must never stand in a writer's way
    day        date,                           -- local; null: every day of the clinic
    changed_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- What clean-up took away stays counted, without the person: a full recompute gives the same numbers afterwards.
CREATE TABLE removed_appointment (
    clinic_id     bigint NOT NULL,
    agenda_id     bigint,
    specialist_id bigint,
    service_id    bigint NOT NULL,
    agreement_id  bigint,
    starts_at     timestamptz NOT NULL,
    ends_at       timestamptz NOT NULL,
    created_at    timestamptz NOT NULL,
    status        text NOT NULL,
    channel       text NOT NULL,
    quoted_price  numeric(10, 2),
    verified      boolean NOT NULL
);
CREATE INDEX removed_appointment_start ON removed_appointment (clinic_id, starts_at);
CREATE INDEX removed_appointment_created ON removed_appointment (clinic_id, created_at) WHERE channel = 'online';

CREATE TABLE removed_slot (
    clinic_id bigint NOT NULL,
    agenda_id bigint NOT NULL,
    day       date NOT NULL,
    slots     bigint NOT NULL,
    minutes   bigint NOT NULL
);
CREATE INDEX removed_slot_day ON removed_slot (clinic_id, day);

CREATE TABLE removed_hold (
    clinic_id  bigint NOT NULL,
    created_at timestamptz NOT NULL,           -- rounded down to a quarter of an hour: no zone's midnight is finer
    holds      bigint NOT NULL
);
CREATE INDEX removed_hold_created ON removed_hold (clinic_id, created_at);

CREATE TABLE removed_message (
    clinic_id  bigint NOT NULL,
    created_at timestamptz NOT NULL,           -- rounded likewise
    kind       text NOT NULL,
    channel    text,
    state      text NOT NULL,
    messages   bigint NOT NULL
);
CREATE INDEX removed_message_created ON removed_message (clinic_id, created_at);

CREATE INDEX message_created ON message (clinic_id, created_at);
CREATE INDEX message_ledger_alone ON message_ledger (clinic_id, planned_at) WHERE message_id IS NULL;
CREATE INDEX report_published ON report (clinic_id, published_at);
CREATE INDEX appointment_online_created ON appointment (clinic_id, created_at) WHERE channel = 'online';
CREATE INDEX hold_created ON hold (clinic_id, created_at);

-- What is counted. Statistics read these views and nothing else.
CREATE VIEW counted_appointment AS
SELECT clinic_id, agenda_id, specialist_id, service_id, agreement_id, starts_at, ends_at, created_at, status, channel,
       quoted_price, verified_at IS NOT NULL OR confirmed_by_staff_at IS NOT NULL AS verified
FROM appointment
UNION ALL
SELECT clinic_id, agenda_id, specialist_id, service_id, agreement_id, starts_at, ends_at, created_at, status, channel,
       quoted_price, verified
FROM removed_appointment;

CREATE VIEW counted_slot AS
SELECT a.clinic_id, s.agenda_id, s.local_date AS day, CAST(1 AS bigint) AS slots,
       CAST(extract(epoch FROM s.ends_at - s.starts_at) / 60 AS bigint) * s.capacity AS minutes
FROM slot s JOIN agenda a ON a.id = s.agenda_id WHERE s.state <> 'retired'
UNION ALL
SELECT clinic_id, agenda_id, day, slots, minutes FROM removed_slot;

CREATE VIEW counted_hold AS
SELECT clinic_id, created_at, CAST(1 AS bigint) AS holds FROM hold
UNION ALL
SELECT clinic_id, created_at, holds FROM removed_hold;

CREATE VIEW counted_message AS
SELECT clinic_id, created_at, kind, channel, state, CAST(1 AS bigint) AS messages FROM message
UNION ALL                                      -- withheld before there was a message at all
SELECT clinic_id, planned_at, kind, NULL, 'withheld', 1 FROM message_ledger WHERE message_id IS NULL
UNION ALL
SELECT clinic_id, created_at, kind, channel, state, messages FROM removed_message;
"""

# A plan made for one row is kept for the session and must serve five million, hence no nested loops; EXCEPT ALL
# compares what a statement left behind with what was there, whatever became of the keys.
CHANGE_TRIGGERS = """
CREATE FUNCTION appointment_changed() RETURNS trigger LANGUAGE plpgsql SET enable_nestloop = off AS $$
BEGIN
    IF TG_OP = 'TRUNCATE' THEN
        INSERT INTO statistic_change (topic, clinic_id)
        SELECT topic, id FROM clinic, unnest(ARRAY['appointments', 'funnel']) topic;
    ELSIF TG_OP = 'INSERT' THEN
        INSERT INTO statistic_change (topic, clinic_id, day)
        SELECT DISTINCT 'appointments', r.clinic_id, CAST(r.starts_at AT TIME ZONE c.time_zone AS date)
        FROM new_rows r JOIN clinic c ON c.id = r.clinic_id
        UNION ALL
        SELECT DISTINCT 'funnel', r.clinic_id, CAST(r.created_at AT TIME ZONE c.time_zone AS date)
        FROM new_rows r JOIN clinic c ON c.id = r.clinic_id WHERE r.channel = 'online';
    ELSIF TG_OP = 'DELETE' THEN
        INSERT INTO removed_appointment
        SELECT clinic_id, agenda_id, specialist_id, service_id, agreement_id, starts_at, ends_at, created_at, status,
               channel, quoted_price, verified_at IS NOT NULL OR confirmed_by_staff_at IS NOT NULL
        FROM old_rows WHERE status = 'expired';
        INSERT INTO statistic_change (topic, clinic_id, day)
        SELECT DISTINCT 'appointments', r.clinic_id, CAST(r.starts_at AT TIME ZONE c.time_zone AS date)
        FROM old_rows r JOIN clinic c ON c.id = r.clinic_id
        UNION ALL
        SELECT DISTINCT 'funnel', r.clinic_id, CAST(r.created_at AT TIME ZONE c.time_zone AS date)
        FROM old_rows r JOIN clinic c ON c.id = r.clinic_id WHERE r.channel = 'online';
    ELSE
        INSERT INTO statistic_change (topic, clinic_id, day)
        WITH before AS (
            SELECT clinic_id, agenda_id, specialist_id, service_id, agreement_id, starts_at, ends_at, created_at,
                   status, channel, quoted_price,
                   verified_at IS NOT NULL OR confirmed_by_staff_at IS NOT NULL AS verified
            FROM old_rows),
        after AS (
            SELECT clinic_id, agenda_id, specialist_id, service_id, agreement_id, starts_at, ends_at, created_at,
                   status, channel, quoted_price,
                   verified_at IS NOT NULL OR confirmed_by_staff_at IS NOT NULL AS verified
            FROM new_rows),
        moved AS ((TABLE before EXCEPT ALL TABLE after) UNION ALL (TABLE after EXCEPT ALL TABLE before)),
        funnel_before AS (SELECT clinic_id, created_at, verified, status NOT IN ('unverified', 'expired') AS confirmed
                          FROM before WHERE channel = 'online'),
        funnel_after AS (SELECT clinic_id, created_at, verified, status NOT IN ('unverified', 'expired') AS confirmed
                         FROM after WHERE channel = 'online'),
        funnel_moved AS ((TABLE funnel_before EXCEPT ALL TABLE funnel_after)
                         UNION ALL (TABLE funnel_after EXCEPT ALL TABLE funnel_before))
        SELECT DISTINCT 'appointments', r.clinic_id, CAST(r.starts_at AT TIME ZONE c.time_zone AS date)
        FROM moved r JOIN clinic c ON c.id = r.clinic_id
        UNION ALL
        SELECT DISTINCT 'funnel', r.clinic_id, CAST(r.created_at AT TIME ZONE c.time_zone AS date)
        FROM funnel_moved r JOIN clinic c ON c.id = r.clinic_id;
    END IF;
    RETURN NULL;
END $$;

CREATE FUNCTION slot_changed() RETURNS trigger LANGUAGE plpgsql SET enable_nestloop = off AS $$
BEGIN
    IF TG_OP = 'TRUNCATE' THEN
        INSERT INTO statistic_change (topic, clinic_id) SELECT 'offer', id FROM clinic;
    ELSIF TG_OP = 'INSERT' THEN
        INSERT INTO statistic_change (topic, clinic_id, day)
        SELECT DISTINCT 'offer', a.clinic_id, r.local_date
        FROM (SELECT DISTINCT agenda_id, local_date FROM new_rows) r JOIN agenda a ON a.id = r.agenda_id;
    ELSIF TG_OP = 'DELETE' THEN
        INSERT INTO removed_slot
        SELECT a.clinic_id, r.agenda_id, r.local_date, r.slots, r.minutes
        FROM (SELECT agenda_id, local_date, count(*) AS slots,
                     sum(CAST(extract(epoch FROM ends_at - starts_at) / 60 AS bigint) * capacity) AS minutes
              FROM old_rows WHERE state <> 'retired' AND ends_at < now() GROUP BY agenda_id, local_date) r
        JOIN agenda a ON a.id = r.agenda_id;
        INSERT INTO statistic_change (topic, clinic_id, day)
        SELECT DISTINCT 'offer', a.clinic_id, r.local_date
        FROM (SELECT DISTINCT agenda_id, local_date FROM old_rows) r JOIN agenda a ON a.id = r.agenda_id;
    ELSE
        INSERT INTO statistic_change (topic, clinic_id, day)
        WITH before AS (SELECT agenda_id, local_date, ends_at - starts_at AS length, capacity
                        FROM old_rows WHERE state <> 'retired'),
        after AS (SELECT agenda_id, local_date, ends_at - starts_at AS length, capacity
                  FROM new_rows WHERE state <> 'retired'),
        moved AS ((TABLE before EXCEPT ALL TABLE after) UNION ALL (TABLE after EXCEPT ALL TABLE before))
        SELECT DISTINCT 'offer', a.clinic_id, r.local_date
        FROM (SELECT DISTINCT agenda_id, local_date FROM moved) r JOIN agenda a ON a.id = r.agenda_id;
    END IF;
    RETURN NULL;
END $$;

CREATE FUNCTION hold_changed() RETURNS trigger LANGUAGE plpgsql SET enable_nestloop = off AS $$
BEGIN
    IF TG_OP = 'TRUNCATE' THEN
        INSERT INTO statistic_change (topic, clinic_id) SELECT 'funnel', id FROM clinic;
    ELSIF TG_OP = 'INSERT' THEN
        INSERT INTO statistic_change (topic, clinic_id, day)
        SELECT DISTINCT 'funnel', r.clinic_id, CAST(r.created_at AT TIME ZONE c.time_zone AS date)
        FROM new_rows r JOIN clinic c ON c.id = r.clinic_id;
    ELSIF TG_OP = 'DELETE' THEN
        INSERT INTO removed_hold
        SELECT clinic_id, date_bin('15 minutes', created_at, 'epoch'), count(*) FROM old_rows GROUP BY 1, 2;
        INSERT INTO statistic_change (topic, clinic_id, day)
        SELECT DISTINCT 'funnel', r.clinic_id, CAST(r.created_at AT TIME ZONE c.time_zone AS date)
        FROM old_rows r JOIN clinic c ON c.id = r.clinic_id;
    ELSE
        INSERT INTO statistic_change (topic, clinic_id, day)
        WITH before AS (SELECT clinic_id, created_at FROM old_rows),
        after AS (SELECT clinic_id, created_at FROM new_rows),
        moved AS ((TABLE before EXCEPT ALL TABLE after) UNION ALL (TABLE after EXCEPT ALL TABLE before))
        SELECT DISTINCT 'funnel', r.clinic_id, CAST(r.created_at AT TIME ZONE c.time_zone AS date)
        FROM moved r JOIN clinic c ON c.id = r.clinic_id;
    END IF;
    RETURN NULL;
END $$;

-- Messages change state many times within their day, nearly always: their days are logged without comparing.
CREATE FUNCTION message_changed() RETURNS trigger LANGUAGE plpgsql SET enable_nestloop = off AS $$
BEGIN
    IF TG_OP = 'TRUNCATE' THEN
        INSERT INTO statistic_change (topic, clinic_id) SELECT 'messages', id FROM clinic;
        RETURN NULL;
    END IF;
    IF TG_OP = 'DELETE' THEN
        INSERT INTO removed_message
        SELECT clinic_id, date_bin('15 minutes', created_at, 'epoch'), kind, channel, state, count(*)
        FROM old_rows GROUP BY 1, 2, 3, 4, 5;
    END IF;
    IF TG_OP IN ('UPDATE', 'DELETE') THEN
        INSERT INTO statistic_change (topic, clinic_id, day)
        SELECT DISTINCT 'messages', r.clinic_id, CAST(r.created_at AT TIME ZONE c.time_zone AS date)
        FROM old_rows r JOIN clinic c ON c.id = r.clinic_id;
    END IF;
    IF TG_OP IN ('INSERT', 'UPDATE') THEN
        INSERT INTO statistic_change (topic, clinic_id, day)
        SELECT DISTINCT 'messages', r.clinic_id, CAST(r.created_at AT TIME ZONE c.time_zone AS date)
        FROM new_rows r JOIN clinic c ON c.id = r.clinic_id;
    END IF;
    RETURN NULL;
END $$;

CREATE FUNCTION message_ledger_changed() RETURNS trigger LANGUAGE plpgsql SET enable_nestloop = off AS $$
BEGIN
    IF TG_OP = 'TRUNCATE' THEN
        INSERT INTO statistic_change (topic, clinic_id) SELECT 'messages', id FROM clinic;
        RETURN NULL;
    END IF;
    IF TG_OP = 'DELETE' THEN
        INSERT INTO removed_message
        SELECT clinic_id, date_bin('15 minutes', planned_at, 'epoch'), kind, NULL, 'withheld', count(*)
        FROM old_rows WHERE message_id IS NULL GROUP BY 1, 2, 3;
    END IF;
    IF TG_OP IN ('UPDATE', 'DELETE') THEN
        INSERT INTO statistic_change (topic, clinic_id, day)
        SELECT DISTINCT 'messages', r.clinic_id, CAST(r.planned_at AT TIME ZONE c.time_zone AS date)
        FROM old_rows r JOIN clinic c ON c.id = r.clinic_id WHERE r.message_id IS NULL;
    END IF;
    IF TG_OP IN ('INSERT', 'UPDATE') THEN
        INSERT INTO statistic_change (topic, clinic_id, day)
        SELECT DISTINCT 'messages', r.clinic_id, CAST(r.planned_at AT TIME ZONE c.time_zone AS date)
        FROM new_rows r JOIN clinic c ON c.id = r.clinic_id WHERE r.message_id IS NULL;
    END IF;
    RETURN NULL;
END $$;

-- A report's turnaround ends at its publication and begins at the end of its visit, so a visit that is moved counts as
-- a change too. The shared lock makes one of the two wait for the other: whoever commits last has logged the day.
CREATE FUNCTION report_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'TRUNCATE' THEN
        INSERT INTO statistic_change (topic, clinic_id) SELECT 'reports', id FROM clinic;
        RETURN NULL;
    END IF;
    IF TG_OP IN ('UPDATE', 'DELETE') THEN
        INSERT INTO statistic_change (topic, clinic_id, day)
        SELECT DISTINCT 'reports', r.clinic_id, CAST(r.published_at AT TIME ZONE c.time_zone AS date)
        FROM old_rows r JOIN clinic c ON c.id = r.clinic_id;
    END IF;
    IF TG_OP IN ('INSERT', 'UPDATE') THEN
        PERFORM FROM appointment WHERE id = ANY (ARRAY(SELECT appointment_id FROM new_rows)) ORDER BY id FOR SHARE;
        INSERT INTO statistic_change (topic, clinic_id, day)
        SELECT DISTINCT 'reports', r.clinic_id, CAST(r.published_at AT TIME ZONE c.time_zone AS date)
        FROM new_rows r JOIN clinic c ON c.id = r.clinic_id;
    END IF;
    RETURN NULL;
END $$;

CREATE FUNCTION appointment_end_moved() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO statistic_change (topic, clinic_id, day)
    SELECT 'reports', r.clinic_id, CAST(r.published_at AT TIME ZONE c.time_zone AS date)
    FROM report r JOIN clinic c ON c.id = r.clinic_id WHERE r.appointment_id = NEW.id;
    RETURN NULL;
END $$;
CREATE TRIGGER appointment_end_moved AFTER UPDATE OF ends_at ON appointment
    FOR EACH ROW WHEN (OLD.ends_at <> NEW.ends_at) EXECUTE FUNCTION appointment_end_moved();
ALTER TABLE appointment ENABLE ALWAYS TRIGGER appointment_end_moved;

-- A clinic's zone decides which day an instant belongs to: every day of the clinic is counted again. Writers under way
-- logged days of the old zone, so the change waits for them; later ones see the new zone.
CREATE FUNCTION clinic_zone_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    LOCK TABLE appointment, hold, message, message_ledger, report IN SHARE ROW EXCLUSIVE MODE;
    INSERT INTO statistic_change (topic, clinic_id)
    SELECT topic, NEW.id FROM unnest(ARRAY['appointments', 'funnel', 'messages', 'reports']) topic;
    RETURN NEW;
END $$;
CREATE TRIGGER clinic_zone_changed BEFORE UPDATE ON clinic
    FOR EACH ROW WHEN (OLD.time_zone <> NEW.time_zone) EXECUTE FUNCTION clinic_zone_changed();
ALTER TABLE clinic ENABLE ALWAYS TRIGGER clinic_zone_changed;

-- An agenda that moves to another clinic takes its offer along; slots already removed stay where they were offered.
CREATE FUNCTION agenda_moved() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    LOCK TABLE slot IN SHARE ROW EXCLUSIVE MODE;
    INSERT INTO statistic_change (topic, clinic_id) VALUES ('offer', OLD.clinic_id), ('offer', NEW.clinic_id);
    RETURN NEW;
END $$;
CREATE TRIGGER agenda_moved BEFORE UPDATE ON agenda
    FOR EACH ROW WHEN (OLD.clinic_id <> NEW.clinic_id) EXECUTE FUNCTION agenda_moved();
ALTER TABLE agenda ENABLE ALWAYS TRIGGER agenda_moved;
"""


def watch(table: str, function: str) -> str:
    """Statement-level triggers of ``function`` on every way to write ``table``."""
    old, new = "OLD TABLE AS old_rows", "NEW TABLE AS new_rows"
    ways = (
        ("insert", f"REFERENCING {new}"),
        ("update", f"REFERENCING {old} {new}"),
        ("delete", f"REFERENCING {old}"),
        ("truncate", ""),
    )
    return "".join(
        f"CREATE TRIGGER {function}_{way} AFTER {way} ON {table} {rows}"
        f" FOR EACH STATEMENT EXECUTE FUNCTION {function}();\n"
        f"ALTER TABLE {table} ENABLE ALWAYS TRIGGER {function}_{way};\n"
        for way, rows in ways
    )


STATISTICS = """
-- One row per combination that occurs; rates, lead times, revenue and occupancy are read from it.
CREATE TABLE statistic_appointment (
    clinic_id      bigint NOT NULL,
    day            date NOT NULL,              -- local, of the start
    agenda_id      bigint,
    specialist_id  bigint,
    service_id     bigint NOT NULL,
    agreement_id   bigint,                     -- null: private
    channel        text NOT NULL,
    status         text NOT NULL,
    appointments   bigint NOT NULL,
    minutes        bigint NOT NULL,
    quoted         numeric NOT NULL,           -- EUR
    priced         bigint NOT NULL,            -- how many of them have a price
    lead_known     bigint NOT NULL,            -- how many were created before their start
    lead_minutes   bigint NOT NULL,            -- their sum
    within_7_days  bigint NOT NULL,
    within_30_days bigint NOT NULL
);
CREATE INDEX statistic_appointment_cell ON statistic_appointment (clinic_id, day);

CREATE TABLE statistic_offer (
    clinic_id bigint NOT NULL,
    day       date NOT NULL,
    agenda_id bigint NOT NULL,
    slots     bigint NOT NULL,
    minutes   bigint NOT NULL,                 -- capacity times length
    PRIMARY KEY (clinic_id, day, agenda_id)
);

CREATE TABLE statistic_funnel (
    clinic_id bigint NOT NULL,
    day       date NOT NULL,                   -- local, of the creation
    held      bigint NOT NULL,
    booked    bigint NOT NULL,
    verified  bigint NOT NULL,
    confirmed bigint NOT NULL,
    PRIMARY KEY (clinic_id, day)
);

CREATE TABLE statistic_message (
    clinic_id bigint NOT NULL,
    day       date NOT NULL,                   -- local, of the planning
    kind      text NOT NULL,
    channel   text,                            -- null while none is chosen
    state     text NOT NULL,
    messages  bigint NOT NULL
);
CREATE INDEX statistic_message_cell ON statistic_message (clinic_id, day);

CREATE TABLE statistic_report (
    clinic_id     bigint NOT NULL,
    day           date NOT NULL,               -- local, of the publication
    reports       bigint NOT NULL,
    withdrawn     bigint NOT NULL,
    timed         bigint NOT NULL,             -- published after the end of the visit that they belong to
    minutes       bigint NOT NULL,             -- their sum, from that end
    within_1_day  bigint NOT NULL,
    within_3_days bigint NOT NULL,
    PRIMARY KEY (clinic_id, day)
);

CREATE VIEW statistic_attendance AS
SELECT clinic_id, day, specialist_id, service_id, channel,
       sum(appointments) FILTER (WHERE status = 'no_show') AS no_shows,
       sum(appointments) FILTER (WHERE status IN ('no_show', 'accepted', 'completed')) AS due,
       sum(appointments) FILTER (WHERE status = 'cancelled') AS cancellations,
       sum(appointments) FILTER (WHERE status NOT IN ('unverified', 'expired')) AS made
FROM statistic_appointment
GROUP BY clinic_id, day, specialist_id, service_id, channel;

CREATE VIEW statistic_lead_time AS
SELECT clinic_id, day, specialist_id, service_id, channel, sum(lead_known) AS appointments,
       sum(lead_minutes) AS lead_minutes, sum(within_7_days) AS within_7_days, sum(within_30_days) AS within_30_days
FROM statistic_appointment
WHERE status NOT IN ('unverified', 'expired')
GROUP BY clinic_id, day, specialist_id, service_id, channel;

CREATE VIEW statistic_revenue AS
SELECT clinic_id, day, agreement_id,
       sum(appointments) FILTER (WHERE status IN ('booked', 'accepted', 'completed')) AS booked_appointments,
       coalesce(sum(quoted) FILTER (WHERE status IN ('booked', 'accepted', 'completed')), 0) AS booked,
       sum(appointments) FILTER (WHERE status IN ('accepted', 'completed')) AS accepted_appointments,
       coalesce(sum(quoted) FILTER (WHERE status IN ('accepted', 'completed')), 0) AS accepted,
       sum(appointments - priced) FILTER (WHERE status IN ('booked', 'accepted', 'completed')) AS unpriced
FROM statistic_appointment
GROUP BY clinic_id, day, agreement_id;

CREATE VIEW statistic_occupancy AS
SELECT clinic_id, day, agenda_id, coalesce(b.minutes, 0) AS booked_minutes, coalesce(o.minutes, 0) AS offered_minutes
FROM (SELECT clinic_id, day, agenda_id, sum(minutes) AS minutes
      FROM statistic_appointment
      WHERE agenda_id IS NOT NULL AND status IN ('booked', 'accepted', 'completed', 'no_show')
      GROUP BY clinic_id, day, agenda_id) b
FULL JOIN statistic_offer o USING (clinic_id, day, agenda_id);

-- One row a topic: when it was last refreshed, and the newest change that it holds.
CREATE TABLE statistic_publication (
    topic        text PRIMARY KEY,
    refreshed_at timestamptz NOT NULL,
    watermark    timestamptz,
    whole        boolean NOT NULL,             -- whether it was a full recompute
    cells        bigint NOT NULL,              -- recomputed by that refresh
    moved        bigint NOT NULL,              -- of them, those whose numbers changed
    stored       bigint NOT NULL,              -- rows of the topic
    days         bigint NOT NULL               -- cells that have any
);

-- Every comparison of the stored numbers with numbers counted afresh.
CREATE TABLE statistic_comparison (
    id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    business_date date NOT NULL,
    whole         boolean NOT NULL,
    cells         bigint NOT NULL,
    drifted       bigint NOT NULL,
    compared_at   timestamptz NOT NULL
);
CREATE INDEX statistic_comparison_whole ON statistic_comparison (business_date) WHERE whole;
"""

CACHES = """
CREATE TABLE cache_change (
    id        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    clinic_id bigint NOT NULL
);

CREATE TABLE cache_version (
    clinic_id  bigint NOT NULL REFERENCES clinic ON DELETE CASCADE,
    kind       text NOT NULL CHECK (kind IN ('specialists', 'locations')),
    version    integer NOT NULL CHECK (version > 0),
    generation integer NOT NULL CHECK (generation > 0),   -- one more at every clearing
    etag       text NOT NULL,
    body       bytea NOT NULL,                 -- JSON, UTF-8
    zipped     bytea NOT NULL,                 -- the same, gzip
    items      integer NOT NULL,
    stale_on   date,                           -- the local day from which time alone changes the content
    built_at   timestamptz NOT NULL,
    PRIMARY KEY (clinic_id, kind, version)
);

-- Which version is served: switching is one update.
CREATE TABLE cache_current (
    clinic_id bigint NOT NULL,
    kind      text NOT NULL,
    version   integer NOT NULL,
    PRIMARY KEY (clinic_id, kind),
    FOREIGN KEY (clinic_id, kind, version) REFERENCES cache_version ON DELETE CASCADE
);

CREATE FUNCTION cache_source_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'TRUNCATE' THEN
        INSERT INTO cache_change (clinic_id) SELECT id FROM clinic;
        RETURN NULL;
    END IF;
    IF TG_OP = 'INSERT' THEN
        INSERT INTO cache_change (clinic_id)
        SELECT DISTINCT CAST(coalesce(r ->> 'clinic_id', r ->> 'id') AS bigint)
        FROM (SELECT to_jsonb(n) FROM new_rows n) t (r);
    ELSIF TG_OP = 'DELETE' THEN
        INSERT INTO cache_change (clinic_id)
        SELECT DISTINCT CAST(coalesce(r ->> 'clinic_id', r ->> 'id') AS bigint)
        FROM (SELECT to_jsonb(o) FROM old_rows o) t (r);
    ELSE
        INSERT INTO cache_change (clinic_id)
        WITH before AS (SELECT to_jsonb(o) - 'updated_at' AS r FROM old_rows o),
        after AS (SELECT to_jsonb(n) - 'updated_at' AS r FROM new_rows n)
        SELECT DISTINCT CAST(coalesce(r ->> 'clinic_id', r ->> 'id') AS bigint)
        FROM ((TABLE before EXCEPT ALL TABLE after) UNION ALL (TABLE after EXCEPT ALL TABLE before)) m;
    END IF;
    RETURN NULL;
END $$;

CREATE FUNCTION cache_municipality_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO cache_change (clinic_id) SELECT DISTINCT clinic_id FROM location WHERE municipality_code IS NOT NULL;
    RETURN NULL;
END $$;
CREATE TRIGGER cache_municipality_changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON municipality
    FOR EACH STATEMENT EXECUTE FUNCTION cache_municipality_changed();
ALTER TABLE municipality ENABLE ALWAYS TRIGGER cache_municipality_changed;
"""

CACHE_SOURCES = ("clinic", "location", "specialist", "agenda", "service", "agenda_service")


def upgrade() -> None:
    for ddl in (CHANGE_LOG, CHANGE_TRIGGERS, STATISTICS, CACHES):
        op.execute(ddl)
    for table in ("appointment", "slot", "hold", "message", "message_ledger", "report"):
        op.execute(watch(table, f"{table}_changed"))
    for table in CACHE_SOURCES:
        op.execute(watch(table, "cache_source_changed"))
