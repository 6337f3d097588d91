"""Whoever follows a run as it works: told how far it is, and why a step has no record that could be read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from polydesk_dagster.values import Reason

Progress = Callable[[int, int, str], None]
"""Called with what is done, how much there is, and of what: a term of the catalogues, ``DOMAIN.CODE``."""


def _to_nobody(*_: object) -> None:
    """For who does not ask."""


@dataclass(frozen=True, slots=True)
class Follower:
    progress: Progress = _to_nobody
    unrecorded: Callable[[Sequence[Reason]], object] = _to_nobody


_NOBODY = Follower()
_follower: ContextVar[Follower] = ContextVar("polydesk_follower", default=_NOBODY)


@contextmanager
def followed(follower: Follower) -> Iterator[None]:
    """Tell ``follower`` of what runs in the block."""
    token = _follower.set(follower)
    try:
        yield
    finally:
        _follower.reset(token)


def follower() -> Follower:
    """Who follows what runs here; maybe nobody, who may be told all the same."""
    return _follower.get()
