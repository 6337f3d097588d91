"""Sending what is due: claim, commit, send, record; many texts at once, e-mails one by one for each connection.

A text carries an idempotency key and a doubt about it is settled by asking the gateway. Nobody can ask a mail server,
so an e-mail is written down as departing before its first byte and a doubt about it stays for a person.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar
from urllib.parse import urlencode

import sqlalchemy as sa

from polydesk_dagster.clinic.messages import judging, templates
from polydesk_dagster.clinic.messages.hours import Hours
from polydesk_dagster.clinic.messages.judging import Candidate, Ready, Verdict, Wait, Withheld, judge
from polydesk_dagster.clinic.messages.kinds import ACTIVATION, KINDS, Channel, Why
from polydesk_dagster.clinic.messages.ledger import Claim, Doubt, Ledger, Result
from polydesk_dagster.clinic.messages.provider import Answer, Fate, Outgoing, Provider
from polydesk_dagster.clinic.messages.templates import BrokenTemplateError, Need, Shelf
from polydesk_dagster.clinic.messages.text import segments

BACKOFF = tuple(timedelta(minutes=minutes) for minutes in (1, 5, 15, 60))
"""After the first, second … attempt that failed; ±20 %, so that what failed together does not come back together."""
MOST_ATTEMPTS = 5
LINK_LIFE = timedelta(days=7)
"""How long the link of an activation e-mail is good."""
_CLAIM_AT_ONCE = 300
_FLUSH_EVERY = 0.25
_PATIENCE_WITH_SLOWER = 10.0
"""Seconds that a run sits out when a carrier asks for a slower pace; for more, the message comes back later."""
_UNREACHABLE_IN_A_ROW = 5
"""Failures to reach a carrier after which the run leaves it alone."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Limits:
    """How much, how fast. Rates are messages a second."""

    run_cap: int
    hourly_cap: int
    sms_per_second: float
    mail_per_second: float
    sms_at_once: int = 16
    mail_connections: int = 3

    @classmethod
    def load(cls, connection: sa.Connection) -> Limits:
        row = connection.execute(
            sa.text("""SELECT run_cap, hourly_cap, sms_per_second, mail_per_second FROM message_policy
                       WHERE clinic_id IS NULL""")
        ).one()
        return cls(row.run_cap, row.hourly_cap, float(row.sms_per_second), float(row.mail_per_second))


@dataclass(slots=True)
class Tally:
    """What a dispatch came to: messages by (clinic code, kind, state, reason)."""

    counts: Counter[tuple[str, str, str, str]] = field(default_factory=Counter)
    closed: dict[str, str] = field(default_factory=dict)
    """Carriers that the run had to leave alone, with why."""
    missing: Counter[str] = field(default_factory=Counter)
    """Messages that wait because no carrier is configured for their channel."""
    capped: bool = False
    settled: int = 0
    """Doubts of earlier runs that the gateway has cleared."""

    def add(self, clinic: str, kind: str, state: str, reason: str | None = None, count: int = 1) -> None:
        self.counts[clinic, kind, state, reason or ""] += count

    def total(self, *states: str) -> int:
        return sum(count for (_, _, state, _), count in self.counts.items() if state in states)


class _Pace:
    """Lets at most ``rate`` a second through; a pause holds everybody back."""

    def __init__(self, rate: float) -> None:
        self._gap = 1 / rate
        self._next = 0.0

    async def turn(self) -> None:
        now = asyncio.get_running_loop().time()
        self._next = max(self._next, now - min(1.0, self._gap * 20)) + self._gap
        if self._next > now:
            await asyncio.sleep(self._next - now)

    def pause(self, seconds: float) -> None:
        self._next = max(self._next, asyncio.get_running_loop().time() + seconds)


@dataclass(slots=True)
class _Job:
    """A claimed message on its way to the wire."""

    message: Candidate
    outgoing: Outgoing
    channel: Channel
    claim: Claim
    token: str | None
    """Of an activation e-mail's link."""


