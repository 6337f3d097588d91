"""What became of texts after the gateway took them: it is asked a few times, with growing pauses, until it knows.

A text that can never arrive goes back to be sent over another channel, where that is still of use.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import sqlalchemy as sa

from polydesk_dagster.clinic.messages.blocks import note_refusals
from polydesk_dagster.clinic.messages.hours import Hours
from polydesk_dagster.clinic.messages.ledger import FIRST_QUESTION
from polydesk_dagster.clinic.messages.provider import Answer, Fate, Provider, unexpected

PAUSES = (timedelta(hours=1), timedelta(hours=6), timedelta(hours=24), timedelta(hours=48))
"""After the first, second … question that the gateway answered without knowing; then it is left alone."""
MOST_AT_ONCE = 2_000
"""Questions of one run."""
_BATCH = 300
_CROWD = 8
"""Questions on their way at the same time."""
_UNANSWERED = 5
"""Questions without an answer after which the run asks no more."""


@dataclass(slots=True)
class Receipts:
    """What a run learned: texts that arrived, and those that never will, by clinic code."""

    delivered: int = 0
    undelivered: Counter[str] = field(default_factory=Counter)


def waiting(connection: sa.Connection, as_of: datetime, clinics: Sequence[Hours]) -> bool:
    """Whether the gateway is to be asked about some text now."""
    return bool(
        connection.scalar(
            sa.text("SELECT EXISTS (SELECT FROM message WHERE ask_after <= :at AND clinic_id = ANY (:clinics))"),
            {"at": as_of, "clinics": [clinic.clinic_id for clinic in clinics]},
        )
    )


def collect(engine: sa.Engine, as_of: datetime, gateway: Provider | None, clinics: Sequence[Hours]) -> Receipts:
    """Ask the gateway about the texts whose time has come, and write down what it knows.

    Commits in steps. A gateway that does not answer, or wants us slower, ends the asking and nothing else.
    """
    if gateway is None:
        return Receipts()
    with engine.connect() as connection:
        if not waiting(connection, as_of, clinics):
            return Receipts()
    return asyncio.run(_collect(engine, as_of, gateway, [clinic.clinic_id for clinic in clinics]))


async def _collect(engine: sa.Engine, as_of: datetime, gateway: Provider, clinics: list[int]) -> Receipts:
    found, unanswered = Receipts(), 0
    crowd = asyncio.Semaphore(_CROWD)

    async def ask(key: str) -> Answer | None:
        nonlocal unanswered
        async with crowd:
            if unanswered >= _UNANSWERED:
                return None
            try:
                answer = await gateway.look_up(key)
            except Exception as error:  # noqa: BLE001 - whatever the gateway does not expect is this one text's
                answer = unexpected(error)
            if answer.fate is Fate.SLOWER:
                unanswered = _UNANSWERED
            elif answer.fate not in {Fate.ACCEPTED, Fate.REFUSED, Fate.UNKNOWN_KEY}:
                unanswered += 1
            return answer

    async with gateway:
        for _ in range(0, MOST_AT_ONCE, _BATCH):
            with engine.begin() as connection:
                due = _take(connection, as_of, clinics)
            answers = await asyncio.gather(*(ask(key) for _, key in due))
            with engine.begin() as connection:
                _record(connection, as_of, [number for number, _ in due], answers, found)
            if len(due) < _BATCH or unanswered >= _UNANSWERED:
                break
    return found


def _take(connection: sa.Connection, at: datetime, clinics: list[int]) -> list[tuple[int, str]]:
    """The next texts to ask about, with their keys. They count as asked from here, so that two runs ask about different
    ones."""
    rows = connection.execute(
        sa.text("""
            UPDATE message m
            SET delivery_asked = delivery_asked + 1,
                ask_after = CAST(:at AS timestamptz) + (CAST(:pauses AS interval[]))[delivery_asked + 1]
            FROM (SELECT id FROM message WHERE ask_after <= :at AND clinic_id = ANY (:clinics)
                  ORDER BY ask_after, id LIMIT :limit FOR UPDATE SKIP LOCKED) due
            WHERE m.id = due.id
            RETURNING m.id, CAST(m.idempotency_key AS text)"""),
        {"at": at, "clinics": clinics, "pauses": list(PAUSES), "limit": _BATCH},
    )
    return [(number, key) for number, key in rows]


_DELIVERED = sa.text("""
    UPDATE message SET delivery = 'delivered', delivery_at = :at, ask_after = NULL
    WHERE id = ANY (:ids) AND state = 'sent'""")

_ASK_AGAIN = sa.text("""
    UPDATE message SET delivery_asked = delivery_asked - 1, ask_after = CAST(:at AS timestamptz) + :pause
    WHERE id = ANY (:ids) AND state = 'sent'""")

# Of use while the message itself is, and while an appointment that it tells is ahead: then at least the desk must know.
_UNDELIVERED = sa.text("""
    WITH judged AS (
        SELECT m.id, c.code,
               m.expires_at > :at OR EXISTS (
                   SELECT FROM message_ledger l JOIN appointment a ON a.id = l.subject_id
                   WHERE l.message_id = m.id AND l.subject = 'appointment' AND l.withheld IS NULL
                     AND a.status = 'booked' AND a.start_version = l.version AND a.starts_at > :at) AS again
        FROM message m JOIN clinic c ON c.id = m.clinic_id
        WHERE m.id = ANY (:ids) AND m.state = 'sent'
    ), noted AS (
        INSERT INTO message_attempt (message_id, at, channel, answer)
        SELECT m.id, :at, m.channel, 'undelivered' FROM message m JOIN judged USING (id)
    )
    UPDATE message m
    SET delivery = 'undelivered', delivery_at = :at, ask_after = NULL,
        refused_channels = array_append(m.refused_channels, m.channel),
        state = CASE WHEN again THEN 'retry' ELSE 'sent' END,
        sent_at = CASE WHEN NOT again THEN m.sent_at END,
        send_after = CASE WHEN again THEN :at ELSE m.send_after END,
        changed_at = CASE WHEN again THEN :at ELSE m.changed_at END
    FROM judged WHERE m.id = judged.id
    RETURNING judged.code""")


def _record(
    connection: sa.Connection, at: datetime, ids: Sequence[int], answers: Sequence[Answer | None], found: Receipts
) -> None:
    arrived, unanswered = [], []
    lost: dict[int, Answer] = {}
    for number, answer in zip(ids, answers, strict=True):
        if answer is not None and answer.delivered:
            arrived.append(number)
        elif answer is not None and answer.fate is Fate.REFUSED:
            lost[number] = answer
        elif answer is None or answer.fate not in {Fate.ACCEPTED, Fate.UNKNOWN_KEY}:
            unanswered.append(number)
    if arrived:
        found.delivered += connection.execute(_DELIVERED, {"ids": arrived, "at": at}).rowcount
    if unanswered:
        connection.execute(_ASK_AGAIN, {"ids": unanswered, "at": at, "pause": FIRST_QUESTION})
    if lost:
        note_refusals(connection, list(lost), list(lost.values()), at)
        found.undelivered.update(connection.scalars(_UNDELIVERED, {"ids": list(lost), "at": at}).all())
