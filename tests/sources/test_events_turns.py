"""A clinic's turn in a run ends, and the next one comes further."""

from __future__ import annotations

from datetime import timedelta

from tests.sources.events_world import CODE, Lab
from tests.sources.test_events_feed import bo, cursor, gaps, people

__all__ = ["bo"]  # a fixture


def test_whose_turn_is_over_comes_further_each_time_and_waits_no_longer_for_a_gap_that_it_has_passed(bo: Lab) -> None:
    def over() -> bool:
        return False

    bo.publish(*people(25))
    first = bo.sync(page=10, goes_on=over)
    assert [(reason.code, reason.count) for reason in first.reasons] == [("events_left", 15)]
    assert [bo.sync(page=10, goes_on=over).counts.updated for _ in range(2)] == [9, 6]
    bo.simulator.feed(CODE).last += 1  # 26 never comes
    bo.publish(*people(50))
    bo.sync(page=10, goes_on=over)
    assert (cursor(bo), gaps(bo)) == (35, ["[26,27)"])
    bo.sync(page=10, goes_on=over)
    assert (cursor(bo), gaps(bo)) == (36, ["[26,27)"]), "what was read since the gap is read again, and what follows"
    bo.sync(timedelta(minutes=11), page=10, goes_on=over)
    assert (gaps(bo), gaps(bo, lost=True)) == ([], ["[26,27)"])
    while cursor(bo) < 76:
        bo.sync(page=10, goes_on=over)
    assert bo.states() == {"applied": 75}
