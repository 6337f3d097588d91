from __future__ import annotations

import uuid
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from polydesk_dagster.errors import TransientError
from polydesk_dagster.outcome import Outcome
from polydesk_dagster.told import teller
from tests.sources.events_world import CODE, Lab, booking, lab, person

MINUTE = timedelta(minutes=1)
HOURS = timedelta(hours=6)


@pytest.fixture
def bo(engine: sa.Engine) -> Iterator[Lab]:
    with lab(engine) as made:
        yield made


def cursor(bo: Lab) -> int:
    ((sequence,),) = bo.rows("SELECT sequence FROM event_cursor")
    return int(sequence)


def gaps(bo: Lab, lost: bool = False) -> list[str]:
    where = "IS NOT NULL" if lost else "IS NULL"
    return [span for (span,) in bo.rows(f"SELECT span::text FROM event_gap WHERE lost_at {where} ORDER BY span")]


def people(count: int) -> list[dict[str, Any]]:
    return [person(f"P{1 + n % 3}", address=f"Via {n}") for n in range(count)]


def test_pages_are_read_to_the_end(bo: Lab) -> None:
    bo.publish(*people(25))
    assert bo.sync(page=10).figures["events_read"] == 25
    assert (bo.states(), cursor(bo)) == ({"applied": 25}, 25)
    assert bo.rows("SELECT address FROM patient ORDER BY id") == [("Via 24",), ("Via 22",), ("Via 23",)]


def test_a_run_is_bounded_and_says_what_is_left(bo: Lab) -> None:
    bo.publish(*people(25))
    first = bo.sync(page=10, pages=2)
    assert [(reason.code, reason.count) for reason in first.reasons] == [("events_left", 5)]
    assert bo.sync(page=10).counts.updated == 5


def test_the_same_event_again_has_no_effect(bo: Lab) -> None:
    again, twice = booking("X"), booking("Y", "10:00")
    bo.publish(again | {"again": 2}, twice | {"twice": True})
    first = bo.sync(page=3)
    assert (first.counts.updated, first.counts.unchanged) == (2, 3)
    assert bo.states() == {"applied": 2}
    assert gaps(bo) == []


def test_pages_in_no_order_are_the_same(bo: Lab) -> None:
    bo.simulator.feed(CODE).shuffled = True
    bo.publish(booking("X"), *people(20), booking("X", "10:00", "rescheduled"), booking("X", kind="cancelled"))
    bo.sync(page=10)
    assert bo.appointment("X").status == "cancelled"
    assert bo.states() == {"applied": 23}


def test_a_late_number_is_waited_for_and_taken(bo: Lab) -> None:
    bo.publish(booking("X"), booking("Y", "10:00") | {"late": 3}, booking("Z", "11:00"))
    bo.sync()
    assert gaps(bo) == ["[2,3)"]
    assert bo.sync(MINUTE).outcome is Outcome.NOTHING_TO_DO
    bo.sync(MINUTE)
    bo.sync(MINUTE)
    assert bo.appointment("Y").seats == 1
    assert gaps(bo) == []


def test_a_late_state_does_not_undo_a_newer_one(bo: Lab) -> None:
    bo.publish(booking("X"), booking("X", "10:00", "rescheduled") | {"late": 1}, booking("X", "11:00", "rescheduled"))
    bo.sync()
    bo.sync(MINUTE)
    assert bo.states() == {"applied": 2, "superseded": 1}
    assert bo.rows("SELECT reason IS NOT NULL FROM event_inbox WHERE state = 'superseded'") == [(True,)]
    assert bo.appointment("X").starts_at.hour == 10


def test_a_number_that_never_comes_is_lost_after_a_while(bo: Lab) -> None:
    bo.publish(booking("X"))
    bo.simulator.feed(CODE).last += 3
    bo.publish(booking("Y", "10:00"))
    bo.sync()
    assert gaps(bo) == ["[2,5)"]
    lost = bo.sync(11 * MINUTE)
    assert [(reason.code, reason.count) for reason in lost.reasons] == [("events_never_came", 3)]
    assert (gaps(bo), gaps(bo, lost=True)) == ([], ["[2,5)"])
    assert bo.sync(MINUTE).outcome is Outcome.NOTHING_TO_DO