def dispatch(
    engine: sa.Engine,
    as_of: datetime,
    *,
    providers: Mapping[Channel, Provider],
    clinics: Sequence[Hours],
    kinds: Sequence[str],
    limits: Limits,
    progress: Callable[[int, int, str], None] = lambda _done, _total, _what: None,
) -> Tally:
    """Send every message of ``kinds`` that is due at ``as_of``; time goes on from there while it works.

    Commits in steps; may be killed at any instant and run again. Raises only what the database raises.
    """
    with Ledger(engine) as ledger:
        run = _Dispatch(
            ledger, as_of, providers=providers, clinics=clinics, kinds=kinds, limits=limits, progress=progress
        )
        try:
            return asyncio.run(run.run())
        except ExceptionGroup as group:
            raise _first(group) from None


def _first(error: Exception) -> Exception:
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error


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
        progress: Callable[[int, int, str], None],
    ) -> None:
        self.ledger, self.as_of, self.providers, self.limits = ledger, as_of, providers, limits
        self.clinics = {clinic.clinic_id: clinic for clinic in clinics}
        self.kinds, self.progress = list(kinds), progress
        self.started = time.monotonic()
        self.tally = Tally()
        self.database = asyncio.Lock()
        self.paces = {"sms": _Pace(limits.sms_per_second), "email": _Pace(limits.mail_per_second)}
        self.crew = {"sms": limits.sms_at_once, "email": limits.mail_connections}
        self.unreachable: Counter[str] = Counter()
        self.told: Counter[tuple[str, int]] = Counter()
        self.doubted: dict[int, tuple[str, str]] = {}
        self.results: list[Result] = []
        self.dead_addresses: list[int] = []
        self.again = False
        self.taken = self.budget = self.wanted = 0

    def now(self) -> datetime:
        return self.as_of + timedelta(seconds=time.monotonic() - self.started)

    async def run(self) -> Tally:
        async with AsyncExitStack() as stack:
            for provider in self.providers.values():
                await stack.enter_async_context(provider)
            await self._in_database(self.ledger.recover, self.now())
            await self._settle_doubts()
            late = await self._in_database(self.ledger.expire, self.kinds, list(self.clinics), self.now())
            for code, kind, state, count in late:
                self.tally.add(code, kind, state, Why.TOO_LATE, count)
            await self._in_database(self._prepare)
            self.again = self.wanted > 0
            while self.again:
                await self._pass()
            await self._settle_doubts()
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
                self.shelf = Shelf.load(connection)
        self.budget = min(self.limits.run_cap, max(0, self.limits.hourly_cap - hour))

    async def _pass(self) -> None:
        """Look once at everything that is due; ``again`` says whether something came up that is worth another."""
        self.again = False
        # Texts are few in advance, because they were judged when they were claimed; e-mails are judged again when
        # they depart.
        queues: dict[Channel, asyncio.Queue[_Job | None]] = {
            "sms": asyncio.Queue(_CLAIM_AT_ONCE),
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

    async def _producer(self, queues: Mapping[Channel, asyncio.Queue[_Job | None]]) -> None:
        after: tuple[datetime, int] | None = (datetime.min.replace(tzinfo=UTC), 0)
        while after is not None:
            if self.taken >= self.budget:
                self.tally.capped = True
                break
            after, jobs = await self._in_database(self._claim, after, min(_CLAIM_AT_ONCE, self.budget - self.taken))
            self.taken += len(jobs)
            for job in jobs:
                await queues[job.channel].put(job)
            self.progress(min(self.taken, self.wanted), self.wanted, "messaggi presi in carico")
        for channel in self.providers:
            for _ in range(self.crew[channel]):
                await queues[channel].put(None)

    def _claim(self, after: tuple[datetime, int], limit: int) -> tuple[tuple[datetime, int] | None, list[_Job]]:
        """One transaction: lock the next messages, judge and write them, and commit them as claimed. Returns where to
        go on from, None at the end."""
        now, connection = self.now(), self.ledger.connection
        jobs: list[_Job] = []
        withheld: list[tuple[int, str, str]] = []
        dropped: list[tuple[int, str, int, str]] = []
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
                return None, []
            for message in judging.facts(connection, [number for _, number in due], now):
                verdict = self._judge(message, now)
                if isinstance(verdict, Wait):
                    if verdict.missing is not None and verdict.missing not in self.providers:
                        self.tally.missing[verdict.missing] += 1
                    continue
                dropped += [(message.id, item.subject, item.subject_id, why) for item, why in verdict.dropped]
                job = self._write(message, verdict) if isinstance(verdict, Ready) else verdict
                if isinstance(job, Withheld):
                    state = "failed" if job.failed else "withheld"
                    withheld.append((message.id, state, job.why))
                    self.tally.add(message.clinic, message.kind, state, job.why)
                else:
                    self.told[message.recipient_type, message.recipient_id] += KINDS[message.kind].capped
                    jobs.append(job)
            self.ledger.claim([job.claim for job in jobs], withheld, dropped, now)
            self.ledger.give_links([(job.message.recipient_id, job.token) for job in jobs if job.token], now, LINK_LIFE)
        return due[-1], jobs

    def _judge(self, message: Candidate, now: datetime) -> Verdict:
        usable = frozenset(self.providers.keys() - self.tally.closed.keys())
        told = self.told[message.recipient_type, message.recipient_id]
        return judge(message, self.clinics[message.clinic_id], now, usable, told)

    def _write(self, message: Candidate, ready: Ready) -> _Job | Withheld:
        need = Need(
            message.kind,
            ready.variant,
            ready.channel,
            ready.language,
            message.clinic_id,
            message.template_revision,
        )
        template = self.shelf.find(need)
        if template is None:
            return Withheld(Why.TEMPLATE, failed=True)
        context, token = ready.context, None
        if message.kind == ACTIVATION.key:
            token = secrets.token_urlsafe(32)
            address = f"{self.clinics[message.clinic_id].portal_url}?{urlencode({'codice': token})}"
            context = {**context, "collegamento": address, "giorni": LINK_LIFE.days}
        try:
            text = templates.write(template.subject, template.body, context)
        except BrokenTemplateError:
            return Withheld(Why.TEMPLATE, failed=True)
        same = message.key is not None and token is None
        same = same and (message.address, message.subject, message.body) == (ready.address, text.subject, text.body)
        key = message.key if same and message.key else str(uuid.uuid4())
        claim = Claim(
            message.id,
            ready.channel,
            ready.address,
            key,
            text.subject,
            text.body if token is None else text.body.replace(token, "…"),
            segments(text.body).segments if ready.channel == "sms" else None,
        )
        return _Job(message, Outgoing(key, ready.address, text.subject, text.body), ready.channel, claim, token)

    async def _sender(self, channel: Channel, queue: asyncio.Queue[_Job | None]) -> None:
        while (job := await queue.get()) is not None:
            answer = await self._attempt(channel, job)
            if answer is None:
                continue
            self._keep(channel, job, answer)
            if channel == "email":
                await self._flush()

    async def _attempt(self, channel: Channel, job: _Job) -> Answer | None:
        """One attempt, and some more where the carrier only wants us slower. None where it was not to leave after
        all."""
        waited = 0.0
        while True:
            await self.paces[channel].turn()
            allowed = KINDS[job.message.kind].any_hour or self.clinics[job.message.clinic_id].may_send(self.now())
            if channel in self.tally.closed or not allowed:
                return Answer(Fate.CLOSED)
            if channel == "email" and not await self._in_database(self.ledger.depart, job.message.id, self.now()):
                self.again = True
                return None
            answer = await self.providers[channel].send(job.outgoing)
            pause = answer.retry_after if answer.retry_after is not None else 1.0
            waited += pause
            if answer.fate is not Fate.SLOWER or waited > _PATIENCE_WITH_SLOWER:
                return answer
            self.paces[channel].pause(pause)

    def _keep(self, channel: Channel, job: _Job, answer: Answer) -> None:
        """Turn an answer into what the ledger will say."""
        message, now = job.message, self.now()
        self.unreachable[channel] = self.unreachable[channel] + 1 if answer.fate is Fate.UNREACHABLE else 0
        if (answer.fate is Fate.CLOSED and answer.code) or self.unreachable[channel] >= _UNREACHABLE_IN_A_ROW:
            self.tally.closed.setdefault(channel, answer.code or "")
        back = "retry" if message.attempts else "planned"
        result = Result(message.id, back, now, reference=answer.reference, answer=answer.fate, code=answer.code)
        match answer.fate:
            case Fate.ACCEPTED:
                result = replace(result, state="sent", answer=None)
            case Fate.REFUSED:
                if set(KINDS[message.kind].channels) - message.refused_channels - {channel}:
                    result = replace(result, state="retry", refused=True, send_after=now)
                    self.again = True
                else:
                    result = replace(result, state="failed", reason=Why.REFUSED, refused=True)
                if answer.bad_address:
                    self.dead_addresses.append(message.id)
            case Fate.LATER if message.attempts + 1 >= MOST_ATTEMPTS:
                result = replace(result, state="failed", reason=Why.EXHAUSTED)
            case Fate.LATER:
                wait = max(_backoff(message.attempts), timedelta(seconds=answer.retry_after or 0))
                result = replace(result, state="retry", send_after=now + wait)
            case Fate.SLOWER:
                wait = timedelta(seconds=answer.retry_after or 60)
                result = replace(result, state="retry", counted=False, send_after=now + wait)
            case Fate.DOUBTFUL | Fate.UNKNOWN_KEY:
                result = replace(result, state="unknown")
                self.doubted[message.id] = (message.clinic, message.kind)
            case Fate.UNREACHABLE:
                result = replace(result, counted=False, send_after=now + BACKOFF[0])
            case Fate.CLOSED:
                result = replace(result, counted=False, answer=answer.fate if answer.code else None)
        self.results.append(result)
        if result.state != "retry" or not result.refused:
            self.tally.add(message.clinic, message.kind, result.state, result.reason)

    async def _recorder(self, done: asyncio.Event) -> None:
        while not done.is_set():
            await self._flush()
            with suppress(TimeoutError):
                await asyncio.wait_for(done.wait(), _FLUSH_EVERY)

    async def _flush(self) -> None:
        results, self.results = self.results, []
        dead, self.dead_addresses = self.dead_addresses, []
        if results:
            await self._in_database(self.ledger.record, results)
        if dead:
            await self._in_database(self.ledger.block, dead, self.now())

    async def _settle_doubts(self) -> None:
        """Ask the gateway what became of every text that nobody is sure of."""
        gateway = self.providers.get("sms")
        after = 0
        while gateway is not None and "sms" not in self.tally.closed:
            doubts = await self._in_database(self.ledger.doubtful_texts, _CLAIM_AT_ONCE, after)
            if not doubts:
                return
            after = doubts[-1].id
            turns = asyncio.Semaphore(self.limits.sms_at_once)

            async def ask(doubt: Doubt, turns: asyncio.Semaphore = turns) -> Answer:
                async with turns:
                    await self.paces["sms"].turn()
                    return await gateway.look_up(doubt.key)

            answers = await asyncio.gather(*(ask(doubt) for doubt in doubts))
            settled = [self._settled(doubt, answer) for doubt, answer in zip(doubts, answers, strict=True)]
            await self._in_database(self.ledger.record, [result for result in settled if result is not None])
            if all(answer.fate is Fate.UNREACHABLE for answer in answers):
                return

    def _settled(self, doubt: Doubt, answer: Answer) -> Result | None:
        now = self.now()
        match answer.fate:
            case Fate.ACCEPTED:
                result = Result(doubt.id, "sent", now, reference=answer.reference, counted=False)
            case Fate.REFUSED:
                result = Result(doubt.id, "retry", now, send_after=now, counted=False, refused=True)
            case Fate.UNKNOWN_KEY if doubt.attempts >= MOST_ATTEMPTS:
                result = Result(doubt.id, "failed", now, Why.EXHAUSTED, counted=False)
            case Fate.UNKNOWN_KEY:
                wait = _backoff(doubt.attempts - 1) if doubt.attempts else timedelta(0)
                result = Result(doubt.id, "retry", now, send_after=now + wait, counted=False)
            case _:
                return None
        if self.doubted.pop(doubt.id, None):
            self.tally.add(doubt.clinic, doubt.kind, "unknown", count=-1)
        else:
            self.tally.settled += 1
        self.tally.add(doubt.clinic, doubt.kind, result.state, result.reason)
        return replace(result, answer=f"look_up:{answer.fate}")


def _backoff(attempts: int) -> timedelta:
    """The wait after ``attempts`` + 1 failures."""
    return BACKOFF[min(attempts, len(BACKOFF) - 1)] * random.uniform(0.8, 1.2)  # noqa: S311 - spreads load, hides nothing
