from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import dagster as dg
import pytest
import sqlalchemy as sa
from starlette.requests import Request

from polydesk_dagster import many
from polydesk_dagster.catalog import Place
from polydesk_dagster.database import service_runs
from polydesk_dagster.demo.simulators.faults import Reply
from polydesk_dagster.demo.simulators.server import DEMO_TOKEN, Handler, in_thread
from polydesk_dagster.demo.simulators.studiolab import StudiolabSimulator
from polydesk_dagster.outcome import Outcome, Report
from polydesk_dagster.remote import Policy
from polydesk_dagster.runtime.state import activity
from polydesk_dagster.sensors.studiolab_events import _Remembered, _remembered, request, studiolab_events
from polydesk_dagster.sources.events import intervals, looking
from polydesk_dagster.sources.events.looking import Clinic, Seen
from polydesk_dagster.sources.events.rounds import Bounds
from polydesk_dagster.told import teller
from tests import world
from tests.sources.events_world import NOW, booking, lab

MINUTE = timedelta(minutes=1)
PATIENT = Policy(connect=60, read=60, write=60, request=60, attempts=1)
HEARING = replace(PATIENT, read=5, request=5)
"""Long enough for who answers on a busy machine, soon over for who is deaf."""


@dataclass
class Round:
    """Clinics C01… with a studiolab each, all played by one simulator."""

    engine: sa.Engine
    simulator: StudiolabSimulator

    def look(self, as_of: datetime, policy: Policy = PATIENT) -> dict[str, Seen]:
        with self.engine.connect() as connection:
            known = looking.clinics(connection, as_of)
        seen = looking.look(known, as_of, lambda _: DEMO_TOKEN, policy=policy, bounds=Bounds(longest=300))
        if looking.changed(seen):
            with self.engine.begin() as connection:
                looking.remember(connection, seen, as_of)
        return {each.clinic.code: each for each in seen}

    def down(self) -> tuple[datetime | None, str | None]:
        """Since when, and why."""
        with self.engine.connect() as connection:
            since, why = connection.execute(sa.text("SELECT down_since, down_reason FROM event_cursor")).one()
        return since, why


@contextmanager
def round_of(engine: sa.Engine, count: int, simulator: StudiolabSimulator | None = None) -> Iterator[Round]:
    simulator = simulator or StudiolabSimulator()
    with in_thread(simulator) as url:
        with engine.begin() as connection:
            for number in range(1, count + 1):
                code = f"C{number:02}"
                world.integration(connection, world.clinic(connection, code), url.replace("/api", f"/{code}/api"))
        yield Round(engine, simulator)


def news(code: str) -> dict[str, Any]:
    return {"type": "price_list.changed", "entity": {"type": "price_list", "id": code}}


class LastOfAll(StudiolabSimulator):
    """The studiolab of C07 answers when the other forty-nine have been asked."""

    def handlers(self) -> dict[tuple[str, str], Handler]:
        asked = asyncio.Event()

        def wrapped(handler: Handler) -> Handler:
            async def wait(request: Request) -> Reply:
                if len(self.requests) == 50:
                    asked.set()
                if "/C07/" in request.url.path:
                    await asked.wait()
                return await handler(request)

            return wait

        return {route: wrapped(handler) for route, handler in super().handlers().items()}


def test_an_idle_look_is_one_request_a_clinic_and_as_long_as_the_slowest(
    engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intervals, "SLOW", ())  # nobody is, however busy this machine
    with round_of(engine, 50, LastOfAll()) as chain:
        seen = chain.look(NOW)
        assert len(chain.simulator.requests) == 50
        assert {each.why for each in seen.values()} == {looking.NOTHING}
    with engine.connect() as connection:
        assert (
            connection.scalar(sa.text("SELECT count(*) FROM event_cursor WHERE answered_at = :now"), {"now": NOW}) == 50
        )


def test_one_that_is_slow_or_broken_delays_nobody(engine: sa.Engine) -> None:
    with round_of(engine, 4) as chain:
        chain.simulator.fail("deaf", "/C01/api/v1/events", seconds=8, times=None)
        chain.simulator.fail("status", "/C02/api/v1/events", status=503, times=None)
        chain.simulator.fail("html", "/C03/api/v1/events", times=None)
        chain.simulator.publish("C04", news("C04"))
        seen = chain.look(NOW, HEARING)
        asked = {request["path"].split("/")[1]: request["at"] for request in chain.simulator.requests}
        assert asked["C04"] < asked["C01"] + HEARING.read  # nobody waited for who did not answer
        assert [seen[f"C0{n}"].error is not None for n in range(1, 5)] == [True, True, True, False]
        assert seen["C04"].news == 1


