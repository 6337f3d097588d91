"""What news must be: every event once, oldest first, the same for the same token, and no fewer where a read failed."""

from __future__ import annotations

from contextlib import closing
from itertools import product

from polydesk_dagster.errors import PermanentError, TransientError
from polydesk_dagster.sources.conformance.stage import Forgetting, Happening, Stage
from polydesk_dagster.sources.events import staging
from polydesk_dagster.sources.port import GoneError, News, Numbers, Source

HAPPENED = tuple(f"E{number}" for number in range(7))
OF_LISTS = frozenset({"page_again", "emptied"})
"""Faults that no page of news can have, or that cannot be told from nothing having happened."""


def _telling(stage: Stage) -> Happening | None:
    """The stage where its adapter tells what happens."""
    with closing(stage.open()) as source:
        if source.capabilities.news is Numbers.NONE:
            try:
                source.news(None, 10)
            except PermanentError:
                return None
            raise AssertionError("it gives news and says that it has none")
    assert isinstance(stage, Happening), "the adapter says that it tells what happens: the stage must let something"
    return stage


def _whole(source: Source, limit: int, token: str | None = None) -> list[str]:
    """What all the news after ``token`` are about, ``limit`` at a time."""
    about: list[str] = []
    ids: set[str] = set()
    last = 0
    while True:
        news = source.news(token, limit)
        assert len(news.events) + len(news.rejected) <= news.size <= limit, "no more than were asked for"
        _check_events(source, news, last)
        last = max([last, *(event.sequence for event in news.events)])
        about += [event.entity.id for event in news.events]
        ids |= {event.id for event in news.events}
        assert len(ids) == len(about), "an event comes once"
        if news.size < limit:
            return about
        assert news.token != token, "a full page leads on"
        assert len(about) <= len(HAPPENED), "news end"
        token = news.token


def _check_events(source: Source, news: News, last: int) -> None:
    wrong = [row[staging.COLUMNS.index("problem")] for row in staging.batch(news.events, news.rejected).rows.values()]
    assert not any(wrong), f"an event that cannot be read: {wrong}"
    if source.capabilities.news is not Numbers.DENSE:
        return
    numbers = [event.sequence for event in news.events]
    assert numbers == sorted(set(numbers)), "numbers rise"
    assert all(number > last for number in numbers), "numbers rise from page to page"
    assert news.last_sequence >= max([last, *numbers]), "it knows of its own last number"


def news_come_once_and_in_order(stage: Stage) -> None:
    """From the oldest on, however many are asked for at a time."""
    if (telling := _telling(stage)) is None:
        return
    with closing(stage.open()) as source:
        assert _whole(source, 3) == [], "nothing has happened yet"
    for key in HAPPENED:
        telling.happen(key)
    for limit in (1, 2, 3, len(HAPPENED), 50):
        with closing(stage.open()) as source:
            assert _whole(source, limit) == list(HAPPENED), f"{limit} at a time"


def the_same_token_gives_the_same_news(stage: Stage) -> None:
    """And newer ones; whoever was killed after reading asks again."""
    if (telling := _telling(stage)) is None:
        return
    for key in HAPPENED[:4]:
        telling.happen(key)
    with closing(stage.open()) as source:
        token = source.news(None, 2).token
        first = [event.id for event in source.news(token, 50).events]
        assert [event.id for event in source.news(token, 50).events] == first, "asked twice"
        end = source.news(token, 50).token
    assert len(first) == 2, "what came after the token"
    with closing(stage.open()) as source:
        assert [event.id for event in source.news(token, 50).events] == first, "another time too"
        assert source.news(end, 50).size == 0, "nothing has happened since"
        telling.happen(HAPPENED[4])
        assert [event.id for event in source.news(token, 50).events][:-1] == first, "the same and a newer one"
        assert [event.entity.id for event in source.news(end, 50).events] == [HAPPENED[4]], "the newer one alone"


def failed_news_are_no_news(stage: Stage) -> None:
    """Under each fault what comes is right or the reading raises, and from the same token nothing is lost."""
    if (telling := _telling(stage)) is None:
        return
    for key in HAPPENED:
        telling.happen(key)
    with closing(stage.open()) as source:
        token = source.news(None, 2).token
        due = [event.id for event in source.news(token, 2).events]
    for fault, after in product(sorted(stage.faults - OF_LISTS), (0, 1)):
        stage.fail(fault, after)
        with closing(stage.open()) as source:
            try:
                came = [event.id for event in source.news(token, 2).events]
            except (TransientError, PermanentError):
                assert not after or fault not in stage.overcome, f"{fault} after {after} answers: not overcome"
            else:
                assert came == due, f"{fault}: neither right nor refused"
            finally:
                stage.recover()
        with closing(stage.open()) as source:
            assert _whole(source, 3, token) == list(HAPPENED[2:]), f"after {fault}"


def what_is_no_longer_kept_is_said(stage: Stage) -> None:
    """Of a source that counts: whoever asks for events that are gone is told, with the oldest number that there is."""
    if (telling := _telling(stage)) is None:
        return
    with closing(stage.open()) as source:
        if source.capabilities.news is not Numbers.DENSE:
            return
    assert isinstance(stage, Forgetting), "the adapter says that its numbers are dense: the stage must forget some"
    for key in HAPPENED:
        telling.happen(key)
    with closing(stage.open()) as source:
        token = source.news(None, 2).token
        last = source.news(None, 50).events[-1].sequence
    stage.forget()
    with closing(stage.open()) as source:
        assert _oldest(source, token) in {None, last}, "the oldest number that is kept"
        assert [event.sequence for event in source.news(str(last - 1), 50).events] == [last], "what is kept is given"


def _oldest(source: Source, token: str) -> int | None:
    try:
        source.news(token, 50)
    except GoneError as gone:
        return gone.oldest
    raise AssertionError("events between are gone, and nobody says so")
