"""The slot for a reranker: a model that reads the question beside each of the best passages and puts them in order.
None comes with us; a package that is installed beside us brings one by an entry point of ``GROUP``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib.metadata import entry_points
from typing import Protocol

from polydesk_dagster.errors import ConfigurationError
from polydesk_dagster.knowledge.ranking import Candidate

GROUP = "polydesk_dagster.rerankers"

READ = 20
"""Passages that it is given."""


class Reranker(Protocol):
    """What an entry point names: an object, or a class without arguments whose objects are such."""

    def scores(self, question: str, passages: Sequence[str]) -> Sequence[float]:
        """How well each passage answers, one number each, more is better; whatever it raises, the order stays."""
        ...


def reranker(name: str) -> Reranker:
    """The reranker called ``name``.

    Raises:
        ConfigurationError: if no package brings it, or that package is broken.
    """
    point = next(iter(entry_points(group=GROUP, name=name)), None)
    if point is None:
        raise ConfigurationError("reranker_unknown", reranker=name)
    try:
        brought = point.load()
        made: Reranker = brought() if isinstance(brought, type) else brought
    except Exception as error:
        raise ConfigurationError("reranker_broken", reranker=name, error=type(error).__name__) from error
    return made


def rerank(best: Sequence[Candidate], question: str, by: Reranker) -> list[Candidate] | None:
    """The first ``READ`` of these in the reranker's order, the others after them; None if it gave no order."""
    read, rest = best[:READ], best[READ:]
    try:
        scores = [float(score) for score in by.scores(question, [_told(candidate) for candidate in read])]
    except Exception:  # noqa: BLE001 - it is somebody else's, and an answer in the order before is better than none
        return None
    if len(scores) != len(read) or any(map(math.isnan, scores)):
        return None
    places = sorted(range(len(read)), key=lambda place: -scores[place])
    return [*(read[place] for place in places), *rest]


def _told(candidate: Candidate) -> str:
    return "\n".join((" › ".join(candidate.hit.headings), candidate.hit.text)).strip()
