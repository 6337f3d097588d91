"""A source that answers is known as one before it has ever told anything, and at no cost of later looks."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from polydesk_dagster.demo.simulators.server import DEMO_TOKEN
from polydesk_dagster.runtime.state.integrations import integration_state, integration_states
from polydesk_dagster.runtime.state.model import Link
from polydesk_dagster.sources.events import intervals, looking
from polydesk_dagster.sources.events.looking import Seen
from tests import world
from tests.sources.events_world import NOW
from tests.sources.test_events_sensor import MINUTE, PATIENT, Round, round_of


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is slow, however busy this machine."""
    monkeypatch.setattr(intervals, "SLOW", ())


def _link(engine: sa.Engine, clinic: str = "C01") -> Link:
    with engine.connect() as connection:
        state = integration_state(connection, clinic, lambda _: True)
    assert state is not None
    return state.link


def _seen(chain: Round, minutes: int) -> list[Seen]:
    as_of = NOW + minutes * MINUTE
    with chain.engine.connect() as connection:
        known = looking.clinics(connection, as_of)
    return looking.look(known, as_of, lambda _: DEMO_TOKEN, policy=PATIENT)


def test_who_answers_and_has_no_news_is_known_as_well_by_one_statement_and_then_by_none(engine: sa.Engine) -> None:
    with round_of(engine, 3) as chain:
        assert _link(engine) is Link.NOT_ASKED
        first = _seen(chain, 0)
        assert looking.changed(first)
        said: list[str] = []
        with engine.begin() as connection:
            sa.event.listen(connection, "before_cursor_execute", lambda *given: said.append(given[2]))
            looking.remember(connection, first, NOW)
        assert len(said) == 1
        with engine.connect() as connection:
            assert {state.link for state in integration_states(connection, lambda _: True)} == {Link.WELL}
        assert not looking.changed(_seen(chain, 1))


def test_who_has_only_failed_so_far_is_known_once_it_answers(engine: sa.Engine) -> None:
    with round_of(engine, 1) as chain:
        chain.simulator.fail("status", "/events", status=500, times=1)
        chain.look(NOW)
        assert _link(engine) is Link.UNREACHABLE
        chain.look(NOW + 2 * MINUTE)
        assert _link(engine) is Link.WELL
        assert not looking.changed(_seen(chain, 3))


def test_an_integration_that_was_changed_is_asked_at_the_next_look_and_known_by_what_it_answers_then(
    engine: sa.Engine,
) -> None:
    with round_of(engine, 2) as chain:
        chain.look(NOW)
        chain.simulator.fail("status", "/C01/api/v1/events", status=429, retry_after=1200)
        chain.look(NOW + MINUTE)
        assert chain.look(NOW + 2 * MINUTE)["C01"].why.code == "left_in_peace"
        with engine.begin() as connection:  # what leaves it as it is says nothing new
            connection.execute(sa.text("UPDATE integration SET token_env = token_env, updated_at = now()"))
        assert chain.look(NOW + 3 * MINUTE)["C01"].why.code == "left_in_peace"
        assert _link(engine, "C02") is Link.WELL
        with engine.begin() as connection:
            connection.execute(sa.text("UPDATE integration SET base_url = replace(base_url, '/C0', '/D0')"))
        assert _link(engine, "C02") is Link.NOT_ASKED
        assert _link(engine) is Link.UNREACHABLE
        assert {each.why.code for each in chain.look(NOW + 4 * MINUTE).values()} == {
            "no_news_reachable_again",
            "no_news",
        }
        assert (_link(engine), _link(engine, "C02")) == (Link.WELL, Link.WELL)


def test_a_source_of_lists_alone_is_not_called_asked_by_a_look_that_asks_nothing(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        world.integration(connection, world.clinic(connection, "C01"), "http://127.0.0.1:9")
        connection.execute(
            sa.text("""UPDATE integration SET vendor = 'files', base_url = NULL, settings = '{"lists": {}}',
                                              token_env = 'POLYDESK_FILES_TOKEN_C01'""")
        )
        seen = looking.look(looking.clinics(connection, NOW), NOW, lambda _: None)
        looking.remember(connection, seen, NOW)
        assert not looking.changed(looking.look(looking.clinics(connection, NOW), NOW, lambda _: None))
    assert _link(engine) is Link.NOT_ASKED
