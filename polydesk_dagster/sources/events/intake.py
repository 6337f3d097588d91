"""Studiolab's events for one clinic: read in pages, each page with its effects, inbox and cursor in one transaction.

Reading again what was read is free (the inbox knows every event by its id), so reading starts before the oldest gap
that may still be filled. An event that fails is parked with its entity; the rest goes on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Protocol

import sqlalchemy as sa

from polydesk_dagster.changes.why import kept, read
from polydesk_dagster.database.locks import in_turn
from polydesk_dagster.errors import PermanentError
from polydesk_dagster.outcome import Counts, Outcome, Reason, Report, Table, done
from polydesk_dagster.sources.events import asked, effects, inbox, paging, staging, types
from polydesk_dagster.sources.events import cursor as cursors
from polydesk_dagster.sources.events.cursor import Cursor
from polydesk_dagster.sources.events.history import (
    OTHER_HISTORY,
    AnotherClinicsError,
    OtherHistoryError,
    with_loss,
    without_anchor,
)
from polydesk_dagster.sources.events.paging import highest_of, trusted_numbers
from polydesk_dagster.sources.events.staging import Batch
from polydesk_dagster.sources.port import GoneError, News
from polydesk_dagster.sources.records import Event
from polydesk_dagster.values import Instant, Value
from polydesk_dagster.wire import sort_records

PAGE = 1000
PAGES = 100
"""Pages that one run takes at most; what is left is the next run's."""
FAR = 1000
"""A feed's first number may be late too, but one that starts beyond this has never had the numbers before it; and an
event whose number lies this far beyond the last that studiolab declares has a wrong one."""
GAP_PATIENCE = timedelta(minutes=10)
"""How long a missing sequence number is waited for. Studiolab may be up to 5 minutes late with one."""


class Feed(Protocol):
    """Where news comes from, by number: ``numbering.feed_of`` makes one of a source."""

    @property
    def epoch(self) -> str: ...

    def events(self, after: int, limit: int) -> News: ...

    def oldest(self) -> int | None:
        """The oldest number that it still has. None: it has none, does not say, or its numbers are not its own, so that
        one which is missing says nothing."""


@dataclass(slots=True)
class Tally:
    """What a run came to."""

    read: int = 0
    repeated: int = 0
    applied: int = 0
    superseded: int = 0
    parked: int = 0
    waiting: int = 0
    dead: int = 0
    unknown: int = 0
    skipped: int = 0
    set_aside: int = 0
    """Events that wait for the first time, or for a person from now on."""


def sync(
    engine: sa.Engine,
    as_of: datetime,
    clinic: str,
    feed: Feed,
    *,
    reconcile: bool = False,
    page: int = PAGE,
    pages: int = PAGES,
    goes_on: Callable[[], bool] = lambda: True,
    progress: Callable[[int, int, str], None] | None = None,
) -> Report:
    """Take in what is new for ``clinic`` (a code), after trying again what is due.

    ``reconcile`` goes on after a stop: it notes as lost what studiolab no longer has, reads everything that it still
    has, and asks for what has to be compared as a whole. ``page`` (1 to 1000) bounds memory, ``pages`` the run, and so
    does ``goes_on``, which is asked before each page beyond the cursor: what is left is the next run's.

    Raises:
        TransientError: studiolab or the database; what was committed stays, the next run goes on from there.
        PermanentError: studiolab refuses, or answers in another shape.
    """
    with engine.begin() as connection:
        cursor = cursors.load(connection, clinic, feed.epoch)
        if cursor.stopped and not reconcile:
            return Report.refused("events_stopped", {"why": read(cursor.stopped)}, clinic)
        round_ = _Round(engine, as_of, cursor, feed, page)
        more = cursor.waits and round_.retry(connection, first=True)
    while more:
        with engine.begin() as connection:
            round_.run(connection, cursors.LOCK, ids=[])
            more = round_.retry(connection)
    try:
        reasons = round_.reconcile() if reconcile else []
        left = round_.read(pages, goes_on, progress)
    except (GoneError, OtherHistoryError, AnotherClinicsError) as error:
        round_.stop(kept(error.reason))
        return Report.refused("events_stopped", {"why": error.reason}, clinic)
    return round_.report(reasons, left)


UNCERTAIN = """
SELECT count(*) FROM appointment
WHERE clinic_id = :clinic AND external_id IS NOT NULL AND starts_at >= :as_of AND status IN ('booked', 'accepted')"""

