"""Two spellings of a name meet whatever its accents are, and where ä, ö, ü and ß are written out.

Revision ID: 0021
"""

from alembic import op

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None

# Decomposed, an accent is a character of its own; of letters that have no decomposition, those of Europe's names.
ACCENTS = "".join(map(chr, range(0x300, 0x370)))

NAME_KEY = f"""
CREATE OR REPLACE FUNCTION name_key(name text) RETURNS text LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN replace(replace(replace(replace(replace(
    translate(normalize(lower(name), NFKD), 'łđðøþı''’`´-. {ACCENTS}', 'lddoti'),
    'ß', 'ss'), 'æ', 'ae'), 'ae', 'a'), 'oe', 'o'), 'ue', 'u');
"""


def upgrade() -> None:
    op.execute(NAME_KEY)
