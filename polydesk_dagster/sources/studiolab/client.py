"""The client of one clinic's studiolab: its lists page by page, and its news."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Annotated, Any, Generic, Self, TypeVar

import msgspec
from msgspec import Meta

from polydesk_dagster.answers import Answer
from polydesk_dagster.errors import PermanentError, TransientError
from polydesk_dagster.remote import Policy, Remote, base_url
from polydesk_dagster.sources import restarts
from polydesk_dagster.sources.port import (
    RECORDS,
    Capabilities,
    GoneError,
    Merged,
    News,
    Numbers,
    Page,
    Unchanged,
)
from polydesk_dagster.sources.records import Event, Listed
from polydesk_dagster.values import Reason, Value
from polydesk_dagster.wire import LARGEST, Rejected, Sorted, is_number, sort_records

LIST_LIMIT = 1000
GONE = frozenset({410})
T = TypeVar("T")
CAPABILITIES = Capabilities(frozenset(RECORDS), Numbers.DENSE, merged=True)


class Studiolab:
    """The client; close it, or use ``with``. ``clinic`` is the code that errors name."""

    capabilities = CAPABILITIES

    def __init__(self, clinic: str, url: str, token: str, policy: Policy | None = None) -> None:
        self.system = system(clinic)
        self.epoch = epoch(url)
        self.remote = Remote(self.system, url, token, policy)
        self._merged: list[Merged] | None = None
        """Found while the patients were last read; None where they were not."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.remote.close()

    def news(self, token: str | None, limit: int) -> News:
        """News with a sequence number above ``token``. Raises GoneError where studiolab no longer has them all."""
        after = int(token or 0)
        answer = self.remote.get("/events", {"after": after, "limit": limit}, expected=GONE)
        return news(self.system, answer, after)

    def merged(self) -> tuple[Merged, ...]:
        """Patients whose record says what it was ``merged_into``, as the list was last read; none new where it has not
        changed since."""
        if self._merged is None:
            deque(self.list("patients"), maxlen=0)
        return tuple(self._merged or ())

    def deleted(self, kind: str) -> tuple[str, ...]:  # noqa: ARG002
        """Its contract does not say."""
        return ()

    def list(self, kind: str, *, etag: str | None = None) -> Iterator[Page[Any]]:
        """A whole list, one page in memory at a time.

        Raises:
            Unchanged: before the first page, where ``etag`` still holds.
            TransientError: where it keeps changing, or ends before its total.
            PermanentError: where an answer has another shape.
        """
        yield from restarts.read(
            lambda restart: self._once(kind, etag if restart == 0 else None), self.system, f"/{kind}"
        )

    def _once(self, kind: str, etag: str | None) -> Iterator[Page[Any]]:
        path, model = f"/{kind}", RECORDS[kind]
        snapshot: str | None = None
        following: str | None = None
        total = read = number = 0
        merged: list[Merged] = []
        seen: set[str] = set()
        shape: msgspec.json.Decoder[_Plain[Any]] | None = _shape(model)
        while number == 0 or following is not None:
            asked: dict[str, str | int] = {"limit": LIST_LIMIT} | ({} if following is None else {"page": following})
            answer = self.remote.get(path, asked, etag=etag if number == 0 else None, shape=shape)
            if answer.not_modified:
                self._merged = merged if kind == "patients" else self._merged
                raise Unchanged
            plain = isinstance(answer.body, _Plain)
            shape = shape if plain else None  # the rest is hardly written otherwise: read twice it would take longer
            items, following, here, state = _page(self.system, path, answer)
            if snapshot is not None and (state, here) != (snapshot, total):
                raise restarts.Moved
            if following is not None:
                if following in seen:
                    raise PermanentError("list_repeats_page", system=self.system, path=path)
                seen.add(following)
            snapshot, total, number = state, here, number + 1
            if kind == "patients":
                records = _living(items, merged)
            else:
                records = Sorted(tuple(items), ()) if plain else sort_records(model, items, model.KEY)
            rejected = tuple(Rejected(r.position + read, r.key, r.reason, r.raw) for r in records.rejected)
            read += len(items)
            if following is None and read != total:
                raise TransientError("list_incomplete", system=self.system, path=path, read=read, total=total)
            if following is None and kind == "patients":
                self._merged = merged
            mark = answer.etag if number == 1 else None
            yield Page(number, records.valid, rejected, total - len(merged), snapshot, mark)


def _living(items: Sequence[Any], merged: list[Merged]) -> Sorted[Any]:
    """The patients of a page, as they came; those that are now another record are put among ``merged``."""
    if not [item for item in items if isinstance(item, dict) and "merged_into" in item]:
        return Sorted(tuple(items), ())
    living = []
    for item in items:
        into = item.get("merged_into") if isinstance(item, dict) else None
        if isinstance(into, str) and into.strip() and isinstance(item.get("id"), str):
            merged.append(Merged(item["id"], into.strip()))
        else:
            living.append(item)
    return Sorted(tuple(living), ())


def system(clinic: str) -> Reason:
    """How operators read of a clinic's studiolab."""
    return Reason("system_studiolab", {"of": clinic})


def epoch(url: str) -> str:
    """Which studiolab this is, as far as its address says."""
    return f"studiolab {base_url(url)}"


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
        or not is_number(body.get("last_sequence"))
    ):
        raise PermanentError("remote_shape", system=system, path="/events")
    records = sort_records(Event, body["items"], "id")
    history = body.get("epoch")
    return News(
        records.valid,
        records.rejected,
        body["last_sequence"],
        len(body["items"]),
        token=str(max((event.sequence for event in records.valid), default=after)),
        history=history if isinstance(history, str) and history else None,
    )


class _Plain(msgspec.Struct, Generic[T], forbid_unknown_fields=True):
    """A page that is written as it should be, and so are its items: msgspec reads it in one go."""

    items: list[T]
    total: Annotated[int, Meta(ge=0, le=LARGEST)]
    snapshot: Annotated[str, Meta(min_length=1)]
    next_page: Annotated[str, Meta(min_length=1)] | None = None


@cache
def _shape(model: type[Listed]) -> msgspec.json.Decoder[_Plain[Any]]:
    """Nothing that we do not know is skipped: it might be nested without end, or no text at all."""
    known = msgspec.defstruct(model.__name__, [], bases=(model,), forbid_unknown_fields=True, frozen=True, kw_only=True)
    return msgspec.json.Decoder(_Plain[known if model.AT_ONCE else dict[str, str | None]])


def _page(system: Value, path: str, answer: Answer) -> tuple[list[Any], str | None, int, str]:
    body = answer.body
    if isinstance(body, _Plain):
        return body.items, body.next_page, body.total, body.snapshot
    if isinstance(body, dict):
        items, following = body.get("items"), body.get("next_page")
        total, snapshot = body.get("total"), body.get("snapshot")
        if (
            isinstance(items, list)
            and (following is None or (isinstance(following, str) and following))
            and is_number(total)
            and isinstance(snapshot, str)
            and snapshot
        ):
            return items, following, total, snapshot
    raise PermanentError("remote_shape", system=system, path=path)
