"""What an author brings: the system that the adapter reads, as far as a check has to steer it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any, Protocol, runtime_checkable

from msgspec.structs import asdict

from polydesk_dagster.sources.port import RECORDS, Link, Page, Source, Unchanged
from polydesk_dagster.sources.records import Listed

FAULTS = (
    "silent", "status_500", "status_429", "cut", "other_type", "emptied", "page_again", "expired",
)  # fmt: skip
"""Says nothing, fails, is asked too often, breaks off, answers in another shape, gives pages without their records
though it counts them, gives a page twice, no longer takes the token."""

MOST_PAGES = 100
"""Of the lists that are drawn, which are short."""

Records = list[dict[str, Any]]


class Stage(Protocol):
    """A system that an adapter reads. Records are in the field names of ``port.RECORDS``."""

    @property
    def link(self) -> Link:
        """The integration that leads to it."""

    @property
    def secrets(self) -> Mapping[str, str]:
        """The variables that the link's settings name, with their values."""

    @property
    def carries(self) -> Mapping[str, frozenset[str]]:
        """The lists that it has, and the fields of each that it can express."""

    @property
    def fixed(self) -> Mapping[str, dict[str, Any]]:
        """Fields that a list needs and the system cannot express: what every record has in them."""

    @property
    def faults(self) -> frozenset[str]:
        """Those of ``FAULTS`` that can befall it."""

    @property
    def overcome(self) -> frozenset[str]:
        """Those of its faults under which its adapter brings the list whole all the same."""

    def hold(self, kind: str, records: Records) -> None:
        """Have exactly ``records`` as the list ``kind``, and no fault."""

    def spoil(self, kind: str) -> None:
        """Make the first record of what it holds one that cannot be read, but for its name."""

    def fail(self, fault: str, after: int) -> None:
        """Suffer ``fault``, once ``after`` more questions have been answered well."""

    def recover(self) -> None:
        """Suffer nothing any more; what it holds stays."""

    def change_while_read(self, kind: str, records: Records) -> None:
        """Hold ``records`` instead, once the reading of ``kind`` has begun."""

    def open(self) -> Source:
        """The adapter on this system, in a hurry: it asks once, and waits a second at most for who is ``silent``."""

    def other(self) -> Source:
        """The adapter on another system of the same kind, which need not answer."""


@runtime_checkable
class Linking(Protocol):
    """A stage whose pages name the next one by its address."""

    def lead_to(self, url: str) -> None:
        """From the next page on name an address below ``url``."""


@runtime_checkable
class Happening(Protocol):
    """A stage that tells what happens."""

    def happen(self, key: str) -> None:
        """Let something befall ``key`` that an event tells of; ``key`` is the event's entity."""


@runtime_checkable
class Forgetting(Protocol):
    """A stage that counts its events, and does not keep them for ever."""

    def forget(self) -> None:
        """Keep none but the last event."""


@runtime_checkable
class Merging(Protocol):
    """A stage in which one patient's record becomes another."""

    def merge(self, gone: str, into: str) -> None: ...


@runtime_checkable
class Deleting(Protocol):
    """A stage that says what was deleted."""

    def delete(self, kind: str, key: str) -> None: ...


def read(source: Source, kind: str, etag: str | None = None) -> tuple[Records, Page[Any]]:
    """A whole list as its reader collects it, by field, and its first page.

    Raises:
        AssertionError: pages are not numbered from 1, positions not from the start, or the total is another.
        Unchanged: before the first page.
    """
    found: list[Any] = []
    first: Page[Any] | None = None
    rejected = expected = 0
    page: Page[Any] | None = None
    try:
        for page in source.list(kind, etag=etag):
            if page.number == 1:
                found, first, rejected, expected = [], page, 0, 1
            assert page.number == expected, "pages follow each other, and a list that begins again begins with 1"
            assert expected < MOST_PAGES, "a list ends"
            assert all(record.position >= 0 for record in page.rejected), "positions count from the start"
            expected += 1
            found += page.records
            rejected += len(page.rejected)
    except Unchanged:
        assert page is None, "a list is unchanged before its first page, or not at all"
        raise
    assert first is not None, "an empty list is a page without records"
    assert page is not None, "an empty list is a page without records"
    assert page.total in {None, len(found) + rejected}, "the total counts every record"
    return [_plain(kind, record) for record in found], first


def wanted(stage: Stage, kind: str, records: Records) -> Records:
    """``records`` as they must be read."""
    fixed = stage.fixed.get(kind, {})
    return [asdict(RECORDS[kind].read(fixed | record)) for record in records]


def in_order(records: Iterable[Mapping[str, Any]]) -> list[str]:
    """Records that can be compared, whatever order they came in, and whether a price is written 33.6 or 33.60."""
    return sorted(
        json.dumps({name: _exact(name, value) for name, value in record.items()}, default=str, sort_keys=True)
        for record in records
    )


def _exact(name: str, value: Any) -> Any:
    return (
        Decimal(value).normalize() if value is not None and name in {"amount", "patient_share", "vat_rate"} else value
    )


def _plain(kind: str, record: Any) -> dict[str, Any]:
    return asdict(record if isinstance(record, Listed) else RECORDS[kind].read(record))