FAILED_NOW = """
SELECT state, reason, count(*) FROM event_inbox
WHERE clinic_id = :clinic AND changed_at = :as_of AND state IN ('parked', 'dead')
GROUP BY state, reason ORDER BY count(*) DESC, reason LIMIT 20"""

STANDING = """
SELECT count(*) FILTER (WHERE state = 'dead') AS dead, count(*) AS waiting,
       EXISTS (SELECT FROM event_inbox WHERE clinic_id = :clinic AND state = 'unknown') AS unknown,
       (SELECT coalesce(sum(upper(span) - lower(span)), 0) FROM event_gap
        WHERE clinic_id = :clinic AND lost_at = :as_of) AS lost,
       (SELECT coalesce(sum(upper(span) - lower(span)), 0) FROM event_gap
        WHERE clinic_id = :clinic AND lost_at IS NULL) AS missing
FROM event_inbox WHERE clinic_id = :clinic AND state IN ('parked', 'waiting', 'dead')"""


@dataclass(slots=True)
class _Round:
    """One run for one clinic."""

    engine: sa.Engine
    as_of: datetime
    cursor: Cursor
    feed: Feed
    page: int
    tally: Tally = field(default_factory=Tally)
    through: int = 0
    """The highest number that was read."""

    @property
    def meets(self) -> bool:
        """Whether nothing was ever taken in of this source."""
        return self.cursor.sequence == 0 and not self.tally.read

    def run(self, connection: sa.Connection, statement: str, **more: object) -> Any:
        parameters = {"clinic": self.cursor.clinic_id, "as_of": self.as_of} | more
        return connection.execute(sa.text(statement), parameters)

    def read(self, pages: int, goes_on: Callable[[], bool], progress: Callable[[int, int, str], None] | None) -> int:
        """Page through the news; returns how many numbers are left for the next run where the turn was over before."""
        sequence, anchor, history = self.cursor.sequence, self.cursor.anchor, self.cursor.history
        left, met = 0, anchor is None
        feed = _Overlap(self, sequence)
        coming = paging.pages(feed.events, self.cursor.after, self.page, pages, goes_on, beyond=sequence)
        for news, cut in coming:
            if None not in {news.history, history} and news.history != history:
                raise OtherHistoryError("events_other_epoch")
            if news.last_sequence < sequence:
                raise OtherHistoryError("events_went_back", last=news.last_sequence, known=sequence)
            if not met and not (met := bool(staging.ids_at(news, sequence))):
                met = highest_of(news) > sequence or news.size < self.page
                if met and (oldest := self.feed.oldest()) is not None and oldest < sequence:
                    raise OtherHistoryError("events_anchor_gone", sequence=sequence, oldest=oldest)
            if self.meets:
                self.meet(news.last_sequence)
            self.take(without_anchor(news, sequence, anchor), [event.id for event in news.events])
            ahead = max(0, news.last_sequence - highest_of(news))
            left = ahead if cut else 0
            if progress:
                progress(self.tally.read, self.tally.read + ahead, "progress.events_read")
        return left

    def meet(self, last: int) -> None:
        """See, before anything is taken in of a source whose ``last`` number this is, that its events are not those on
        which a clinic stands that leads to the same address and was there before."""
        with self.engine.begin() as connection:
            near = self.run(connection, cursors.NEAREST, last=last).all()
        for row in near:
            with suppress(GoneError):
                if row.anchor in staging.ids_at(self.feed.events(row.sequence - 1, 1), row.sequence):
                    raise AnotherClinicsError(row.code)

    def take(self, news: News, ids: list[str]) -> None:
        """One page, whole: effects, inbox, gaps and cursor; ``ids`` are of all events on it, the known one too.

        Raises:
            AnotherClinicsError: another clinic stands on one of its events, or has taken in those of a first meeting.
        """
        staged = staging.batch(news.events, news.rejected, news.last_sequence + FAR)
        highest = highest_of(news)
        with self.engine.begin() as connection:
            if self.meets:
                in_turn(connection, "events", self.feed.epoch)
                locked = self.run(connection, cursors.MEET, ids=ids, oldest=staged.oldest())
            else:
                locked = self.run(connection, cursors.LOCK, ids=ids)
            if (rival := locked.scalar_one_or_none()) is not None:
                raise AnotherClinicsError(rival)
            if staged.rows:
                staging.copy(connection, staged)
                known = self.run(connection, inbox.KNOWN).scalar_one()
                self.tally.repeated += staged.repeated + known
                if known < len(staged.rows):
                    self.settle(connection, staged)
            at = staging.ids_at(news, highest)
            self.run(
                connection,
                cursors.MOVE,
                sequences=trusted_numbers(news),
                highest=highest,
                far=FAR,
                anchor=at.pop() if len(at) == 1 else None,
                history=news.history,
            )
        self.tally.read += len(news.events) + len(news.rejected)
        self.through = max(self.through, highest)

    def settle(self, connection: sa.Connection, staged: Batch) -> None:
        effects.settle(connection, self.cursor.clinic_id, self.as_of, staged)
        counted = "SELECT state, fresh, count(*) FROM kept GROUP BY state, fresh"
        for state, fresh, count in self.run(connection, f"WITH kept AS ({inbox.INBOX}) {counted}"):
            setattr(self.tally, state, getattr(self.tally, state) + count)
            if state == "dead" or (fresh and state in {"parked", "waiting"}):
                self.tally.set_aside += count

    def retry(self, connection: sa.Connection, *, first: bool = False) -> bool:
        """Try again a lot of the events that are due, or at ``first`` that name what is known meanwhile, each with what
        waits behind it; whether there were any."""
        if first:
            self.run(connection, types.KNOWN_NOW, types=sorted(staging.TYPES))
            self.run(connection, inbox.NAMED_NOW)
        due = self.run(connection, inbox.DUE, limit=self.page).all()
        if due:
            staged = _reread(due)
            staging.copy(connection, staged)
            self.settle(connection, staged)
        return bool(due)

    def lose_gaps(self, connection: sa.Connection, *, through: int = 0, below: int = 0) -> None:
        """Wait no longer for numbers that are overdue up to ``through``, or that studiolab no longer has."""
        self.run(connection, cursors.LOSE_GAPS, patience=GAP_PATIENCE, through=through, below=below)

    def stop(self, reason: str) -> None:
        with self.engine.begin() as connection:
            self.run(connection, cursors.STOP, reason=reason)

    def is_other_history(self) -> bool:
        """Whether the feed was stopped because the event on which the cursor stands is none of its any more."""
        stopped = read(self.cursor.stopped)
        return stopped is not None and stopped.code in OTHER_HISTORY

    def reconcile(self) -> list[Reason]:
        """Find where the feed can be taken up again, note what is lost, and ask for what must be compared whole."""
        sequence, restored = self.cursor.sequence, False
        try:
            restored = self.is_other_history() or self.feed.events(sequence, 1).last_sequence < sequence
            if restored:
                sequence = 0
                self.feed.events(0, 1)
        except GoneError as error:
            if error.oldest is None:
                raise PermanentError("events_no_oldest", clinic=self.cursor.code) from error
            sequence = max(sequence, error.oldest - 1)
        with self.engine.begin() as connection:
            if restored:
                self.run(connection, cursors.FORGET_NUMBERS)
            elif sequence > self.cursor.sequence:
                self.run(connection, cursors.LOST, first=self.cursor.sequence + 1, last=sequence)
            self.run(connection, cursors.GO_ON, sequence=sequence)
            self.run(connection, asked.ASK, services=[effects.IMPORT_PATIENTS, effects.PREVIEW_PRICES])
            uncertain = self.run(connection, UNCERTAIN).scalar_one()
            before, self.cursor = self.cursor, cursors.load(connection, self.cursor.code, self.feed.epoch)
        lost = 0 if restored else sequence - before.sequence
        reasons = [Reason("reconciled", {"sequence": sequence + 1}, self.cursor.code)]
        if restored:
            reasons.append(Reason("numbers_restarted", {}, self.cursor.code))
        if lost:
            reasons.append(Reason("events_lost", {}, self.cursor.code, lost))
        if uncertain and (lost or restored):
            reasons.append(Reason("appointments_to_compare", {}, self.cursor.code, uncertain))
        return reasons

    def report(self, reasons: Sequence[Reason], left: int) -> Report:
        tally = self.tally
        with self.engine.begin() as connection:
            # Only now: what was late may have come while nobody looked.
            self.lose_gaps(connection, through=self.through if left else max(self.through, self.cursor.sequence))
            standing = self.run(connection, STANDING).one()
            failed = self.run(connection, FAILED_NOW).all() if standing.waiting else []
            asked = self.run(connection, types.OPEN).all() if standing.unknown else []
        said = list(reasons)
        if self.cursor.down_since:
            said.append(Reason("reachable_again", {"since": Instant(self.cursor.down_since)}, self.cursor.code))
        for state, reason, count in failed:
            said.append(Reason(f"event_{state}", {"why": read(reason)}, self.cursor.code, count))
        said += [Reason("event_type_open", {"type": each.type}, self.cursor.code, each.events) for each in asked]
        if standing.dead:
            said.append(Reason("dead_letters", {}, self.cursor.code, standing.dead))
        if standing.lost:
            said.append(Reason("events_never_came", {}, self.cursor.code, int(standing.lost)))
        if left:
            said.append(Reason("events_left", {}, self.cursor.code, left))
        failures = tally.parked + tally.dead
        done_ = tally.applied + tally.superseded
        # What is parked is tried again by itself: never a refusal, even where it is all that came.
        anew = tally.set_aside or standing.lost or any(each.new for each in asked)
        outcome = Outcome.PARTIAL if anew else done(Counts(updated=done_))
        return Report(
            outcome,
            Counts(
                updated=tally.applied,
                skipped=tally.superseded + tally.skipped,
                waiting=int(standing.waiting) + len(asked),
                unchanged=tally.repeated,
            ),
            tuple(said),
            {
                "events_read": tally.read,
                "events_applied": tally.applied,
                "events_superseded": tally.superseded,
                "events_repeated": tally.repeated,
                "events_parked": failures,
                "events_behind": tally.waiting,
                "events_missing": int(standing.missing),
            },
        )


