"""One source for what belongs to the whole chain, names that a municipality had, places that became others, and
provisional tax codes.

Revision ID: 0057
"""

from alembic import op

revision = "0057"
down_revision = "0056"
branch_labels = None
depends_on = None

AUTHORITY = """
-- Where a list that belongs to no clinic comes from: one place only, or two would rewrite it back and forth.
CREATE TABLE chain_source (
    list      text PRIMARY KEY,
    clinic_id bigint REFERENCES clinic,            -- whose integration it is; null: a source of its own
    vendor    text,
    settings  jsonb,
    pinned_at timestamptz NOT NULL,
    pinned_by text NOT NULL CHECK (pinned_by <> ''),
    CHECK (num_nonnulls(clinic_id, vendor) = 1),
    CHECK ((vendor IS NULL) = (settings IS NULL))
);
"""

PLACES = """
ALTER TABLE municipality ADD COLUMN former_names text[] NOT NULL DEFAULT '{}';  -- none of them comes back by itself

-- The municipality that a place belongs to today: who took it over, and who took over that one.
CREATE FUNCTION place_now(place text) RETURNS text LANGUAGE sql STABLE PARALLEL SAFE AS $$
    WITH RECURSIVE way AS (
        SELECT place AS code, 0 AS hop
        UNION ALL
        SELECT m.successor, hop + 1 FROM way JOIN municipality m ON m.cadastral_code = way.code
        WHERE m.successor IS NOT NULL AND m.valid_to IS NOT NULL AND hop < 10)
    SELECT code FROM way ORDER BY hop DESC LIMIT 1 $$;
"""

# Eleven digits, given at birth or at the border until the real one is there.
PROVISIONAL = """
ALTER TABLE patient DROP CONSTRAINT patient_fiscal_code_kind_check,
    ADD CONSTRAINT patient_fiscal_code_kind_check CHECK (fiscal_code_kind IN ('CF', 'STP', 'ENI', 'PRV')) NOT VALID;
ALTER TABLE patient VALIDATE CONSTRAINT patient_fiscal_code_kind_check;
"""


def upgrade() -> None:
    op.execute(AUTHORITY)
    op.execute(PLACES)
    op.execute(PROVISIONAL)
