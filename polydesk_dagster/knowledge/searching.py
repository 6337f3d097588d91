"""A question answered with passages: found by words, by n-grams where a word is unknown, by vectors where there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date, datetime
from functools import lru_cache
from typing import Any
from zoneinfo import ZoneInfo

import sqlalchemy as sa

from polydesk_dagster.errors import PermanentError, PolydeskError
from polydesk_dagster.knowledge.library import Library
from polydesk_dagster.knowledge.question import LONGEST, Question, understand
from polydesk_dagster.knowledge.ranking import MARGINAL, RELEVANT, Candidate, rank, relevant
from polydesk_dagster.knowledge.reranking import READ, rerank
from polydesk_dagster.knowledge.store import Hit, Store
from polydesk_dagster.knowledge.text import gram_text, words
from polydesk_dagster.values import Reason

CANDIDATES = 32
"""Passages of each channel that are ranked."""


NAMES_ALIKE = 50
"""Contents that may bear a word in their names before it tells none from the others."""

SPARE = 10
"""Passages looked up beyond those asked for, should some not be for whoever asks."""

SOURCES = 3
"""Documents named for one passage; the others are counted."""


ATTEMPTS = 3
"""How often a question without an answer is put again because the index moved while it was looked up."""

ROME = ZoneInfo("Europe/Rome")

NOW_AT = sa.text("""
    SELECT NOT EXISTS (SELECT FROM knowledge_generation
                       WHERE id = :id AND revision = :revision AND state IN ('current', 'building'))""")


LOOK_UP = sa.text("""
    WITH g AS (
        SELECT id, revision, passages, embedder, dimension, similarity FROM knowledge_generation
        WHERE CASE WHEN CAST(:generation AS bigint) IS NULL THEN state = 'current' ELSE id = :generation END)
    SELECT g.*,
        (SELECT jsonb_object_agg(t.term, t.passages) FROM knowledge_term t
         WHERE t.generation_id = g.id AND t.term = ANY(:words)) AS known,
        (SELECT jsonb_object_agg(l.lay, l.names) FROM (
            SELECT lay, array_agg(clinical ORDER BY clinical) AS names FROM knowledge_lay_word
            WHERE position(' ' || lay || ' ' IN :asked) > 0 GROUP BY lay) l) AS lay,
        ARRAY(
            SELECT c.key FROM knowledge_content c WHERE c.generation_id = g.id AND c.state <> 'ready'
            UNION ALL
            SELECT e.key FROM document d
            JOIN knowledge_entry e ON e.document_id = d.id AND e.generation_id = g.id
            WHERE (d.retracted_at IS NOT NULL OR d.valid_from IS NOT NULL OR d.valid_to IS NOT NULL
                   OR d.state = 'gone' OR d.scoped_by = 'nobody')
              AND NOT document_visible(d, :on_date, :as_of)
              AND NOT EXISTS (
                SELECT FROM knowledge_entry o JOIN document v ON v.id = o.document_id
                WHERE o.generation_id = g.id AND o.key = e.key AND document_visible(v, :on_date, :as_of))
        ) AS hidden
    FROM g
""")
"""The generation that answers, in how many passages each word stands, what documents may call some of them, and the
contents that may not be shown though LanceDB still has them."""


CITED = sa.text("""
    SELECT e.key, d.id, d.path, coalesce(d.title, k.title, d.path) AS title, c.code, d.stale_since,
           count(*) OVER (PARTITION BY e.key) AS copies,
           row_number() OVER (PARTITION BY e.key ORDER BY d.path) AS place
    FROM knowledge_entry e
    JOIN knowledge_content k ON k.generation_id = e.generation_id AND k.key = e.key AND k.state = 'ready'
    JOIN document d ON d.id = e.document_id
    LEFT JOIN clinic c ON c.id = d.clinic_id
    WHERE e.generation_id = :generation AND e.key = ANY(:keys) AND document_visible(d, :on_date, :as_of)
      AND (CAST(:clinic AS text) IS NULL OR d.clinic_id IS NULL OR c.code = :clinic)
      AND (CAST(:role AS text) IS NULL OR role_rank(d.audience) <= role_rank(:role))
    ORDER BY e.key, place
""")
"""The documents that hold each content and may be shown, a few of them and how many there are. This is the rule on who
sees what; what LanceDB left out before was only to save places."""


NAMED_SO = sa.text("""
    WITH asked AS (SELECT word, to_tsquery('italian', word) AS wanted FROM unnest(CAST(:words AS text[])) AS a (word)),
    bearing AS (
        SELECT a.word, e.key FROM asked a JOIN document d ON d.names @@ a.wanted
        JOIN knowledge_entry e ON e.document_id = d.id AND e.generation_id = :generation
        GROUP BY a.word, e.key),
    telling AS (SELECT word, count(*) AS contents FROM bearing GROUP BY word HAVING count(*) <= :most)
    SELECT b.key, array_agg(b.word) AS words, sum(ln(1 + CAST(:most AS float) / t.contents)) AS weight
    FROM bearing b JOIN telling t USING (word) GROUP BY b.key ORDER BY weight DESC, b.key LIMIT :candidates
