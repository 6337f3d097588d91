"""The cheap look for news: one request for each clinic, many at once, and who is left in peace for a while.

It writes only when something changes: that a studiolab answers for the first time, that it stopped answering, that it
answers again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import anyio
import anyio.to_thread
import httpx
import sqlalchemy as sa
from pydantic import BaseModel

from polydesk_dagster import remote
from polydesk_dagster.changes.why import kept, read
from polydesk_dagster.errors import ConfigurationError, PermanentError, PolydeskError, TransientError
from polydesk_dagster.remote import Policy
from polydesk_dagster.sources import vendors
from polydesk_dagster.sources.events.intake import GAP_PATIENCE
from polydesk_dagster.sources.events.intervals import LONGEST, interval, is_due, slowed
from polydesk_dagster.sources.events.paging import trusted_numbers
from polydesk_dagster.sources.events.rounds import Bounds, Lag, ask_all, beginning_at
from polydesk_dagster.sources.integrations import SETTINGS
from polydesk_dagster.sources.port import Glancing, GoneError, Link, News, Numbers, Secret, Vendor
from polydesk_dagster.values import Duration, Instant, Reason

POLICY = Policy(connect=15, read=15, write=15, request=20, attempts=1)
"""Long beside what a look takes: a machine of ours that is busy is no studiolab that does not answer."""
BOUNDS = Bounds()
GLANCE = 500
"""Events asked for where gaps are open: one of them may be what fills a gap."""
NOTHING = Reason("no_news")
NOT_REACHED = Reason("look_not_reached")
NOT_DUE = Reason("look_not_due")
TOO_MANY = 429
WITHHELD = "events_withheld"
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
    down_reason: str | None = None
    """Why the last reading failed; who says nothing of it is asked again, however long it was to be left in peace."""
    token: str | None = None
    """What a source that does not count its events is to be asked with."""
    quiet_since: datetime | None = None
    """When its news was read last, or its integration changed."""
    slowed: int = 1
    """See ``intervals.slowed``."""
    overdue: bool = False
    """Whether a missing number has been waited for long enough."""
    history: str | None = None
    """What its source called its history when it was read last."""
    answered: bool = False
    """Whether its source is known to have answered, as its integration stands."""

    def every(self, as_of: datetime) -> int:
        """Minutes between two looks at it. Who failed has a pause of its own; what is missing or due is not quiet."""
        if self.failures:
            return 1
        return self.slowed if self.missing or self.due else interval(self.quiet_since, self.slowed, as_of)

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
    answered: bool = False
    """Whether its source said anything in this look."""
    seconds: float = 0.0
    """How long its answer took, counted from its own question and without what was ours."""

    @property
    def slowed(self) -> int:
        """How it is to be asked from now on; see ``intervals.slowed``."""
        if self.error is None:
            return slowed(self.clinic.slowed, self.seconds) if self.answered else self.clinic.slowed
        waits = isinstance(self.error, TransientError) and self.error.retry_after is not None
        waits = waits or self.error.reason.values.get("status") == TOO_MANY
        return LONGEST if waits else self.clinic.slowed


CLINICS = f"""
SELECT c.id, c.code, i.vendor, {SETTINGS} AS settings, i.source, coalesce(e.sequence, 0) AS sequence,
       least(coalesce(e.sequence, 0), coalesce(min(lower(g.span)) - 1, e.sequence, 0)) AS after,
       coalesce(array_agg(ARRAY[lower(g.span), upper(g.span)]) FILTER (WHERE g.span IS NOT NULL), '{{}}') AS missing,
       coalesce(bool_or(g.noticed_at <= CAST(:as_of AS timestamptz) - CAST(:patience AS interval)), false) AS overdue,
       e.history, e.answered_at IS NOT NULL AS answered, e.stopped_reason AS stopped,
       coalesce(e.failures, 0) AS failures, e.quiet_until, e.down_since, e.down_reason,
       EXISTS (SELECT FROM event_inbox p
               WHERE p.clinic_id = c.id AND p.state = 'parked' AND p.next_try_at <= :as_of) AS due,
       (SELECT f.token FROM feed_number f WHERE f.clinic_id = c.id AND f.token IS NOT NULL
        ORDER BY f.sequence DESC LIMIT 1) AS token,
       coalesce(e.read_at, i.updated_at) AS quiet_since, coalesce(e.slowed, 1) AS slowed
