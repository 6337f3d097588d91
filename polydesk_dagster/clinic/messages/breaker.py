"""Whose fault a refusal is: where a carrier refuses many alike, the carrier is at fault and nobody's address is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from polydesk_dagster.clinic.messages.kinds import Channel
from polydesk_dagster.clinic.messages.provider import Answer
from polydesk_dagster.clinic.messages.writing import Job

FEWEST = 20
"""Attempts below which a share says nothing."""
ALIKE = 0.10
"""The share of refusals alike, and about nobody's mailbox, above which the channel is down."""
ALIKE_ABOUT_MAILBOXES = 0.50
"""The same where each speaks of its mailbox: a few of them are bad addresses, half of everybody's are not."""


@dataclass(slots=True)
class Breaker:
    """What one channel answered in this run. Refusals are held back until the run knows whose fault they are."""

    channel: Channel
    attempts: int = 0
    alike: Counter[tuple[str, bool]] = field(default_factory=Counter)
    held: list[tuple[Job, Answer]] = field(default_factory=list)
    """Refused, and not yet blamed on anybody."""
    open: str | None = None
    """The code of the refusals that closed the channel."""

    def answered(self) -> None:
        """An attempt that the carrier did not refuse."""
        self.attempts += 1

    def refused(self, job: Job, answer: Answer) -> None:
        """An attempt that it did; afterwards ``open`` says whether there are too many of them."""
        self.attempts += 1
        self.held.append((job, answer))
        about_mailbox = answer.bad_address or answer.strike
        kind = (answer.code or "", about_mailbox)
        self.alike[kind] += 1
        share = ALIKE_ABOUT_MAILBOXES if about_mailbox else ALIKE
        if self.attempts >= FEWEST and self.alike[kind] > share * self.attempts:
            self.open = answer.code or "?"

    def blamed(self) -> Iterator[tuple[Job, Answer]]:
        """The refusals that are the messages' own, each once; none where the channel is at fault."""
        held, self.held = self.held, []
        return iter(() if self.open is not None else held)
