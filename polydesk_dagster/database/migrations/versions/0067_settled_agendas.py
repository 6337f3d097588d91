"""Generation knows which agendas have not changed since it last looked at each of their days.

Revision ID: 0067
"""

from alembic import op

revision = "0067"
down_revision = "0066"
branch_labels = None
depends_on = None

STATE = """
ALTER TABLE agenda_state
    ADD COLUMN settled_digest bigint,        -- of what the agenda's days follow from; null: look at all of them again
    ADD COLUMN settled_at     timestamptz,   -- the instant that the run worked at
    ADD COLUMN settled_slots  integer,       -- of its days up to derived_through, those that began after that
    ADD COLUMN whole_at       timestamptz,   -- when all of its days were last looked at
    ADD CHECK (num_nulls(settled_digest, settled_at, settled_slots, whole_at) IN (0, 4));
"""

TOUCHED = """
-- Whoever writes slots says of which agendas; generation takes away what it has seen. No key to the agenda: who is gone
-- is nobody's concern.
CREATE TABLE agenda_touched (
    agenda_id bigint NOT NULL,
    latest    timestamptz NOT NULL,   -- start of the latest slot that was touched
    written   xid8 NOT NULL DEFAULT pg_current_xact_id()
);
CREATE INDEX agenda_touched_agenda ON agenda_touched (agenda_id);

CREATE FUNCTION slots_touched() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' THEN
        INSERT INTO agenda_touched (agenda_id, latest)
        SELECT agenda_id, max(starts_at) FROM old_rows GROUP BY agenda_id;
    ELSE
        INSERT INTO agenda_touched (agenda_id, latest)
        SELECT agenda_id, max(starts_at) FROM new_rows GROUP BY agenda_id;
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER slots_touched_insert AFTER INSERT ON slot REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION slots_touched();
CREATE TRIGGER slots_touched_update AFTER UPDATE ON slot REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION slots_touched();
CREATE TRIGGER slots_touched_delete AFTER DELETE ON slot REFERENCING OLD TABLE AS old_rows
    FOR EACH STATEMENT EXECUTE FUNCTION slots_touched();
"""

NEIGHBOURS = """
-- A few slots of a few agendas look at those agendas' neighbours by index, agenda by agenda: joined as a set, of which
-- nothing is known, they had all slots of the table read.
CREATE OR REPLACE FUNCTION slot_no_overlap() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE bad record;
BEGIN
    PERFORM FROM agenda WHERE id IN (SELECT agenda_id FROM touched WHERE state <> 'retired')
    ORDER BY id FOR NO KEY UPDATE;
    SELECT t.agenda_id, w.starts_at, w.following INTO bad
    FROM (SELECT agenda_id, min(starts_at) AS first, max(ends_at) AS last
          FROM touched WHERE state <> 'retired' GROUP BY agenda_id) t
    CROSS JOIN LATERAL (
        SELECT s.starts_at, s.ends_at, lead(s.starts_at) OVER (ORDER BY s.starts_at) AS following
        FROM slot s
        WHERE s.agenda_id = t.agenda_id AND s.state <> 'retired'
          AND s.starts_at > t.first - interval '8 hours' AND s.starts_at < t.last) w
    WHERE w.following < w.ends_at
    LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'slots of agenda % overlap: % and %', bad.agenda_id, bad.starts_at, bad.following
            USING ERRCODE = 'exclusion_violation', TABLE = 'slot', CONSTRAINT = 'slot_no_overlap';
    END IF;
    RETURN NULL;
END $$;
"""

CLOSURES = """
CREATE INDEX closure_clinic ON closure (clinic_id) WHERE clinic_id IS NOT NULL;
CREATE INDEX closure_agenda ON closure (agenda_id) WHERE agenda_id IS NOT NULL;
CREATE INDEX closure_of_many ON closure (layer) WHERE clinic_id IS NULL AND agenda_id IS NULL;
"""


def upgrade() -> None:
    for ddl in (STATE, TOUCHED, NEIGHBOURS, CLOSURES):
        op.execute(ddl)


def downgrade() -> None:
    op.execute("DROP INDEX closure_of_many, closure_agenda, closure_clinic")
    op.execute("DROP TRIGGER slots_touched_delete ON slot")
    op.execute("DROP TRIGGER slots_touched_update ON slot")
    op.execute("DROP TRIGGER slots_touched_insert ON slot")
    op.execute("DROP FUNCTION slots_touched")
    op.execute("DROP TABLE agenda_touched")
    op.execute("""ALTER TABLE agenda_state DROP COLUMN settled_digest, DROP COLUMN settled_at,
                  DROP COLUMN settled_slots, DROP COLUMN whole_at""")
