"""The cheap look for news: one request for each clinic, side by side, and who is left in peace for a while.

It writes only when something changes: that a studiolab stopped answering, that it answers again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import httpx
import sqlalchemy as sa
from pydantic import BaseModel

from polydesk_dagster import remote
from polydesk_dagster.changes.why import read
from polydesk_dagster.errors import ConfigurationError, PermanentError, PolydeskError, TransientError
from polydesk_dagster.remote import Policy
from polydesk_dagster.sources import vendors
from polydesk_dagster.sources.events.intake import trusted_numbers
from polydesk_dagster.sources.integrations import SETTINGS
from polydesk_dagster.sources.port import Glancing, GoneError, Link, News, Numbers, Secret, Vendor
from polydesk_dagster.values import Duration, Instant, Reason

POLICY = Policy(connect=15, read=15, write=15, request=20, attempts=1)
"""Long beside what a look takes: a machine of ours that is busy is no studiolab that does not answer."""
LONGEST_TICK = 25.0
"""Seconds, of the minute between two ticks; who has not answered by then counts as not answering."""
AT_ONCE = 64
GLANCE = 500
"""Events asked for where gaps are open: one of them may be what fills a gap."""
NOTHING = Reason("no_news")
FIRST_PAUSE, LONGEST_PAUSE = timedelta(minutes=1), timedelta(minutes=30)


@dataclass(frozen=True, slots=True)
class Clinic:
    """One clinic with an active integration, and what decides whether and how to look."""

    id: int
    code: str
    vendor: str
    settings: Mapping[str, Any]
    source: str | None
    """Whose state we hold; None: nobody's yet."""
    sequence: int
    after: int
    """Where to look from: before the oldest open gap."""
    missing: tuple[tuple[int, int], ...]
    """Open gaps: first number, and the one after the last."""
    stopped: str | None
    failures: int
    quiet_until: datetime | None
    down_since: datetime | None
    due: bool
    """Whether something parked is to be tried again."""
    token: str | None = None
    """What a source that does not count its events is to be asked with."""

    @property
    def link(self) -> Link:
        return Link(self.code, self.vendor, self.settings)


@dataclass(frozen=True, slots=True)
class Seen:
    """What a look came to: ``news`` is the newest number worth a run, None for no run."""

    clinic: Clinic
    news: int | None
    why: Reason
    error: PolydeskError | None = None


CLINICS = f"""
SELECT c.id, c.code, i.vendor, {SETTINGS} AS settings, i.source, coalesce(e.sequence, 0) AS sequence,
       least(coalesce(e.sequence, 0), coalesce(min(lower(g.span)) - 1, e.sequence, 0)) AS after,
       coalesce(array_agg(ARRAY[lower(g.span), upper(g.span)]) FILTER (WHERE g.span IS NOT NULL), '{{}}') AS missing,
       e.stopped_reason AS stopped, coalesce(e.failures, 0) AS failures, e.quiet_until, e.down_since,
       EXISTS (SELECT FROM event_inbox p
               WHERE p.clinic_id = c.id AND p.state = 'parked' AND p.next_try_at <= :as_of) AS due,
       (SELECT f.token FROM feed_number f WHERE f.clinic_id = c.id AND f.token IS NOT NULL
        ORDER BY f.sequence DESC LIMIT 1) AS token
FROM clinic c JOIN integration i ON i.clinic_id = c.id
LEFT JOIN event_cursor e ON e.clinic_id = c.id
LEFT JOIN event_gap g ON g.clinic_id = c.id AND g.lost_at IS NULL
WHERE c.active AND i.active
GROUP BY c.id, i.clinic_id, e.clinic_id ORDER BY c.code"""


def clinics(connection: sa.Connection, as_of: datetime) -> list[Clinic]:
    """Clinics with an active integration, by code."""
    rows = connection.execute(sa.text(CLINICS), {"as_of": as_of}).mappings()
    return [Clinic(**{**row, "missing": tuple((first, last) for first, last in row["missing"])}) for row in rows]


def active(connection: sa.Connection, clinic: str) -> bool:
    """Whether the clinic (a code) has an active integration."""
    query = """SELECT EXISTS (SELECT FROM clinic c JOIN integration i ON i.clinic_id = c.id
                              WHERE c.code = :clinic AND c.active AND i.active)"""
    return bool(connection.scalar(sa.text(query), {"clinic": clinic}))


