"""Studiolab's events for one clinic: read in pages, each page with its effects, inbox and cursor in one transaction.

Reading again what was read is free (the inbox knows every event by its id), so reading starts before the oldest gap
that may still be filled. An event that fails is parked with its entity; the rest goes on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Protocol

import sqlalchemy as sa

from polydesk_dagster.errors import PermanentError
from polydesk_dagster.outcome import Counts, Outcome, Reason, Report, Table
from polydesk_dagster.sources.studiolab import effects, staging
from polydesk_dagster.sources.studiolab.client import GoneError, News
from polydesk_dagster.sources.studiolab.records import Event
from polydesk_dagster.sources.studiolab.staging import Batch
from polydesk_dagster.wire import sort_records

PAGE = 1000
PAGES = 100
"""Pages that one run takes at most; what is left is the next run's."""
RETRY_AFTER_MINUTES = (1, 5, 30, 360)
"""After each failure of a parked event; one failure more and it waits for a person."""
FAR = 1000
"""A feed's first number may be late too, but one that starts beyond this has never had the numbers before it; and an
event whose number lies this far beyond the last that studiolab declares has a wrong one."""
GAP_PATIENCE = timedelta(minutes=10)
"""How long a missing sequence number is waited for. Studiolab may be up to 5 minutes late with one."""


class Feed(Protocol):
    """Where news comes from: ``client.Studiolab`` is one."""

    def events(self, after: int, limit: int) -> News: ...


@dataclass(frozen=True, slots=True)
class Cursor:
    clinic_id: int
    code: str
    sequence: int
    stopped: str | None
    down_since: datetime | None


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


def sync(
    engine: sa.Engine,
    as_of: datetime,
    clinic: str,
    feed: Feed,
    *,
    reconcile: bool = False,
    page: int = PAGE,
    pages: int = PAGES,
    progress: Callable[[int, int, str], None] | None = None,
) -> Report:
    """Take in what is new for ``clinic`` (a code), after trying again what is due.

    ``reconcile`` goes on after a stop: it notes as lost what studiolab no longer has, reads everything that it still
    has, and asks for what has to be compared as a whole. ``page`` (1 to 1000) bounds memory, ``pages`` the run.

    Raises:
        TransientError: studiolab or the database; what was committed stays, the next run goes on from there.
        PermanentError: studiolab refuses, or answers in another shape.
    """
    with engine.begin() as connection:
        cursor = _cursor(connection, clinic)
    if cursor.stopped and not reconcile:
        return Report.refused("events_stopped", f"{cursor.stopped}. {_remedy(clinic)}", clinic)
    round_ = _Round(engine, as_of, cursor, feed, page)
    round_.retry()
    try:
        reasons = round_.reconcile() if reconcile else []
        left = round_.read(pages, progress)
    except (GoneError, _WentBackError) as error:
        round_.stop(str(error))
        code = "events_gone" if isinstance(error, GoneError) else "events_went_back"
        return Report.refused(code, f"{error}. {_remedy(clinic)}", clinic)
    return round_.report(reasons, left)


def _remedy(clinic: str) -> str:
    return f"Riallineare con: polydesk run sync_events --clinic {clinic} --reconcile"


class _WentBackError(PermanentError):
    """Studiolab counts from an earlier number than it already had: it was restored from a copy."""


def _cursor(connection: sa.Connection, clinic: str) -> Cursor:
    row = connection.execute(
        sa.text("""
            WITH made AS (INSERT INTO event_cursor (clinic_id) SELECT id FROM clinic WHERE code = :clinic
                          ON CONFLICT DO NOTHING)
            SELECT c.id, coalesce(e.sequence, 0), e.stopped_reason, e.down_since
            FROM clinic c LEFT JOIN event_cursor e ON e.clinic_id = c.id WHERE c.code = :clinic"""),
        {"clinic": clinic},
    ).one_or_none()
    if row is None:
        raise PermanentError(f"la clinica {clinic} non esiste")
    return Cursor(row[0], clinic, *row[1:])


START = """
SELECT e.sequence, least(e.sequence, coalesce((SELECT min(lower(span)) - 1 FROM event_gap g
                                               WHERE g.clinic_id = e.clinic_id AND g.lost_at IS NULL), e.sequence))
FROM event_cursor e WHERE e.clinic_id = :clinic"""


