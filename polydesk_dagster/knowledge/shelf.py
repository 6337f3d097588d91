"""The shelf as a person sees it: what state each document is in and why, whose it is, and what she decides about it.

Whatever is decided here takes effect in answers at once, is audited, and outlasts the file's name.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

import sqlalchemy as sa

from polydesk_dagster.changes import audit
from polydesk_dagster.errors import PermanentError
from polydesk_dagster.knowledge.library import Library
from polydesk_dagster.knowledge.shelving import FOLDER
from polydesk_dagster.knowledge.store import Hit, Store
from polydesk_dagster.knowledge.text import words
from polydesk_dagster.knowledge.work import why
from polydesk_dagster.values import Reason

SERVICE = "index_knowledge"

DOCUMENTS = sa.text("""
    SELECT d.path, coalesce(d.title, k.title) AS title, c.code AS clinic, d.scoped_by, d.audience, d.valid_from,
           d.valid_to, d.retracted_at, d.state, CASE WHEN e.key IS NOT NULL THEN d.stale_since END AS stale_since,
           d.changed_at, d.reason_code, d.reason_values, d.losses, coalesce(k.passages, 0) AS passages, k.key
    FROM document d
    LEFT JOIN clinic c ON c.id = d.clinic_id
    LEFT JOIN knowledge_generation g ON g.state = 'current'
    LEFT JOIN knowledge_entry e ON e.document_id = d.id AND e.generation_id = g.id
    LEFT JOIN knowledge_content k ON k.generation_id = g.id AND k.key = e.key
    WHERE (CAST(:path AS text) IS NULL OR d.path = :path)
      AND (NOT :waiting OR d.state IN ('quarantined', 'partial') OR (d.scoped_by = 'nobody' AND d.state <> 'gone'))
      AND (d.state <> 'gone' OR d.path = :path)
    ORDER BY d.path
""")

NARROW_COPIES = sa.text("""
    WITH narrowed AS (
        SELECT c.id, coalesce(c.clinic_id, t.clinic_id) AS clinic_id,
               CASE WHEN role_rank(t.audience) > role_rank(c.audience) THEN t.audience ELSE c.audience END AS audience,
               greatest(c.valid_from, t.valid_from) AS valid_from, least(c.valid_to, t.valid_to) AS valid_to
        FROM document t
        JOIN document c ON c.sha256 = t.sha256 AND c.id <> t.id
                       AND (c.clinic_id IS NULL OR t.clinic_id IS NULL OR c.clinic_id = t.clinic_id)
        WHERE t.path = :path)
    UPDATE document d
    SET clinic_id = n.clinic_id, audience = n.audience, valid_from = n.valid_from,
        valid_to = CASE WHEN n.valid_to > n.valid_from OR n.valid_from IS NULL THEN n.valid_to
                        WHEN n.valid_to IS NULL THEN NULL ELSE n.valid_from + 1 END,
        scoped_by = CASE WHEN d.clinic_id IS DISTINCT FROM n.clinic_id THEN 'person' ELSE d.scoped_by END
    FROM narrowed n
    WHERE d.id = n.id AND (d.clinic_id, d.audience, d.valid_from, d.valid_to)
                          IS DISTINCT FROM (n.clinic_id, n.audience, n.valid_from, n.valid_to)
    RETURNING d.path
