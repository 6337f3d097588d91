"""What people call an examination beside what its documents call it; a clinic adds its own.

Revision ID: 0035
"""

from alembic import op

revision = "0035"
down_revision = "0034"
branch_labels = None
depends_on = None

LAY_WORDS = """
CREATE TABLE knowledge_lay_word (
    lay      text NOT NULL CHECK (lay <> ''),                      -- folded words, apart by a space
    clinical text NOT NULL CHECK (clinical <> ''),                 -- likewise; one of what it may be called
    PRIMARY KEY (lay, clinical)
);
INSERT INTO knowledge_lay_word (lay, clinical)
SELECT lay, unnest(string_to_array(clinical, ', ')) FROM (VALUES
    ('favismo', 'g6pd, g6pdh, glucosio 6 fosfato deidrogenasi'),
    ('vitamina b9', 'folati, acido folico'), ('vitamina b12', 'cobalamina'), ('vitamina c', 'acido ascorbico'),
    ('vitamina d', 'calcifediolo, 25 oh'), ('transaminasi', 'alt, ast, got, gpt, aminotransferasi'),
    ('antidiuretico', 'adh, vasopressina'), ('ormone della crescita', 'gh, somatotropo'), ('glicemia', 'glucosio'),
    ('zuccheri', 'glicemia, glucosio'), ('zucchero nel sangue', 'glicemia, glucosio'), ('azotemia', 'urea'),
    ('colesterolo buono', 'hdl'), ('colesterolo cattivo', 'ldl'), ('emocromo', 'emocromocitometrico'),
    ('tiroide', 'tsh, ft4, ft3'), ('ves', 'eritrosedimentazione'),
    ('test di gravidanza', 'hcg, gonadotropina corionica'),
    ('coagulazione', 'protrombina, inr, ptt'), ('ferro nel sangue', 'sideremia'), ('ferro', 'sideremia'),
    ('tac', 'tomografia computerizzata, tc'), ('ecg', 'elettrocardiogramma'), ('elettrocardiogramma', 'ecg'),
    ('lastra', 'radiografia'), ('raggi', 'radiografia'), ('moc', 'densitometria'), ('pap test', 'citologia cervicale'),
    ('mal di testa', 'cefalea'), ('esami del sangue', 'prelievo, esami ematochimici'), ('analisi', 'esami, prelievo')
) AS v (lay, clinical);
"""


def upgrade() -> None:
    op.execute(LAY_WORDS)
