"""Whose turn it is: each minute, less often for who is quiet or slow, and nobody is left out of the round for long."""

from __future__ import annotations

import asyncio
import selectors
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from polydesk_dagster.demo.simulators.server import DEMO_TOKEN
from polydesk_dagster.errors import PermanentError, PolydeskError, TransientError
from polydesk_dagster.sources.events import looking
from polydesk_dagster.sources.events.intervals import LONGEST, interval, is_due
from polydesk_dagster.sources.events.looking import Seen
from polydesk_dagster.sources.events.rounds import Lag, ask_all, beginning_at
from tests.sources.events_world import NOW
from tests.sources.test_events_fleet import clinic
from tests.sources.test_events_sensor import MINUTE, Round, news, round_of


@given(
    number=st.integers(0, 10**6),
    quiet=st.integers(0, 90),
    slowed=st.sampled_from((1, 2, 4)),
    apart=st.lists(st.integers(60, 100), min_size=20, max_size=60),
)
def test_no_two_looks_at_a_clinic_are_further_apart_than_promised(
    number: int, quiet: int, slowed: int, apart: list[int]
) -> None:
    """Whatever the time between two ticks, and while the interval grows: ``LONGEST`` minutes, and a tick."""
    since = asked = NOW
    for seconds in apart:
        at = since + timedelta(seconds=seconds)
        every = interval(NOW - quiet * MINUTE, slowed, at)
        assert every in {1, 2, LONGEST}
        if is_due(number, every, since, at):
            asked = at
        assert at - asked < timedelta(minutes=every)
        since = at


@pytest.mark.parametrize(
    ("quiet", "slowed", "every"),
    [(None, 1, 1), (0, 1, 1), (19, 1, 1), (20, 1, 2), (39, 1, 2), (40, 1, 4), (9999, 1, 4), (0, 4, 4), (None, 2, 2),
     (25, 4, 4), (-5, 1, 1)],
)  # fmt: skip
def test_how_often_who_is_asked(quiet: int | None, slowed: int, every: int) -> None:
    assert interval(None if quiet is None else NOW - quiet * MINUTE, slowed, NOW) == every


@pytest.mark.parametrize(
    ("before", "seconds", "error", "after"),
    [
        (1, 0.3, None, 1),
        (1, 5.0, None, 2),
        (1, 12.0, None, 4),
        (4, 0.3, None, 2),
        (2, 0.3, None, 1),
        (1, 0.0, TransientError("remote_later", retry_after=5.0, status=503), 4),
        (1, 0.0, TransientError("remote_later", status=429), 4),
        (2, 0.0, TransientError("remote_silent"), 2),
        (1, 0.0, PermanentError("remote_refused", status=403), 1),
    ],
)
def test_who_is_slow_or_says_that_it_is_asked_too_often_is_asked_less(
    before: int, seconds: float, error: PolydeskError | None, after: int
) -> None:
    asked = replace(clinic(1, "http://127.0.0.1:9/api/v1"), slowed=before, answered=True)
    seen = Seen(asked, None, looking.NOTHING, error, error is None, seconds)
    assert seen.slowed == after
    assert looking.changed([seen]) is (error is not None or after != before)


def test_what_the_loop_was_late_for_is_no_answer_s_time() -> None:
    async def late() -> float:
        async with Lag() as lag:
            await asyncio.sleep(0.3)
            time.sleep(0.5)  # noqa: ASYNC251 - whoever keeps the loop from its work
            await asyncio.sleep(0.3)
        return lag.seconds

    assert asyncio.run(late()) >= 0.35


class Hurried(asyncio.SelectorEventLoop):
    """A loop for which time passes only while it waits, and at once."""

    def __init__(self) -> None:
        self.now, self.waited = 0.0, 0
        loop = self

        class Selector(selectors.DefaultSelector):
            def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
                loop.now += timeout or 0.0
                loop.waited += bool(timeout)
                return super().select(0)

        super().__init__(Selector())

    def time(self) -> float:
        return self.now


def test_while_others_hang_the_loop_is_watched_at_few_moments_and_what_it_is_late_for_is_still_seen() -> None:
    async def look(loop: Hurried) -> tuple[int, float]:
        async with Lag() as lag:
            await asyncio.sleep(15)
            waited = loop.waited
            loop.now += 3.0
            await asyncio.sleep(1)
        return waited, lag.seconds

    with asyncio.Runner(loop_factory=Hurried) as runner:
        waited, late = runner.run(look(runner.get_loop()))  # type: ignore[arg-type]
    assert waited <= 40
    assert 2.0 <= late <= 3.0


