"""Sending what is due: judge, write, claim, send, record; many texts at once, e-mails one by one for each connection.

A text carries an idempotency key and a doubt about it is settled by asking the gateway. Nobody can ask a mail server,
so an e-mail is written down as departing before its first byte and a doubt about it stays for a person. What a message
says is tested once more as it leaves.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import sqlalchemy as sa

from polydesk_dagster.clinic.messages.answers import put_off, refusal_of, result_of
from polydesk_dagster.clinic.messages.breaker import Breaker
from polydesk_dagster.clinic.messages.doubts import Doubts
from polydesk_dagster.clinic.messages.facts import facts
from polydesk_dagster.clinic.messages.hours import Hours
from polydesk_dagster.clinic.messages.judging import Candidate, Ready, Wait, Withheld, by_mail, judge
from polydesk_dagster.clinic.messages.kinds import CHANNELS, KINDS, Channel, Why
from polydesk_dagster.clinic.messages.ledger import Ledger, Result
from polydesk_dagster.clinic.messages.links import NOWHERE, Reach
from polydesk_dagster.clinic.messages.pace import Limits, Pace, Tally
from polydesk_dagster.clinic.messages.provider import Answer, Fate, Provider, unexpected
from polydesk_dagster.clinic.messages.writing import LINK_LIFE, Job, Writer

_CLAIM_SECONDS = 1.0
"""Texts are claimed for about so long: what is claimed and then has no time left has to be looked up."""
_FLUSH_EVERY = 0.25
_PATIENCE_WITH_SLOWER = 10.0
"""Seconds that a run sits out when a carrier asks for a slower pace; for more, the message comes back later."""
_UNREACHABLE_IN_A_ROW = 5
"""Failures to reach a carrier after which the run leaves it alone."""

T = TypeVar("T")


def dispatch(
    engine: sa.Engine,
    as_of: datetime,
    *,
    providers: Mapping[Channel, Provider],
    clinics: Sequence[Hours],
    kinds: Sequence[str],
    limits: Limits,
    reach: Reach = NOWHERE,
    progress: Callable[[int, int, str], None] = lambda _done, _total, _what: None,
) -> Tally:
    """Send every message of ``kinds`` that is due at ``as_of``; time goes on from there while it works. ``reach``: how
    who is written to reaches back.

    Commits in steps; may be killed at any instant and run again. Raises only what the database raises.
    """
    with Ledger(engine) as ledger:
        run = _Dispatch(
            ledger,
            as_of,
            providers=providers,
            clinics=clinics,
            kinds=kinds,
            limits=limits,
            reach=reach,
            progress=progress,
        )
        try:
            return asyncio.run(run.run())
        except ExceptionGroup as group:
            raise _first(group) from None


def _first(error: Exception) -> Exception:
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error


@dataclass(slots=True)
class _Written:
    """A batch that was judged and written while nothing was locked."""

    jobs: list[Job] = field(default_factory=list)
    withheld: list[tuple[Candidate, Withheld]] = field(default_factory=list)
    dropped: list[tuple[int, str, int, str]] = field(default_factory=list)


class _Dispatch:
    """One run of the dispatcher. Only :meth:`_in_database` touches the ledger's connection while senders work."""

    def __init__(
        self,
        ledger: Ledger,
        as_of: datetime,
        *,
        providers: Mapping[Channel, Provider],
        clinics: Sequence[Hours],
        kinds: Sequence[str],
        limits: Limits,
        reach: Reach,
        progress: Callable[[int, int, str], None],
    ) -> None:
        self.reach = reach
        self.ledger, self.as_of, self.providers, self.limits = ledger, as_of, providers, limits
        self.clinics = {clinic.clinic_id: clinic for clinic in clinics}
        self.kinds, self.progress = list(kinds), progress
        self.started = time.monotonic()
        self.tally = Tally()
        self.database = asyncio.Lock()
        self.paces = {"sms": Pace(limits.sms_per_second), "email": Pace(limits.mail_per_second)}
        self.crew = {"sms": limits.sms_at_once, "email": limits.mail_connections}
        self.breakers = {channel: Breaker(channel) for channel in CHANNELS}
        self.doubts = Doubts(
            ledger,
            self._in_database,
            providers.get("sms"),
            pace=self.paces["sms"],
            at_once=limits.sms_at_once,
            tally=self.tally,
            now=self.now,
            working=lambda: self.breakers["sms"].working,
        )
        self.unreachable: Counter[str] = Counter()
        self.told: Counter[tuple[str, int]] = Counter()
        self.leaving: list[tuple[int, asyncio.Future[bool]]] = []
        self.results: list[Result] = []
        self.again = False
        self.taken = self.budget = self.wanted = 0
        quick = int(limits.sms_per_second * _CLAIM_SECONDS)
        self.batch = max(limits.sms_at_once, min(limits.claimed_at_once, quick))

    def now(self) -> datetime:
        return self.as_of + timedelta(seconds=time.monotonic() - self.started)

    async def run(self) -> Tally:
        async with AsyncExitStack() as stack:
            for provider in self.providers.values():
                await stack.enter_async_context(provider)
            await self._in_database(self.ledger.recover, self.now())
            await self.doubts.settle()
            late = await self._in_database(self.ledger.expire, self.kinds, list(self.clinics), self.now())
            for code, kind, state, count in late:
                self.tally.add(code, kind, state, Why.TOO_LATE, count)
            await self._in_database(self._prepare)
            self.again = self.wanted > 0
            while self.again:
                await self._pass()
            await self.doubts.settle()
        for channel, breaker in self.breakers.items():
            if (ailing := breaker.ailing()) is not None:
                self.tally.closed.setdefault(channel, ailing)
        return self.tally

    async def _in_database(self, step: Callable[..., T], *arguments: Any) -> T:
        """One step at a time on the ledger's connection, away from the loop that is sending."""
        async with self.database:
            return await asyncio.to_thread(step, *arguments)

    def _prepare(self) -> None:
        """How many may still be sent, how many want to be, and the texts."""
        connection = self.ledger.connection
        with connection.begin():
            hour, self.wanted = connection.execute(
                sa.text("""
                    SELECT (SELECT count(*) FROM message WHERE state = 'sent' AND changed_at > :since),
                           (SELECT count(*) FROM message
                            WHERE state IN ('planned', 'retry') AND send_after <= :at AND kind = ANY (:kinds))"""),
                {"since": self.as_of - timedelta(hours=1), "at": self.now(), "kinds": self.kinds},
            ).one()
            if self.wanted:
                self.writer = Writer.of(connection, self.clinics, self.limits.most_segments, self.reach)
        self.budget = min(self.limits.run_cap, max(0, self.limits.hourly_cap - hour))

    async def _pass(self) -> None:
        """Look once at everything that is due; ``again`` says whether something came up that is worth another."""
        self.again = False
        queues: dict[Channel, asyncio.Queue[Job | None]] = {
            "sms": asyncio.Queue(self.batch),
            "email": asyncio.Queue(),
        }
        done = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            recorder = group.create_task(self._recorder(done))
            async with asyncio.TaskGroup() as senders:
                for channel in self.providers:
                    for _ in range(self.crew[channel]):
                        senders.create_task(self._sender(channel, queues[channel]))
                senders.create_task(self._producer(queues))
            done.set()
            await recorder
        await self._flush()
        await self._blame()

    async def _producer(self, queues: Mapping[Channel, asyncio.Queue[Job | None]]) -> None:
        after: tuple[datetime, int] | None = (datetime.min.replace(tzinfo=UTC), 0)
        while after is not None:
            if self.taken >= self.budget:
                self.tally.capped = True
                break
            limit = min(self.batch, self.budget - self.taken)
            after, candidates, now = await self._in_database(self._look, after, limit)
            written = await asyncio.to_thread(self._write, candidates, now)
            jobs = await self._in_database(self._claim, written)
            self.taken += len(jobs)
            for job in jobs:
                await queues[job.channel].put(job)
            self.progress(min(self.taken, self.wanted), self.wanted, "progress.messages_taken")
        for channel in self.providers:
            for _ in range(self.crew[channel]):
                await queues[channel].put(None)

    def _look(
        self, after: tuple[datetime, int], limit: int
    ) -> tuple[tuple[datetime, int] | None, list[Candidate], datetime]:
        """The next messages that are due with all that is known about them, and where to go on from, None at the
        end."""
        now, connection = self.now(), self.ledger.connection
        with connection.begin():
            due = self.ledger.due(
                self.kinds,
                clinics=list(self.clinics),
                open_clinics=[number for number, hours in self.clinics.items() if hours.may_send(now)],
                at=now,
                after=after,
                limit=limit,
            )
            if not due:
                return None, [], now
            return due[-1], facts(connection, [number for _, number in due], now), now

    def _write(self, candidates: Sequence[Candidate], now: datetime) -> _Written:
        """Judge and write a batch; no transaction is open meanwhile."""
        written = _Written()
        for message in candidates:
            verdict = judge(message, *self._known(message, now))
            if isinstance(verdict, Wait):
                if verdict.suspended:
                    self.tally.suspended[message.clinic] += 1
                elif verdict.missing is None:
                    self.tally.behind_doubt[message.clinic] += 1
                elif verdict.missing not in self.providers:
                    self.tally.missing[verdict.missing] += 1
                continue
            written.dropped += [(message.id, item.subject, item.subject_id, why) for item, why in verdict.dropped]
            job = self._job(message, verdict, now) if isinstance(verdict, Ready) else verdict
            if isinstance(job, Withheld):
                written.withheld.append((message, job))
            else:
                self.told[message.recipient_type, message.recipient_id] += KINDS[message.kind].capped
                written.jobs.append(job)
        return written

    def _known(self, message: Candidate, now: datetime) -> tuple[Hours, datetime, frozenset[str], int]:
        usable = frozenset(self.providers.keys() - self.tally.closed.keys())
        told = self.told[message.recipient_type, message.recipient_id]
        return self.clinics[message.clinic_id], now, usable, told

    def _job(self, message: Candidate, ready: Ready, now: datetime) -> Job | Withheld:
        return self.writer.write(message, ready, by_mail(message, ready, *self._known(message, now)))

    def _claim(self, written: _Written) -> list[Job]:
        """One transaction: commit as claimed what was written, unless somebody else was faster."""
        if not (written.jobs or written.withheld or written.dropped):
            return []
        now = self.now()
        withheld = [
            (message.id, "failed" if verdict.failed else "withheld", str(verdict.why))
            for message, verdict in written.withheld
        ]
        with self.ledger.connection.begin():
            taken = self.ledger.claim([job.claim for job in written.jobs], withheld, written.dropped, now)
            jobs = [job for job in written.jobs if job.message.id in taken]
            self.ledger.give_links([(job.message.recipient_id, job.token) for job in jobs if job.token], now, LINK_LIFE)
        for (message, verdict), (_, state, _) in zip(written.withheld, withheld, strict=True):
            if message.id in taken:
                self.tally.add(message.clinic, message.kind, state, verdict.why)
                if verdict.text is not None:
                    self.tally.broken[(message.clinic, message.kind, *verdict.text)] += 1
        return jobs

    async def _sender(self, channel: Channel, queue: asyncio.Queue[Job | None]) -> None:
        while (job := await queue.get()) is not None:
            answer = await self._attempt(channel, job)
            if answer is None:
                continue
            self._keep(channel, job, answer)
            if channel == "email":
                await self._flush()

    async def _attempt(self, channel: Channel, job: Job) -> Answer | None:
        """One attempt, and some more where the carrier only wants us slower. None where it was not to leave after
        all."""
        waited = 0.0
        while True:
            await self.paces[channel].turn()
            allowed = KINDS[job.message.kind].any_hour or self.clinics[job.message.clinic_id].may_send(self.now())
            if channel in self.tally.closed or not allowed:
                return Answer(Fate.CLOSED)
            if not await self._may_leave(job.message.id):
                self.again = True
                return None
            try:
                answer = await self.providers[channel].send(job.outgoing)
            except Exception as error:  # noqa: BLE001 - whatever a carrier does not expect is this one message's
                return unexpected(error)
            pause = answer.retry_after if answer.retry_after is not None else 1.0
            waited += pause
            if answer.fate is not Fate.SLOWER or waited > _PATIENCE_WITH_SLOWER:
                return answer
            self.paces[channel].pause(pause)

    async def _may_leave(self, message: int) -> bool:
        """Whether what ``message`` says still holds. Who comes while the ledger is busy is asked for together."""
        told: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.leaving.append((message, told))
        async with self.database:
            batch, self.leaving = self.leaving, []
            if batch:
                numbers = [number for number, _ in batch]
                free = await asyncio.to_thread(self.ledger.depart, numbers, self.now())
                for number, future in batch:
                    future.set_result(number in free)
        return await told

    def _keep(self, channel: Channel, job: Job, answer: Answer) -> None:
        """Turn an answer into what the ledger will say."""
        message, breaker = job.message, self.breakers[channel]
        self.unreachable[channel] = self.unreachable[channel] + 1 if answer.fate is Fate.UNREACHABLE else 0
        if answer.fate is Fate.REFUSED:
            breaker.refused(job, answer)
        elif answer.fate in {Fate.ACCEPTED, Fate.DOUBTFUL}:
            breaker.answered(answer)
        elif answer.fate is Fate.LATER:
            breaker.put_off(job, answer)
        if breaker.open is not None:
            self.tally.closed.setdefault(channel, breaker.open)
        if (answer.fate is Fate.CLOSED and answer.code) or self.unreachable[channel] >= _UNREACHABLE_IN_A_ROW:
            self.tally.closed.setdefault(channel, answer.code or "")
        result = result_of(job, answer, self.now())
        self.results.append(result)
        if result.state == "unknown":
            self.doubts.add(message)
        if result.state == "sent":
            self.tally.segments += job.claim.segments or 0
        self.tally.add(message.clinic, message.kind, result.state, result.reason)

    async def _blame(self) -> None:
        """Decide on what was refused or put off in this pass: a message's own, which goes another way, comes back or
        ends, or the channel's."""
        for channel, breaker in self.breakers.items():
            now = self.now()
            refused, later = list(breaker.blamed()), breaker.own()
            results = [refusal_of(job, channel, now) for job, _ in refused] + [put_off(job, now) for job, _ in later]
            refused += later
            if not refused:
                continue
            for result, (job, _) in zip(results, refused, strict=True):
                if result.state == "retry" and not result.refused:
                    continue
                self.again = self.again or result.state == "retry"
                self.tally.add(job.message.clinic, job.message.kind, "retry", count=-1)
                if result.state == "failed":
                    self.tally.add(job.message.clinic, job.message.kind, result.state, result.reason)
            await self._in_database(self.ledger.refuse, results, [answer for _, answer in refused], now)

    async def _recorder(self, done: asyncio.Event) -> None:
        while not done.is_set():
            await self._flush()
            with suppress(TimeoutError):
                await asyncio.wait_for(done.wait(), _FLUSH_EVERY)

    async def _flush(self) -> None:
        results, self.results = self.results, []
        if results:
            await self._in_database(self.ledger.record, results)
