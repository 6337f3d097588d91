"""Addresses that are not written to, whoever's they are: a STOP, a mailbox that does not exist, two soft refusals."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import sqlalchemy as sa

from polydesk_dagster.changes.audit import is_reason
from polydesk_dagster.clinic.messages.kinds import Channel
from polydesk_dagster.clinic.messages.provider import Answer
from polydesk_dagster.errors import PermanentError
from polydesk_dagster.values import Instant

STRIKES = 2
"""Soft refusals of different messages after which an address is left alone for a while."""
SOFT = timedelta(days=30)
"""How long it is."""
FORGOTTEN = timedelta(days=90)
"""After which an earlier soft refusal no longer counts."""

IN_FORCE = "(b.until IS NULL OR b.until > :at) AND (b.lifted_at IS NULL OR b.since > b.lifted_at)"
"""Whether a row ``b`` of ``message_block`` holds at ``:at``."""

# What was refused softly once is remembered by a block that has ended already.
_NOTE = sa.text(f"""
    INSERT INTO message_block AS b (channel, address, cause, since, until, strikes, code)
    SELECT DISTINCT ON (m.channel, lower(m.address)) m.channel, lower(m.address),
           CASE m.channel WHEN 'sms' THEN 'refused' ELSE 'bounced' END, CAST(:at AS timestamptz),
           CASE WHEN NOT n.hard THEN CAST(:at AS timestamptz) END, CASE WHEN n.hard THEN 0 ELSE 1 END, n.code
    FROM unnest(CAST(:ids AS bigint[]), CAST(:hard AS boolean[]), CAST(:codes AS text[])) AS n (id, hard, code)
    JOIN message m USING (id)
    WHERE m.address IS NOT NULL
    ORDER BY m.channel, lower(m.address), n.hard DESC
    ON CONFLICT (channel, address) DO UPDATE
    SET cause = excluded.cause, since = excluded.since, code = excluded.code,
        strikes = CASE WHEN excluded.until IS NULL THEN 0
                       WHEN b.since < excluded.since - CAST(:forgotten AS interval) OR b.lifted_at >= b.since THEN 1
                       ELSE b.strikes + 1 END,
        until = CASE WHEN excluded.until IS NULL THEN NULL
                     WHEN b.since < excluded.since - CAST(:forgotten AS interval) OR b.lifted_at >= b.since
                         OR b.strikes + 1 < :strikes THEN excluded.until
                     ELSE excluded.until + CAST(:soft AS interval) END
    WHERE NOT ({IN_FORCE})""")


def note_refusals(connection: sa.Connection, messages: Sequence[int], answers: Sequence[Answer], at: datetime) -> None:
    """Take down what refusals say of the addresses of ``messages``: nothing, that nothing can ever arrive there, or a
    soft refusal, of which it takes two."""
    noted = [
        (number, answer)
        for number, answer in zip(messages, answers, strict=True)
        if answer.bad_address or answer.strike
    ]
    if not noted:
        return
    connection.execute(
        _NOTE,
        {
            "at": at,
            "ids": [number for number, _ in noted],
            "hard": [answer.bad_address for _, answer in noted],
            "codes": [answer.code for _, answer in noted],
            "forgotten": FORGOTTEN,
            "soft": SOFT,
            "strikes": STRIKES,
        },
    )
    connection.execute(
        sa.text("""
            UPDATE app_user u SET state = 'bounced' FROM message m
            WHERE m.id = ANY (:ids) AND m.kind = 'activation' AND u.id = m.recipient_id
              AND u.state IN ('never_invited', 'invited')"""),
        {"ids": [number for number, answer in noted if answer.bad_address]},
    )


def forgive(connection: sa.Connection, channel: Channel, codes: Collection[str], since: datetime, at: datetime) -> None:
    """Undo what refusals with ``codes`` after ``since`` said of addresses: the carrier was at fault."""
    connection.execute(
        sa.text("""
            UPDATE message_block b SET lifted_at = :at, lifted_by = 'carrier', lift_reason = code
            WHERE channel = :channel AND code = ANY (:codes) AND cause <> 'stop' AND since > :since
              AND (lifted_at IS NULL OR lifted_at < since)"""),
        {"channel": channel, "codes": list(codes), "since": since, "at": at},
    )


def stop(connection: sa.Connection, channel: Channel, addresses: Sequence[str], as_of: datetime) -> None:
    """Nothing more is to be written to ``addresses``, until they say otherwise or somebody lifts it."""
    connection.execute(
        sa.text("""
            INSERT INTO message_block (channel, address, cause, since)
            SELECT DISTINCT :channel, address, 'stop', CAST(:at AS timestamptz)
            FROM unnest(CAST(:addresses AS text[])) AS a (address)
            ON CONFLICT (channel, address) DO UPDATE
            SET cause = 'stop', since = excluded.since, until = NULL, strikes = 0, code = NULL"""),
        {"channel": channel, "addresses": list(addresses), "at": as_of},
    )


@dataclass(frozen=True, slots=True)
class Block:
    """An address that is not written to; the address is for people with access to the records."""

    channel: Channel
    address: str
    cause: str
    since: Instant
    until: Instant | None
    """None: until somebody lifts it."""


_OF_PATIENTS = sa.text(f"""
    WITH person AS (
        SELECT p.id FROM patient p WHERE p.id = ANY (:patients)
        UNION SELECT p.guardian_id FROM patient p WHERE p.id = ANY (:patients) AND p.guardian_id IS NOT NULL
    ), known AS (
        SELECT v.channel, lower(v.address) AS address FROM person JOIN patient p USING (id)
        CROSS JOIN LATERAL (VALUES ('sms', p.mobile), ('sms', p.phone), ('email', p.email)) AS v (channel, address)
        UNION
        SELECT m.channel, lower(m.address) FROM person
        JOIN message m ON m.recipient_type = 'patient' AND m.recipient_id = person.id AND m.sent_at IS NOT NULL
    )
    SELECT b.channel, b.address, b.cause, b.since, b.until FROM message_block b
    WHERE (b.channel, b.address) IN (SELECT channel, address FROM known WHERE address IS NOT NULL) AND {IN_FORCE}
    ORDER BY b.since, b.channel, b.address""")


def of_patients(connection: sa.Connection, patients: Collection[int], at: datetime, zone: str) -> list[Block]:
    """The blocks that hold for the addresses of ``patients``, of their guardians, and where they were written to;
    times are told in ``zone``."""
    return [
        Block(
            row.channel,
            row.address,
            row.cause,
            Instant(row.since, zone),
            Instant(row.until, zone) if row.until is not None else None,
        )
        for row in connection.execute(_OF_PATIENTS, {"patients": list(patients), "at": at})
    ]


def lift(
    connection: sa.Connection, channel: Channel, addresses: Sequence[str], *, who: str, why: str, as_of: datetime
) -> bool:
    """``addresses`` may be written to again, whyever they were blocked; who said so and why stays. Returns whether any
    was blocked.

    Raises:
        PermanentError: without a reason.
    """
    if not is_reason(why):
        raise PermanentError("message_reason")
    return _lift(connection, channel, addresses, {"who": who, "why": why.strip(), "at": as_of, "cause": None})


def resume(connection: sa.Connection, channel: Channel, addresses: Sequence[str], as_of: datetime) -> bool:
    """Whoever had said STOP says START: what else keeps the address from being written to stays."""
    return _lift(connection, channel, addresses, {"who": "recipient", "why": "start", "at": as_of, "cause": "stop"})


def _lift(connection: sa.Connection, channel: Channel, addresses: Sequence[str], given: Mapping[str, object]) -> bool:
    return bool(
        connection.execute(
            sa.text(f"""
                UPDATE message_block b SET lifted_at = :at, lifted_by = :who, lift_reason = :why
                WHERE channel = :channel AND address = ANY (:addresses) AND {IN_FORCE}
                  AND (CAST(:cause AS text) IS NULL OR cause = :cause)"""),
            {"channel": channel, "addresses": list(addresses), **given},
        ).rowcount
    )