@dataclass(frozen=True, slots=True)
class _Overlap:
    """The feed, but where only an old gap is out of its reach the gap is given up instead of everything."""

    round_: _Round
    sequence: int

    @property
    def epoch(self) -> str:
        return self.round_.feed.epoch

    def oldest(self) -> int | None:
        return self.round_.feed.oldest()

    def events(self, after: int, limit: int) -> News:
        try:
            return self.round_.feed.events(after, limit)
        except GoneError as error:
            if self.sequence == 0 and error.oldest is not None:  # a first meeting: what was before is nobody's loss
                with self.round_.engine.begin() as connection:
                    self.round_.run(connection, cursors.GO_ON, sequence=error.oldest - 1)
                return self.round_.feed.events(error.oldest - 1, limit)
            if after >= self.sequence or (error.oldest or 0) > self.sequence + 1:
                error.reason = with_loss(error, max(after, self.sequence))
                raise
            with self.round_.engine.begin() as connection:
                self.round_.lose_gaps(connection, below=error.oldest or self.sequence)
            return self.round_.feed.events(self.sequence if error.oldest is None else error.oldest - 1, limit)


def _reread(due: Sequence[Any]) -> Batch:
    """Stored events as they would be staged if they came now, under the ids that the inbox knows them by."""
    rows: dict[str, tuple[str | None, ...]] = {}
    for event_id, payload in due:
        records = sort_records(Event, [payload])
        (row,) = staging.batch(records.valid, records.rejected).rows.values()
        rows[str(event_id)] = (str(event_id), *row[1:])
    return Batch(rows, 0)


def preview(engine: sa.Engine, clinic: str, feed: Feed) -> Report:
    """What the next run would read, by type; takes nothing in."""
    with engine.begin() as connection:
        cursor = cursors.load(connection, clinic, feed.epoch)
    try:
        news = feed.events(cursor.sequence, PAGE)
    except GoneError as error:
        return Report.refused("events_stopped", {"why": error.reason}, clinic)
    types = Counter(event.type for event in news.events)
    rows: list[tuple[Value, ...]] = [(kind, number) for kind, number in sorted(types.items())]
    if news.rejected:
        rows.append((Reason("events_unreadable"), len(news.rejected)))
    behind = max(0, news.last_sequence - cursor.sequence)
    return Report(
        Outcome.OK if news.size else Outcome.NOTHING_TO_DO,
        Counts(created=news.size),
        figures={"last_event": cursor.sequence, "events_ahead": behind},
        tables=(Table("next_events", ("type", "how_many"), tuple(rows), len(rows)),),
        preview=True,
    )