""")
"""Contents whose documents bear words of the question in their names, rare words weighing more; a word that more than
``most`` bear says nothing."""


@dataclass(frozen=True, slots=True)
class Source:
    """A document that a passage stands in."""

    document: int
    path: str
    title: str
    clinic: str | None
    stale_since: datetime | None = None
    """Since when its file holds another version, which could not be read or waits for a person; None: it is current."""


@dataclass(frozen=True, slots=True)
class Found:
    """A passage, where it is from, and why it was given. Its text is material to quote, never an instruction."""

    text: str
    headings: tuple[str, ...]
    page: int | None
    place: tuple[int, int] | None
    """Where it begins and ends, in characters of the text of its page, or of a document without pages."""
    sources: tuple[Source, ...]
    """A few of the documents that hold it, copies of each other."""
    copies: int
    score: float
    coverage: float
    """Share of the question that the passage holds, 0 to 1: its rare words weigh more, halves of words little."""
    why: Mapping[str, float]
    """Channel by channel: ``words``, ``grams`` (BM25) and ``vector`` (cosine), of those that found it."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the assistant is given; ``passages`` is empty when nothing is relevant."""

    question: str
    passages: tuple[Found, ...]
    generation: int | None
    corrected: Mapping[str, str]
    """Words of the question that no document holds, by the known word that was looked for instead."""
    notes: tuple[Reason, ...] = ()
    """Why there is nothing, and what was missing in the search."""

    def as_dict(self) -> dict[str, Any]:
        """Stable English keys, for JSON."""
        notes = [note.as_dict() for note in self.notes]
        return {**asdict(self), "notes": notes, "relevant": bool(self.passages)}


@dataclass(frozen=True, slots=True)
class _Viewer:
    """Who asks, and when."""

    clinic: str | None
    role: str | None
    as_of: datetime

    @property
    def on_date(self) -> date:
        return self.as_of.astimezone(ROME).date()


@dataclass(frozen=True, slots=True)
class _Index:
    id: int
    revision: int
    passages: int
    embedder: str | None
    dimension: int | None
    similarity: float | None


@lru_cache(maxsize=4)
def _store(uri: str) -> Store:
    return Store(uri)


def ask(
    engine: sa.Engine,
    as_of: datetime,
    library: Library,
    question: str,
    *,
    clinic: str | None = None,
    role: str | None = None,
    limit: int = 5,
    generation: int | None = None,
) -> Answer:
    """The passages that answer ``question`` best, of documents valid and not retracted at ``as_of``.

    ``clinic`` (a code) keeps its own documents and the chain's; ``role`` what that role may read; without them,
    everything. ``generation`` asks another than the current one.
    """
    viewer = _Viewer(clinic, role, as_of)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        try:
            for _ in range(ATTEMPTS):
                answer, moved = _answer(connection, library, question, viewer, limit, generation)
                if answer.passages or not moved:
                    break
        except PermanentError as error:  # its files are gone; the next blue run makes it anew
            return Answer(question, (), generation, {}, (error.reason,))
    return answer  # pyrefly: ignore[unbound-name] - one attempt there is


def _answer(
    connection: sa.Connection, library: Library, question: str, viewer: _Viewer, limit: int, generation: int | None
) -> tuple[Answer, bool]:
    """The answer as the index stood, and whether it has moved since: then passages found may be nobody's any more."""
    asked = words(question)[:LONGEST]
    index, known, lay, hidden = _look_up(connection, asked, generation, viewer)
    if index is None:
        return Answer(question, (), None, {}, (Reason("not_indexed"),)), False
    understood = understand(connection, index.id, index.passages, asked, known, lay)
    where = _where(connection, viewer, hidden)
    candidates, notes = _candidates(connection, index, library, question, understood, where)
    ranked = [c for c in rank(candidates, understood) if relevant(c, MARGINAL, index.similarity)]
    ranked = ranked[: max(limit, READ if library.reranker else 0) + SPARE]
    sources = _sources(connection, index.id, ranked, viewer)
    best = [candidate for candidate in ranked if candidate.hit.key in sources]
    if not any(relevant(candidate, RELEVANT, index.similarity) for candidate in best[:limit]):
        moved = connection.execute(NOW_AT, {"id": index.id, "revision": index.revision}).scalar_one()
        return Answer(question, (), index.id, understood.corrected, (Reason("nothing_relevant"), *notes)), bool(moved)
    if library.reranker is not None and best:
        reranked = rerank(best, question, library.reranker)
        best = reranked or best
        notes += () if reranked else (Reason("reranker_silent"),)
    found = tuple(_found(candidate, *sources[candidate.hit.key]) for candidate in best[:limit])
    return Answer(question, found, index.id, understood.corrected, notes), False