def _pages(feed: Feed, after: int, limit: int, pages: int) -> Iterator[News]:
    """Pages until studiolab has no more; the next is fetched while the one before is applied."""
    with ThreadPoolExecutor(1, thread_name_prefix="studiolab") as ahead:
        following = ahead.submit(feed.events, after, limit)
        for number in range(1, pages + 1):
            news = following.result()
            highest = _highest(news)
            more = news.size >= limit and highest > after
            if more and number < pages:
                following = ahead.submit(feed.events, highest, limit)
            yield news
            if not more:
                return
            after = highest


def _highest(news: News) -> int:
    return max(trusted_numbers(news), default=0)


def trusted_numbers(news: News) -> list[int]:
    """The numbers that came, but none beyond the last that studiolab itself declares: the cursor would run away."""
    readable = (staging.readable_sequence(rejected.raw) for rejected in news.rejected)
    numbers = [*(event.sequence for event in news.events), *(number for number in readable if number is not None)]
    return [number for number in numbers if number <= news.last_sequence]


LOCK = "SELECT FROM event_cursor WHERE clinic_id = :clinic FOR UPDATE"

KNOWN = """
WITH known AS (
    DELETE FROM news n USING event_inbox i WHERE i.clinic_id = :clinic AND i.event_id = n.event_id RETURNING 1)
SELECT count(*) FROM known"""

FILL_GAPS = """
WITH seen AS (SELECT range_agg(int8range(s, s, '[]')) AS numbers FROM unnest(CAST(:sequences AS bigint[])) s),
filled AS (DELETE FROM event_gap g USING seen
           WHERE g.clinic_id = :clinic AND g.lost_at IS NULL AND g.span && seen.numbers RETURNING g.span, g.noticed_at)
INSERT INTO event_gap (clinic_id, span, noticed_at)
SELECT :clinic, left_over, f.noticed_at
FROM filled f, seen, unnest(int8multirange(f.span) - seen.numbers) left_over"""

# What lies between the cursor and the page's last number and did not come.
NOTE_GAPS = """
INSERT INTO event_gap (clinic_id, span, noticed_at)
SELECT :clinic, missing, :as_of
FROM event_cursor e,
     (SELECT range_agg(int8range(s, s, '[]')) AS numbers FROM unnest(CAST(:sequences AS bigint[])) s) seen,
     unnest(int8multirange(int8range(
         CASE WHEN e.sequence = 0 AND lower(numbers) > :far THEN lower(numbers) ELSE e.sequence + 1 END,
         greatest(e.sequence, :highest) + 1)) - numbers) missing
WHERE e.clinic_id = :clinic"""

MOVE = """
UPDATE event_cursor SET sequence = greatest(sequence, :highest), read_at = :as_of, failures = 0, quiet_until = NULL,
                        down_since = NULL
WHERE clinic_id = :clinic"""

_NEXT_TRY = " ".join(f"WHEN {n} THEN interval '{m} minutes'" for n, m in enumerate(RETRY_AFTER_MINUTES, 1))

INBOX = f"""
INSERT INTO event_inbox AS i (clinic_id, event_id, sequence, type, version, occurred_at, entity, state, reason,
                              attempts, next_try_at, payload, payload_hash, received_at, changed_at)
SELECT :clinic, n.event_id, n.sequence, n.type, n.version, n.occurred_at, n.entity, t.state,
       CASE WHEN t.state IN ('parked', 'dead') THEN n.problem ELSE n.reason END, t.attempts,
       CASE t.state WHEN 'parked' THEN CAST(:as_of AS timestamptz) + CASE t.attempts {_NEXT_TRY} END END,
       CASE WHEN t.state IN ('parked', 'waiting', 'dead') THEN n.payload END,
       CASE WHEN t.state IN ('parked', 'waiting', 'dead') THEN sha256(convert_to(CAST(n.payload AS text), 'UTF8')) END,
       :as_of, :as_of
FROM (SELECT n.event_id, coalesce(k.attempts, 0) + CAST(n.verdict = 'parked' AS integer) AS attempts,
             CASE WHEN n.verdict = 'parked' AND coalesce(k.attempts, 0) >= {len(RETRY_AFTER_MINUTES)} THEN 'dead'
                  ELSE n.verdict END AS state
      FROM news n LEFT JOIN event_inbox k ON k.clinic_id = :clinic AND k.event_id = n.event_id) t
JOIN news n USING (event_id)
ON CONFLICT (clinic_id, event_id) DO UPDATE
SET state = excluded.state, reason = excluded.reason, attempts = excluded.attempts, next_try_at = excluded.next_try_at,
    payload = excluded.payload, payload_hash = coalesce(i.payload_hash, excluded.payload_hash),
    changed_at = excluded.changed_at
RETURNING state"""


