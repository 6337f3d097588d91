"""Texts of which nobody is sure whether they went out: the gateway is asked what became of each, by its key."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any

from polydesk_dagster.clinic.messages.answers import settled
from polydesk_dagster.clinic.messages.judging import Candidate
from polydesk_dagster.clinic.messages.ledger import Doubt, Ledger, Result
from polydesk_dagster.clinic.messages.pace import Pace, Tally
from polydesk_dagster.clinic.messages.provider import Answer, Fate, Provider, unexpected

_AT_ONCE = 300
"""Doubts that are read from the ledger together."""


class Doubts:
    """The doubts of one run, its own and those that earlier ones left. A gateway that cannot be asked leaves them."""

    def __init__(
        self,
        ledger: Ledger,
        in_database: Callable[..., Awaitable[Any]],
        gateway: Provider | None,
        *,
        pace: Pace,
        at_once: int,
        tally: Tally,
        now: Callable[[], datetime],
        working: Callable[[], bool],
    ) -> None:
        """``in_database`` runs one step at a time on the ledger's connection; ``at_once``: questions side by side;
        ``working``: whether the gateway has taken anything in this run."""
        self._working = working
        self._ledger, self._in_database, self._gateway = ledger, in_database, gateway
        self._pace, self._at_once, self._tally, self._now = pace, at_once, tally, now
        self._own: dict[int, tuple[str, str]] = {}

    def add(self, message: Candidate) -> None:
        """This run itself has just left ``message`` in doubt, and counted it so."""
        self._own[message.id] = (message.clinic, message.kind)

    async def settle(self) -> None:
        """Ask the gateway what became of every text that nobody is sure of."""
        after = 0
        while self._gateway is not None and "sms" not in self._tally.closed:
            doubts: list[Doubt] = await self._in_database(self._ledger.doubtful_texts, _AT_ONCE, after)
            if not doubts:
                return
            after = doubts[-1].id
            turns = asyncio.Semaphore(self._at_once)
            answers = await asyncio.gather(*(self._ask(self._gateway, doubt, turns) for doubt in doubts))
            known = [self._settled(doubt, answer) for doubt, answer in zip(doubts, answers, strict=True)]
            await self._in_database(self._ledger.record, [result for result in known if result is not None])
            if all(answer.fate is Fate.UNREACHABLE for answer in answers):
                return

    async def _ask(self, gateway: Provider, doubt: Doubt, turns: asyncio.Semaphore) -> Answer:
        async with turns:
            await self._pace.turn()
            try:
                return await gateway.look_up(doubt.key)
            except Exception as error:  # noqa: BLE001 - whatever a carrier does not expect is this one message's
                return unexpected(error)

    def _settled(self, doubt: Doubt, answer: Answer) -> Result | None:
        result = settled(doubt, answer, self._now(), working=self._working())
        if result is None:
            return None
        if self._own.pop(doubt.id, None):
            self._tally.add(doubt.clinic, doubt.kind, "unknown", count=-1)
        else:
            self._tally.settled += 1
        self._tally.add(doubt.clinic, doubt.kind, result.state, result.reason)
        return result
