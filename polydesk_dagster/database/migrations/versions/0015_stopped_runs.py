"""Runs that a guard stopped in part, found every minute by whoever tells the operator.

Revision ID: 0015
"""

from alembic import op

revision = "0015"
down_revision = "0013"
branch_labels = None
depends_on = None

STOPPED = """
CREATE INDEX service_run_stopped ON service_run (started_at)
    WHERE outcome = 'partial' AND NOT preview AND reasons @> '[{"code": "guard"}]';
"""


def upgrade() -> None:
    op.execute(STOPPED)