# The unsettled events of every entity whose first one is due. A first one that only waits has nobody before it any
# more: what it waited for was settled by a person.
DUE = """
WITH head AS (
    SELECT DISTINCT ON (coalesce(entity, CAST(event_id AS text))) event_id, entity, state, next_try_at
    FROM event_inbox WHERE clinic_id = :clinic AND state IN ('parked', 'waiting', 'dead')
    ORDER BY coalesce(entity, CAST(event_id AS text)), sequence),
due AS (SELECT event_id, entity FROM head
        WHERE state = 'waiting' OR (state = 'parked' AND next_try_at <= CAST(:as_of AS timestamptz)))
SELECT i.event_id, i.payload FROM event_inbox i
WHERE i.clinic_id = :clinic AND i.state IN ('parked', 'waiting')
  AND (i.event_id IN (SELECT event_id FROM due) OR i.entity IN (SELECT entity FROM due))
ORDER BY i.sequence LIMIT :limit"""


LOSE_GAPS = """
UPDATE event_gap SET lost_at = :as_of
WHERE clinic_id = :clinic AND lost_at IS NULL
  AND (noticed_at <= CAST(:as_of AS timestamptz) - CAST(:patience AS interval) OR lower(span) < :below)"""


STOP = "UPDATE event_cursor SET stopped_at = :as_of, stopped_reason = :reason WHERE clinic_id = :clinic"

GO_ON = """
UPDATE event_cursor SET sequence = :sequence, stopped_at = NULL, stopped_reason = NULL WHERE clinic_id = :clinic"""

LOST = """
INSERT INTO event_gap (clinic_id, span, noticed_at, lost_at)
SELECT :clinic, int8range(:first, :last, '[]'), :as_of, :as_of WHERE CAST(:first AS bigint) <= :last"""

# Numbers that start again say nothing about what came before them.
FORGET_NUMBERS = """
WITH states AS (DELETE FROM event_state WHERE clinic_id = :clinic),
gaps AS (UPDATE event_gap SET lost_at = :as_of WHERE clinic_id = :clinic AND lost_at IS NULL)
UPDATE event_inbox SET state = 'superseded', reason = 'precedente al ripristino di studiolab', payload = NULL,
                       next_try_at = NULL, changed_at = :as_of
WHERE clinic_id = :clinic AND state IN ('parked', 'waiting', 'dead')"""

TO_COMPARE = """
INSERT INTO service_request (clinic_id, service, asked_at)
SELECT :clinic, service, :as_of FROM unnest(CAST(:services AS text[])) service ON CONFLICT DO NOTHING"""

UNCERTAIN = """
SELECT count(*) FROM appointment
WHERE clinic_id = :clinic AND external_id IS NOT NULL AND starts_at >= :as_of AND status IN ('booked', 'accepted')"""


FAILED_NOW = """
SELECT state, reason, count(*) FROM event_inbox
WHERE clinic_id = :clinic AND changed_at = :as_of AND state IN ('parked', 'dead')
GROUP BY state, reason ORDER BY count(*) DESC, reason LIMIT 20"""

STANDING = """
SELECT (SELECT count(*) FROM event_inbox WHERE clinic_id = :clinic AND state = 'dead') AS dead,
       (SELECT coalesce(sum(upper(span) - lower(span)), 0) FROM event_gap
        WHERE clinic_id = :clinic AND lost_at = :as_of) AS lost,
       (SELECT coalesce(sum(upper(span) - lower(span)), 0) FROM event_gap
        WHERE clinic_id = :clinic AND lost_at IS NULL) AS missing,
       (SELECT sequence FROM event_cursor WHERE clinic_id = :clinic) AS sequence"""


