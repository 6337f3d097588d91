"""Whose fault a refusal is: where a carrier refuses many alike, the carrier is at fault and nobody's address is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from polydesk_dagster.clinic.messages.kinds import Channel
from polydesk_dagster.clinic.messages.provider import Answer, Fate
from polydesk_dagster.clinic.messages.writing import Job

FEWEST = 20
"""Attempts below which a share says nothing."""
_FEWEST_WHERE_NONE_IS_TAKEN = 5
"""Attempts put off, and none taken, from which the channel is said to be down."""
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
    taken: int = 0
    waiting: list[tuple[Job, Answer]] = field(default_factory=list)
    """Put off, and not yet counted as anybody's attempt."""
    later: Counter[str] = field(default_factory=Counter)
    """Attempts put off, by code."""
    open: str | None = None
    """The code of the refusals that closed the channel."""

    @property
    def working(self) -> bool:
        """Whether the carrier has taken anything, so that what it puts off may be a message's own fault."""
        return self.taken > 0 and self.open is None

    def answered(self, answer: Answer) -> None:
        """An attempt that the carrier took, or that left a doubt."""
        self.attempts += 1
        self.taken += answer.fate is Fate.ACCEPTED
        if answer.fate is Fate.DOUBTFUL and answer.code is not None and answer.code.startswith("5"):
            self.later[answer.code] += 1

    def put_off(self, job: Job, answer: Answer) -> None:
        """An attempt that the carrier wants later; ``open`` says whether that is half of everybody's."""
        self.attempts += 1
        self.waiting.append((job, answer))
        code = answer.code or "?"
        self.later[code] += 1
        if self.attempts >= FEWEST and self.later[code] > ALIKE_ABOUT_MAILBOXES * self.attempts:
            self.open = code

    def ailing(self) -> str | None:
        """The code with which the carrier puts off too many alike, or whatever comes; None where it does not."""
        for code, count in self.later.most_common(1):
            many = self.attempts >= FEWEST and count > ALIKE * self.attempts
            if many or (not self.taken and count >= _FEWEST_WHERE_NONE_IS_TAKEN):
                return code
        return None

    def own(self) -> list[tuple[Job, Answer]]:
        """What was put off and counts as an attempt of its message, each once: nothing where the channel is at fault,
        too many are put off alike, or the carrier takes nothing at all."""
        waiting, self.waiting = self.waiting, []
        return waiting if self.working and self.ailing() is None else []

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
