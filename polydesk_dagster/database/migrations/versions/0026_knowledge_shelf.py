"""What a reading left out, whose a document is, and since when its answers are of an earlier version.

Revision ID: 0026
"""

from alembic import op

revision = "0026"
down_revision = "0025"
branch_labels = None
depends_on = None

READING = """
ALTER TABLE document
    ADD COLUMN losses        jsonb NOT NULL DEFAULT '[]',          -- [code, count, [page, …]] of what was not read
    ADD COLUMN reason_values jsonb NOT NULL DEFAULT '{}',          -- of reason_code; ``reason`` is no longer written
    ADD COLUMN stale_since   timestamptz,                          -- what answers is an earlier version of the file
    ADD COLUMN names         tsvector NOT NULL DEFAULT '',         -- words of the file's name and the title
    DROP CONSTRAINT document_state_check,
    ADD CONSTRAINT document_state_check
        CHECK (state IN ('waiting', 'indexed', 'partial', 'retrying', 'quarantined', 'gone'));
CREATE INDEX document_names ON document USING gin (names);
ALTER TABLE knowledge_content ADD COLUMN losses jsonb NOT NULL DEFAULT '[]';
"""

SCOPE = """
-- folder: as the first folder of its path says; person: as somebody set it, whatever the path;
-- nobody: the folder is no clinic's and nobody has said whose it is.
ALTER TABLE document
    ADD COLUMN scoped_by text NOT NULL DEFAULT 'person' CHECK (scoped_by IN ('folder', 'person', 'nobody')),
    ADD CONSTRAINT document_nobodys CHECK (scoped_by <> 'nobody' OR clinic_id IS NULL);
UPDATE document d SET scoped_by = 'folder'
WHERE d.clinic_id IS NULL OR EXISTS (
    SELECT FROM clinic c WHERE c.id = d.clinic_id AND lower(trim(split_part(d.path, '/', 1))) = lower(c.code));
UPDATE document d SET path = normalize(d.path, NFC)
WHERE d.path IS NOT NFC NORMALIZED
  AND NOT EXISTS (SELECT FROM document o WHERE o.path = normalize(d.path, NFC));

-- What somebody said of a first folder that bears no clinic's code; by its folded name.
CREATE TABLE knowledge_folder (
    name      text PRIMARY KEY CHECK (name <> ''),
    clinic_id bigint REFERENCES clinic,                            -- null: the whole chain
    said_by   text NOT NULL,
    said_at   timestamptz NOT NULL,
    reason    text NOT NULL
);

DROP INDEX document_not_always_visible;
CREATE INDEX document_not_always_visible ON document (id)
    WHERE retracted_at IS NOT NULL OR valid_from IS NOT NULL OR valid_to IS NOT NULL OR state = 'gone'
       OR scoped_by = 'nobody';
CREATE INDEX document_content ON document (sha256);
CREATE OR REPLACE FUNCTION document_visible(d document, on_date date, at_instant timestamptz) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN (d.retracted_at IS NULL OR d.retracted_at > at_instant) AND d.state <> 'gone' AND d.scoped_by <> 'nobody'
       AND (d.valid_from IS NULL OR d.valid_from <= on_date) AND (d.valid_to IS NULL OR d.valid_to > on_date);
"""


def upgrade() -> None:
    op.execute(READING)
    op.execute(SCOPE)
