"""The first page of many clinics' news, asked for before each one's turn: a turn holds a lock and connections, and is
not spent on waiting for an answer.

Nothing is taken in here. A page is taken in its clinic's own turn, and only where that would ask the same; so is what
went wrong, which is nobody else's. Whoever is killed in between has read nothing.
"""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from threading import Semaphore
from urllib.parse import urlsplit

import sqlalchemy as sa

from polydesk_dagster.errors import ConfigurationError
from polydesk_dagster.sources import vendors
from polydesk_dagster.sources.events.cursor import AFTER
from polydesk_dagster.sources.events.intake import PAGE
from polydesk_dagster.sources.events.numbering import ASK_WITH
from polydesk_dagster.sources.integrations import SETTINGS
from polydesk_dagster.sources.port import Capabilities, Link, News, Numbers, Telling

AT_ONCE = 32
"""Clinics that are asked or whose page waits for their turn: as many threads, and as many pages in memory."""
AT_ONE = 4
"""Questions at once to one server, ahead and in turn together."""
FRESH = 60.0
"""Seconds for which a page may wait for its turn. What came late meanwhile is given up by so much sooner."""
LOOK = 1.0
"""Seconds after which who waits for the next turn may do something else, and it is seen which places are left."""

QUESTIONS = f"""
SELECT c.code, i.vendor, {SETTINGS} AS settings, i.source, e.stopped_reason AS stopped, t.after,
       ({ASK_WITH.format(clinic="c.id", after="t.after")}) AS token
FROM clinic c JOIN integration i ON i.clinic_id = c.id LEFT JOIN event_cursor e ON e.clinic_id = c.id
CROSS JOIN LATERAL (SELECT coalesce({AFTER}, 0) AS after) t
WHERE c.code = ANY(:clinics) AND c.active AND i.active"""


@dataclass(frozen=True, slots=True)
class Question:
    """What a clinic's turn is going to ask, as far as can be known before it."""

    link: Link
    epoch: str
    token: str | None
    server: str
    ahead: bool
    """Whether it may be asked before."""


def questions(connection: sa.Connection, clinics: Collection[str], later: Collection[str]) -> dict[str, Question]:
    """What is to be asked for each of ``clinics`` (codes) whose integration is on and can be read; those in ``later``
    are asked in their turn alone, as are those whose turn will not come to ask."""
    found = {}
    for row in connection.execute(sa.text(QUESTIONS), {"clinics": list(clinics)}):
        link = Link(row.code, row.vendor, row.settings)
        try:
            numbers, epoch = vendors.vendor(link.vendor, link.clinic).news, vendors.epoch(link)
        except ConfigurationError:  # its turn says what is wrong
            continue
        asks = numbers is not Numbers.NONE and row.stopped is None and row.source in {None, epoch}
        found[row.code] = Question(
            link,
            epoch,
            str(row.after) if numbers is Numbers.DENSE else row.token,
            urlsplit(str(link.settings.get("url", ""))).netloc or epoch,
            asks and row.code not in later,
        )
    return found


@dataclass(frozen=True, slots=True)
class _Answer:
    """What came of a question, and when (by the monotonic clock)."""

    news: News | Exception
    at: float

    def given(self) -> News:
        if isinstance(self.news, Exception):
            raise self.news
        return self.news


class Ahead:
    """Asks for many, and keeps what comes for each one's turn. ``secret`` is asked for the sources' tokens."""

    def __init__(self, secret: Callable[[str], str | None]) -> None:
        self._secret = secret
        self._questions: Mapping[str, Question] = {}
        self._answers: dict[str, _Answer] = {}
        self._places: dict[str, Semaphore] = defaultdict(lambda: Semaphore(AT_ONE))

    def in_turn(self, clinics: Sequence[str], asked: Mapping[str, Question]) -> Generator[str | None]:
        """``clinics``, each when its turn may come: those who are not asked ahead at once, the others as their answers
        come, so that nobody waits for who does not answer; None where a second brings nobody's turn. What is not pulled
        is not asked."""
        self._questions = asked
        waiting = {clinic: asked[clinic] for clinic in clinics if clinic in asked and asked[clinic].ahead}
        ready: deque[tuple[str, _Answer | None]] = deque((each, None) for each in clinics if each not in waiting)
        under_way: dict[Future[_Answer], str] = {}
        pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="ahead")
        try:
            while waiting or under_way or ready:
                for clinic in self._placed(waiting, AT_ONCE - len(under_way) - len(ready)):
                    under_way[pool.submit(self._ask, waiting.pop(clinic))] = clinic
                if not under_way and not ready:  # others in turn have all the places
                    ready.append((waiting.popitem()[0], None))
                done, _ = wait(under_way, 0 if ready else LOOK, FIRST_COMPLETED)
                ready += [(under_way.pop(each), each.result()) for each in done]
                if not ready:
                    yield None
                    continue
                clinic, answer = ready.popleft()
                if answer is not None:
                    self._keep(clinic, answer)
                yield clinic
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def of(self, clinic: str, source: Telling) -> Telling:
        """The clinic's source as its turn has opened it: what came ahead is its first page where it still is that, and
        what is asked besides waits for a place with its server."""
        question = self._questions.get(clinic)
        if question is None:
            return source
        return _Asked(source, question, self._answers.pop(clinic, None), self._places[question.server])

    def _placed(self, waiting: Mapping[str, Question], most: int) -> list[str]:
        """The first of those who wait whose server has a place, which each of them has from now on."""
        free = (name for name, each in waiting.items() if self._places[each.server].acquire(blocking=False))
        return list(islice(free, max(0, most)))

    def _ask(self, question: Question) -> _Answer:
        try:
            with closing(vendors.open_source(question.link, self._secret)) as source:
                return _Answer(source.news(question.token, PAGE), time.monotonic())
        except Exception as error:  # noqa: BLE001  whatever it is, it is raised in the clinic's own turn
            return _Answer(error, time.monotonic())
        finally:
            self._places[question.server].release()

    def _keep(self, clinic: str, answer: _Answer) -> None:
        """For its turn. What a turn that came to nothing has left here goes when there is too much."""
        self._answers[clinic] = answer
        if len(self._answers) > AT_ONCE:
            self._answers.pop(next(iter(self._answers)), None)


@dataclass(slots=True)
class _Asked:
    """A source that may have been asked already."""

    source: Telling
    question: Question
    answer: _Answer | None
    place: Semaphore

    @property
    def capabilities(self) -> Capabilities:
        return self.source.capabilities

    @property
    def epoch(self) -> str:
        return self.source.epoch

    def news(self, token: str | None, limit: int) -> News:
        answer, self.answer = self.answer, None
        same = (self.epoch, token, limit) == (self.question.epoch, self.question.token, PAGE)
        if answer is not None and same and time.monotonic() - answer.at < FRESH:
            return answer.given()
        with self.place:
            return self.source.news(token, limit)
