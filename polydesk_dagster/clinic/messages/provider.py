"""What a dispatcher expects of whoever carries a message: one attempt, an honest answer, and where it can a look-up."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from polydesk_dagster.clinic.messages.kinds import Channel


class Fate(StrEnum):
    """What became of one attempt."""

    ACCEPTED = "accepted"
    REFUSED = "refused"
    """This message will never be accepted on this channel."""
    LATER = "later"
    """Certainly not accepted now; the same message may be later."""
    SLOWER = "slower"
    """Certainly not accepted, because we ask too fast."""
    UNREACHABLE = "unreachable"
    """The carrier was not reached at all; nothing was handed over."""
    DOUBTFUL = "doubtful"
    """Nobody knows: it went out and no answer came back."""
    UNKNOWN_KEY = "unknown_key"
    """Only from a look-up: the carrier never accepted that key."""
    CLOSED = "closed"
    """The carrier wants none of our messages (credentials, address): a person must change something."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One attempt's outcome. ``code`` is for the operator and holds neither text nor address."""

    fate: Fate
    reference: str | None = None
    """The carrier's own name for the message."""
    code: str | None = None
    retry_after: float | None = None
    """Seconds."""
    bad_address: bool = False
    """Refused because that address can never receive anything, by the carrier's own word."""
    strike: bool = False
    """Refused in a way that speaks of the address, but not for good."""
    delivered: bool = False
    """Only from a look-up: the message has arrived."""


def unexpected(error: Exception) -> Answer:
    """What a carrier that raises has answered: nobody knows what it did with this one message."""
    return Answer(Fate.DOUBTFUL, code=type(error).__name__)


@dataclass(frozen=True, slots=True)
class Event:
    """An appointment for the recipient's calendar, which knows it by ``uid`` and takes the highest ``sequence``."""

    uid: str
    sequence: int
    start: datetime
    end: datetime
    summary: str
    location: str
    cancelled: bool = False


@dataclass(frozen=True, slots=True)
class Outgoing:
    """What goes on the wire. The same ``key`` always carries the same text to the same address."""

    key: str
    address: str
    subject: str | None
    body: str
    language: str = "it"
    reply_to: str | None = None
    """Where an answer to an e-mail goes."""
    unsubscribe: str | None = None
    """The https link on which one press says that nothing more is wanted (RFC 8058)."""
    events: tuple[Event, ...] = ()
    """What an e-mail brings for the calendar: all of them cancelled, or none."""


class Provider(Protocol):
    """A carrier; used inside ``async with``. Neither method raises for anything the other side or the network does."""

    name: str
    channel: Channel
    can_look_up: bool
    """Whether ``look_up`` can settle a doubt; else a person has to."""

    async def __aenter__(self) -> object: ...

    async def __aexit__(self, *_: object) -> None: ...

    async def send(self, outgoing: Outgoing) -> Answer:
        """Try once. A second call with the same key after a LATER, SLOWER or UNREACHABLE is always safe; after a
        DOUBTFUL only where ``can_look_up``."""
        ...

    async def look_up(self, key: str) -> Answer:
        """ACCEPTED, REFUSED (accepted, but undeliverable), UNKNOWN_KEY, or why the question could not be answered."""
        ...
