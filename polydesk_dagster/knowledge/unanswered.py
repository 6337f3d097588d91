"""Questions that documents left open: kept without who asked, shown to a person, and turned into probes once a document
answers them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

import sqlalchemy as sa

from polydesk_dagster.errors import PermanentError
from polydesk_dagster.knowledge import shelf
from polydesk_dagster.knowledge.nameless import GONE, nameless
from polydesk_dagster.knowledge.text import fold, words

Kind = Literal["unanswered", "unhelpful"]

SHOWN = 200

KNOWN = sa.text("""
    SELECT t.term FROM knowledge_term t JOIN knowledge_generation g ON g.id = t.generation_id
    WHERE g.state = 'current' AND t.term = ANY(:words)
    UNION
    SELECT w.word FROM (SELECT lay || ' ' || clinical AS text FROM knowledge_lay_word
                        UNION SELECT DISTINCT name FROM service) n,
        regexp_split_to_table(lower(n.text), '[^[:alnum:]]+') AS w (word)
    WHERE w.word = ANY(:words)""")
"""Those of some words that documents, the catalogue of services or the lay words hold."""


@dataclass(frozen=True, slots=True)
class Open:
    """A question that waits for a document, or for somebody to say that none is due."""

    id: int
    question: str
    kind: Kind
    clinic: str
    """Code of the clinic that it was asked for."""
    role: str
    times: int
    first_at: datetime
    last_at: datetime


def keep(connection: sa.Connection, question: str, kind: Kind, *, clinic: str, role: str, as_of: datetime) -> None:
    """Keep a question, without names and numbers, or count it once more; one of which nothing is left is not kept."""
    known = connection.scalars(KNOWN, {"words": list({*words(question), *question.lower().split()})})
    text = nameless(connection, question, frozenset(fold(word) for word in known))
    if not any(c.isalpha() for c in text.replace(GONE, "")):
        return
    connection.execute(
        sa.text("""
            INSERT INTO knowledge_question AS q (question, kind, clinic_id, role, first_at, last_at)
            SELECT :question, :kind, c.id, :role, :as_of, :as_of FROM clinic c WHERE c.code = :clinic
            ON CONFLICT (clinic_id, role, kind, lower(question)) WHERE settled_at IS NULL
            DO UPDATE SET times = q.times + 1, last_at = greatest(q.last_at, excluded.last_at)"""),
        {"question": text, "kind": kind, "clinic": clinic, "role": role, "as_of": as_of},
    )


def listed(connection: sa.Connection) -> list[Open]:
    """Those that are open, the most asked first."""
    rows = connection.execute(
        sa.text("""
            SELECT q.id, q.question, q.kind, c.code AS clinic, q.role, q.times, q.first_at, q.last_at
            FROM knowledge_question q JOIN clinic c ON c.id = q.clinic_id
            WHERE q.settled_at IS NULL ORDER BY q.times DESC, q.last_at DESC, q.id LIMIT :shown"""),
        {"shown": SHOWN},
    )
    return [Open(*row) for row in rows]


def settle(connection: sa.Connection, number: int, path: str | None, *, actor: str, as_of: datetime) -> None:
    """Say which document answers an open question, which every new generation must then answer with it, or (None) that
    none is due.

    Raises:
        PermanentError: for an unknown question or document.
    """
    question: str | None = connection.scalar(
        sa.text("""
            UPDATE knowledge_question SET settled_at = :as_of, settled_by = :actor, settled = :how
            WHERE id = :id AND settled_at IS NULL RETURNING question"""),
        {"id": number, "actor": actor, "how": "dismissed" if path is None else "probe", "as_of": as_of},
    )
    if question is None:
        raise PermanentError("question_unknown", number=number)
    if path is not None:
        shelf.add_probe(connection, " ".join(question.replace(GONE, " ").split()), path)