@dataclass(slots=True)
class _Round:
    """One run for one clinic."""

    engine: sa.Engine
    as_of: datetime
    cursor: Cursor
    feed: Feed
    page: int
    tally: Tally = field(default_factory=Tally)

    def run(self, connection: sa.Connection, statement: str, **more: object) -> Any:
        parameters = {"clinic": self.cursor.clinic_id, "as_of": self.as_of} | more
        return connection.execute(sa.text(statement), parameters)

    def read(self, pages: int, progress: Callable[[int, int, str], None] | None) -> int:
        """Page through the news; returns how many numbers are left for the next run where ``pages`` were not enough."""
        with self.engine.begin() as connection:
            sequence, after = self.run(connection, START).one()
        left = 0
        for number, news in enumerate(_pages(_Overlap(self, sequence), after, self.page, pages), 1):
            if news.last_sequence < sequence:
                raise _WentBackError(f"studiolab conta fino a {news.last_sequence}, ma era già arrivato a {sequence}")
            self.take(news)
            ahead = max(0, news.last_sequence - _highest(news))
            left = ahead if number == pages and news.size >= self.page else 0
            if progress:
                progress(self.tally.read, self.tally.read + ahead, "eventi letti")
        if not left:
            # Only now: what was late may have come while nobody looked.
            with self.engine.begin() as connection:
                self.lose_gaps(connection)
        return left

    def take(self, news: News) -> None:
        """One page, whole: effects, inbox, gaps and cursor."""
        staged = staging.batch(news.events, news.rejected, news.last_sequence + FAR)
        sequences = trusted_numbers(news)
        highest = max(sequences, default=0)
        with self.engine.begin() as connection:
            self.run(connection, LOCK)
            if staged.rows:
                staging.copy(connection, staged)
                known = self.run(connection, KNOWN).scalar_one()
                self.tally.repeated += staged.repeated + known
                if known < len(staged.rows):
                    self.settle(connection)
            if sequences:
                self.run(connection, FILL_GAPS, sequences=sequences)
                self.run(connection, NOTE_GAPS, sequences=sequences, highest=highest, far=FAR)
            self.run(connection, MOVE, highest=highest)
        self.tally.read += news.size

    def settle(self, connection: sa.Connection) -> None:
        effects.settle(connection, self.cursor.clinic_id, self.as_of)
        states = self.run(connection, f"WITH kept AS ({INBOX}) SELECT state, count(*) FROM kept GROUP BY state")
        for state, count in states:
            setattr(self.tally, state, getattr(self.tally, state) + count)

    def retry(self) -> None:
        """Try again the parked events that are due, each followed by what waits behind it."""
        while True:
            with self.engine.begin() as connection:
                self.run(connection, LOCK)
                due = self.run(connection, DUE, limit=self.page).all()
                if not due:
                    return
                staging.copy(connection, _reread(due))
                self.settle(connection)

    def lose_gaps(self, connection: sa.Connection, below: int = 0) -> None:
        """Wait no longer for numbers that are overdue, or that studiolab no longer has."""
        self.run(connection, LOSE_GAPS, patience=GAP_PATIENCE, below=below)

    def stop(self, reason: str) -> None:
        with self.engine.begin() as connection:
            self.run(connection, STOP, reason=reason)

    def reconcile(self) -> list[Reason]:
        """Find where the feed can be taken up again, note what is lost, and ask for what must be compared whole."""
        sequence, restored = self.cursor.sequence, False
        try:
            restored = self.feed.events(sequence, 1).last_sequence < sequence
            if restored:
                sequence = 0
                self.feed.events(0, 1)
        except GoneError as error:
            if error.oldest is None:
                raise PermanentError(f"{error}; studiolab non dice da quale evento si può ripartire") from error
            sequence = error.oldest - 1
        with self.engine.begin() as connection:
            if restored:
                self.run(connection, FORGET_NUMBERS)
            else:
                self.run(connection, LOST, first=self.cursor.sequence + 1, last=sequence)
            self.run(connection, GO_ON, sequence=sequence)
            self.run(connection, TO_COMPARE, services=[effects.IMPORT_PATIENTS, effects.PREVIEW_PRICES])
            uncertain = self.run(connection, UNCERTAIN).scalar_one()
        lost = 0 if restored else sequence - self.cursor.sequence
        reasons = [Reason("reconciled", f"Riallineato: si riparte dall'evento {sequence + 1}.", self.cursor.code)]
        if restored:
            message = "Studiolab è stato ripristinato da una copia: la numerazione degli eventi è ricominciata."
            reasons.append(Reason("numbers_restarted", message, self.cursor.code))
        if lost:
            reasons.append(Reason("events_lost", "Eventi che studiolab non ha più.", self.cursor.code, lost))
        if uncertain and (lost or restored):
            message = "Appuntamenti futuri di studiolab che possono essere cambiati nel frattempo: confrontarli a mano."
            reasons.append(Reason("appointments_to_compare", message, self.cursor.code, uncertain))
        return reasons

    def report(self, reasons: Sequence[Reason], left: int) -> Report:
        tally = self.tally
        with self.engine.connect() as connection:
            failed = self.run(connection, FAILED_NOW).all()
            standing = self.run(connection, STANDING).one()
        said = list(reasons)
        if self.cursor.down_since:
            since = f"{self.cursor.down_since:%d/%m/%Y %H:%M} UTC"
            message = f"Studiolab è di nuovo raggiungibile: non rispondeva dal {since}."
            said.append(Reason("reachable_again", message, self.cursor.code))
        for state, reason, count in failed:
            word = "Evento parcheggiato" if state == "parked" else "Evento da decidere a mano"
            said.append(Reason(f"event_{state}", f"{word}: {reason}.", self.cursor.code, count))
        if standing.dead:
            message = f"Eventi che attendono una decisione: polydesk events parked --clinic {self.cursor.code}."
            said.append(Reason("dead_letters", message, self.cursor.code, standing.dead))
        if standing.lost:
            message = "Eventi mai arrivati: i loro numeri mancano da più di dieci minuti."
            said.append(Reason("events_lost", message, self.cursor.code, int(standing.lost)))
        if left:
            message = "Eventi ancora da leggere: li prende il prossimo giro."
            said.append(Reason("events_left", message, self.cursor.code, left))
        failures = tally.parked + tally.dead
        if failures or standing.lost:
            outcome = Outcome.PARTIAL
        elif tally.applied or tally.superseded:
            outcome = Outcome.OK
        else:
            outcome = Outcome.NOTHING_TO_DO
        return Report(
            outcome,
            Counts(
                updated=tally.applied,
                skipped=tally.superseded + tally.waiting,
                failed=failures,
                unchanged=tally.repeated,
            ),
            tuple(said),
            {
                "Eventi letti": tally.read,
                "Applicati": tally.applied,
                "Superati da più recenti": tally.superseded,
                "Già noti": tally.repeated,
                "Parcheggiati": failures,
                "In attesa di un evento parcheggiato": tally.waiting,
                "Numeri mancanti attesi": int(standing.missing),
            },
        )


