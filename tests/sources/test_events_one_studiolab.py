"""Two clinics that lead to one studiolab by mistake: the second takes in none of the first's events."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

from polydesk_dagster.demo.simulators.server import DEMO_TOKEN
from polydesk_dagster.outcome import Outcome, Report
from polydesk_dagster.sources import integrations
from polydesk_dagster.sources.events import intake
from polydesk_dagster.sources.events.intake import _Round
from polydesk_dagster.sources.events.numbering import Counted
from polydesk_dagster.sources.port import News
from polydesk_dagster.sources.studiolab.client import Studiolab
from polydesk_dagster.told import teller
from tests import world
from tests.sources.events_world import CODE, NOW, Lab, booking, lab
from tests.sources.test_remote_policy import FAST
from tests.waiting import PATIENCE

SECOND = "BO02"


@pytest.fixture
def bo(engine: sa.Engine) -> Iterator[Lab]:
    """BO01 as ever, and BO02 whose integration was given its address."""
    with lab(engine) as first:
        with engine.begin() as connection:
            world.integration(connection, world.clinic(connection, SECOND), _address(first))
        yield first


def _address(bo: Lab) -> str:
    ((url,),) = bo.rows("SELECT base_url FROM integration WHERE clinic_id = :clinic", clinic=bo.clinic)
    return str(url)


def _second(bo: Lab, url: str | None = None, **options: object) -> Report:
    with Studiolab(SECOND, url or _address(bo), DEMO_TOKEN, FAST) as client:
        return intake.sync(bo.engine, NOW, SECOND, Counted(client), **options)  # pyrefly: ignore[bad-argument-type]


def _taken(bo: Lab) -> dict[str, int]:
    found = "SELECT c.code, count(*) FROM event_inbox i JOIN clinic c ON c.id = i.clinic_id GROUP BY 1"
    return dict(bo.rows(found))


def test_at_the_first_meeting_nothing_of_anothers_is_taken_in(bo: Lab) -> None:
    bo.publish(*(booking(f"X{n}", f"{10 + n}:00") for n in range(5)))
    bo.sync()
    bo.publish(booking("Y", "17:00"))
    refused = _second(bo, page=2)
    assert refused.outcome is Outcome.REFUSED
    said = teller().reason(refused.reasons[0])
    assert f"gli eventi che dà sono quelli di {CODE}: due cliniche leggono lo stesso studiolab" in said
    assert _taken(bo) == {CODE: 5}
    assert _second(bo).reasons[0].code == "events_stopped", "until somebody has looked"
    assert _second(bo, reconcile=True, page=2).outcome is Outcome.REFUSED
    assert _taken(bo) == {CODE: 5}
    assert bo.sync().counts.updated == 1, "who was there before is read as ever"


def test_of_two_that_meet_it_in_one_moment_one_takes_it_in(bo: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both have looked before either takes anything in; whoever comes first then goes through several pages."""
    bo.publish(*(booking(f"X{n}", f"{10 + n}:00") for n in range(5)))
    meet, together = _Round.meet, threading.Barrier(2)

    def looked(round_: _Round, last: int) -> None:
        meet(round_, last)
        together.wait(PATIENCE)

    monkeypatch.setattr(_Round, "meet", looked)
    with ThreadPoolExecutor(2) as both:
        ended = [both.submit(bo.sync, page=2), both.submit(_second, bo, page=2)]
        outcomes = [each.result(PATIENCE).outcome for each in ended]
    assert outcomes.count(Outcome.REFUSED) == 1
    assert list(_taken(bo).values()) == [5]


def test_who_met_it_second_is_stopped_whoever_of_them_is_named_first(bo: Lab) -> None:
    bo.publish(booking("X"))
    _second(bo)
    assert bo.sync().outcome is Outcome.REFUSED
    assert _taken(bo) == {SECOND: 1}
    bo.publish(booking("Y", "10:00"))
    _second(bo)
    assert _taken(bo) == {SECOND: 2}, "and the one that is read goes on"