def test_what_came_late_while_nobody_looked_is_not_lost(bo: Lab) -> None:
    bo.publish(booking("X"), booking("Y", "10:00") | {"late": 1}, booking("Z", "11:00"))
    bo.sync()
    bo.sync(timedelta(days=1))
    assert bo.appointment("Y").seats == 1
    assert gaps(bo, lost=True) == []


def test_part_of_a_gap_is_filled(bo: Lab) -> None:
    bo.publish(booking("X"))
    bo.simulator.feed(CODE).last += 5
    bo.publish(booking("Y", "10:00"))
    bo.sync()
    bo.publish(booking("Z", "11:00") | {"sequence": 4})
    bo.sync(MINUTE)
    assert gaps(bo) == ["[2,4)", "[5,7)"]


def test_an_absurd_number_does_not_carry_the_cursor_away(bo: Lab) -> None:
    bo.publish(booking("X"))
    feed = bo.simulator.feed(CODE)
    feed.add(feed.events[0] | {"id": str(uuid.uuid4()), "sequence": 10**15})
    bo.sync()
    assert (cursor(bo), bo.states()) == (1, {"applied": 1, "parked": 1})
    bo.publish(booking("Y", "10:00"))
    bo.sync()
    assert cursor(bo) == 2


def test_another_event_under_the_number_of_the_cursor_stops_the_clinic(bo: Lab) -> None:
    bo.publish(*people(3), booking("X"))
    bo.sync()
    feed = bo.simulator.feed(CODE)
    feed.events[-1] = feed.events[-1] | {"id": str(uuid.uuid4())}  # restored before it, and grown past it since
    bo.publish(booking("Y", "10:00"))
    stopped = bo.sync()
    assert stopped.outcome is Outcome.REFUSED
    assert "ora ha un altro evento" in teller().reason(stopped.reasons[0])
    assert cursor(bo) == 4
    assert bo.appointment("Y") is None
    again = bo.sync(reconcile=True)
    assert "numbers_restarted" in {reason.code for reason in again.reasons}
    assert bo.appointment("Y").seats == 1
    assert bo.sync().outcome is Outcome.NOTHING_TO_DO


def test_the_cursor_stands_on_an_event_that_cannot_be_read_too(bo: Lab) -> None:
    bo.publish(*people(3), booking("X") | {"entity": None})
    bo.sync()
    assert bo.sync().outcome is Outcome.NOTHING_TO_DO
    feed = bo.simulator.feed(CODE)
    feed.events[-1] = feed.events[-1] | {"id": str(uuid.uuid4())}
    bo.publish(booking("Y", "10:00"))
    assert bo.sync().reasons[0].code == "events_stopped"
    assert cursor(bo) == 4


def test_the_last_event_gone_from_between_others_stops_the_clinic(bo: Lab) -> None:
    """Restored from before it and grown past it since, and its number was not given again."""
    bo.publish(*people(3), booking("X"))
    bo.sync()
    feed = bo.simulator.feed(CODE)
    del feed.events[-1]
    bo.publish(booking("Y", "10:00"))
    stopped = bo.sync()
    assert stopped.outcome is Outcome.REFUSED
    assert "L'evento numero 4, l'ultimo letto, non c'è più" in teller().reason(stopped.reasons[0])
    assert (cursor(bo), bo.appointment("Y")) == (4, None)
    again = bo.sync(reconcile=True)
    assert "numbers_restarted" in {reason.code for reason in again.reasons}
    assert (bo.appointment("X").seats, bo.appointment("Y").seats) == (1, 1)
    assert bo.sync().outcome is Outcome.NOTHING_TO_DO


@pytest.mark.parametrize("oldest", [4, 5])
def test_a_feed_that_keeps_only_the_newest_is_read_on_without_a_word(bo: Lab, oldest: int) -> None:
    """Whether it answers 410 for what is older, or with what it has."""
    bo.publish(*people(3), booking("X"))
    bo.sync()
    feed = bo.simulator.feed(CODE)
    feed.forget(5)
    feed.oldest = oldest
    assert bo.sync().outcome is Outcome.NOTHING_TO_DO
    bo.publish(booking("Y", "10:00"))
    read = bo.sync()
    assert (read.outcome, read.reasons, bo.appointment("Y").seats) == (Outcome.OK, (), 1)


