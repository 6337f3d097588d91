"""What moves together is judged together: at the end of a statement, not row by row.

A price's interval may grow into the place of one that shrinks, and two services may swap their codes, whichever row of
the UPDATE comes first.

Revision ID: 0013
"""

from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

INTERVALS = """
ALTER TABLE price
    DROP CONSTRAINT price_int8range_int8range1_int8range2_daterange_excl,
    ADD CONSTRAINT price_no_overlap EXCLUDE USING gist (
        int8range(service_id, service_id, '[]') WITH &&,
        int8range(coalesce(agreement_id, 0), coalesce(agreement_id, 0), '[]') WITH &&,
        int8range(coalesce(specialist_id, 0), coalesce(specialist_id, 0), '[]') WITH &&,
        daterange(valid_from, valid_to) WITH &&) DEFERRABLE;

ALTER TABLE municipality
    DROP CONSTRAINT municipality_int8range_daterange_excl,
    ADD CONSTRAINT municipality_no_overlap EXCLUDE USING gist (
        int8range(cadastral_number(cadastral_code), cadastral_number(cadastral_code), '[]') WITH &&,
        daterange(valid_from, valid_to) WITH &&) DEFERRABLE;
"""

CODES = """
DROP INDEX service_code_in_use;
ALTER TABLE service ADD CONSTRAINT service_code_in_use
    EXCLUDE USING btree (clinic_id WITH =, code WITH =) WHERE (deleted_at IS NULL) DEFERRABLE;
"""


def upgrade() -> None:
    op.execute(INTERVALS)
    op.execute(CODES)