""")
"""Who may read the copies of a document's content is no wider than who may read it; another clinic's is its own."""


@dataclass(frozen=True, slots=True)
class Shelved:
    """A document, who may be given it, and how its reading went."""

    path: str
    title: str | None
    clinic: str | None
    """Its code; None: the whole chain's, or nobody's where ``scoped_by`` says so."""
    scoped_by: str
    """``folder``, ``person`` or ``nobody``."""
    audience: str
    valid_from: date | None
    valid_to: date | None
    retracted_at: datetime | None
    state: str
    stale_since: datetime | None
    changed_at: datetime
    passages: int
    why: Reason | None
    key: str | None
    """Of its content in the generation that answers."""


def listed(connection: sa.Connection, *, waiting: bool = False, path: str | None = None) -> list[Shelved]:
    """The documents by path, those whose file is gone left out; ``waiting``: only those that wait for a person."""
    rows = connection.execute(DOCUMENTS, {"waiting": waiting, "path": path and _composed(path)}).mappings()
    return [_shelved(row) for row in rows]


def _shelved(row: Mapping[Any, Any]) -> Shelved:
    told = why(row["reason_code"], row["reason_values"], row["losses"])
    return Shelved(**{name: row[name] for name in Shelved.__slots__ if name != "why"}, why=told)


def document(connection: sa.Connection, path: str) -> Shelved:
    """One document.

    Raises:
        PermanentError: if there is none of this path.
    """
    found = listed(connection, path=path)
    if not found:
        raise PermanentError("document_unknown", path=path)
    return found[0]


def text(connection: sa.Connection, library: Library, shelved: Shelved) -> list[Hit]:
    """The passages of a document as they answer, in reading order, to be laid beside its pages."""
    current = connection.execute(
        sa.text("SELECT id, revision FROM knowledge_generation WHERE state = 'current'")
    ).one_or_none()
    if current is None or shelved.key is None:
        return []
    return Store(library.uri).of_content(current.id, current.revision, shelved.key)


def scope(
    connection: sa.Connection,
    path: str,
    *,
    clinic: str | None,
    audience: str | None,
    valid_from: date | None,
    valid_to: date | None,
    actor: str,
    reason: str,
    as_of: datetime,
) -> int:
    """Say whose a document is from now on: a clinic's, by its code, or the whole chain's (None); ``audience`` None and
    dates None stay as they are. Copies of its content are given no wider scope than that, and keep a narrower one; how
    many documents have changed, itself included.

    Raises:
        PermanentError: for an unknown document or clinic, or without a reason.
    """
    before = document(connection, path)
    connection.execute(
        sa.text("""
            UPDATE document
            SET clinic_id = :clinic, scoped_by = 'person', audience = coalesce(:audience, audience),
                valid_from = coalesce(:valid_from, valid_from), valid_to = coalesce(:valid_to, valid_to)
            WHERE path = :path"""),
        {
            "clinic": _clinic(connection, clinic),
            "audience": audience,
            "valid_from": valid_from,
            "valid_to": valid_to,
            "path": before.path,
        },
    )
    copies = connection.scalars(NARROW_COPIES, {"path": before.path}).all()
    told = {"clinic_before": before.clinic, "audience_before": before.audience, "audience": audience}
    narrowed = {"copies": sorted(copies)} if copies else {}
    _audit(connection, "knowledge_scope", before.path, clinic, actor, reason, as_of, {**told, **narrowed})
    return 1 + len(copies)


def is_folder(connection: sa.Connection, path: str) -> bool:
    """Whether this is no document, but the first folder of some."""
    found: bool | None = connection.scalar(
        sa.text(f"SELECT bool_and(path <> :path) FROM document WHERE path = :path OR {FOLDER} = :name"),
        {"path": _composed(path), "name": _composed(path).strip().lower()},
    )
    return bool(found)


def scope_folder(
    connection: sa.Connection, folder: str, *, clinic: str | None, actor: str, reason: str, as_of: datetime
) -> int:
    """Say whose a first folder is, with all that lies in it and no person has set; how many documents that is.

    Raises:
        PermanentError: for an unknown clinic, or without a reason.
    """
    name = _composed(folder).rstrip("/").strip().lower()
    number = _clinic(connection, clinic)
    connection.execute(
        sa.text("""
            INSERT INTO knowledge_folder (name, clinic_id, said_by, said_at, reason)
            VALUES (:name, :clinic, :actor, :as_of, :reason)
            ON CONFLICT (name) DO UPDATE SET clinic_id = excluded.clinic_id, said_by = excluded.said_by,
                                             said_at = excluded.said_at, reason = excluded.reason"""),
        {"name": name, "clinic": number, "actor": actor, "as_of": as_of, "reason": reason},
    )
    moved = connection.execute(
        sa.text(f"""
            UPDATE document SET clinic_id = :clinic, scoped_by = 'folder'
            WHERE scoped_by <> 'person' AND {FOLDER} = :name RETURNING id"""),
        {"clinic": number, "name": name},
    ).all()
    _audit(connection, "knowledge_scope_folder", name, clinic, actor, reason, as_of, {"documents": len(moved)})
    return len(moved)


def retract(
    connection: sa.Connection, path: str, *, undo: bool = False, actor: str, reason: str, as_of: datetime
) -> None:
    """Take a document, and every copy of its content, out of all answers at once; ``undo`` lets them answer again.

    Raises:
        PermanentError: for an unknown document, or without a reason.
    """
    before = document(connection, path)
    connection.execute(
        sa.text("""
            UPDATE document d SET retracted_at = :at FROM document t
            WHERE t.path = :path AND (d.id = t.id OR d.sha256 = t.sha256)"""),
        {"at": None if undo else as_of, "path": before.path},
    )
    action = "knowledge_retract_undo" if undo else "knowledge_retract"
    _audit(connection, action, before.path, before.clinic, actor, reason, as_of, {})


def clear(connection: sa.Connection, path: str, *, actor: str, reason: str, as_of: datetime) -> None:
    """A person has looked at what a document holds and what is missing: it may answer as it is, until it changes.

    Raises:
        PermanentError: for an unknown document, one that was never read, or without a reason.
    """
    before = document(connection, path)
    cleared = connection.execute(
        sa.text("UPDATE document SET cleared_sha256 = sha256 WHERE path = :path AND sha256 IS NOT NULL RETURNING id"),
        {"path": before.path},
    ).all()
    if not cleared:
        raise PermanentError("document_never_read", path=before.path)
    _audit(connection, "knowledge_clear", before.path, before.clinic, actor, reason, as_of, {})


def probes(connection: sa.Connection) -> list[tuple[int, str, str]]:
    """The clinic's probe questions: number, question, path of the document that must answer."""
    rows = connection.execute(
        sa.text("""
            SELECT p.id, p.question, d.path FROM knowledge_probe p JOIN document d ON d.id = p.document_id
            ORDER BY p.id""")
    )
    return [(row.id, row.question, row.path) for row in rows]


