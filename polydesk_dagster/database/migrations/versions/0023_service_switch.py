"""Who let each service work by itself, who keeps it waiting, why and until when; and a quick way to its last runs.

Revision ID: 0023
"""

from alembic import op

revision = "0023"
down_revision = "0022"
branch_labels = None
depends_on = None

SWITCHES = """
-- What people said of each service, the newest line being what holds; no line: as the installation starts.
CREATE TABLE service_switch (
    id      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    service text NOT NULL,
    action  text NOT NULL CHECK (action IN ('go_live', 'pause', 'resume')),
    at      timestamptz NOT NULL,
    until   timestamptz,                       -- when a pause ends by itself
    actor   text NOT NULL CHECK (btrim(actor) <> ''),
    reason  text NOT NULL CHECK (btrim(reason) <> ''),
    CHECK ((action = 'pause') = (until IS NOT NULL)),
    CHECK (until > at)
);
CREATE INDEX service_switch_latest ON service_switch (service, id DESC);

CREATE FUNCTION service_switch_is_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'what was said of a service is append-only' USING ERRCODE = 'insufficient_privilege';
END $$;
CREATE TRIGGER service_switch_is_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON service_switch
    FOR EACH STATEMENT EXECUTE FUNCTION service_switch_is_append_only();

CREATE INDEX service_run_last ON service_run (service, clinic_id, started_at DESC, id DESC);
"""


def upgrade() -> None:
    op.execute(SWITCHES)
