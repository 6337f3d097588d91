"""What answers of an earlier version of a file, taken over into a new generation while today's waits for a person: a
price that was right yesterday answers as yesterday's, and says so, rather than not at all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import sqlalchemy as sa

from polydesk_dagster.errors import PermanentError
from polydesk_dagster.knowledge import contents, intake
from polydesk_dagster.knowledge.contents import Content, losses_of
from polydesk_dagster.knowledge.generations import Generation
from polydesk_dagster.knowledge.library import File
from polydesk_dagster.knowledge.screening import objections
from polydesk_dagster.knowledge.splitting import Passage
from polydesk_dagster.knowledge.store import Row
from polydesk_dagster.knowledge.work import Work

LEFT_BEHIND = sa.text("""
    SELECT d.id AS document, e.key, e.fingerprint, e.sha256, document_scope(d) AS scope, d.clinic_id,
           role_rank(d.audience) AS audience, d.valid_from, d.valid_to, k.title, k.losses, g.revision,
           e.sha256 IS NOT DISTINCT FROM d.cleared_sha256 AS cleared
    FROM knowledge_entry e
    JOIN knowledge_generation g ON g.id = e.generation_id
    JOIN knowledge_content k ON k.generation_id = g.id AND k.key = e.key AND k.state = 'ready'
    JOIN document d ON d.id = e.document_id
    WHERE g.id = :current AND d.path = ANY(:paths) AND (d.retracted_at IS NULL OR d.retracted_at > :as_of)
      AND d.state IN ('quarantined', 'retrying')
      AND (e.sha256 IS DISTINCT FROM d.sha256 OR d.reason_code NOT IN ('personal_data', 'instructions'))
      AND NOT EXISTS (SELECT FROM knowledge_entry n WHERE n.generation_id = :building AND n.document_id = d.id)
    ORDER BY d.id
""")
"""Documents that could not be read anew; what is held back of the very version that answered is no longer given."""

ENTRY = ("document", "key", "fingerprint", "sha256", "scope")


def carry(work: Work, building: Generation, current: Generation, files: Mapping[str, File]) -> Counter[str]:
    """Take over what these documents answer with, looked through as what is read today is; in how many passages each
    word stands. Nothing, where the index before cannot be read."""
    with work.engine.begin() as connection:
        rows = connection.execute(
            LEFT_BEHIND,
            {"current": current.id, "building": building.id, "paths": list(files), "as_of": work.as_of},
        ).all()
        ready = contents.ready(connection, building.id)
    batch = intake.Batch()
    for row in rows:
        if row.key not in ready and row.key not in batch.contents:
            try:
                hits = work.store.of_content(current.id, row.revision, row.key)
            except PermanentError:
                continue
            found = [Passage(hit.text, hit.headings, hit.page, hit.place) for hit in hits]
            if not row.cleared:
                objected = objections(["\n".join([*passage.headings, passage.text]) for passage in found])
                found = [passage for passage, each in zip(found, objected, strict=True) if each is None]
            if not found:
                continue
            batch.contents[row.key] = Content(row.title, len(found), losses_of(row.losses))
            batch.rows += [
                Row(row.key, number, passage, row.clinic_id, row.audience, row.valid_from, row.valid_to)
                for number, passage in enumerate(found)
            ]
        batch.as_before.append({name: getattr(row, name) for name in ENTRY})
    return intake.flush(work, building, batch) if batch.as_before else Counter()
