"""The pages of a feed, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from polydesk_dagster.sources.events import staging
from polydesk_dagster.sources.port import News


def pages(
    ask: Callable[[int, int], News], after: int, limit: int, most: int, goes_on: Callable[[], bool], *, beyond: int
) -> Iterator[tuple[News, bool]]:
    """Pages until the source has no more or the turn is over, each with whether it is the last for that alone; the next
    is fetched while the one before is applied.

    The turn is over after ``most`` pages, or where ``goes_on`` says so once something ``beyond`` what is known was
    read: every turn comes further.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="studiolab") as ahead:
        following = ahead.submit(ask, after, limit)
        for number in range(1, most + 1):
            news = following.result()
            highest = highest_of(news)
            more = news.size >= limit and highest > after
            goes = more and number < most and (highest <= beyond or goes_on())
            if goes:
                following = ahead.submit(ask, highest, limit)
            yield news, more and not goes
            if not goes:
                return
            after = highest


def highest_of(news: News) -> int:
    return max(trusted_numbers(news), default=0)


def trusted_numbers(news: News) -> list[int]:
    """The numbers that came, but none beyond the last that studiolab itself declares: the cursor would run away."""
    readable = (staging.readable_sequence(rejected.raw) for rejected in news.rejected)
    numbers = [*(event.sequence for event in news.events), *(number for number in readable if number is not None)]
    return [number for number in numbers if number <= news.last_sequence]
