"""A source's news as a feed by number: as it counts them, or, where it does not, under numbers that are ours.

Ours are dense and given once: an event that was taken in keeps its number, whatever came after it is numbered anew each
time that it is asked for. With the last event of a page stands the token to go on with, so that a run which is killed
between numbering and taking in asks again for the same.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa

from polydesk_dagster.sources.events.intake import Feed
from polydesk_dagster.sources.events.paging import trusted_numbers
from polydesk_dagster.sources.port import GoneError, News, Numbers, Telling
from polydesk_dagster.wire import Rejected

KEPT = 10_000
"""Numbers that are remembered behind the cursor."""

ASK_WITH = """
    SELECT token FROM feed_number WHERE clinic_id = {clinic} AND sequence <= {after} AND token IS NOT NULL
    ORDER BY sequence DESC LIMIT 1"""
"""SQL for the token to ask with; ``clinic`` is its id, ``after`` the number, each a parameter or a column."""
_ASK_WITH = ASK_WITH.format(clinic=":clinic", after=":after")

_FORGET = """
    DELETE FROM feed_number f USING event_cursor e
    WHERE f.clinic_id = :clinic AND e.clinic_id = :clinic
      AND (f.sequence > greatest(:after, e.sequence) OR f.sequence < e.sequence - :kept)"""

# In the order of the page; what was taken in once, and is no longer remembered here, is left out.
_NUMBER = """
    WITH said AS (
        SELECT event_id, min(n) AS n FROM unnest(CAST(:events AS uuid[])) WITH ORDINALITY t(event_id, n) GROUP BY 1),
    last AS (SELECT greatest(CAST(:after AS bigint), max(f.sequence), max(e.sequence)) AS number
             FROM event_cursor e LEFT JOIN feed_number f ON f.clinic_id = e.clinic_id WHERE e.clinic_id = :clinic)
    INSERT INTO feed_number (clinic_id, sequence, event_id)
    SELECT :clinic, last.number + row_number() OVER (ORDER BY s.n), s.event_id FROM said s, last
    WHERE NOT EXISTS (SELECT FROM event_inbox i WHERE i.clinic_id = :clinic AND i.event_id = s.event_id)
      AND NOT EXISTS (SELECT FROM feed_number f WHERE f.clinic_id = :clinic AND f.event_id = s.event_id)"""

_NUMBERS = """
    SELECT event_id, sequence FROM feed_number
    WHERE clinic_id = :clinic AND event_id = ANY(CAST(:events AS uuid[]))"""

# Where the page brought nothing new, what stood last goes on from its end.
_GO_ON = """
    WITH moved AS (
        UPDATE feed_number SET token = :token
        WHERE clinic_id = :clinic AND sequence = (SELECT max(sequence) FROM feed_number WHERE clinic_id = :clinic)
        RETURNING 1)
    INSERT INTO feed_number (clinic_id, sequence, token)
    SELECT :clinic, 0, CAST(:token AS text) WHERE NOT EXISTS (SELECT FROM moved)"""

_LAST = "SELECT max(sequence) FROM feed_number WHERE clinic_id = :clinic"


def feed_of(engine: sa.Engine, clinic: str, source: Telling) -> Feed:
    """The news of ``source`` for ``clinic`` (a code) by number."""
    if source.capabilities.news is Numbers.DENSE:
        return Counted(source)
    with engine.connect() as connection:
        clinic_id = connection.scalar(sa.text("SELECT id FROM clinic WHERE code = :code"), {"code": clinic})
    return Numbered(engine, int(clinic_id or 0), source)


@dataclass(frozen=True, slots=True)
class Counted:
    """The feed of a source that counts its events."""

    source: Telling

    @property
    def epoch(self) -> str:
        return self.source.epoch

    def events(self, after: int, limit: int) -> News:
        return self.source.news(str(after), limit)

    def oldest(self) -> int | None:
        try:
            return min(trusted_numbers(self.source.news(None, 1)), default=None)
        except GoneError as gone:
            return gone.oldest


@dataclass(frozen=True, slots=True)
class Numbered:
    """The feed of a source that does not. Reads whole pages: what it gives is never more than ``limit``, and fewer
    means that there is no more for now."""

    engine: sa.Engine
    clinic_id: int
    source: Telling

    @property
    def epoch(self) -> str:
        return self.source.epoch

    def events(self, after: int, limit: int) -> News:
        with self.engine.connect() as connection:
            token = connection.scalar(sa.text(_ASK_WITH), {"clinic": self.clinic_id, "after": after})
        while True:
            news = self.source.news(token, limit)
            numbered = self._numbered(news, after)
            full = news.size >= limit and news.token != token
            if numbered.events or numbered.rejected or not full:
                return numbered
            token = news.token

    def oldest(self) -> int | None:
        """A source may leave out what it told before: a resource that changed again has only its last version."""
        return None

    def _numbered(self, news: News, after: int) -> News:
        ids = [str(uuid.UUID(event.id)) for event in news.events]
        rejected = [_identity(record) for record in news.rejected]
        values: dict[str, Any] = {
            "clinic": self.clinic_id,
            "after": after,
            "kept": KEPT,
            "events": _in_order(news, ids, rejected),
            "token": news.token,
        }
        with self.engine.begin() as connection:
            connection.execute(sa.text(_FORGET), values)
            connection.execute(sa.text(_NUMBER), values)
            connection.execute(sa.text(_GO_ON), values)
            last = int(connection.scalar(sa.text(_LAST), values) or 0)
            numbers = {str(row.event_id): int(row.sequence) for row in connection.execute(sa.text(_NUMBERS), values)}
        fresh = {key: number for key, number in numbers.items() if number > after}
        events = tuple(
            event.model_copy(update={"sequence": fresh[key]})
            for event, key in zip(news.events, ids, strict=True)
            if key in fresh
        )
        wrong = tuple(
            replace(record, raw={**_plain(record.raw), "id": key, "sequence": fresh[key]})
            for record, key in zip(news.rejected, rejected, strict=True)
            if key in fresh
        )
        return replace(news, events=events, rejected=wrong, last_sequence=max(last, after))


def _in_order(news: News, ids: Sequence[str], rejected: Sequence[str]) -> list[str]:
    placed = [(event.sequence, key) for event, key in zip(news.events, ids, strict=True)]
    placed += [(record.position + 1, key) for record, key in zip(news.rejected, rejected, strict=True)]
    return [key for _, key in sorted(placed)]


def _identity(record: Rejected) -> str:
    """The id of an event that cannot be read: its own, or one made of what came."""
    try:
        return str(uuid.UUID(str(_plain(record.raw).get("id"))))
    except ValueError:
        return str(uuid.uuid5(uuid.NAMESPACE_OID, repr(record.raw)))


def _plain(raw: Any) -> dict[str, Any]:
    return raw if isinstance(raw, dict) else {"item": raw}
