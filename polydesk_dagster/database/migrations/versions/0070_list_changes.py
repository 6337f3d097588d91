"""Whether ours has moved since a list was last read is a number that every write adds to, instead of a count of rows.

Revision ID: 0070
"""

from alembic import op

revision = "0070"
down_revision = "0069"
branch_labels = None
depends_on = None

CHANGES = """
-- How often the records that sources' lists are compared with were written: the sum of ``times``. A statement adds a
-- row for each clinic that it touches, so that no writer waits for another; whoever notes the sum folds what has been.
CREATE TABLE list_change (
    record    text NOT NULL,                             -- the table
    clinic_id bigint NOT NULL,                           -- 0: of all clinics, or of none
    times     bigint NOT NULL DEFAULT 1,
    written   xid8 DEFAULT pg_current_xact_id(),         -- null: folded
    began     timestamptz DEFAULT transaction_timestamp()  -- a restored copy may meet a transaction's number again
);
CREATE INDEX list_change_of ON list_change (clinic_id, record);

CREATE FUNCTION list_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO list_change (record, clinic_id) SELECT DISTINCT TG_TABLE_NAME, clinic_id FROM new_rows;
    ELSIF TG_OP = 'DELETE' THEN
        INSERT INTO list_change (record, clinic_id) SELECT DISTINCT TG_TABLE_NAME, clinic_id FROM old_rows;
    ELSE
        INSERT INTO list_change (record, clinic_id)
        SELECT TG_TABLE_NAME, clinic_id
        FROM (SELECT DISTINCT clinic_id FROM new_rows UNION SELECT DISTINCT clinic_id FROM old_rows) r;
    END IF;
    RETURN NULL;
END $$;

CREATE FUNCTION list_changed_for_all() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO list_change (record, clinic_id) VALUES (TG_TABLE_NAME, 0);
    RETURN NULL;
END $$;

-- How often some tables' rows of a clinic (0: the chain) were written; what the caller's own transaction wrote of it.
CREATE FUNCTION list_changes(of_clinic bigint, tables text[], OUT times bigint, OUT own bigint)
LANGUAGE sql STABLE AS $$
    SELECT coalesce(sum(c.times), 0),
           coalesce(sum(c.times) FILTER (WHERE c.written = pg_current_xact_id_if_assigned()
                                           AND c.began = transaction_timestamp()), 0)
    FROM list_change c WHERE c.clinic_id IN (of_clinic, 0) AND c.record = ANY(tables)
$$;
"""

OF_A_CLINIC = ("price", "service", "agreement", "specialist", "patient_link", "patient_review")
WAYS = {
    "INSERT": "NEW TABLE AS new_rows",
    "UPDATE": "OLD TABLE AS old_rows NEW TABLE AS new_rows",
    "DELETE": "OLD TABLE AS old_rows",
}


def upgrade() -> None:
    op.execute(CHANGES)
    for table in OF_A_CLINIC:
        for way, rows in WAYS.items():
            _watch(table, f"list_changed_{way.lower()}", f"{way} ON {table} REFERENCING {rows}", "list_changed")
        _watch(table, "list_changed_truncate", f"TRUNCATE ON {table}", "list_changed_for_all")
    every = "INSERT OR UPDATE OR DELETE OR TRUNCATE ON municipality"
    _watch("municipality", "list_changed", every, "list_changed_for_all")


def _watch(table: str, name: str, when: str, function: str) -> None:
    op.execute(f"CREATE TRIGGER {name} AFTER {when} FOR EACH STATEMENT EXECUTE FUNCTION {function}()")
    op.execute(f"ALTER TABLE {table} ENABLE ALWAYS TRIGGER {name}")


def downgrade() -> None:
    op.execute("DROP FUNCTION list_changed() CASCADE")
    op.execute("DROP FUNCTION list_changed_for_all() CASCADE")
    op.execute("DROP FUNCTION list_changes(bigint, text[])")
    op.execute("DROP TABLE list_change")
