"""One round of questions to many, in one loop: so many at once, nobody behind who is slow, all over at a deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a round may take."""

    quick: int = 128
    """Questions at once of which none is known to be slow."""
    slow_after: float = 1.0
    """Seconds after which a question that waits for its answer no longer keeps the next one from being asked."""
    open: int = 256
    """Questions at once, the slow ones too; each is a connection."""
    longest: float = 40.0
    """Seconds for all of it, of the minute between two rounds and the 60 s that a tick may take."""


async def ask_all(questions: Sequence[Callable[[], Awaitable[T]]], bounds: Bounds) -> list[T | None]:
    """The answers, in the order of the questions; None for who was not asked, or not given its time, before the end.

    A question's own clock is its own matter and starts when it is called. What one raises ends the round.
    """
    found: list[T | None] = [None] * len(questions)
    quick, every = asyncio.Semaphore(bounds.quick), asyncio.Semaphore(bounds.open)
    loop = asyncio.get_running_loop()

    async def one(position: int) -> None:
        turn = _Turn(quick)
        later = loop.call_later(bounds.slow_after, turn.end)
        try:
            found[position] = await questions[position]()
        finally:
            later.cancel()
            turn.end()
            every.release()

    try:
        async with asyncio.timeout(bounds.longest), asyncio.TaskGroup() as group:
            for position in range(len(questions)):
                await every.acquire()
                await quick.acquire()
                group.create_task(one(position))
    except TimeoutError:
        pass
    return found


class _Turn:
    """A place among the quick ones, given back once."""

    def __init__(self, quick: asyncio.Semaphore) -> None:
        self._quick: asyncio.Semaphore | None = quick

    def end(self) -> None:
        if self._quick is not None:
            self._quick.release()
            self._quick = None


class Lag:
    """How much later than it should the loop has come to what it had to do: time that is ours and nobody's who is
    asked. Measured inside ``async with``, less often the longer the loop has been on time: to an eighth of what those
    have waited who still do."""

    EVERY, RARELY = 0.1, 1.0

    def __init__(self) -> None:
        self.seconds = 0.0

    async def __aenter__(self) -> Lag:
        self._watch = asyncio.create_task(self._watched())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._watch.cancel()

    async def _watched(self) -> None:
        clock = asyncio.get_running_loop().time
        on_time_since = clock()
        while True:
            due = clock() + min(max(self.EVERY, (clock() - on_time_since) / 8), self.RARELY)
            await asyncio.sleep(due - clock())
            late = clock() - due
            self.seconds += max(late, 0.0)
            if late > self.EVERY:
                on_time_since = clock()


def beginning_at(of: Sequence[T], first: str | None, name: Callable[[T], str]) -> list[T]:
    """All of them, which are in the order of their names, beginning at ``first``, or at whoever follows it: who was
    behind the deadline in one round is the first in the next."""
    start = 0 if first is None else next((place for place, each in enumerate(of) if name(each) >= first), 0)
    return [*of[start:], *of[:start]]
