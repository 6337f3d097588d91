"""Who answers slowly is asked for news less often; which plans wait is found without reading those that do not.

Revision ID: 0068
"""

from alembic import op

revision = "0068"
down_revision = "0067"
branch_labels = None
depends_on = None

PACE = """
ALTER TABLE event_cursor
    ADD COLUMN slowed smallint NOT NULL DEFAULT 1 CHECK (slowed IN (1, 2, 4));   -- minutes between two looks, at least
"""

WAITING = "CREATE INDEX plan_ready ON plan (service, clinic_id) WHERE state = 'ready' AND undoes IS NULL"


def upgrade() -> None:
    for ddl in (PACE, WAITING):
        op.execute(ddl)


def downgrade() -> None:
    op.execute("DROP INDEX plan_ready")
    op.execute("ALTER TABLE event_cursor DROP COLUMN slowed")
