"""From what a carrier answered to what the ledger will say."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import datetime, timedelta

from polydesk_dagster.clinic.messages.kinds import KINDS, Channel, Why
from polydesk_dagster.clinic.messages.ledger import Doubt, Result
from polydesk_dagster.clinic.messages.provider import Answer, Fate
from polydesk_dagster.clinic.messages.writing import Job

BACKOFF = tuple(timedelta(minutes=minutes) for minutes in (1, 5, 15, 60))
"""After the first, second … attempt that failed; ±20 %, so that what failed together does not come back together."""
MOST_ATTEMPTS = 5


def backoff(attempts: int) -> timedelta:
    """The wait after ``attempts`` + 1 failures."""
    return BACKOFF[min(attempts, len(BACKOFF) - 1)] * random.uniform(0.8, 1.2)  # noqa: S311 - spreads load, hides nothing


def result_of(job: Job, answer: Answer, now: datetime) -> Result:
    """What one attempt came to. What is refused or put off comes back for now: whose fault it is, the run knows at its
    end."""
    message = job.message
    back = "retry" if message.attempts else "planned"
    result = Result(message.id, back, now, reference=answer.reference, answer=answer.fate, code=answer.code)
    match answer.fate:
        case Fate.ACCEPTED:
            return replace(result, state="sent", answer=None)
        case Fate.REFUSED:
            return replace(result, state="retry", counted=False, send_after=now + BACKOFF[0])
        case Fate.LATER:
            wait = max(backoff(message.attempts), timedelta(seconds=answer.retry_after or 0))
            return replace(result, state="retry", counted=False, send_after=now + wait)
        case Fate.SLOWER:
            wait = timedelta(seconds=answer.retry_after or 60)
            return replace(result, state="retry", counted=False, send_after=now + wait)
        case Fate.DOUBTFUL | Fate.UNKNOWN_KEY:
            return replace(result, state="unknown")
        case Fate.UNREACHABLE:
            return replace(result, counted=False, send_after=now + BACKOFF[0])
        case Fate.CLOSED:
            return replace(result, counted=False, answer=answer.fate if answer.code else None)


def refusal_of(job: Job, channel: Channel, now: datetime) -> Result:
    """What a refusal comes to that is this message's own: another channel, or the end."""
    left = set(KINDS[job.message.kind].channels) - job.message.refused_channels - {channel}
    if left:
        return Result(job.message.id, "retry", now, send_after=now, refused=True)
    return Result(job.message.id, "failed", now, Why.REFUSED, refused=True)


def put_off(job: Job, now: datetime) -> Result:
    """What an attempt comes to that the carrier put off for this message's own sake: another one, or the end."""
    if job.message.attempts + 1 >= MOST_ATTEMPTS:
        return Result(job.message.id, "failed", now, Why.EXHAUSTED)
    return Result(job.message.id, "retry", now)


def settled(doubt: Doubt, answer: Answer, now: datetime, *, working: bool) -> Result | None:
    """What a look-up says of a doubt; None where it says nothing. ``working``: whether the gateway takes other texts;
    else none has its last attempt."""
    match answer.fate:
        case Fate.ACCEPTED:
            result = Result(doubt.id, "sent", now, reference=answer.reference, counted=False)
        case Fate.REFUSED:
            result = Result(doubt.id, "retry", now, send_after=now, counted=False, refused=True)
        case Fate.UNKNOWN_KEY if working and doubt.attempts >= MOST_ATTEMPTS:
            result = Result(doubt.id, "failed", now, Why.EXHAUSTED, counted=False)
        case Fate.UNKNOWN_KEY:
            wait = backoff(doubt.attempts - 1) if doubt.attempts else timedelta(0)
            result = Result(doubt.id, "retry", now, send_after=now + wait, counted=False)
        case _:
            return None
    return replace(result, answer=f"look_up:{answer.fate}")
