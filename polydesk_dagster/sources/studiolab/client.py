"""The client of one clinic's studiolab: its lists page by page, and its news."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, Self, TypeVar

from polydesk_dagster.answers import Answer
from polydesk_dagster.errors import PermanentError, TransientError
from polydesk_dagster.remote import Policy, Remote
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
from polydesk_dagster.values import Reason, Value
from polydesk_dagster.wire import Rejected, Sorted, sort_records

RESTARTS = 3
"""How often a list that changes under the reader is read from its beginning again."""
LIST_LIMIT = 1000
GONE = frozenset({410})

L = TypeVar("L", bound=Listed)


class Unchanged(Exception):  # noqa: N818
    """The list is as it was when its ETag was given; no failure, and above all not an empty list."""


class GoneError(PermanentError):
    """News older than studiolab keeps was asked for: what lies between is lost to this feed."""

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
    total: int
    snapshot: str
    etag: str | None
    """Of the first page, to be given back another time."""


@dataclass(frozen=True, slots=True)
class News:
    """One page of events, oldest first as far as studiolab knows."""

    events: tuple[Event, ...]
    rejected: tuple[Rejected, ...]
    last_sequence: int
    size: int
    """Items in the answer, readable or not."""


class _Moved(Exception):  # noqa: N818
    """The list changed between two pages."""


class Studiolab:
    """The client; close it, or use ``with``. ``clinic`` is the code that errors name."""

    def __init__(self, clinic: str, url: str, token: str, policy: Policy | None = None) -> None:
        self.system = system(clinic)
        self.remote = Remote(self.system, url, token, policy)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.remote.close()

    def municipalities(self, *, etag: str | None = None) -> Iterator[Page[Municipality]]:
        return self._pages(Municipality, {}, etag)

    def patients(self, *, updated_since: datetime | None = None, etag: str | None = None) -> Iterator[Page[Patient]]:
        return self._pages(Patient, {} if updated_since is None else {"updated_since": updated_since.isoformat()}, etag)

    def patient_items(self, *, etag: str | None = None) -> Iterator[Page[Any]]:
        """Patients as they came: the import looks at a million of them, and only at those that it does not know."""
        return self._pages(Patient, {}, etag, sort=lambda items: Sorted(tuple(items), ()))

    def collaborators(self, *, etag: str | None = None) -> Iterator[Page[Collaborator]]:
        return self._pages(Collaborator, {}, etag)

    def services(self, *, etag: str | None = None) -> Iterator[Page[Service]]:
        return self._pages(Service, {}, etag)

    def agreements(self, *, etag: str | None = None) -> Iterator[Page[Agreement]]:
        return self._pages(Agreement, {}, etag)

    def prices(self, *, etag: str | None = None) -> Iterator[Page[Price]]:
        return self._pages(Price, {}, etag)

    def events(self, after: int, limit: int) -> News:
        """News with a sequence number above ``after``. Raises GoneError where studiolab no longer has them all."""
        answer = self.remote.get("/events", {"after": after, "limit": limit}, expected=GONE)
        return news(self.system, answer, after)

    def _pages(
        self,
        model: type[L],
        query: dict[str, str | int],
        etag: str | None,
        *,
        sort: Callable[[list[Any]], Sorted[L]] | None = None,
    ) -> Iterator[Page[L]]:
        """A whole list, one page in memory at a time.

        Raises:
            Unchanged: before the first page, where ``etag`` still holds.
            TransientError: where it keeps changing, or ends before its total.
            PermanentError: where an answer has another shape.
        """
        sort = sort or (lambda items: sort_records(model, items, model.KEY))
        for restart in range(RESTARTS + 1):
            try:
                yield from self._once(model, query, etag if restart == 0 else None, sort)
            except _Moved:
                continue
            return
        raise TransientError("list_keeps_changing", system=self.system, path=model.PATH)

    def _once(
        self,
        model: type[L],
        query: dict[str, str | int],
        etag: str | None,
        sort: Callable[[list[Any]], Sorted[L]],
    ) -> Iterator[Page[L]]:
        snapshot: str | None = None
        following: str | None = None
        total = read = number = 0
        seen: set[str] = set()
        while number == 0 or following is not None:
            asked = query | {"limit": LIST_LIMIT} | ({} if following is None else {"page": following})
            answer = self.remote.get(model.PATH, asked, etag=etag if number == 0 else None)
            if answer.not_modified:
                raise Unchanged
            items, following, here, state = self._page(model, answer)
            if snapshot is not None and (state, here) != (snapshot, total):
                raise _Moved
            if following is not None:
                if following in seen:
                    raise PermanentError("list_repeats_page", system=self.system, path=model.PATH)
                seen.add(following)
            snapshot, total, number = state, here, number + 1
            records = sort(items)
            rejected = tuple(Rejected(r.position + read, r.key, r.reason, r.raw) for r in records.rejected)
            read += len(items)
            if following is None and read != total:
                raise TransientError("list_incomplete", system=self.system, path=model.PATH, read=read, total=total)
            yield Page(number, records.valid, rejected, total, snapshot, answer.etag if number == 1 else None)

    def _page(self, model: type[L], answer: Answer) -> tuple[list[Any], str | None, int, str]:
        body = answer.body
        if isinstance(body, dict):
            items, following = body.get("items"), body.get("next_page")
            total, snapshot = body.get("total"), body.get("snapshot")
            if (
                isinstance(items, list)
                and (following is None or (isinstance(following, str) and following))
                and type(total) is int
                and total >= 0
                and isinstance(snapshot, str)
                and snapshot
            ):
                return items, following, total, snapshot
        raise PermanentError("remote_shape", system=self.system, path=model.PATH)


def system(clinic: str) -> Reason:
    """How operators read of a clinic's studiolab."""
    return Reason("system_studiolab", {"of": clinic})


def news(system: Value, answer: Answer, after: int) -> News:
    """What an answer to ``/events`` says. Raises GoneError for 410, PermanentError for another shape."""
    body = answer.body
    if answer.status in GONE:
        oldest = body.get("oldest_sequence") if isinstance(body, dict) else None
        oldest = oldest if type(oldest) is int else None
        raise GoneError(system, after, oldest)
    if (
        not isinstance(body, dict)
        or not isinstance(body.get("items"), list)
        or type(body.get("last_sequence")) is not int
    ):
        raise PermanentError("remote_shape", system=system, path="/events")
    records = sort_records(Event, body["items"], "id")
    return News(records.valid, records.rejected, body["last_sequence"], len(body["items"]))
