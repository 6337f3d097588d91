"""News asked for before a clinic's turn: of many at once, of one server few, and taken only where still wanted."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from itertools import islice
from urllib.parse import urlsplit

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

from polydesk_dagster.database.engine import plain_url
from polydesk_dagster.demo.simulators.fleet import Fleet, address, in_thread
from polydesk_dagster.demo.simulators.server import DEMO_TOKEN
from polydesk_dagster.errors import PermanentError
from polydesk_dagster.outcome import Outcome, Report
from polydesk_dagster.sources.events import ahead, intake
from polydesk_dagster.sources.events.ahead import AT_ONCE, AT_ONE, Ahead, Question, questions
from polydesk_dagster.sources.events.intake import PAGE
from polydesk_dagster.sources.events.numbering import Counted, feed_of
from polydesk_dagster.sources.port import Link
from polydesk_dagster.sources.studiolab.client import Studiolab, epoch
from tests import world
from tests.sources.events_world import CODE, NOW, Lab, booking, lab, records
from tests.sources.test_numbering import Unnumbered
from tests.sources.test_remote_policy import FAST
from tests.waiting import until


@pytest.fixture
def bo(engine: sa.Engine) -> Iterator[Lab]:
    with lab(engine) as made:
        yield made


def asked(urls: list[str]) -> dict[str, Question]:
    """A question for each of these studiolabs."""
    found = {}
    for number, url in enumerate(urls):
        link = Link(f"C{number:03}", "studiolab", {"url": url, "token": "POLYDESK_STUDIOLAB_TOKEN_TEST"})
        found[link.clinic] = Question(link, epoch(url), "0", urlsplit(url).netloc, ahead=True)
    return found


def _turns(by: Ahead, wanted: dict[str, Question]) -> Iterator[str]:
    return filter(None, by.in_turn([*wanted], wanted))


class Patient(Fleet):
    """Answers nobody before so many are asked at once; counts how many are, of each of its servers."""

    def __init__(self, until: int) -> None:
        super().__init__()
        self.until, self.open, self.most = until, Counter[str](), Counter[str]()
        self.enough = asyncio.Event()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for name in ("all", writer.get_extra_info("sockname")[0]):
            self.open[name] += 1
            self.most[name] = max(self.most[name], self.open[name])
        if self.open["all"] >= self.until:
            self.enough.set()
        await self.enough.wait()
        # before the answer, after which the next one may come
        self.open -= Counter({"all": 1, writer.get_extra_info("sockname")[0]: 1})
        await super()._one(reader, writer)


def test_many_are_asked_at_once_and_few_of_one_server() -> None:
    fleet = Patient(AT_ONCE)
    with in_thread(fleet) as port:
        crowded = [f"http://127.9.9.9:{port}/C{number}/api/v1" for number in range(60)]
        wanted = asked([*crowded, *(address(port, number) for number in range(60))])
        assert sorted(_turns(Ahead(lambda _: "t"), wanted)) == [*wanted]
    assert len(fleet.asked) == 120
    assert (fleet.most["all"], fleet.most["127.9.9.9"]) == (AT_ONCE, AT_ONE)


def test_a_turn_asks_its_server_no_more_than_is_left_of_its_places() -> None:
    """Three clinics in turn ask for a second page while the same server is asked ahead."""
    fleet = Patient(AT_ONE)
    with in_thread(fleet) as port:
        wanted = asked([f"http://127.9.9.9:{port}/C{number}/api/v1" for number in range(12)])
        first = Ahead(lambda _: "t")
        for clinic in _turns(first, wanted):
            with Studiolab(clinic, wanted[clinic].link.settings["url"], "t", FAST) as source:
                telling = first.of(clinic, source)
                telling.news("0", PAGE)
                telling.news("7", PAGE)
    assert len(fleet.asked) == 24
    assert fleet.most["all"] == AT_ONE


def test_who_does_not_answer_keeps_nobody() -> None:
    """Forty of one server hang, more than are asked at once: the others have their turns all the same."""
    fleet = Fleet()
    fleet.hangs = lambda question: fleet.asked[question - 1].startswith("/hangs")
    with in_thread(fleet) as port:
        hanging = [f"http://127.9.9.9:{port}/hangs{number}" for number in range(40)]
        wanted = asked([*hanging, *(address(port, number) for number in range(40))])
        coming = Ahead(lambda _: "t").in_turn([*wanted], wanted)
        assert sorted(islice(filter(None, coming), 40)) == [*wanted][40:]
        assert next(coming) is None
        coming.close()


def test_where_those_in_turn_have_all_places_the_next_asks_in_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "AT_ONE", 1)
    fleet = Fleet(hangs=lambda question: question == 2)
    with in_thread(fleet) as port, ThreadPoolExecutor(1) as turn:
        wanted = asked([f"http://127.9.9.9:{port}/C{number}/api/v1" for number in range(2)])
        first = Ahead(lambda _: "t")
        coming = _turns(first, wanted)
        clinic = next(coming)
        with Studiolab(clinic, wanted[clinic].link.settings["url"], "t", FAST) as source:
            second_page = turn.submit(first.of(clinic, source).news, "7", PAGE)
            until(lambda: len(fleet.asked) == 2)
            assert sorted([clinic, next(coming)]) == [*wanted]
            fleet.release()
            second_page.result()
        assert not any(path.startswith("/C1/") for path in fleet.asked)


def test_what_nobody_takes_does_not_pile_up() -> None:
    fleet = Fleet()
    with in_thread(fleet) as port:
        wanted = asked([address(port, number) for number in range(AT_ONCE + 8)])
        first = Ahead(lambda _: "t")
        for clinic in [*_turns(first, wanted)]:
            with Studiolab(clinic, wanted[clinic].link.settings["url"], "t", FAST) as source:
                first.of(clinic, source).news("0", PAGE)
    assert len(fleet.asked) == AT_ONCE + 8 + 8


def test_what_was_asked_ahead_is_not_asked_again(bo: Lab) -> None:
    """Behind an event that is seen again, and before a number that is missing, too."""
    bo.publish(booking("X"))
    assert _taken(bo, _asked(bo)).counts.updated == 1
    bo.publish(booking("Y", "10:00") | {"late": 1}, booking("Z", "11:00"))
    assert _taken(bo, _asked(bo)).counts.updated == 1
    assert bo.rows("SELECT CAST(span AS text) FROM event_gap WHERE lost_at IS NULL") == [("[2,3)",)]
    assert _taken(bo, _asked(bo)).counts.updated == 1
    assert bo.rows("SELECT count(*) FROM event_gap") == [(0,)]
    assert len(bo.simulator.requests) == 3


def _asked(bo: Lab) -> Ahead:
    """What is known when the clinic's turn comes."""
    found = Ahead(lambda _: DEMO_TOKEN)
    with bo.engine.connect() as connection:
        assert [*_turns(found, questions(connection, [CODE], ()))] == [CODE]
    return found


