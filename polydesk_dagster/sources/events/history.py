"""Whether a feed still tells the history that we know: the event on which the cursor stands is seen again."""

from __future__ import annotations

from dataclasses import replace

from polydesk_dagster.errors import PermanentError
from polydesk_dagster.sources.events import staging
from polydesk_dagster.sources.port import GoneError, News
from polydesk_dagster.values import Reason

OTHER_HISTORY = frozenset({"events_other_history", "events_other_epoch", "events_anchor_gone", "events_went_back"})
"""Why a feed is stopped whose cursor stands on none of its events any more, however far it has come since."""


ANOTHERS = "events_of_another_clinic"
"""Why one is stopped that is another clinic's: the lists behind it are that one's too."""


class OtherHistoryError(PermanentError):
    """Studiolab counts from an earlier number than it already had, or no longer has the event under one that we know:
    it was restored from a copy, or is another system."""


def without_anchor(news: News, sequence: int, anchor: str | None) -> News:
    """``news`` without the event that the cursor stands on, which was read again to see that it still is that one.

    Raises:
        OtherHistoryError: under its number stands another event.
    """
    there = staging.ids_at(news, sequence)
    if anchor is None or not there:
        return news
    if anchor not in there:
        raise OtherHistoryError("events_other_history", sequence=sequence)
    events = tuple(event for event in news.events if event.sequence != sequence)
    rejected = tuple(each for each in news.rejected if staging.readable_sequence(each.raw) != sequence)
    return replace(news, events=events, rejected=rejected)


class AnotherClinicsError(PermanentError):
    """The events are those that another clinic reads: two of them lead to one studiolab."""

    def __init__(self, of: str) -> None:
        super().__init__(ANOTHERS, of=of)


def with_loss(error: GoneError, read: int) -> Reason:
    """Why the feed cannot be followed, with how many events after the number ``read`` are lost where that is known."""
    if error.oldest is None or error.oldest <= read + 1:
        return error.reason
    return Reason("events_gone_lost", {**error.reason.values, "after": read}, None, error.oldest - read - 1)