def add_probe(connection: sa.Connection, question: str, path: str) -> None:
    """Every new generation must answer ``question`` with this document.

    Raises:
        PermanentError: for an unknown document.
    """
    connection.execute(
        sa.text("""
            INSERT INTO knowledge_probe (question, document_id) SELECT :question, id FROM document WHERE path = :path
            ON CONFLICT DO NOTHING"""),
        {"question": question.strip(), "path": document(connection, path).path},
    )


def remove_probe(connection: sa.Connection, number: int) -> bool:
    """Whether there was one of this number."""
    gone = connection.execute(sa.text("DELETE FROM knowledge_probe WHERE id = :id RETURNING id"), {"id": number})
    return bool(gone.all())


def lay_words(connection: sa.Connection) -> list[tuple[str, str]]:
    """What people say, and one of what documents call it."""
    rows = connection.execute(sa.text("SELECT lay, clinical FROM knowledge_lay_word ORDER BY lay, clinical"))
    return [(row.lay, row.clinical) for row in rows]


def set_lay_word(connection: sa.Connection, lay: str, clinical: str, *, remove: bool = False) -> None:
    """Who asks for ``lay`` is also given what speaks of ``clinical``; ``remove``: no longer."""
    statement = (
        "DELETE FROM knowledge_lay_word WHERE lay = :lay AND clinical = :clinical"
        if remove
        else "INSERT INTO knowledge_lay_word (lay, clinical) VALUES (:lay, :clinical) ON CONFLICT DO NOTHING"
    )
    connection.execute(sa.text(statement), {"lay": " ".join(words(lay)), "clinical": " ".join(words(clinical))})


def _composed(path: str) -> str:
    return unicodedata.normalize("NFC", path)


def _clinic(connection: sa.Connection, code: str | None) -> int | None:
    if code is None:
        return None
    number: int | None = connection.scalar(
        sa.text("SELECT id FROM clinic WHERE lower(code) = lower(trim(:code))"), {"code": code}
    )
    if number is None:
        raise PermanentError("document_clinic_unknown", code=code)
    return number


def _audit(
    connection: sa.Connection,
    action: str,
    path: str,
    clinic: str | None,
    actor: str,
    reason: str,
    as_of: datetime,
    detail: Mapping[str, object],
) -> None:
    if not audit.is_reason(reason):
        raise PermanentError("document_reason", least=audit.LEAST_REASON)
    told = {"path": path, "reason": reason.strip(), **detail}
    audit.append(connection, as_of=as_of, actor=actor, action=action, service=SERVICE, clinic=clinic, detail=told)
