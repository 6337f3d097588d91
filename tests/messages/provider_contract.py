"""What any carrier of messages must do. A new provider gets a subclass that says how to reach it, and passes."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from polydesk_dagster.clinic.messages.provider import Answer, Fate, Outgoing, Provider
from tests.waiting import PATIENCE


class ProviderContract:
    """Subclasses give the fixture ``carrier`` (a Provider that waits as long as a busy machine may need), and the
    addresses that make the other side misbehave."""

    good = refused = silent = ""
    subject: str | None = None

    @pytest.fixture
    def carrier(self) -> Iterator[Provider]:
        raise NotImplementedError

    def arrived(self) -> list[str]:
        """Addresses that really got something, in order."""
        raise NotImplementedError

    def hasty(self) -> Provider:
        """The same carrier, which gives up what says nothing after half a second."""
        raise NotImplementedError

    def unreachable(self) -> Provider:
        """The same kind of carrier where nobody listens."""
        raise NotImplementedError

    def intruder(self) -> Provider:
        """The same carrier with wrong credentials."""
        raise NotImplementedError

    def outgoing(self, address: str, text: str = "Le ricordiamo: è domani, €10.") -> Outgoing:
        return Outgoing(str(uuid.uuid4()), address, self.subject, text)

    def ask(self, provider: Provider, *steps: tuple[str, Any]) -> list[Answer]:
        async def run() -> list[Answer]:
            async with provider:
                return [await getattr(provider, name)(argument) for name, argument in steps]

        return asyncio.run(run())

    def test_it_carries_a_message_once_and_says_so(self, carrier: Provider) -> None:
        answers = self.ask(carrier, *(("send", self.outgoing(self.good)) for _ in range(3)))
        assert [answer.fate for answer in answers] == [Fate.ACCEPTED] * 3
        assert all(answer.reference for answer in answers)
        assert self.arrived() == [self.good] * 3

    def test_a_refusal_is_permanent_and_leaves_the_next_alone(self, carrier: Provider) -> None:
        refused, fine = self.ask(carrier, ("send", self.outgoing(self.refused)), ("send", self.outgoing(self.good)))
        assert (refused.fate, fine.fate) == (Fate.REFUSED, Fate.ACCEPTED)
        assert self.refused not in str(refused.code)

    def test_silence_after_handing_over_is_a_doubt(self, carrier: Provider) -> None:
        message, known = self.outgoing(self.silent), Fate.ACCEPTED if carrier.can_look_up else Fate.DOUBTFUL

        async def run(hasty: Provider) -> None:
            async with hasty:
                await self.at_last(Fate.DOUBTFUL, lambda: hasty.send(message))
                await self.at_last(known, lambda: hasty.look_up(message.key))
                await self.at_last(Fate.ACCEPTED, lambda: hasty.send(self.outgoing(self.good)))

        asyncio.run(run(self.hasty()))

    async def at_last(self, fate: Fate, ask: Callable[[], Awaitable[Answer]]) -> None:
        """Ask until that is the answer: what is hasty also gives up whom the machine alone has kept waiting."""
        deadline = time.monotonic() + PATIENCE
        while (answer := await ask()).fate is not fate:
            assert time.monotonic() < deadline, answer

    def test_a_key_never_seen_is_known_as_such(self, carrier: Provider) -> None:
        (looked,) = self.ask(carrier, ("look_up", str(uuid.uuid4())))
        assert looked.fate is (Fate.UNKNOWN_KEY if carrier.can_look_up else Fate.DOUBTFUL)

    @pytest.mark.usefixtures("carrier")
    def test_nobody_there_and_nobody_wanted(self) -> None:
        (nobody,) = self.ask(self.unreachable(), ("send", self.outgoing(self.good)))
        assert nobody.fate is Fate.UNREACHABLE
        (unwanted,) = self.ask(self.intruder(), ("send", self.outgoing(self.good)))
        assert unwanted.fate is Fate.CLOSED
        assert self.arrived() == []