def test_who_does_not_answer_is_left_in_peace_for_longer_each_time(engine: sa.Engine) -> None:
    with round_of(engine, 1) as chain:
        chain.simulator.fail("status", "/events", status=500, times=3)
        chain.look(NOW)
        asked = len(chain.simulator.requests)
        told = teller().reason(chain.look(NOW + MINUTE / 2)["C01"].why)
        assert told.startswith("nessuna lettura riuscita dal")
        assert "/events ha risposto 500" in told
        assert len(chain.simulator.requests) == asked
        chain.look(NOW + MINUTE)
        chain.look(NOW + 2 * MINUTE)
        assert len(chain.simulator.requests) == asked + 1
        chain.look(NOW + 3 * MINUTE)
        assert chain.down()[0] == NOW
        back = chain.look(NOW + 7 * MINUTE)["C01"]
        assert back.why.code == "no_news_reachable_again"
        assert chain.down() == (None, None)
        assert chain.look(NOW + 8 * MINUTE)["C01"].why == looking.NOTHING


def test_who_is_left_in_peace_and_nobody_knows_why_is_asked(engine: sa.Engine) -> None:
    """A machine that does not note it yet, beside one that does."""
    with round_of(engine, 1) as chain:
        chain.simulator.fail("status", "/events", status=500, times=1)
        chain.look(NOW)
        with engine.begin() as connection:
            connection.execute(sa.text("UPDATE event_cursor SET down_reason = NULL"))
        assert chain.look(NOW + MINUTE / 2)["C01"].why.code == "no_news_reachable_again"


def test_a_long_retry_after_is_respected(engine: sa.Engine) -> None:
    with round_of(engine, 1) as chain:
        chain.simulator.fail("status", "/events", status=429, retry_after=1200)
        chain.look(NOW)
        assert chain.look(NOW + 19 * MINUTE)["C01"].why.code == "left_in_peace"
        assert chain.look(NOW + 20 * MINUTE)["C01"].why.code.startswith("no_news")


def test_the_run_tells_that_a_studiolab_is_back(engine: sa.Engine) -> None:
    with lab(engine) as bo:
        chain = Round(engine, bo.simulator)
        bo.simulator.fail("status", "/events", status=500)
        chain.look(NOW - MINUTE)
        bo.publish(booking("X"))
        assert chain.look(NOW)["BO01"].news == 1
        assert bo.sync().reasons[0].code == "reachable_again"
        assert chain.down() == (None, None)


def test_a_gap_is_looked_into_and_a_stopped_clinic_is_not_asked(engine: sa.Engine) -> None:
    with lab(engine) as bo:
        chain = Round(engine, bo.simulator)
        bo.publish(booking("X"), booking("Y", "10:00") | {"sequence": 3})
        bo.sync()
        assert chain.look(NOW)["BO01"].news is None
        assert chain.look(NOW + 11 * MINUTE)["BO01"].why.code == "gap_overdue"
        bo.publish(booking("Z", "11:00") | {"sequence": 2})
        assert chain.look(NOW)["BO01"].news == 2
        bo.sync()
        bo.publish(booking("W", "12:00"))
        bo.simulator.feed("BO01").forget(6)
        assert chain.look(NOW)["BO01"].news == 4
        bo.sync()
        asked = len(bo.simulator.requests)
        assert chain.look(NOW)["BO01"].why.code == "feed_stopped"
        assert len(bo.simulator.requests) == asked


def test_a_history_that_went_back_or_is_another_one_is_a_reason_to_run(engine: sa.Engine) -> None:
    """A studiolab that was restored and has nothing new yet: nobody else would notice."""
    with lab(engine) as bo:
        chain = Round(engine, bo.simulator)
        bo.simulator.feed("BO01").history = "a"
        bo.publish(booking("X"), booking("Y", "10:00"))
        bo.sync()
        assert chain.look(NOW)["BO01"].news is None
        bo.simulator.feed("BO01").history = "b"
        assert chain.look(NOW)["BO01"].why.code == "history_to_judge"
        bo.simulator.feed("BO01").history = None
        bo.simulator.feed("BO01").last = 1
        del bo.simulator.feed("BO01").events[1:]
        assert (chain.look(NOW)["BO01"].news, bo.sync().reasons[0].code) == (2, "events_stopped")
        assert chain.look(NOW)["BO01"].why.code == "feed_stopped"