FROM clinic c JOIN integration i ON i.clinic_id = c.id
LEFT JOIN event_cursor e ON e.clinic_id = c.id
LEFT JOIN event_gap g ON g.clinic_id = c.id AND g.lost_at IS NULL
WHERE c.active AND i.active
GROUP BY c.id, i.clinic_id, e.clinic_id ORDER BY c.code"""


def clinics(connection: sa.Connection, as_of: datetime) -> list[Clinic]:
    """Clinics with an active integration, by code."""
    rows = connection.execute(sa.text(CLINICS), {"as_of": as_of, "patience": GAP_PATIENCE})
    return [Clinic(**row._asdict() | {"missing": tuple((first, last) for first, last in row.missing)}) for row in rows]


def look(
    known: Sequence[Clinic],
    as_of: datetime,
    token: Callable[[str], str | None],
    *,
    since: datetime | None = None,
    first: str | None = None,
    policy: Policy = POLICY,
    bounds: Bounds = BOUNDS,
) -> list[Seen]:
    """Look at all of them, or with ``since``, when the look before this one was, at those whose turn has come; one that
    fails or is slow is a finding of its own, never of the others. They are asked in the order of their codes, beginning
    at ``first``.

    Who is not reached before the look's end is found neither well nor unwell, and is the first of the next look: see
    ``not_reached``.
    """
    seen: dict[int, Seen] = {}
    wanted: list[_Wanted] = []
    for clinic in beginning_at(known, first, lambda clinic: clinic.code):
        if not is_due(clinic.id, clinic.every(as_of), since, as_of):
            seen[clinic.id] = Seen(clinic, None, NOT_DUE)
            continue
        found = _ready(clinic, as_of, token)
        if isinstance(found, Seen):
            seen[clinic.id] = found
        else:
            wanted.append(found)
    if wanted:
        for looked in asyncio.run(_all(wanted, policy, bounds)):
            seen[looked.clinic.id] = looked
    return [seen[clinic.id] for clinic in known]


def not_reached(seen: Sequence[Seen], first: str | None) -> str | None:
    """The code of whom a look that began at ``first`` did not reach, and the next is to begin at; None: of nobody."""
    order = beginning_at(seen, first, lambda each: each.clinic.code)
    return next((each.clinic.code for each in order if each.why == NOT_REACHED), None)


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
    why = read(clinic.down_reason)
    if why is not None and clinic.quiet_until is not None and clinic.quiet_until > as_of:
        since = Instant(clinic.down_since or as_of)
        wait = Duration((clinic.quiet_until - as_of).total_seconds())
        return Seen(clinic, None, Reason("left_in_peace", {"why": why, "since": since, "wait": wait}))
    try:
        vendor = vendors.vendor(clinic.vendor, clinic.code)
        settings = vendors.settings(clinic.link)
        if clinic.source not in {None, vendors.epoch(clinic.link)}:
            return Seen(clinic, None, Reason("source_changed", {}, clinic.code))
    except ConfigurationError as error:
        return Seen(clinic, None, error.reason, error)
    if vendor.news is Numbers.NONE:
        return Seen(clinic, None, NOTHING, answered=True)
    return _Wanted(clinic, vendor, settings, vendors.needed(clinic.link, token))


async def _all(wanted: Sequence[_Wanted], policy: Policy, bounds: Bounds) -> list[Seen]:
    threads = anyio.CapacityLimiter(bounds.open)
    async with remote.looking(policy, bounds.open) as pool, Lag() as lag:
        questions = [partial(_one, asked, pool, policy, threads, lag) for asked in wanted]
        found = await ask_all(questions, bounds)
    return [seen or Seen(asked.clinic, None, NOT_REACHED) for asked, seen in zip(wanted, found, strict=True)]


async def _one(
    asked: _Wanted, pool: httpx.AsyncClient, policy: Policy, threads: anyio.CapacityLimiter, lag: Lag
) -> Seen:
    clinic, clock = asked.clinic, asyncio.get_running_loop().time
    error: PolydeskError
    begun = clock() - lag.seconds
    try:
        async with asyncio.timeout(policy.request):
            answer = await _ask(asked, pool, policy, threads)
        return replace(answer, seconds=clock() - lag.seconds - begun)
    except TimeoutError:
        error = TransientError("remote_silent", system=Reason("system_source", {"of": clinic.code}))
    except GoneError as gone:
        return Seen(clinic, clinic.sequence + 1, gone.reason, answered=True)
    except (TransientError, PermanentError) as failed:
        error = failed
    except Exception as broken:  # noqa: BLE001  whatever a vendor of somebody else's raises is that clinic's alone
        error = PermanentError("vendor_broken", clinic=clinic.code, vendor=clinic.vendor, error=type(broken).__name__)
    return Seen(clinic, None, error.reason, error)


async def _ask(asked: _Wanted, pool: httpx.AsyncClient, policy: Policy, threads: anyio.CapacityLimiter) -> Seen:
    clinic, vendor = asked.clinic, asked.vendor
    limit = GLANCE if clinic.missing else 1
    if vendor.news is Numbers.DENSE and isinstance(vendor, Glancing):
        found = await vendor.glance(pool, clinic.code, asked.settings, asked.secret, clinic.after, limit, policy)
        return _judge(clinic, found)
    token = str(clinic.after) if vendor.news is Numbers.DENSE else clinic.token

    def news() -> News:
        with closing(vendor.open(clinic.code, asked.settings, asked.secret, policy)) as source:
            return source.news(token, limit)

    # A thread cannot be ended: left behind, it ends by the policy's own bounds while the look goes on without it.
    found = await anyio.to_thread.run_sync(news, abandon_on_cancel=True, limiter=threads)
    return _judge(clinic, found, dense=vendor.news is Numbers.DENSE)


def _judge(clinic: Clinic, found: News, *, dense: bool = True) -> Seen:
    """Numbers beyond the cursor or inside a gap are news; a full glance may hide some behind it, and so may what has no
    number that can be trusted. So is a history that is not the one we know: the run says so.

    Raises:
        TransientError: the source has more by its own word, and gives nothing.
    """
    numbers = trusted_numbers(found) if dense else [clinic.sequence + 1] if found.size else []
    renamed = None not in {found.history, clinic.history} and found.history != clinic.history
    if renamed or (dense and found.last_sequence < clinic.sequence):
        return Seen(clinic, clinic.sequence, Reason("history_to_judge"), answered=True)
    fresh = [
        number
        for number in numbers
        if number > clinic.sequence or any(first <= number < last for first, last in clinic.missing)
    ]
    if fresh or len(numbers) >= GLANCE or (dense and found.size > len(numbers)):
        return Seen(clinic, max(fresh, default=clinic.sequence), Reason("news_to_read"), answered=True)
    if clinic.due or clinic.overdue:
        why = Reason("parked_due" if clinic.due else "gap_overdue")
        return Seen(clinic, clinic.sequence, why, answered=True)
    if dense and found.last_sequence > clinic.sequence:
        raise TransientError(WITHHELD, last=found.last_sequence, known=clinic.sequence)
    return Seen(clinic, None, Reason("no_news_reachable_again") if clinic.failures else NOTHING, answered=True)


FAILED = """
INSERT INTO event_cursor AS e (clinic_id, failures, quiet_until, down_reason, down_since)
SELECT clinic_id, 1, quiet_until, why, :as_of
FROM unnest(CAST(:clinics AS bigint[]), CAST(:until AS timestamptz[]), CAST(:why AS text[]))
     AS t(clinic_id, quiet_until, why)
