"""The demo's calendar: every day around ``as_of``, ready to be written as COPY text."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

ROME = ZoneInfo("Europe/Rome")
NOON = 13 * 60
"""Minute of the day at which a morning ends and an afternoon starts."""


def clock(minute: int) -> str:
    """``HH:MM`` of a minute of the day."""
    return f"{minute // 60:02d}:{minute % 60:02d}"


CLOCKS = tuple(clock(minute) for minute in range(24 * 60))


class TimeLine:
    """Days by index, from ``back`` days before ``as_of``'s local date to ``ahead`` days after it.

    An instant is a day's index and a minute of its wall clock: the offset of a day is taken at noon, and no clinic of
    the demo books in the hours in which it changes.
    """

    def __init__(self, as_of: datetime, back: int, ahead: int) -> None:
        local = as_of.astimezone(ROME)
        self.as_of = as_of.astimezone(UTC)
        self.today = back
        self.minute = local.hour * 60 + local.minute
        self.first = local.date() - timedelta(days=back)
        self.days = [self.first + timedelta(days=index) for index in range(back + ahead + 1)]
        self.weekdays = [day.isoweekday() for day in self.days]
        self.dates = [day.isoformat() for day in self.days]
        self._offsets = [datetime.combine(day, time(12), ROME).isoformat(timespec="minutes")[-6:] for day in self.days]

    def index(self, day: date) -> int:
        return (day - self.first).days

    def at(self, index: int, minute: int) -> str:
        """An instant as text."""
        return f"{self.dates[index]} {CLOCKS[minute]}{self._offsets[index]}"

    def passed(self, index: int, minute: int) -> bool:
        return index < self.today or (index == self.today and minute < self.minute)

    def ago(self, minutes: float) -> str:
        """``as_of`` minus some minutes, as text."""
        return (self.as_of - timedelta(minutes=minutes)).isoformat(timespec="seconds")

    def ahead(self, minutes: float) -> str:
        return self.ago(-minutes)