@dataclass(frozen=True, slots=True)
class _Overlap:
    """The feed, but where only an old gap is out of its reach the gap is given up instead of everything."""

    round_: _Round
    sequence: int

    def events(self, after: int, limit: int) -> News:
        try:
            return self.round_.feed.events(after, limit)
        except GoneError as error:
            if after >= self.sequence or (error.oldest or 0) > self.sequence + 1:
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


@dataclass(frozen=True, slots=True)
class Unsettled:
    """An event that waits for time or for a person; nothing of its payload."""

    clinic: str
    event_id: str
    sequence: int | None
    type: str
    entity: str | None
    state: str
    reason: str | None
    attempts: int
    next_try_at: datetime | None
    received_at: datetime


def unsettled(connection: sa.Connection, clinic: str | None = None) -> list[Unsettled]:
    """What is parked, waiting or dead, in one clinic or all, entity by entity in order."""
    rows = connection.execute(
        sa.text("""
            SELECT c.code, CAST(i.event_id AS text), i.sequence, i.type, i.entity, i.state, i.reason, i.attempts,
                   i.next_try_at, i.received_at
            FROM event_inbox i JOIN clinic c ON c.id = i.clinic_id
            WHERE i.state IN ('parked', 'waiting', 'dead')
              AND (CAST(:clinic AS text) IS NULL OR c.code = :clinic)
            ORDER BY c.code, min(i.sequence) OVER (PARTITION BY c.code, coalesce(i.entity, CAST(i.event_id AS text))),
                     i.sequence, i.event_id"""),
        {"clinic": clinic},
    )
    return [Unsettled(*row) for row in rows]