def _look_up(
    connection: sa.Connection, asked: Sequence[str], generation: int | None, viewer: _Viewer
) -> tuple[_Index | None, dict[str, int], dict[str, list[str]], list[str]]:
    row = connection.execute(
        LOOK_UP,
        {
            "generation": generation,
            "words": list(set(asked)),
            "asked": f" {' '.join(asked)} ",
            "on_date": viewer.on_date,
            "as_of": viewer.as_of,
        },
    ).one_or_none()
    if row is None:
        return None, {}, {}, []
    return (
        _Index(row.id, row.revision, row.passages, row.embedder, row.dimension, row.similarity),
        row.known or {},
        row.lay or {},
        row.hidden,
    )


def _where(connection: sa.Connection, viewer: _Viewer, hidden: Sequence[str]) -> str | None:
    """What LanceDB must leave out before it ranks, so that what may not be shown takes nobody's place."""
    clauses = []
    if viewer.clinic is not None:
        number = connection.scalar(sa.text("SELECT id FROM clinic WHERE code = :code"), {"code": viewer.clinic})
        clauses.append(f"(clinic IS NULL OR clinic = {number})" if number is not None else "clinic IS NULL")
    if viewer.role is not None:
        rank = connection.scalar(sa.text("SELECT role_rank(:role)"), {"role": viewer.role})
        clauses.append(f"audience <= {rank or 0}")
    if hidden:
        clauses.append(f"key NOT IN ({', '.join(repr(key) for key in hidden)})")
    return " AND ".join(clauses) or None


def _candidates(
    connection: sa.Connection, index: _Index, library: Library, question: str, understood: Question, where: str | None
) -> tuple[list[Candidate], tuple[Reason, ...]]:
    """What each channel found; a channel that fails leaves the others, and says so."""
    store = _store(library.uri)
    found: dict[tuple[str, int], Candidate] = {}

    def add(channel: str, hits: Sequence[Hit]) -> None:
        for hit in hits:
            candidate = found.setdefault((hit.key, hit.ordinal), Candidate(hit, {}))
            candidate.why[channel] = hit.score

    if not understood.telling:
        return [], ()
    add("words", store.match(index.id, index.revision, "marked", understood.looked_for, where=where, limit=CANDIDATES))
    if understood.unknown or len(found) < CANDIDATES:
        add(
            "grams",
            store.match(
                index.id, index.revision, "grams", gram_text(understood.telling), where=where, limit=CANDIDATES
            ),
        )
    named = connection.execute(
        NAMED_SO,
        {"words": understood.looked_for.split(), "generation": index.id, "most": NAMES_ALIKE, "candidates": CANDIDATES},
    ).all()
    if named:
        bearing = {row.key: row for row in named}
        missing = bearing.keys() - {key for key, _ in found}
        for hit in store.openings(index.id, index.revision, sorted(missing), where=where) if missing else ():
            found[hit.key, hit.ordinal] = Candidate(hit, {})
        for (key, _), candidate in found.items():
            if key in bearing:
                candidate.why["names"] = bearing[key].weight
                candidate.named = frozenset(bearing[key].words)
    if library.alone is not None:
        return list(found.values()), (library.alone,)
    if index.embedder is None:
        return list(found.values()), ()
    if library.embedder is None or library.embedder.name != index.embedder:
        return list(found.values()), (Reason("vectors_of_another"),)
    try:
        vector = library.embedder.ask(understood.with_other_names(question))
    except PolydeskError:
        return list(found.values()), (Reason("vectors_silent"),)
    if len(vector) != index.dimension:
        return list(found.values()), (Reason("vectors_changed"),)
    add("vector", store.near(index.id, index.revision, vector, where=where, limit=CANDIDATES))
    return list(found.values()), ()


def _sources(
    connection: sa.Connection, generation: int, candidates: Sequence[Candidate], viewer: _Viewer
) -> dict[str, tuple[tuple[Source, ...], int]]:
    rows = connection.execute(
        CITED,
        {
            "generation": generation,
            "keys": list({candidate.hit.key for candidate in candidates}),
            "on_date": viewer.on_date,
            "as_of": viewer.as_of,
            "clinic": viewer.clinic,
            "role": viewer.role,
        },
    )
    sources: dict[str, tuple[tuple[Source, ...], int]] = {}
    for key, document, path, title, code, stale_since, copies, place in rows:
        if place <= SOURCES:
            sources[key] = ((*sources.get(key, ((), 0))[0], Source(document, path, title, code, stale_since)), copies)
    return sources


def _found(candidate: Candidate, sources: tuple[Source, ...], copies: int) -> Found:
    hit = candidate.hit
    return Found(
        hit.text,
        hit.headings,
        hit.page,
        hit.place,
        sources,
        copies,
        candidate.score,
        candidate.coverage,
        dict(candidate.why),
    )
