"""When a clinic may write: quiet hours, rest days, and how far ahead of them a message is brought forward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

import sqlalchemy as sa

from polydesk_dagster.wire import comparable

_BEFORE_QUIET = timedelta(minutes=30)
"""What is brought forward goes out this long before quiet hours begin, so that there is time to send it."""
_LOOK_BACK = 10
"""Rest days in a row beyond which a message goes on its own day after all."""


@dataclass(frozen=True, slots=True)
class Hours:
    """One clinic's policy with its rest days. Times are wall-clock in ``zone``."""

    clinic_id: int
    code: str
    zone: ZoneInfo
    reminder_time: time
    reminder_last: timedelta
    preparation_time: time
    preparation_lead_days: int
    preparation_last: timedelta
    just_booked: timedelta
    quiet_from: time
    quiet_to: time
    person_daily_cap: int
    portal_url: str
    holidays: frozenset[date]
    rest_days: bool
    email: str | None = None
    """Where patients' answers to e-mails go."""
    confirmations: bool = False

    def rests(self, day: date) -> bool:
        """Whether nobody is to be disturbed on ``day``."""
        return self.rest_days and (day.isoweekday() == 7 or day in self.holidays)

    def quiet(self, at: time) -> bool:
        """Whether ``at`` lies in quiet hours; equal bounds mean that there are none."""
        if self.quiet_from <= self.quiet_to:
            return self.quiet_from <= at < self.quiet_to
        return at >= self.quiet_from or at < self.quiet_to

    def local_day(self, instant: datetime) -> date:
        return instant.astimezone(self.zone).date()

    def may_send(self, instant: datetime) -> bool:
        local = instant.astimezone(self.zone)
        return not self.rests(local.date()) and not self.quiet(local.time())

    def instant(self, day: date, at: time) -> datetime:
        return datetime.combine(day, at, self.zone).astimezone(UTC)

    def start_of(self, day: date) -> datetime:
        return self.instant(day, time(0))

    def brought_forward(self, day: date, at: time) -> datetime:
        """``at`` on ``day``, or the last good moment before it: the working day before, ahead of quiet hours."""
        if self.quiet(at):
            evening = self.quiet_from > self.quiet_to
            if evening and at < self.quiet_to:
                day -= timedelta(days=1)
            at = (datetime.combine(day, self.quiet_from) - _BEFORE_QUIET).time()
        for back in range(_LOOK_BACK + 1):
            if not self.rests(day - timedelta(days=back)):
                return self.instant(day - timedelta(days=back), at)
        return self.instant(day, at)

    def next_allowed(self, instant: datetime) -> datetime:
        """``instant`` itself, or the first minute after it when one may write again."""
        if self.may_send(instant):
            return instant
        day = self.local_day(instant)
        for ahead in range(_LOOK_BACK * 2):
            later = day + timedelta(days=ahead)
            for at in sorted({time(0), self.quiet_to}):
                moment = self.instant(later, at)
                if moment > instant and self.may_send(moment):
                    return moment
        return self.start_of(day + timedelta(days=_LOOK_BACK * 2))

    def last_day_due(self, as_of: datetime, lead_days: int, at: time) -> date:
        """The last local date whose appointments are to be told by ``as_of``, ``lead_days`` ahead at time ``at``.

        Monotonic: a day is due no later than the day after it.
        """
        day = self.local_day(as_of)
        for ahead in range(lead_days + _LOOK_BACK + 1, -1, -1):
            due = self.brought_forward(day + timedelta(days=ahead - lead_days), at)
            if due <= as_of:
                return day + timedelta(days=ahead)
        return day


def load(connection: sa.Connection, as_of: datetime, clinic: str | None = None) -> list[Hours]:
    """The hours of every active clinic (or of ``clinic``), with the public holidays around ``as_of``."""
    rows = connection.execute(
        sa.text("""
            SELECT p.*, c.email FROM clinic_message_policy p JOIN clinic c ON c.id = p.clinic_id
            WHERE c.active AND (CAST(:clinic AS text) IS NULL OR c.code = :clinic) ORDER BY c.id"""),
        {"clinic": clinic},
    ).all()
    holidays = _holidays(connection, rows, as_of.date() - timedelta(days=_LOOK_BACK + 2), _LOOK_BACK * 2 + 75)
    return [
        Hours(
            row.clinic_id,
            row.code,
            ZoneInfo(row.time_zone),
            row.reminder_time,
            timedelta(minutes=row.reminder_last_minutes),
            row.preparation_time,
            row.preparation_lead_days,
            timedelta(hours=row.preparation_last_hours),
            timedelta(hours=row.just_booked_hours),
            row.quiet_from,
            row.quiet_to,
            row.person_daily_cap,
            row.portal_url,
            holidays[row.clinic_id],
            row.quiet_rest_days,
            row.email,
            row.confirmations,
        )
        for row in rows
    ]


def _holidays(
    connection: sa.Connection, clinics: Sequence[sa.Row[tuple[object, ...]]], first: date, days: int
) -> Mapping[int, frozenset[date]]:
    """Whole days closed for everybody around a clinic: national, regional, municipal; the narrower layer prevails.

    The chain's and the clinic's own closures are no rest days: people at home do not rest because a clinic does.
    """
    order = {"national": 0, "region": 1, "municipality": 2}
    closures = connection.execute(
        sa.text("""
            SELECT layer, effect, date_from, date_to, yearly, region, municipality_code FROM closure
            WHERE lifted_at IS NULL AND from_time IS NULL AND layer IN ('national', 'region', 'municipality')
              AND (yearly OR (date_from <= :last AND date_to >= :first))"""),
        {"first": first, "last": first + timedelta(days=days)},
    ).all()
    closures = sorted(closures, key=lambda closure: (order[closure.layer], closure.effect))
    wanted = [first + timedelta(days=ahead) for ahead in range(days + 1)]
    touched = [
        (closure, [day for day in wanted if _covers(closure.date_from, closure.date_to, day, closure.yearly)])
        for closure in closures
    ]
    found: dict[int, frozenset[date]] = {}
    for clinic in clinics:
        closed: set[date] = set()
        for closure, days_of in touched:
            here = closure.region is None or comparable(closure.region) == comparable(clinic.region)
            if here and closure.municipality_code in (None, clinic.municipality_code):
                if closure.effect == "closed":
                    closed.update(days_of)
                else:
                    closed.difference_update(days_of)
        found[clinic.clinic_id] = frozenset(closed)
    return found


def _covers(first: date, last: date, day: date, yearly: bool) -> bool:
    if not yearly:
        return first <= day <= last
    start, end, here = (first.month, first.day), (last.month, last.day), (day.month, day.day)
    return start <= here <= end if start <= end else here >= start or here <= end
