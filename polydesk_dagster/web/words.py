"""What the templates call: the places of the navigation, typed values to be told, and when a service runs next."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import date, datetime

from polydesk_dagster.catalog import BY_KEY
from polydesk_dagster.runtime.state.model import Mode, ServiceState
from polydesk_dagster.told import Teller
from polydesk_dagster.told.state import queue_full, queued, told_of_finding
from polydesk_dagster.values import Count, Instant, Money, Several, Value
from polydesk_dagster.web.roles import May

PLACES: tuple[tuple[str, str, May], ...] = (
    ("/", "services", May.SEE),
    ("/da-fare", "to_do", May.PATIENTS),
    ("/chiusure", "closures", May.PATIENTS),
    ("/piani", "plans", May.SEE),
    ("/cliniche", "clinics", May.SEE),
    ("/messaggi", "messages", May.SEE),
    ("/conoscenza", "knowledge", May.SEE),
    ("/statistiche", "statistics", May.SEE),
    ("/salute", "health", May.SEE),
    ("/dagster/", "dagster", May.SEE),
)
"""The navigation: address, name and the permission that it needs; every page stands below one of them."""

HEIGHTS: Mapping[str, tuple[int, int]] = {
    "ok": (2, 18),
    "nothing_to_do": (12, 8),
    "skipped": (16, 4),
    "partial": (6, 14),
    "refused": (4, 16),
    "failed": (0, 20),
}
"""Where a bar of the sparkline begins and how high it is, by outcome: told apart without colours too."""


def said_of(t: Teller, state: ServiceState) -> str:
    """When a service runs next, or since when and by whom it does not."""
    activity = state.activity
    match activity.mode:
        case Mode.PAUSED:
            values: dict[str, Value] = {"who": activity.actor, "until": _instant(activity.until)}
            return t.text("web.paused", **values)
        case Mode.NOT_LIVE:
            return t.text("web.not_live")
        case Mode.SWITCHED_OFF:
            return t.text("web.switched_off")
        case Mode.ON if state.next_run is not None:
            return t.text("web.next_run", at=Instant(state.next_run))
        case _:
            return ""


def _instant(at: datetime | None) -> Instant | None:
    return None if at is None else Instant(at)


def _day(written: date | str) -> date:
    """A day, also as records of a source keep it (ISO)."""
    return date.fromisoformat(written) if isinstance(written, str) else written


def _several(items: Iterable[Value]) -> Several:
    """The first so many by name, and how many more there are."""
    named = tuple(items)
    left = len(named) - NAMED
    return Several(named if left <= 0 else (*named[:NAMED], f"+{left}"))


CHOICES = 100
"""Clinics that a list to choose from shows; of more, one is typed, with the list to help."""
NAMED = 20
"""How many a sentence names."""

GLOBALS: Mapping[str, object] = {
    "BY_KEY": BY_KEY,
    "CHOICES": CHOICES,
    "HEIGHTS": HEIGHTS,
    "May": May,
    "PLACES": PLACES,
    "count": Count,
    "day": _day,
    "instant": Instant,
    "money": Money,
    "queue_full": queue_full,
    "queued": queued,
    "said_of": said_of,
    "several": _several,
    "told_of_finding": told_of_finding,
}
"""What every template knows beside what belongs to its request."""
