"""What became of texts after the gateway took them: it is asked a few times, with growing pauses, until it knows.

A text that can never arrive goes back to be sent over another channel, where that is still of use.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import sqlalchemy as sa

from polydesk_dagster.clinic.messages.blocks import forgive, note_refusals
from polydesk_dagster.clinic.messages.breaker import ALIKE_ABOUT_MAILBOXES, FEWEST
from polydesk_dagster.clinic.messages.hours import Hours
from polydesk_dagster.clinic.messages.ledger import FIRST_QUESTION
from polydesk_dagster.clinic.messages.provider import Answer, Fate, Provider, unexpected
from polydesk_dagster.database.locks import in_turn

PAUSES = (timedelta(hours=1), timedelta(hours=6), timedelta(hours=24), timedelta(hours=48))
"""After the first, second … question that the gateway answered without knowing; then it is left alone."""
MOST_AT_ONCE = 2_000
"""Questions of one run."""
_BATCH = 300
_CROWD = 8
"""Questions on their way at the same time."""
_UNANSWERED = 5
"""Questions without an answer after which the run asks no more."""
_WINDOW = timedelta(hours=1)
"""What the gateway told within so long is looked at together, to see whose fault it is."""


@dataclass(slots=True)
class Receipts:
    """What a run learned: texts that arrived, and those that never will, by clinic code."""

    delivered: int = 0
    undelivered: Counter[str] = field(default_factory=Counter)
    at_fault: tuple[str, ...] = ()
    """What the gateway says of so many texts that it must be its own fault."""


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


# What had been given up, and has not left another way yet, has arrived after all.
_DELIVERED = sa.text("""
    UPDATE message
    SET delivery = 'delivered', delivery_at = :at, ask_after = NULL, state = 'sent',
        sent_at = coalesce(sent_at, :at), refused_channels = array_remove(refused_channels, channel)
    WHERE id = ANY (:ids) AND (state = 'sent' OR state = 'retry' AND delivery = 'undelivered')""")

_ASK_AGAIN = sa.text("""
    UPDATE message SET delivery_asked = delivery_asked - 1, ask_after = CAST(:at AS timestamptz) + :pause
    WHERE id = ANY (:ids) AND state = 'sent'""")

# Of use while the message itself is, and while an appointment that it tells is ahead: then at least the desk must know.
_UNDELIVERED = sa.text("""
    WITH judged AS (
        SELECT m.id, c.code, said.code AS said,
               m.expires_at > :at OR EXISTS (
                   SELECT FROM message_ledger l JOIN appointment a ON a.id = l.subject_id
                   WHERE l.message_id = m.id AND l.subject = 'appointment' AND l.withheld IS NULL
                     AND a.status = 'booked' AND a.start_version = l.version AND a.starts_at > :at) AS again
        FROM unnest(CAST(:ids AS bigint[]), CAST(:codes AS text[])) AS said (id, code)
        JOIN message m USING (id) JOIN clinic c ON c.id = m.clinic_id
        WHERE m.state = 'sent' AND m.delivery IS DISTINCT FROM 'undelivered'
    ), noted AS (
        INSERT INTO message_attempt (message_id, at, channel, answer, code)
        SELECT m.id, :at, m.channel, 'undelivered', judged.said FROM message m JOIN judged USING (id)
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
    if unanswered:
        connection.execute(_ASK_AGAIN, {"ids": unanswered, "at": at, "pause": FIRST_QUESTION})
    _write(connection, at, arrived, lost, found)


def _write(
    connection: sa.Connection, at: datetime, arrived: Sequence[int], lost: Mapping[int, Answer], found: Receipts
) -> None:
    """Texts that arrived, and those that never will; told again, nothing changes."""
    if arrived:
        found.delivered += connection.execute(_DELIVERED, {"ids": list(arrived), "at": at}).rowcount
    if lost:
        in_turn(connection, "message receipts")
        fresh = set(connection.scalars(_NOT_YET_LOST, {"ids": list(lost)}))
        said = {"ids": list(fresh), "codes": [lost[number].code for number in fresh]}
        found.undelivered.update(connection.scalars(_UNDELIVERED, {**said, "at": at}).all())
        wrong = at_fault(connection, at)
        if wrong:
            forgive(connection, "sms", wrong, at - _WINDOW, at)
        blamed = [number for number in fresh if lost[number].code not in wrong]
        note_refusals(connection, blamed, [lost[number] for number in blamed], at)


_ALIKE = sa.text("""
    WITH lost AS MATERIALIZED (
        SELECT code, count(*) AS alike FROM message_attempt
        WHERE answer = 'undelivered' AND at > CAST(:since AS timestamptz) AND at <= :at GROUP BY code
    ), told AS (
        SELECT (SELECT sum(alike) FROM lost)
             + (SELECT count(*) FROM message
                WHERE delivery = 'delivered' AND delivery_at > CAST(:since AS timestamptz) AND delivery_at <= :at)
               AS all_of_them
    )
    SELECT code FROM lost JOIN told ON all_of_them >= :fewest AND alike > :share * all_of_them
    WHERE alike > :share * :fewest AND code IS NOT NULL ORDER BY code""")


def at_fault(connection: sa.Connection, at: datetime) -> tuple[str, ...]:
    """What the gateway told of more than its share of the texts whose end it told lately: there it is at fault, and no
    number is."""
    given = {"at": at, "since": at - _WINDOW, "share": ALIKE_ABOUT_MAILBOXES, "fewest": FEWEST}
    return tuple(connection.scalars(_ALIKE, given))


_NOT_YET_LOST = sa.text("""
    SELECT id FROM message WHERE id = ANY (:ids) AND state = 'sent' AND delivery IS DISTINCT FROM 'undelivered'""")


@dataclass(frozen=True, slots=True)
class Told:
    """A receipt as the gateway sent it by itself; its ``answer`` is one of a look-up."""

    id: str
    answer: Answer
    at: datetime


FORGOTTEN = timedelta(days=3)
"""After which a receipt of a text that nobody knows is given up."""


def keep(connection: sa.Connection, told: Sequence[Told], as_of: datetime) -> int:
    """Put receipts by, each once however often it comes. Returns how many are new."""
    return connection.execute(
        sa.text("""
            INSERT INTO message_receipt (external_id, reference, status, code, bad_address, strike, at, received_at)
            SELECT id, reference, status, code, bad, strike, least(at, CAST(:as_of AS timestamptz)), :as_of
            FROM unnest(CAST(:ids AS text[]), CAST(:references AS text[]), CAST(:states AS text[]),
                        CAST(:codes AS text[]), CAST(:bad AS boolean[]), CAST(:strikes AS boolean[]),
                        CAST(:times AS timestamptz[])) AS r (id, reference, status, code, bad, strike, at)
            ON CONFLICT DO NOTHING"""),
        {
            "as_of": as_of,
            "ids": [each.id for each in told],
            "references": [each.answer.reference for each in told],
            "states": [_status(each.answer) for each in told],
            "codes": [each.answer.code for each in told],
            "bad": [each.answer.bad_address for each in told],
            "strikes": [each.answer.strike for each in told],
            "times": [each.at for each in told],
        },
    ).rowcount


def _status(answer: Answer) -> str:
    if answer.fate is Fate.REFUSED:
        return "undeliverable"
    return "delivered" if answer.delivered else "accepted"


# Of all that was told of a text the last word counts, whatever came last; and at one instant an end over a beginning.
_LAST_WORDS = sa.text("""
    WITH taken AS MATERIALIZED (
        SELECT external_id, reference FROM message_receipt
        WHERE settled_at IS NULL AND (tried_at IS NULL OR :again AND tried_at < :as_of)
        ORDER BY received_at LIMIT :limit FOR UPDATE SKIP LOCKED
    ), known AS MATERIALIZED (
        SELECT DISTINCT t.reference, m.id FROM taken t
        JOIN message m ON m.channel = 'sms' AND m.provider_reference = t.reference
    ), marked AS (
        UPDATE message_receipt r
        SET tried_at = :as_of,
            settled_at = CASE WHEN r.received_at < CAST(:as_of AS timestamptz) - CAST(:forgotten AS interval)
                                   OR t.reference IN (SELECT reference FROM known)
                              THEN CAST(:as_of AS timestamptz) END
        FROM taken t WHERE r.external_id = t.external_id
    )
    SELECT n.taken, w.*
    FROM (SELECT count(*) AS taken FROM taken) n
    LEFT JOIN (SELECT DISTINCT ON (k.id) k.id, r.status, r.code, r.bad_address, r.strike
               FROM known k JOIN message_receipt r USING (reference)
               ORDER BY k.id, r.at DESC, r.status <> 'accepted' DESC, r.status) w ON true""")


def settle(connection: sa.Connection, as_of: datetime, *, again: bool = False, limit: int = 2_000) -> int:
    """Write down in the ledger what was put by; what was of no known text when it was tried before ``as_of``, only
    where it is to be tried ``again``. Returns how many receipts were looked at."""
    rows = connection.execute(
        _LAST_WORDS, {"as_of": as_of, "again": again, "limit": limit, "forgotten": FORGOTTEN}
    ).all()
    lost = {
        row.id: Answer(Fate.REFUSED, code=row.code, bad_address=row.bad_address, strike=row.strike)
        for row in rows
        if row.status == "undeliverable"
    }
    _write(connection, as_of, [row.id for row in rows if row.status == "delivered"], lost, Receipts())
    return int(rows[0].taken)