ON CONFLICT (clinic_id) DO UPDATE SET failures = CASE WHEN excluded.quiet_until > :as_of THEN e.failures ELSE 0 END + 1,
                                      quiet_until = excluded.quiet_until,
                                      down_reason = excluded.down_reason,
                                      down_since = coalesce(e.down_since, excluded.down_since)"""

# Who answers with news keeps `down_since` for the run to tell; who answers without is told of here.
ANSWERED = """
INSERT INTO event_cursor AS e (clinic_id, answered_at) SELECT unnest(CAST(:clinics AS bigint[])), :as_of
ON CONFLICT (clinic_id) DO UPDATE SET failures = 0, quiet_until = NULL, down_reason = NULL,
                                      down_since = CASE WHEN e.clinic_id = ANY(:with_news) THEN e.down_since END,
                                      answered_at = coalesce(e.answered_at, excluded.answered_at)"""


SLOWED = """
INSERT INTO event_cursor AS e (clinic_id, slowed)
SELECT * FROM unnest(CAST(:clinics AS bigint[]), CAST(:slowed AS smallint[]))
ON CONFLICT (clinic_id) DO UPDATE SET slowed = excluded.slowed"""


def changed(seen: Sequence[Seen]) -> bool:
    """Whether there is anything to ``remember``."""
    return any(look.error is not None or _is_new(look) or look.slowed != look.clinic.slowed for look in seen)


def _is_new(look: Seen) -> bool:
    """Whether it answered for the first time, or after looks that failed."""
    return look.answered and (look.clinic.failures > 0 or not look.clinic.answered)


def remember(connection: sa.Connection, seen: Sequence[Seen], as_of: datetime) -> None:
    """Leave those that failed in peace for longer each time, take those that answer into the round, for the first time
    or again, and ask those that are slow less often."""
    failed = [look for look in seen if look.error is not None]
    if failed:
        connection.execute(
            sa.text(FAILED),
            {
                "clinics": [look.clinic.id for look in failed],
                "until": [as_of + pause(look.clinic.failures, look.error) for look in failed],
                "why": [kept(look.why) for look in failed],
                "as_of": as_of,
            },
        )
    answered = [look for look in seen if _is_new(look)]
    if answered:
        with_news = [look.clinic.id for look in answered if look.news is not None]
        parameters: Mapping[str, object] = {
            "clinics": [look.clinic.id for look in answered],
            "with_news": with_news,
            "as_of": as_of,
        }
        connection.execute(sa.text(ANSWERED), parameters)
    paced = [look for look in seen if look.slowed != look.clinic.slowed]
    if paced:
        parameters = {"clinics": [look.clinic.id for look in paced], "slowed": [look.slowed for look in paced]}
        connection.execute(sa.text(SLOWED), parameters)


def pause(failures: int, error: PolydeskError | None) -> timedelta:
    """How long to leave a studiolab in peace after ``failures`` looks that failed before this one; not at all where it
    does answer, and what it has yet to give may be late."""
    if error is not None and error.reason.code == WITHHELD:
        return timedelta()
    asked = error.retry_after if isinstance(error, TransientError) and error.retry_after else 0.0
    return max(timedelta(seconds=asked), min(FIRST_PAUSE * 2.0 ** min(failures, 10), LONGEST_PAUSE))