def test_who_has_more_events_by_its_own_word_and_gives_none_is_told_and_asked_again(engine: sa.Engine) -> None:
    with lab(engine) as bo:
        chain = Round(engine, bo.simulator)
        bo.publish(booking("X"))
        bo.sync()
        bo.publish(booking("Y", "10:00"))
        bo.simulator.fail("top", "/events", field="items", value=[], times=3)
        told = teller().reason(chain.look(NOW)["BO01"].why)
        assert told == "Studiolab dice di avere eventi fino al 2, e dopo il 1 non ne dà"
        assert [chain.look(NOW + n * MINUTE)["BO01"].why.code for n in (1, 2)] == ["events_withheld"] * 2
        assert chain.down()[0] == NOW
        bo.simulator.fail("status", "/events", status=500)
        chain.look(NOW + 3 * MINUTE)
        assert bo.rows("SELECT quiet_until - :now FROM event_cursor", now=NOW) == [(5 * MINUTE,)], "it did answer"
        assert chain.look(NOW + 5 * MINUTE)["BO01"].news == 2


def test_what_has_no_number_hides_nothing_that_comes_after_it(engine: sa.Engine) -> None:
    with lab(engine) as bo:
        chain = Round(engine, bo.simulator)
        bo.publish(booking("X"), booking("Y", "10:00"))
        bo.simulator.fail("remove", "/events", field="sequence", times=2)
        assert chain.look(NOW)["BO01"].why.code == "news_to_read"
        bo.sync()
        assert bo.appointment("Y").status == "booked"


def test_what_is_parked_and_due_is_a_reason_to_run(engine: sa.Engine) -> None:
    with lab(engine) as bo:
        chain = Round(engine, bo.simulator)
        bo.publish(booking("X", agenda_id="A9"))
        bo.sync()
        assert chain.look(bo.as_of)["BO01"].news is None
        assert chain.look(bo.as_of + MINUTE)["BO01"].news == 1


def test_a_missing_token_is_named_and_asks_nothing(engine: sa.Engine) -> None:
    with round_of(engine, 1) as chain, engine.connect() as connection:
        (seen,) = looking.look(looking.clinics(connection, NOW), NOW, lambda _: None)
        assert "STUDIOLAB_TOKEN_TEST" in teller().reason(seen.why)
        assert not chain.simulator.requests


def _seen(code: str, newest: int | None) -> Seen:
    return Seen(Clinic(1, code, "studiolab", {}, None, 0, 0, (), None, 0, None, None, False), newest, "")


def test_what_a_tick_leaves_to_the_next_is_read_as_an_older_program_left_it_too() -> None:
    left = _Remembered(NOW, "BO01", {"BO01": (7, 2)})
    assert _remembered(left.written()) == left
    assert _remembered('{"BO01": [7, 2]}') == _Remembered(None, None, {"BO01": (7, 2)})
    assert _remembered(None) == _Remembered(None, None, {})


def test_a_runs_key_carries_the_attempt() -> None:
    first, remembered = request([_seen("BO", 7), _seen("MI", None)], set(), {})
    assert remembered == {"BO": (7, 1)}  # who has no news leaves nothing to be kept with every tick
    again, remembered = request([_seen("BO", 7)], {"BO"}, remembered)
    assert again is None
    failed, remembered = request([_seen("BO", 7)], set(), remembered)
    assert remembered == {"BO": (7, 2)}
    later, remembered = request([_seen("BO", 9)], set(), remembered)
    assert remembered == {"BO": (9, 1)}
    asked = [first, failed, later]
    assert all(each is not None and of(each) == ["BO"] for each in asked)
    assert len({each.run_key for each in asked if each}) == 3
    assert request([_seen("BO", 7)], set(), {})[0] == first  # a tick that was cut short asks for the same run


def test_all_with_news_go_in_one_run_without_those_of_another() -> None:
    seen = [_seen("RM", 3), _seen("BO", 7), _seen("MI", None), _seen("TO", 4)]
    wanted, remembered = request(seen, {"TO"}, {"TO": (2, 1)})
    assert wanted is not None
    assert of(wanted) == ["BO", "RM"]
    assert remembered == {"RM": (3, 1), "BO": (7, 1), "TO": (2, 1)}


def of(wanted: dg.RunRequest) -> Any:
    """The clinics that a run is asked for."""
    return wanted.run_config["ops"]["studiolab__events"]["config"]["clinics"]


