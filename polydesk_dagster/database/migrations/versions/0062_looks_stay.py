"""Who saw whom is not changed, and not taken away within 24 months.

Revision ID: 0062
"""

from alembic import op

revision = "0062"
down_revision = "0061"
branch_labels = None
depends_on = None

STAYS = """
CREATE FUNCTION patient_look_stays() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' AND OLD.at < now() - interval '24 months' THEN
        RETURN OLD;
    END IF;
    RAISE EXCEPTION 'who saw whom is kept for 24 months' USING ERRCODE = 'insufficient_privilege';
END $$;
CREATE TRIGGER patient_look_stays BEFORE UPDATE OR DELETE ON patient_look
    FOR EACH ROW EXECUTE FUNCTION patient_look_stays();
"""


def upgrade() -> None:
    op.execute(STAYS)


def downgrade() -> None:
    op.execute("DROP TRIGGER patient_look_stays ON patient_look")
    op.execute("DROP FUNCTION patient_look_stays()")
