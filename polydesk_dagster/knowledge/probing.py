"""Whether a generation answers as it should: the clinic's probe questions, and questions made of its own passages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from statistics import median

import sqlalchemy as sa

from polydesk_dagster.knowledge import searching
from polydesk_dagster.knowledge.library import Library
from polydesk_dagster.knowledge.store import Store
from polydesk_dagster.knowledge.text import STOP_WORDS, marked_words
from polydesk_dagster.values import Reason

SAMPLED = 40
"""Contents that are asked for with their own words."""

OWN_WORDS = 8

TWINS = 2
"""Passages that may share a content's rarest word for it to be told from others by it."""

OWN_RECALL = 0.9
"""Of the questions made of its own words, the share that an index in order answers."""

LOST_RECALL = 0.05
"""Of the clinic's questions, the share that may be lost against the generation before."""

NEARER = 1 / 3
"""Of the way from the passages of others to a question's own, from which nearness alone makes a passage relevant."""

AT = 5


@dataclass(frozen=True, slots=True)
class Result:
    asked: int
    recall: float | None
    """At 5, of all questions; None without any."""
    similarity: float | None
    """From which a vector alone speaks of relevance; None without vectors."""
    flaw: Reason | None
    """Why this generation must not answer."""


def probe(engine: sa.Engine, as_of: datetime, library: Library, building: int, current: int | None) -> Result:
    """Ask a generation its probe questions; compare the clinic's with how the current one answers them."""
    with engine.connect() as connection:
        asked = connection.execute(
            sa.text("""
                SELECT p.question, p.document_id FROM knowledge_probe p
                JOIN knowledge_entry e ON e.document_id = p.document_id AND e.generation_id = :building
                JOIN document d ON d.id = p.document_id
                WHERE d.retracted_at IS NULL AND document_visible(d, CAST(:as_of AS date), :as_of)"""),
            {"building": building, "as_of": as_of},
        ).all()
        own = _own_questions(connection, as_of, library, building)
    answers = [searching.ask(engine, as_of, library, question, limit=AT, generation=building) for question, _ in own]
    own_keys = [_keys(engine, building, answer, key) for answer, (_, key) in zip(answers, own, strict=True)]
    own_hits = [any(places) for places in own_keys]

    def answered(generation: int) -> int:
        return sum(
            any(source.document == document for passage in answer.passages for source in passage.sources)
            for question, document in asked
            if (answer := searching.ask(engine, as_of, library, question, limit=AT, generation=generation))
        )

    hits = answered(building)
    before = hits if current is None else answered(current)
    total = len(asked) + len(own_hits)
    flaw = None
    if own_hits and sum(own_hits) < OWN_RECALL * len(own_hits):
        flaw = Reason("probes_own", {"hits": sum(own_hits), "asked": len(own_hits)})
    elif before - hits > LOST_RECALL * len(asked):
        flaw = Reason("probes_clinic", {"hits": hits, "asked": len(asked), "before": before})
    return Result(
        total,
        (hits + sum(own_hits)) / total if total else None,
        _similarity(answers, own_keys),
        flaw,
    )


def _own_questions(
    connection: sa.Connection, as_of: datetime, library: Library, generation: int
) -> list[tuple[str, str]]:
    """The rarest words of the passage that has the rarest, of each of some contents that answer anybody, and the
    content's key; contents that are alike down to their rarest word are passed over: nothing tells them apart."""
    keys: Sequence[str] = connection.scalars(
        sa.text("""
            SELECT c.key FROM knowledge_content c
            WHERE c.generation_id = :generation AND c.state = 'ready' AND EXISTS (
                SELECT FROM knowledge_entry e JOIN document d ON d.id = e.document_id
                WHERE e.generation_id = c.generation_id AND e.key = c.key
                  AND document_visible(d, CAST(:as_of AS date), :as_of))
            ORDER BY c.key LIMIT :sampled"""),
        {"generation": generation, "as_of": as_of, "sampled": SAMPLED},
    ).all()
    store = Store(library.uri)
    told = {
        (key, place): [w for w in dict.fromkeys(marked_words(text)) if w not in STOP_WORDS]
        for key in keys
        for place, text in enumerate(store.marked(generation, [key]))
    }
    rows = connection.execute(
        sa.text("SELECT term, passages FROM knowledge_term WHERE generation_id = :g AND term = ANY(:terms)"),
        {"g": generation, "terms": list({word for sequence in told.values() for word in sequence})},
    )
    holding = {row.term: row.passages for row in rows}
    questions: dict[str, tuple[int, str]] = {}
    for (key, _), sequence in told.items():
        rarest = sorted(sequence, key=lambda w: (holding.get(w, 0), w))[:OWN_WORDS]
        if rarest and holding.get(rarest[0], 0) <= TWINS:
            common = sum(holding.get(word, 0) for word in rarest)
            questions[key] = min(questions.get(key, (common, "~")), (common, " ".join(rarest)))
    return [(question, key) for key, (_, question) in questions.items()]


def _keys(engine: sa.Engine, generation: int, answer: searching.Answer, key: str) -> list[bool]:
    """Passage by passage of an answer, whether it is of this content."""
    with engine.connect() as connection:
        documents = set(
            connection.scalars(
                sa.text("SELECT document_id FROM knowledge_entry WHERE generation_id = :generation AND key = :key"),
                {"generation": generation, "key": key},
            )
        )
    return [passage.sources[0].document in documents for passage in answer.passages]


def _similarity(answers: Sequence[searching.Answer], own: Sequence[Sequence[bool]]) -> float | None:
    """Somewhat nearer than a question is to the best of the passages that are not its own: people do not ask in the
    very words of the document, as these questions do."""
    near: dict[bool, list[float]] = {True: [], False: []}
    for answer, places in zip(answers, own, strict=True):
        for mine in near:
            pairs = zip(answer.passages, places, strict=True)
            values = [p.why["vector"] for p, is_own in pairs if is_own is mine and "vector" in p.why]
            near[mine] += [max(values)] if values else []
    if not near[True]:
        return None
    others = median(near[False]) if near[False] else 0.0
    return others + NEARER * (median(near[True]) - others)
