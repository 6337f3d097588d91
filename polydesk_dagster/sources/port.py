"""The port for systems outside: what a source is asked, whatever stands behind it, and how an adapter is opened.

A source gives lists (whole, page by page, in the field names of ``records``) and, where it can, news. It never guesses:
what it cannot read it raises, and a record that is wrong it hands on as rejected. ``vendors`` finds adapters,
``conformance`` is what each must pass, docs/sources.md is for whoever writes one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

from pydantic import BaseModel

from polydesk_dagster.errors import PermanentError
from polydesk_dagster.remote import Policy
from polydesk_dagster.sources.records import (
    Agreement,
    Collaborator,
    Event,
    Listed,
    Municipality,
    Patient,
    Price,
    Service,
)
from polydesk_dagster.values import Value
from polydesk_dagster.wire import Rejected

RECORDS: Mapping[str, type[Listed]] = {
    "municipalities": Municipality,
    "patients": Patient,
    "collaborators": Collaborator,
    "services": Service,
    "agreements": Agreement,
    "prices": Price,
}
"""The lists that a source may have, and what each holds. Patients come as mappings with the fields of ``Patient``: an
import looks at a million of them, and checks only those that it does not know."""

L = TypeVar("L")


class Numbers(StrEnum):
    """How a source tells what happens."""

    NONE = "none"
    """Not at all: only its lists speak."""
    DENSE = "dense"
    """With sequence numbers of its own, of which a missing one is a loss; a token is the number read last."""
    OURS = "ours"
    """In an order that it marks by tokens of its own; the numbers are ours."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a source can be asked."""

    lists: frozenset[str]
    news: Numbers = Numbers.NONE
    merged: bool = False
    deleted: frozenset[str] = frozenset()
    """Lists of which it says by itself what was deleted."""
    untold: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """By list, fields that it has no word for, in no record: what a clinic holds there stays."""


class Unchanged(Exception):  # noqa: N818
    """The list is as it was when its ETag was given; no failure, and above all not an empty list."""


class GoneError(PermanentError):
    """News older than the source keeps was asked for: what lies between is lost to this feed."""

    def __init__(self, system: Value, after: int, oldest: int | None) -> None:
        if oldest is None:
            super().__init__("events_gone", system=system, after=after)
        else:
            super().__init__("events_gone_oldest", system=system, after=after, oldest=oldest)
        self.oldest = oldest
        """The oldest sequence number that it still has, if it said."""


@dataclass(frozen=True, slots=True)
class Page(Generic[L]):
    """One page of a list. ``number`` 1 begins it: whoever collects pages drops what came before, for a list that
    changed under the reader begins again."""

    number: int
    records: tuple[L, ...]
    rejected: tuple[Rejected, ...]
    """Positions count from the start of the list."""
    total: int | None
    """Of the whole list, those apart that are another record now; None where the source does not say."""
    snapshot: str
    etag: str | None
    """Of the first page, to be given back another time."""


@dataclass(frozen=True, slots=True)
class News:
    """One page of events, oldest first as far as the source knows."""

    events: tuple[Event, ...]
    rejected: tuple[Rejected, ...]
    last_sequence: int
    """The highest number that the source knows of; of ``Numbers.OURS`` it is made up when they are numbered."""
    size: int
    """Items in the answer, readable or not; fewer than were asked for means that there are no more for now."""
    token: str = ""
    """What to ask with for what follows."""
    history: str | None = None
    """What the source calls this history of itself: another one after it was restored."""


@dataclass(frozen=True, slots=True)
class Merged:
    """A patient's record that the source has merged into another."""

    gone: str
    into: str


class Telling(Protocol):
    """One system as far as it tells what happens. Whatever fails is a TransientError or a PermanentError."""

    @property
    def capabilities(self) -> Capabilities: ...

    @property
    def epoch(self) -> str:
        """Which system this is: equal for the same one, never equal for two. Cursor, ETags, counters and links are its
        own."""

    def news(self, token: str | None, limit: int) -> News:
        """What happened after ``token`` (None: from the oldest that is kept), at most ``limit`` events. The same token
        gives the same events, and newer ones: reading takes nothing away. Raises GoneError."""


class Source(Telling, Protocol):
    """One system as one clinic uses it."""

    def list(self, kind: str, *, etag: str | None = None) -> Iterator[Page[Any]]:
        """A whole list of ``RECORDS``, one page in memory at a time. Raises Unchanged before the first page where
        ``etag`` still holds."""

    def merged(self) -> Iterable[Merged]:
        """Patients that are now another record."""

    def deleted(self, kind: str) -> Iterable[str]:
        """Names of records that the source itself says are gone."""

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Link:
    """A clinic's integration as its row has it. ``settings`` holds no secrets, only names of their variables."""

    clinic: str
    vendor: str
    settings: Mapping[str, Any] = field(default_factory=dict)


Secret = Callable[[str], str]
"""The value of a variable that a settings' field names; raises ConfigurationError where it is not set."""

S = TypeVar("S", bound=BaseModel)


class Vendor(Protocol[S]):
    """What an entry point of ``polydesk_dagster.sources`` names: a kind of system, with what its settings must be."""

    @property
    def settings(self) -> type[S]: ...

    @property
    def news(self) -> Numbers: ...

    def epoch(self, settings: S) -> str:
        """What ``Source.epoch`` will be, without asking anybody."""

    def open(self, clinic: str, settings: S, secret: Secret, policy: Policy | None = None) -> Source: ...


@runtime_checkable
class Glancing(Protocol):
    """A vendor whose sources can be looked at for news side by side, in one event loop, without being opened."""

    async def glance(
        self, pool: Any, clinic: str, settings: Any, secret: Secret, after: int, limit: int, policy: Policy
    ) -> News: ...
