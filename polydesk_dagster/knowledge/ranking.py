"""Candidates of all channels in one order, and which of them are relevant at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from polydesk_dagster.knowledge.question import Question
from polydesk_dagster.knowledge.store import Hit
from polydesk_dagster.knowledge.text import grams, marked

RELEVANT = 0.32
"""Coverage that the best passage must have. Calibrated on real questions: it keeps 997 in 1000 of those that the
documents answer, and turns away 2 in 3 of those on subjects that they do not treat."""

MARGINAL = 0.12
"""Coverage below which a passage is not given even after a relevant one."""

WHOLE, SENTENCE, ADJACENT = 0.5, 0.5, 1.0
"""What a unit of each is worth beside a unit of BM25: the question's weight in the whole passage, in its best sentence,
and each pair of neighbouring words found together."""

NAMED = 1.0
"""What a unit of the weight of the words that a document bears in its name is worth beside a unit of BM25."""

MEANING = 0.25
"""What the nearest passage gains beside the best by words, which counts 1; calibrated on the development half of the
receptionist's questions. Ranks fused instead lose what the words say: to a small model all sheets are nearly alike."""


@dataclass(slots=True)
class Candidate:
    """A passage that a channel found, and what it is worth."""

    hit: Hit
    why: dict[str, float]
    named: frozenset[str] = frozenset()
    """Words of the question that its document bears in its file's name or title."""
    score: float = 0.0
    coverage: float = 0.0


def rank(candidates: Sequence[Candidate], understood: Question) -> list[Candidate]:
    """Best first. The full-text order comes from BM25 and from how much of the question stands together; with vectors
    each passage gains by how near it is among those that are near."""
    pieces = [(word, weight, understood.needed[word], grams(word)) for word, weight in understood.weights.items()]
    others = {word: [[marked((part,)) for part in name] for name in names] for word, names in understood.also.items()}
    whole = sum(understood.needed.values()) or 1.0
    pairs = {marked(pair) for pair in zip(understood.every, understood.every[1:], strict=False)}
    for candidate in candidates:
        text = candidate.hit.marked
        worth: list[tuple[str, float]] = []
        held = covered = 0.0
        for word, weight, needed, parts in pieces:
            present = [part for part in parts if part in text]
            called = any(all(part in text for part in name) for name in others.get(word, ()))
            share = 1.0 if called or word in candidate.named else len(present) / len(parts)
            held += weight * share
            covered += needed * share**2
            worth += [(part, weight / len(parts)) for part in present]
        together = max(sum([value for part, value in worth if part in line]) for line in text.split("\n"))
        adjacent = sum([pair in text for pair in pairs])
        candidate.coverage = covered / whole
        candidate.score = candidate.why.get("words", 0.0) + WHOLE * held + SENTENCE * together + ADJACENT * adjacent
        candidate.score += NAMED * candidate.why.get("names", 0.0)
    near = [candidate.why["vector"] for candidate in candidates if "vector" in candidate.why]
    if near:
        best = max(candidate.score for candidate in candidates) or 1.0
        least, width = min(near), max(near) - min(near) or 1.0
        for candidate in candidates:
            meaning = (candidate.why.get("vector", least) - least) / width
            candidate.score = candidate.score / best + MEANING * meaning
    return sorted(candidates, key=lambda c: (-c.score, c.hit.key, c.hit.ordinal))


def relevant(candidate: Candidate, coverage: float, similarity: float | None) -> bool:
    """Whether a passage covers so much of the question, or is as near to it in meaning as its own passages are."""
    near = candidate.why.get("vector")
    return candidate.coverage >= coverage or (near is not None and similarity is not None and near >= similarity)