def test_a_first_meeting_with_a_source_that_is_no_longer_young_loses_nothing(bo: Lab) -> None:
    bo.publish(*people(5), booking("X"))
    bo.simulator.feed(CODE).forget(5)
    first = bo.sync()
    assert (first.outcome, cursor(bo)) == (Outcome.OK, 6)
    assert first.reasons == ()
    assert bo.sync().outcome is Outcome.NOTHING_TO_DO


def test_gone_events_stop_the_clinic_until_a_person_reconciles(bo: Lab) -> None:
    bo.publish(booking("X"))
    bo.sync()
    bo.publish(*people(5), booking("Y", "10:00"))
    bo.simulator.feed(CODE).forget(5)
    stopped = bo.sync()
    assert stopped.outcome is Outcome.REFUSED
    told = teller().reason(stopped.reasons[0])
    assert "polydesk run sync_events --clinic BO01 --reconcile" in told
    assert "3 eventi dopo il numero 1 non ci sono più e non sono stati letti, il più vecchio rimasto è il 5" in told
    assert cursor(bo) == 1
    asked = len(bo.simulator.requests)
    assert bo.sync().reasons[0].code == "events_stopped"
    assert len(bo.simulator.requests) == asked
    again = bo.sync(reconcile=True)
    assert [(r.code, r.count) for r in again.reasons][:3] == [
        ("reconciled", 1),
        ("events_lost", 3),
        ("appointments_to_compare", 1),
    ]
    assert gaps(bo, lost=True) == ["[2,5)"]
    assert bo.appointment("Y").seats == 1
    assert {service for (service,) in bo.rows("SELECT service FROM service_request")} == {
        "import_patients",
        "preview_prices",
    }
    assert bo.sync().outcome is Outcome.NOTHING_TO_DO


def test_only_a_gap_out_of_reach_is_given_up_without_a_stop(bo: Lab) -> None:
    bo.publish(booking("X"))
    bo.simulator.feed(CODE).last += 2
    bo.publish(booking("Y", "10:00"))
    bo.sync()
    bo.publish(booking("Z", "11:00"))
    bo.simulator.feed(CODE).forget(4)
    bo.sync(MINUTE)
    assert bo.appointment("Z").seats == 1
    assert gaps(bo, lost=True) == ["[2,4)"]


@pytest.mark.parametrize("since", [0, 9])
def test_numbers_that_start_again_stop_the_clinic(bo: Lab, since: int) -> None:
    """Also where they have grown past ours until somebody reads on."""
    bo.publish(booking("X"), *people(5))
    bo.sync()
    bo.simulator.feeds.clear()
    bo.publish(booking("X", kind="cancelled"))
    assert bo.sync().reasons[0].code == "events_stopped"
    bo.publish(*people(since))
    again = bo.sync(reconcile=True)
    assert "numbers_restarted" in {reason.code for reason in again.reasons}
    assert bo.appointment("X").status == "cancelled"
    assert cursor(bo) == 1 + since


def test_who_reads_on_where_nothing_stands_still_loses_nothing(bo: Lab) -> None:
    bo.publish(booking("X"))
    bo.sync()
    bo.publish(booking("Y", "10:00"))
    again = bo.sync(reconcile=True)
    assert [(reason.code, reason.count) for reason in again.reasons] == [("reconciled", 1)]
    assert (bo.appointment("Y").seats, gaps(bo, lost=True)) == (1, [])


def test_a_page_that_fails_leaves_nothing_of_itself(bo: Lab) -> None:
    bo.publish(*people(15))
    bo.simulator.fail("cut", "/events", after=1, times=None)
    with pytest.raises(TransientError):
        bo.sync(page=10)
    assert (bo.states(), cursor(bo)) == ({"applied": 10}, 10)
    bo.simulator.faults.clear()
    assert bo.sync(page=10).counts.updated == 5


@pytest.mark.parametrize(
    "fault", [{"kind": "status", "status": 429, "retry_after": 1}, {"kind": "cut"}, {"kind": "html"}]
)
def test_passing_faults_are_ridden_out(bo: Lab, fault: dict[str, Any]) -> None:
    bo.publish(*people(15))
    bo.simulator.fail(**fault, path="/events", times=1, after=1)
    assert bo.sync(page=10).counts.updated == 15