def test_an_answer_that_asks_to_wait_is_remembered_and_forgotten(engine: sa.Engine) -> None:
    with round_of(engine, 1) as chain:
        chain.simulator.fail("status", "/events", status=429)
        found = []
        for minute in range(5):
            chain.look(NOW + minute * MINUTE)
            with engine.connect() as connection:
                found.append(connection.scalar(sa.text("SELECT slowed FROM event_cursor")))
        assert found == [4, 2, 1, 1, 1]


def test_a_clinic_that_is_quiet_is_asked_every_fourth_minute_until_there_is_news(engine: sa.Engine) -> None:
    with round_of(engine, 8) as chain:
        with engine.begin() as connection:
            connection.execute(sa.text("UPDATE integration SET updated_at = :then"), {"then": NOW - 60 * MINUTE})
        for minute in range(1, 9):
            seen = _looked(chain, minute)
            assert sum(each.why == looking.NOTHING for each in seen.values()) == 2  # spread over the minutes
            assert sum(each.why == looking.NOT_DUE for each in seen.values()) == 6
        assert len(chain.simulator.requests) == 16
        chain.simulator.publish("C03", news("C03"))
        found = [_looked(chain, minute)["C03"] for minute in range(9, 13)]
        assert sum(each.news == 1 for each in found) == 1
        with engine.begin() as connection:  # what waits for another try is not quiet
            connection.execute(
                sa.text("""INSERT INTO event_gap (clinic_id, span, noticed_at)
                           SELECT id, int8range(1, 2), :now FROM clinic WHERE code = 'C05'"""), {"now": NOW}
            )  # fmt: skip
        found = [_looked(chain, minute)["C05"] for minute in range(13, 17)]
        assert looking.NOT_DUE not in {each.why for each in found}


def _looked(chain: Round, minute: int) -> dict[str, Seen]:
    as_of, since = NOW + minute * MINUTE, NOW + (minute - 1) * MINUTE
    with chain.engine.connect() as connection:
        known = looking.clinics(connection, as_of)
    return {each.clinic.code: each for each in looking.look(known, as_of, lambda _: DEMO_TOKEN, since=since)}


class _Timeless(asyncio.SelectorEventLoop):
    """A loop whose clock jumps to whatever is next instead of waiting for it."""

    def __init__(self) -> None:
        super().__init__(selectors.SelectSelector())
        self._now = 0.0
        select = self._selector.select  # type: ignore[attr-defined]

        def jump(timeout: float | None = None) -> object:
            self._now += timeout or 0.0
            return select(0)

        self._selector.select = jump  # type: ignore[attr-defined]

    def time(self) -> float:
        return self._now


CHAIN = 10_000
ANSWER, HANGS = 0.3, 20.0
"""Seconds until who is well answers, and until a question is given up."""


@pytest.mark.parametrize(
    ("hangs", "many"),
    [(lambda _: False, 0), (lambda number: number % 10 == 0, 1000), (lambda number: 3000 <= number < 4500, 1500)],
    ids=["nobody", "every tenth", "side by side"],
)
def test_each_of_ten_thousand_is_asked_within_so_many_looks_whatever_hangs(
    hangs: Callable[[int], bool], many: int
) -> None:
    """By counts: as many as may be open at once hang through half of a look, and the next begins behind them."""
    waiting, left = set(range(CHAIN)), dict[int, datetime]()
    first: str | None = None

    async def question(number: int) -> int:
        await asyncio.sleep(HANGS if hangs(number) else ANSWER)
        return number

    for minute in range(1 + many // looking.BOUNDS.open):
        now = NOW + minute * MINUTE
        order = beginning_at(range(CHAIN), first, "{:05}".format)
        wanted = [number for number in order if left.get(number, now) <= now]
        with asyncio.Runner(loop_factory=_Timeless) as runner:
            answers = runner.run(ask_all([partial(question, number) for number in wanted], looking.BOUNDS))
        first = next((f"{number:05}" for number, answer in zip(wanted, answers, strict=True) if answer is None), None)
        waiting -= set(answers)
        left |= {number: now + looking.pause(0, None) for number in answers if number is not None and hangs(number)}
    assert not waiting


def test_a_look_begins_at_whom_the_last_one_did_not_reach() -> None:
    known = [clinic(number, "http://127.0.0.1:9/api/v1") for number in range(4)]
    for first, order in (("C002", "2301"), ("C0015", "2301"), (None, "0123"), ("D", "0123")):
        assert [each.id for each in beginning_at(known, first, lambda each: each.code)] == list(map(int, order))
    seen = [Seen(each, None, looking.NOT_REACHED if each.id in {1, 3} else looking.NOTHING) for each in known]
    assert looking.not_reached(seen, None) == "C001"
    assert looking.not_reached(seen, "C002") == "C003"
    assert looking.not_reached(seen[:1], "C002") is None