def _taken(bo: Lab, by: Ahead) -> Report:
    bo.as_of += timedelta(minutes=1)
    return intake.sync(bo.engine, bo.as_of, CODE, Counted(by.of(CODE, bo.client)))


def test_what_comes_between_page_and_turn_comes_with_the_next_page(bo: Lab) -> None:
    bo.publish(booking("X"))
    before = _asked(bo)
    bo.publish(booking("Y", "10:00"))
    assert _taken(bo, before).counts.updated == 1
    assert (bo.appointment("X").seats, bo.appointment("Y")) == (1, None)
    bo.sync()
    assert bo.appointment("Y").seats == 1


def test_a_page_that_others_have_taken_meanwhile_is_asked_for_again(bo: Lab) -> None:
    bo.publish(booking("X"), booking("Y", "10:00"))
    before = _asked(bo)
    bo.sync()
    bo.publish(booking("Z", "11:00"))
    assert _taken(bo, before).counts.updated == 1
    assert bo.states() == {"applied": 3}


@pytest.mark.parametrize(
    ("token", "limit", "path", "fresh", "again"),
    [
        ("0", PAGE, CODE, 60.0, 0),
        ("1", PAGE, CODE, 60.0, 1),
        (None, PAGE, CODE, 60.0, 1),
        ("0", 1, CODE, 60.0, 1),
        ("0", PAGE, "OTHER", 60.0, 1),
        ("0", PAGE, CODE, 0.0, 1),
    ],
)
def test_a_page_is_taken_only_where_its_turn_asks_the_same(
    bo: Lab,
    monkeypatch: pytest.MonkeyPatch,
    token: str | None,
    limit: int,
    path: str,
    fresh: float,
    again: int,
) -> None:
    monkeypatch.setattr(ahead, "FRESH", fresh)
    before = _asked(bo)
    url = bo.client.remote.url.replace(CODE, path)
    with Studiolab(CODE, url, DEMO_TOKEN, FAST) as source:
        telling = before.of(CODE, source)
        telling.news(token, limit)
        assert len(bo.simulator.requests) == 1 + again
        telling.news(token, limit)
    assert len(bo.simulator.requests) == 2 + again  # what was taken is gone


