"""The word that the phrase of a dangerous plan holds, and how often it was typed wrongly.

Revision ID: 0027
"""

from alembic import op

revision = "0027"
down_revision = "0026"
branch_labels = None
depends_on = None

WORD = """
CREATE TABLE press_word (
    plan_id bigint PRIMARY KEY REFERENCES plan ON DELETE CASCADE,
    word    text NOT NULL CHECK (word ~ '^[a-z]{6}$'),
    wrong   smallint NOT NULL DEFAULT 0 CHECK (wrong BETWEEN 0 AND 3)
);
"""


def upgrade() -> None:
    op.execute(WORD)