def test_of_two_that_have_taken_in_the_same_one_is_stopped_at_the_next_event(bo: Lab) -> None:
    """As it could come to before a first meeting was had by one at a time."""
    bo.publish(booking("X"))
    bo.sync()
    with bo.engine.begin() as connection:
        for copied in (
            """INSERT INTO event_inbox (clinic_id, event_id, sequence, type, state, received_at, changed_at)
               SELECT c.id, i.event_id, i.sequence, i.type, i.state, i.received_at, i.changed_at
               FROM event_inbox i, clinic c WHERE c.code = :second""",
            """INSERT INTO event_cursor (clinic_id, source, sequence, anchor)
               SELECT c.id, e.source, e.sequence, e.anchor FROM event_cursor e, clinic c WHERE c.code = :second""",
        ):
            connection.execute(sa.text(copied), {"second": SECOND})
    bo.publish(booking("Y", "10:00"))
    assert _second(bo).outcome is Outcome.REFUSED
    assert _taken(bo) == {CODE: 1, SECOND: 1}
    assert bo.sync().counts.updated == 1


def test_one_address_with_events_of_its_own_for_each_clinic_is_no_mistake(bo: Lab) -> None:
    """A server that tells clinics apart by their tokens."""
    bo.publish(booking("X"), booking("Y", "10:00"))
    bo.sync()
    bo.simulator.publish(SECOND, booking("X"), booking("Y", "10:00"))
    with bo.engine.begin() as connection:
        connection.execute(sa.text("UPDATE event_cursor SET source = :other"), {"other": _epoch_of(SECOND, bo)})
    assert _second(bo, _address(bo).replace(CODE, SECOND)).outcome is not Outcome.REFUSED
    assert _taken(bo) == {CODE: 2, SECOND: 2}


def _epoch_of(clinic: str, bo: Lab) -> str:
    with Studiolab(clinic, _address(bo).replace(CODE, clinic), DEMO_TOKEN, FAST) as client:
        return client.epoch


def test_clinics_at_one_address_are_named_where_one_is_configured(bo: Lab) -> None:
    with bo.engine.begin() as connection:
        assert integrations.at_the_same(connection, SECOND) == [CODE]
        assert integrations.at_the_same(connection, CODE) == [SECOND]
        connection.execute(sa.text("UPDATE integration SET base_url = base_url || '/' WHERE clinic_id <> :bo"),
                           {"bo": bo.clinic})  # fmt: skip
        assert integrations.at_the_same(connection, CODE) == [SECOND]
        connection.execute(sa.text("UPDATE integration SET active = false WHERE clinic_id <> :bo"), {"bo": bo.clinic})
        assert integrations.at_the_same(connection, CODE) == []
        connection.execute(sa.text("UPDATE integration SET base_url = 'https://x' WHERE clinic_id = :bo"),
                           {"bo": bo.clinic})  # fmt: skip
        assert integrations.at_the_same(connection, SECOND) == []


def test_of_many_at_one_address_few_are_asked_about(bo: Lab) -> None:
    """Those whose number is nearest to the last one, as that of whoever reads the same news is."""
    bo.publish(*(booking(f"X{n}", f"{10 + n}:00") for n in range(5)))
    bo.sync()
    with bo.engine.begin() as connection:
        for number in range(20):
            connection.execute(
                sa.text("""
                    INSERT INTO event_cursor (clinic_id, source, sequence, anchor, answered_at)
                    SELECT :clinic, source, :far, gen_random_uuid(), :as_of FROM event_cursor WHERE clinic_id = :bo"""),
                {"clinic": _tenant(connection, number), "far": 20 + number, "as_of": NOW, "bo": bo.clinic},
            )
    asked: list[int] = []

    class Asked(Counted):
        def events(self, after: int, limit: int) -> News:
            asked.append(after)
            return super().events(after, limit)

    with Studiolab(SECOND, _address(bo), DEMO_TOKEN, FAST) as client:
        assert intake.sync(bo.engine, NOW, SECOND, Asked(client)).outcome is Outcome.REFUSED
    assert asked == [0, 4], "a page, and about the nearest alone"


def _tenant(connection: sa.Connection, number: int) -> int:
    clinic = world.clinic(connection, f"T{number:03}")
    world.integration(connection, clinic, "https://one.example")
    return clinic
