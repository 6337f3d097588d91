"""What the effects of all types share: how a statement is run on the batch, and how what stopped it is found."""

from __future__ import annotations

from typing import Any, Protocol

import sqlalchemy as sa

NEWEST = """(SELECT DISTINCT ON (target) * FROM news WHERE verdict = 'apply' AND facet = '{facet}'
      ORDER BY target, sequence DESC)"""
"""The newest event that applies to each record, of one ``facet``."""


class Run(Protocol):
    """Runs a statement for the clinic and the moment of the batch."""

    def __call__(self, statement: str, **more: object) -> sa.CursorResult[Any]: ...


def found(problem: str, result: sa.CursorResult[Any]) -> dict[str, list[object]]:
    """The events of ``result``, under what is wrong with them; empty where there are none."""
    events: list[object] = list(result.scalars())
    return {problem: events} if events else {}