def look(
    known: Sequence[Clinic],
    as_of: datetime,
    token: Callable[[str], str | None],
    *,
    policy: Policy = POLICY,
    longest: float = LONGEST_TICK,
) -> list[Seen]:
    """Look at all of them side by side; one that fails or is slow is a finding of its own, never of the others."""
    seen: dict[int, Seen] = {}
    wanted: list[_Wanted] = []
    for clinic in known:
        found = _ready(clinic, as_of, token)
        if isinstance(found, Seen):
            seen[clinic.id] = found
        else:
            wanted.append(found)
    if wanted:
        for looked in asyncio.run(_all(wanted, policy, longest)):
            seen[looked.clinic.id] = looked
    return [seen[clinic.id] for clinic in known]


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A clinic that is to be asked, and what it takes."""

    clinic: Clinic
    vendor: Vendor[Any]
    settings: BaseModel
    secret: Secret


def _ready(clinic: Clinic, as_of: datetime, token: Callable[[str], str | None]) -> Seen | _Wanted:
    """What it takes to ask, or why the clinic is not asked."""
    if clinic.stopped is not None:
        return Seen(clinic, None, Reason("feed_stopped", {"why": read(clinic.stopped)}))
    if clinic.quiet_until is not None and clinic.quiet_until > as_of:
        since = Instant(clinic.down_since or as_of)
        wait = Duration((clinic.quiet_until - as_of).total_seconds())
        return Seen(clinic, None, Reason("left_in_peace", {"since": since, "wait": wait}))
    try:
        vendor = vendors.vendor(clinic.vendor, clinic.code)
        settings = vendors.settings(clinic.link)
        if clinic.source not in {None, vendor.epoch(settings)}:
            return Seen(clinic, None, Reason("source_changed", {}, clinic.code))
    except ConfigurationError as error:
        return Seen(clinic, None, error.reason, error)
    if vendor.news is Numbers.NONE:
        return Seen(clinic, None, NOTHING)
    return _Wanted(clinic, vendor, settings, vendors.needed(clinic.link, token))


async def _all(wanted: Sequence[_Wanted], policy: Policy, longest: float) -> list[Seen]:
    async with remote.looking(policy, AT_ONCE) as pool:

        async def one(asked: _Wanted) -> Seen:
            clinic = asked.clinic
            try:
                async with asyncio.timeout(longest):
                    return await _ask(asked, pool, policy)
            except TimeoutError:
                error = TransientError("remote_silent", system=Reason("system_source", {"of": clinic.code}))
                return Seen(clinic, None, error.reason, error)
            except GoneError as error:
                return Seen(clinic, clinic.sequence + 1, error.reason)
            except (TransientError, PermanentError) as error:
                return Seen(clinic, None, error.reason, error)

        return await asyncio.gather(*(one(asked) for asked in wanted))


async def _ask(asked: _Wanted, pool: httpx.AsyncClient, policy: Policy) -> Seen:
    clinic, vendor = asked.clinic, asked.vendor
    limit = GLANCE if clinic.missing else 1
    if vendor.news is Numbers.DENSE and isinstance(vendor, Glancing):
        found = await vendor.glance(pool, clinic.code, asked.settings, asked.secret, clinic.after, limit, policy)
        return _judge(clinic, trusted_numbers(found))
    token = str(clinic.after) if vendor.news is Numbers.DENSE else clinic.token

    def news() -> News:
        with closing(vendor.open(clinic.code, asked.settings, asked.secret, policy)) as source:
            return source.news(token, limit)

    found = await asyncio.to_thread(news)
    if vendor.news is Numbers.DENSE:
        return _judge(clinic, trusted_numbers(found))
    return _judge(clinic, [clinic.sequence + 1] if found.size else [])


def _judge(clinic: Clinic, numbers: Sequence[int]) -> Seen:
    """Numbers beyond the cursor or inside a gap are news; a full glance may hide some behind it."""
    fresh = [
        number
        for number in numbers
        if number > clinic.sequence or any(first <= number < last for first, last in clinic.missing)
    ]
    if fresh or len(numbers) >= GLANCE:
        return Seen(clinic, max(fresh, default=clinic.sequence), Reason("news_to_read"))
    if clinic.due:
        return Seen(clinic, clinic.sequence, Reason("parked_due"))
    return Seen(clinic, None, Reason("no_news_reachable_again") if clinic.failures else NOTHING)


FAILED = """
INSERT INTO event_cursor AS e (clinic_id, failures, quiet_until, down_since)
SELECT clinic_id, 1, quiet_until, :as_of
FROM unnest(CAST(:clinics AS bigint[]), CAST(:until AS timestamptz[])) AS t(clinic_id, quiet_until)
ON CONFLICT (clinic_id) DO UPDATE SET failures = e.failures + 1, quiet_until = excluded.quiet_until,
                                      down_since = coalesce(e.down_since, excluded.down_since)"""

# Who answers with news keeps `down_since` for the run to tell; who answers without is told of here.
ANSWERED = """
UPDATE event_cursor SET failures = 0, quiet_until = NULL,
                        down_since = CASE WHEN clinic_id = ANY(:with_news) THEN down_since END
WHERE clinic_id = ANY(:clinics)"""


def changed(seen: Sequence[Seen], as_of: datetime) -> bool:
    """Whether there is anything to ``remember``."""
    return any(look.error is not None or _answered(look, as_of) for look in seen)


def _answered(look: Seen, as_of: datetime) -> bool:
    """Whether it answered after looks that failed."""
    asked = look.clinic.quiet_until is None or look.clinic.quiet_until <= as_of
    return look.error is None and look.clinic.failures > 0 and asked and look.clinic.stopped is None


def remember(connection: sa.Connection, seen: Sequence[Seen], as_of: datetime) -> None:
    """Leave those that failed in peace for longer each time, and take those that answer into the round again."""
    failed = [look for look in seen if look.error is not None]
    if failed:
        connection.execute(
            sa.text(FAILED),
            {
                "clinics": [look.clinic.id for look in failed],
                "until": [as_of + pause(look.clinic.failures, look.error) for look in failed],
                "as_of": as_of,
            },
        )
    back = [look for look in seen if _answered(look, as_of)]
    if back:
        with_news = [look.clinic.id for look in back if look.news is not None]
        parameters: Mapping[str, object] = {"clinics": [look.clinic.id for look in back], "with_news": with_news}
        connection.execute(sa.text(ANSWERED), parameters)


def pause(failures: int, error: PolydeskError | None) -> timedelta:
    """How long to leave a studiolab in peace after ``failures`` looks that failed before this one."""
    asked = error.retry_after if isinstance(error, TransientError) and error.retry_after else 0.0
    return max(timedelta(seconds=asked), min(FIRST_PAUSE * 2.0 ** min(failures, 10), LONGEST_PAUSE))