@pytest.mark.slow
def test_a_tick_of_the_daemon_and_the_run_that_it_asks_for(
    engine: sa.Engine, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    from polydesk_dagster.build import definitions
    from polydesk_dagster.resources.polydesk import PolydeskResource

    monkeypatch.setenv("POLYDESK_HOME", str(tmp_path))
    monkeypatch.setenv("POLYDESK_DATABASE_URL", engine.url.render_as_string(hide_password=False))
    monkeypatch.setenv("POLYDESK_STUDIOLAB_TOKEN_TEST", DEMO_TOKEN)
    with engine.begin() as connection:
        activity.go_live(connection, ["sync_events"], actor="desk:anna", reason="prova con la clinica", as_of=NOW)
    repository = definitions(Place.ORDINARY).get_repository_def()
    with lab(engine) as bo, dg.DagsterInstance.ephemeral() as instance:

        def tick(cursor: str | None) -> Any:
            with dg.build_sensor_context(
                instance=instance, cursor=cursor, resources={"polydesk": PolydeskResource()}
            ) as context:
                return studiolab_events(context)

        idle = tick(None)
        assert idle.run_requests == []
        assert idle.skip_reason.skip_message == "1 clinica: nessuna novità."
        instance.add_dynamic_partitions("clinic", idle.dynamic_partitions_requests[0].partition_keys)
        bo.publish(booking("X"))
        wanted = tick(idle.cursor)
        (asked,) = wanted.run_requests
        assert of(asked) == ["BO01"]
        assert not wanted.dynamic_partitions_requests
        job = repository.get_job("sync_events")
        waiting = instance.create_run_for_job(job, run_config=asked.run_config)
        assert many.under_way(instance, "sync_events") == {"BO01"}
        assert tick(idle.cursor).run_requests == []
        with engine.begin() as connection:
            service_runs.record(
                connection, "sync_events", Report(Outcome.OK), clinic="BO01", preview=False,
                dagster_run=waiting.run_id, as_of=NOW, started=NOW, seconds=0,
            )  # fmt: skip
        (again,) = tick(idle.cursor).run_requests
        assert of(again) == ["BO01"], "its turn is over, however long the run goes on for somebody slow"
        with engine.begin() as connection:
            connection.execute(sa.text("DELETE FROM service_run"))
        instance.report_run_canceled(waiting)
        assert many.under_way(instance, "sync_events") == set()
        with engine.begin() as connection:
            away = world.clinic(connection, "AN02")
            world.integration(connection, away, "http://127.0.0.1:9/api/v1")
        result = job.execute_in_process(
            run_config={"ops": {"studiolab__events": {"config": {"clinics": ["AN02", "BO01", "XX09"]}}}},
            instance=instance,
            resources={"polydesk": PolydeskResource()},
            raise_on_error=False,
        )
        assert not result.success
        (made,) = result.asset_materializations_for_node("studiolab__events")
        assert made.partition == "BO01"  # green, whatever becomes of the others
        assert bo.rows("SELECT count(*) FROM service_run WHERE outcome = 'failed'") == [(1,)]
        with engine.begin() as connection:
            connection.execute(sa.text("DELETE FROM service_run"))
            connection.execute(sa.text("DELETE FROM integration WHERE clinic_id = :away"), {"away": away})
        bo.publish(booking("Y", "10:00"))
        result = job.execute_in_process(
            run_config=tick(wanted.cursor).run_requests[0].run_config,
            instance=instance,
            resources={"polydesk": PolydeskResource()},
        )
        assert result.success
        made, together = result.asset_materializations_for_node("studiolab__events")
        assert (made.partition, together.partition) == ("BO01", None)
        shown = made.metadata
        assert shown["Esito"].value == "riuscito (1 modifica)"
        assert not any("Rossi" in str(value) for value in shown.values())
        checks = {each.check_name: each.passed for each in result.get_asset_check_evaluations()}
        assert checks == {"no_dead_letters": True, "no_stopped_feed": True, "no_lost_events": True}
        told = [each.metadata["Quanti"] for each in result.get_asset_check_evaluations()]
        assert told == [dg.MetadataValue.int(0)] * 3  # numbers stay numbers
        assert tick(wanted.cursor).run_requests == []
        with engine.begin() as connection:
            connection.execute(sa.text("UPDATE integration SET active = false"))
        off = job.execute_in_process(
            partition_key="BO01", instance=instance, resources={"polydesk": PolydeskResource()}
        )
        assert off.success
        assert off.asset_materializations_for_node("studiolab__events") == []
        assert bo.rows("SELECT outcome FROM service_run ORDER BY id") == [("ok",), ("skipped",)]
