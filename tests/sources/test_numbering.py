"""A feed that does not count its events: the numbers are ours, dense, and an event that was taken keeps its own."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from uuid import NAMESPACE_OID, uuid5

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from polydesk_dagster.outcome import Outcome
from polydesk_dagster.sources.events import intake
from polydesk_dagster.sources.events.numbering import feed_of
from polydesk_dagster.sources.port import Capabilities, News, Numbers
from polydesk_dagster.sources.records import Event
from polydesk_dagster.wire import sort_records
from tests import world
from tests.sources.events_world import CODE, NOW, records


@dataclass
class Unnumbered:
    """A source that tells what happened after a token, which is a place in what it has told."""

    told: list[str] = field(default_factory=list)
    asked: list[str | None] = field(default_factory=list)
    capabilities = Capabilities(frozenset(), Numbers.OURS)
    epoch = "unnumbered"

    def news(self, token: str | None, limit: int) -> News:
        self.asked.append(token)
        after = int(token or 0)
        page = self.told[after : after + limit]
        found = sort_records(Event, [_event(name, n) for n, name in enumerate(page, 1)], "id")
        return News(found.valid, found.rejected, 0, len(page), token=str(after + len(page)))


def _event(name: str, place: int) -> dict[str, Any]:
    wrong = name.startswith("wrong")
    return {
        "id": str(uuid5(NAMESPACE_OID, name)),
        "sequence": place,
        "type": "price_list.changed",
        "version": 1,
        "occurred_at": "yesterday" if wrong else "2026-03-10T10:00:00+01:00",
        "entity": {"type": "price_list", "id": name},
        "data": {},
    }


def _take(engine: sa.Engine, source: Any, minutes: int, page: int = 10) -> Any:
    at = NOW + timedelta(minutes=minutes)
    return intake.sync(engine, at, CODE, feed_of(engine, CODE, source), page=page)


def test_numbers_are_dense_and_an_event_that_comes_again_keeps_its_own(engine: sa.Engine) -> None:
    records(engine)
    source = Unnumbered([f"E{n}" for n in range(25)])
    first = _take(engine, source, 1)
    assert (first.outcome, first.counts.updated) == (Outcome.OK, 25)
    assert _take(engine, source, 2).outcome is Outcome.NOTHING_TO_DO
    source.told += ["E3", "E25", "wrong"]
    third = _take(engine, source, 3)
    assert (third.outcome, third.counts.updated, third.counts.waiting) == (Outcome.PARTIAL, 1, 1)
    with engine.connect() as connection:
        numbers = list(connection.scalars(sa.text("SELECT sequence FROM event_inbox ORDER BY sequence")))
        assert connection.scalar(sa.text("SELECT count(*) FROM event_gap")) == 0
    assert numbers == list(range(1, 28))


def test_what_was_numbered_and_not_taken_is_asked_for_again(engine: sa.Engine) -> None:
    """Killed between the two: nothing is lost, and nothing is waited for that was renumbered."""
    records(engine)
    source = Unnumbered(["E1", "E2"])
    _take(engine, source, 1)
    source.told += ["E3", "E4"]
    assert [event.sequence for event in feed_of(engine, CODE, source).events(2, 10).events] == [3, 4]
    source.told[2:] = ["E4", "E5"]
    found = _take(engine, source, 2)
    assert (found.outcome, found.counts.updated, found.figures["events_missing"]) == (Outcome.OK, 2, 0)
    with engine.connect() as connection:
        entities = connection.scalars(sa.text("SELECT entity FROM event_inbox ORDER BY sequence"))
        assert [entity.removeprefix("price_list:") for entity in entities] == ["E1", "E2", "E4", "E5"]


@pytest.mark.slow
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(st.integers(0, 12), max_size=6), max_size=5), st.integers(1, 4), st.data())
def test_every_event_is_taken_once_whatever_comes_again(
    engine: sa.Engine, lots: list[list[int]], page: int, data: st.DataObject
) -> None:
    with engine.begin() as connection:
        world.clear(connection, "clinic")
    records(engine)
    source = Unnumbered()
    for minute, lot in enumerate(lots):
        source.told += [f"E{n}" for n in lot]
        if data.draw(st.booleans()):  # a reader that numbered them and then died
            with engine.connect() as connection:
                at = connection.scalar(sa.text("SELECT max(sequence) FROM event_cursor")) or 0
            if minute:
                feed_of(engine, CODE, source).events(at, page)
        _take(engine, source, minute, page)
    with engine.connect() as connection:
        taken = connection.execute(sa.text("SELECT entity, state FROM event_inbox ORDER BY sequence")).all()
        numbers = list(connection.scalars(sa.text("SELECT sequence FROM event_inbox ORDER BY sequence")))
    assert [row.entity for row in taken] == [f"price_list:{name}" for name in dict.fromkeys(source.told)]
    assert {row.state for row in taken} <= {"applied"}
    assert numbers == list(range(1, len(numbers) + 1))