def test_what_went_wrong_is_raised_in_the_clinics_own_turn(bo: Lab) -> None:
    bo.publish(booking("X"))
    bo.simulator.fail("status", "/events", status=403)
    before = _asked(bo)
    with pytest.raises(PermanentError, match="remote_token"):
        _taken(bo, before)
    assert len(bo.simulator.requests) == 1
    assert _taken(bo, before).outcome is Outcome.OK


@pytest.mark.parametrize(
    ("change", "ahead_of_its_turn"),
    [
        ("UPDATE event_cursor SET stopped_at = now(), stopped_reason = 'x'", False),
        ("UPDATE integration SET source = 'another'", False),
        ("UPDATE integration SET active = false", None),
        ("UPDATE clinic SET active = false", None),
        ("UPDATE integration SET settings = '{\"unheard\": 1}'", None),
        ("UPDATE integration SET vendor = 'unheard'", None),
        ("SELECT 1", True),
    ],
)
def test_who_would_not_ask_in_its_turn_is_not_asked_before(
    bo: Lab, change: str, ahead_of_its_turn: bool | None
) -> None:
    bo.sync()
    with bo.engine.begin() as connection:
        connection.execute(sa.text(change))
        found = questions(connection, [CODE, "NOBODY"], ())
        later = questions(connection, [CODE], {CODE})
    assert {each.ahead for each in found.values()} == set() if ahead_of_its_turn is None else {ahead_of_its_turn}
    assert not any(each.ahead for each in later.values())


def test_a_source_that_does_not_count_is_asked_by_its_token(engine: sa.Engine) -> None:
    clinic = records(engine)
    source = Unnumbered(["E1", "E2", "E3"])
    wanted = []
    with engine.begin() as connection:
        world.integration(connection, clinic, "https://fhir.example/r4", vendor="fhir")
    for minute in range(2):
        with engine.connect() as connection:
            wanted += [each.token for each in questions(connection, [CODE], ()).values()]
        at = NOW + timedelta(minutes=minute)
        intake.sync(engine, at, CODE, feed_of(engine, CODE, source), page=2)
    assert wanted == [source.asked[0], source.asked[2]] == [None, "2"]


KILLED = """
import sys
import sqlalchemy as sa
from sqlalchemy.engine import make_url
from polydesk_dagster.sources.events.ahead import Ahead, questions
engine = sa.create_engine(make_url(sys.argv[1]).set(drivername="postgresql+psycopg"))
with engine.connect() as connection:
    asked = questions(connection, [sys.argv[2]], ())
print(*filter(None, Ahead(lambda _: sys.argv[3]).in_turn([sys.argv[2]], asked)), flush=True)
sys.stdin.read()
"""


def test_who_is_killed_between_page_and_turn_has_read_nothing(bo: Lab, database: URL) -> None:
    bo.publish(booking("X"))
    arguments = [plain_url(database), CODE, DEMO_TOKEN]
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == CODE
        process.kill()
    assert len(bo.simulator.requests) == 1
    assert bo.sync().counts.updated == 1
    assert bo.appointment("X").seats == 1
