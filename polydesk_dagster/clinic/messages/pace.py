"""How much is sent, how fast, and what a dispatch came to."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from decimal import Decimal

import sqlalchemy as sa

from polydesk_dagster.clinic.messages.kinds import Channel


@dataclass(frozen=True, slots=True)
class Limits:
    """How much, how fast. Rates are messages a second."""

    run_cap: int
    hourly_cap: int
    sms_per_second: float
    mail_per_second: float
    sms_at_once: int = 16
    mail_connections: int = 3
    claimed_at_once: int = 300
    """Messages at most that are written down together as about to be sent."""
    most_segments: int = 6
    """Of one text; a longer one goes by e-mail, or in its short form."""
    segment_cost: Decimal | None = None
    """EUR for one segment of a text; None where nobody has said."""

    @classmethod
    def load(cls, connection: sa.Connection) -> Limits:
        row = connection.execute(
            sa.text("""SELECT run_cap, hourly_cap, sms_per_second, mail_per_second, sms_most_segments, sms_segment_cost
                       FROM message_policy WHERE clinic_id IS NULL""")
        ).one()
        return cls(
            row.run_cap,
            row.hourly_cap,
            float(row.sms_per_second),
            float(row.mail_per_second),
            most_segments=row.sms_most_segments,
            segment_cost=row.sms_segment_cost,
        )


@dataclass(slots=True)
class Tally:
    """What a dispatch came to: messages by (clinic code, kind, state, reason)."""

    counts: Counter[tuple[str, str, str, str]] = field(default_factory=Counter)
    closed: dict[Channel, str] = field(default_factory=dict)
    """Carriers that the run had to leave alone, with why."""
    missing: Counter[str] = field(default_factory=Counter)
    """Messages that wait because no carrier is configured for their channel."""
    behind_doubt: Counter[str] = field(default_factory=Counter)
    """Messages that wait by clinic, because a doubtful one may have told the same start."""
    suspended: Counter[str] = field(default_factory=Counter)
    """Messages that wait by clinic, because a person has to say first who the patient is."""
    broken: Counter[tuple[str, str, str, str, str]] = field(default_factory=Counter)
    """Messages that could not be written, by (clinic code, kind, variant, channel, language) of the text."""
    capped: bool = False
    settled: int = 0
    """Doubts of earlier runs that the gateway has cleared."""
    segments: int = 0
    """Of the texts that went out."""

    def add(self, clinic: str, kind: str, state: str, reason: str | None = None, count: int = 1) -> None:
        self.counts[clinic, kind, state, reason or ""] += count

    def total(self, *states: str) -> int:
        return sum(count for (_, _, state, _), count in self.counts.items() if state in states)


class Pace:
    """Lets at most ``rate`` a second through; a pause holds everybody back."""

    def __init__(self, rate: float) -> None:
        self._gap = 1 / rate
        self._next = 0.0

    async def turn(self) -> None:
        now = asyncio.get_running_loop().time()
        self._next = max(self._next, now - min(1.0, self._gap * 20)) + self._gap
        if self._next > now:
            await asyncio.sleep(self._next - now)

    def pause(self, seconds: float) -> None:
        self._next = max(self._next, asyncio.get_running_loop().time() + seconds)
