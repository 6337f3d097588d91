"""A question put to the documents and an answer judged, whoever carries them: HTTP and MCP do no more than this."""

from __future__ import annotations

from polydesk_dagster.front.assistant.access import Shelf
from polydesk_dagster.front.assistant.schema import Judgement, Question, Told, told
from polydesk_dagster.front.tokens import Reader
from polydesk_dagster.knowledge import assistant
from polydesk_dagster.told import Teller


def answered(shelf: Shelf, question: Question, whose: Reader, t: Teller) -> Told:
    """What documents say, at this moment, to ``whose`` assistant it is; notes are told by ``t``."""
    as_of = shelf.now()
    found = assistant.answer(
        shelf.engine,
        as_of,
        shelf.library(),
        question.question,
        clinic=whose.clinic,
        role=whose.role,
        limit=question.limit,
    )
    return told(found, as_of, shelf.address, t)


def judged(shelf: Shelf, judgement: Judgement, whose: Reader) -> None:
    """What came of an answer."""
    assistant.judge(
        shelf.engine,
        shelf.now(),
        judgement.question,
        useful=judgement.useful,
        clinic=whose.clinic,
        role=whose.role,
    )