def retry(connection: sa.Connection, clinic: str, event_id: str, as_of: datetime) -> None:
    """Have a parked or dead event tried again by the next run, with all its attempts before it.

    Raises:
        PermanentError: no such event waits in that clinic.
    """
    _decide(connection, "state = 'parked', attempts = 0, next_try_at = :as_of", clinic, event_id, as_of)


def skip(connection: sa.Connection, clinic: str, event_id: str, reason: str, as_of: datetime) -> None:
    """Let a parked or dead event have no effect, for ``reason``; what waits behind it goes on with the next run.

    Raises:
        PermanentError: no such event waits in that clinic.
    """
    change = "state = 'skipped', reason = :reason, next_try_at = NULL, payload = NULL"
    _decide(connection, change, clinic, event_id, as_of, reason=reason)


def _decide(
    connection: sa.Connection, change: str, clinic: str, event_id: str, as_of: datetime, **more: object
) -> None:
    changed = connection.execute(
        sa.text(f"""
            UPDATE event_inbox SET {change}, changed_at = :as_of
            WHERE clinic_id = (SELECT id FROM clinic WHERE code = :clinic) AND CAST(event_id AS text) = lower(:event)
              AND state IN ('parked', 'dead')"""),
        {"clinic": clinic, "event": event_id, "as_of": as_of, **more},
    )
    if not changed.rowcount:
        raise PermanentError(f"l'evento {event_id} della clinica {clinic} non è in attesa di una decisione")


def preview(engine: sa.Engine, clinic: str, feed: Feed) -> Report:
    """What the next run would read, by type; takes nothing in."""
    with engine.begin() as connection:
        cursor = _cursor(connection, clinic)
    try:
        news = feed.events(cursor.sequence, PAGE)
    except GoneError as error:
        return Report.refused("events_gone", f"{error}. {_remedy(clinic)}", clinic)
    types = Counter(event.type for event in news.events)
    rows = tuple(sorted(types.items())) + ((("illeggibili", len(news.rejected)),) if news.rejected else ())
    behind = max(0, news.last_sequence - cursor.sequence)
    return Report(
        Outcome.OK if news.size else Outcome.NOTHING_TO_DO,
        Counts(created=news.size),
        figures={"Ultimo evento preso": cursor.sequence, "Numeri davanti": behind},
        tables=(Table("Prossimi eventi", ("Tipo", "Quanti"), rows, len(rows)),),
    )


def dead_letters(connection: sa.Connection) -> dict[str, int]:
    """How many events of each clinic (code) wait for a person."""
    return _by_clinic(
        connection, "SELECT clinic_id, count(*) AS value FROM event_inbox WHERE state = 'dead' GROUP BY 1"
    )


def stopped(connection: sa.Connection) -> dict[str, str]:
    """Why the feed of a clinic (code) is stopped, for those that are."""
    query = "SELECT clinic_id, stopped_reason AS value FROM event_cursor WHERE stopped_at IS NOT NULL"
    return _by_clinic(connection, query)


def lost(connection: sa.Connection, as_of: datetime) -> dict[str, int]:
    """How many sequence numbers each clinic (code) lost in the week before ``as_of``."""
    return _by_clinic(
        connection,
        """SELECT clinic_id, CAST(sum(upper(span) - lower(span)) AS bigint) AS value FROM event_gap
           WHERE lost_at > CAST(:as_of AS timestamptz) - interval '7 days' GROUP BY 1""",
        as_of=as_of,
    )


def _by_clinic(connection: sa.Connection, query: str, **parameters: object) -> dict[str, Any]:
    joined = f"SELECT c.code, q.value FROM ({query}) q JOIN clinic c ON c.id = q.clinic_id ORDER BY c.code"
    return {row.code: row.value for row in connection.execute(sa.text(joined), parameters)}
