"""What an assistant is given for a question, whoever carries it: always for one clinic and in one role."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import sqlalchemy as sa

from polydesk_dagster.knowledge import searching, unanswered
from polydesk_dagster.knowledge.library import Library
from polydesk_dagster.knowledge.searching import Answer

MOST = 20
"""Passages of one answer."""


def answer(
    engine: sa.Engine, as_of: datetime, library: Library, question: str, *, clinic: str, role: str, limit: int
) -> Answer:
    """The passages that answer ``question`` for somebody of ``clinic`` (a code) who reads what ``role`` may read; a
    question that none answers is kept, without who asked."""
    found = searching.ask(engine, as_of, library, question, clinic=clinic, role=role, limit=limit)
    if not found.passages and found.generation is not None and _said(found, "nothing_relevant"):
        with engine.begin() as connection:
            unanswered.keep(connection, question, "unanswered", clinic=clinic, role=role, as_of=as_of)
    return found


def judge(engine: sa.Engine, as_of: datetime, question: str, *, useful: bool, clinic: str, role: str) -> None:
    """What came of an answer: one that did not help is kept as a question, without who asked."""
    if useful:
        return
    with engine.begin() as connection:
        unanswered.keep(connection, question, "unhelpful", clinic=clinic, role=role, as_of=as_of)


def _said(found: Answer, code: str) -> bool:
    notes: Sequence[str] = [note.code for note in found.notes]
    return code in notes
