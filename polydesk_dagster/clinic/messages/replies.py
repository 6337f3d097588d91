"""What people answer to a text: «1» confirms, «2» cancels after a question back, STOP stops, the rest is the desk's.

A reply answers the last text that was with its number when it was written. Replies come late, doubled and in any order:
what counts is when each was said, and what was asked back by then. Nothing is done twice, and what a later word of the
same person contradicts is for somebody to read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from typing import Literal

import sqlalchemy as sa

from polydesk_dagster.clinic.bookings import appointments
from polydesk_dagster.clinic.messages import blocks, preferences, saying
from polydesk_dagster.clinic.messages.kinds import ANSWERABLE
from polydesk_dagster.clinic.messages.preferences import Reading
from polydesk_dagster.values import Instant

ANSWERED_WITHIN = timedelta(days=14)
"""How long a text may be answered."""
TOGETHER = timedelta(hours=6)
"""Texts to one number within so long, about other appointments, make an answer ambiguous: families share telephones."""
_CLOCKS_APART = timedelta(minutes=1)

Outcome = Literal["confirmed", "asked", "cancelled", "stopped", "started", "repeated", "desk"]


@dataclass(frozen=True, slots=True)
class Texted:
    """A reply as it came; ``sender`` however the number is written."""

    id: str
    sender: str
    text: str
    at: datetime


def keep(connection: sa.Connection, texted: Sequence[Texted], as_of: datetime) -> int:
    """Put replies by, each once however often it comes. Returns how many are new."""
    known = [preferences.read_address(each.sender) for each in texted]
    return connection.execute(
        sa.text("""
            INSERT INTO message_reply (external_id, address, body, reading, said_at, received_at)
            SELECT id, address, body, reading, least(at, CAST(:as_of AS timestamptz)), :as_of
            FROM unnest(CAST(:ids AS text[]), CAST(:addresses AS text[]), CAST(:bodies AS text[]),
                        CAST(:readings AS text[]), CAST(:times AS timestamptz[])) AS r (id, address, body, reading, at)
            ON CONFLICT DO NOTHING"""),
        {
            "as_of": as_of,
            "ids": [each.id for each in texted],
            "addresses": [found[1] if found and found[0] == "sms" else None for found in known],
            "bodies": [each.text for each in texted],
            "readings": [preferences.read(each.text) for each in texted],
            "times": [each.at for each in texted],
        },
    ).rowcount


@dataclass(frozen=True, slots=True)
class Heard:
    """One reply with all that decides what it means."""

    id: int
    address: str | None
    reading: Reading | None
    message: int | None = None
    """The text that it answers."""
    items: tuple[int, ...] = ()
    """That text's appointments that are still to come and at the time that it told."""
    others: bool = False
    """Whether another text of about the same time told this number of other appointments."""
    asked: Literal["no", "waiting", "sent", "failed"] = "no"
    """Whether the question back was with this number when this was said."""
    later: str | None = None
    """The last thing of the same sort that the number said after this."""


def decide(heard: Heard) -> tuple[Outcome, str | None]:
    """What becomes of a reply, and why the desk has to read it where it has to."""
    if heard.reading is None or heard.address is None:
        return "desk", "free_text"
    if heard.later is not None:
        return ("repeated", None) if heard.later == heard.reading else ("desk", "superseded")
    if heard.reading in ("stop", "start"):
        return ("stopped" if heard.reading == "stop" else "started"), None
    if heard.message is None:
        return "desk", "nothing_to_answer"
    if not heard.items:
        return "desk", "no_longer"
    if heard.others:
        return "desk", "ambiguous"
    if heard.reading == "confirm":
        return "confirmed", None
    outcomes: dict[str, tuple[Outcome, str | None]] = {
        "no": ("asked", None),
        "waiting": ("repeated", None),
        "sent": ("cancelled", None),
        "failed": ("desk", "not_asked"),
    }
    return outcomes[heard.asked]


_LIVING = """
    SELECT array_agg(a.id ORDER BY a.id) FROM message_ledger l
    JOIN appointment a ON a.id = l.subject_id AND a.status = 'booked' AND a.start_version = l.version
                      AND a.starts_at > :as_of
    WHERE l.message_id = {message} AND l.subject = 'appointment' AND l.withheld IS NULL"""

_HEARD = sa.text(f"""
    WITH taken AS MATERIALIZED (
        SELECT * FROM message_reply WHERE settled_at IS NULL ORDER BY received_at, id LIMIT :limit
        FOR UPDATE SKIP LOCKED
    )
    SELECT r.id, r.address, r.reading, t.id AS message, coalesce(living.items, '{{}}') AS items,
           coalesce(living.items IS NOT NULL AND EXISTS (
               SELECT FROM message o, LATERAL ({_LIVING.format(message="o.id")}) other (items)
               WHERE o.channel = 'sms' AND o.address = r.address AND o.id <> t.id AND o.kind = ANY (:answerable)
                 AND o.state IN ('sent', 'claimed', 'unknown')
                 AND coalesce(o.sent_at, o.on_wire_at) BETWEEN t.with_them_at - CAST(:together AS interval)
                                                           AND t.with_them_at
                 AND NOT other.items <@ living.items), false) AS others,
           CASE WHEN asked.sent THEN 'sent' WHEN asked.waiting THEN 'waiting' WHEN asked.ever THEN 'failed'
                ELSE 'no' END AS asked,
           (SELECT n.reading FROM message_reply n
            WHERE n.address = r.address AND n.said_at > r.said_at
              AND (n.reading IN ('stop', 'start')) = (r.reading IN ('stop', 'start')) AND n.reading IS NOT NULL
            ORDER BY n.said_at DESC LIMIT 1) AS later
    FROM taken r
    LEFT JOIN LATERAL (
        SELECT m.id, coalesce(m.sent_at, m.on_wire_at) AS with_them_at FROM message m
        WHERE r.reading IN ('confirm', 'cancel') AND m.channel = 'sms' AND m.address = r.address
          AND m.state IN ('sent', 'claimed', 'unknown') AND m.kind = ANY (:answerable)
          AND coalesce(m.sent_at, m.on_wire_at) BETWEEN r.said_at - CAST(:within AS interval)
                                                    AND r.said_at + CAST(:apart AS interval)
        ORDER BY with_them_at DESC, m.id DESC LIMIT 1
    ) t ON true
    LEFT JOIN LATERAL ({_LIVING.format(message="t.id")}) living (items) ON true
    LEFT JOIN LATERAL (
        SELECT count(*) > 0 AS ever,
               bool_or(q.state = 'sent' AND q.address = r.address
                       AND q.sent_at <= r.said_at + CAST(:apart AS interval)) AS sent,
               bool_or(q.state IN ('planned', 'retry', 'claimed', 'unknown', 'sent')) AS waiting
        FROM message_ledger l JOIN message q ON q.id = l.message_id JOIN appointment a ON a.id = l.subject_id
        WHERE l.subject = 'appointment' AND l.subject_id = ANY (living.items) AND l.kind = 'cancel_question'
          AND l.version = a.start_version
    ) asked ON true
    ORDER BY r.id""")


@dataclass(slots=True)
class Settled:
    """What a round of replies came to."""

    taken: int = 0
    confirmed: int = 0
    asked: int = 0
    cancelled: int = 0
    desk: int = 0

    def add(self, more: Settled) -> int:
        """Count ``more`` in; returns how many replies it took."""
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(more, each.name))
        return more.taken

    @property
    def to_send(self) -> bool:
        """Whether somebody now waits for an answer."""
        return self.asked + self.cancelled > 0


def settle(connection: sa.Connection, as_of: datetime, limit: int = 500) -> Settled:
    """Do what the oldest replies that were put by ask for; the caller commits. Never does the same thing twice."""
    asked = {
        "as_of": as_of,
        "limit": limit,
        "answerable": list(ANSWERABLE),
        "within": ANSWERED_WITHIN,
        "together": TOGETHER,
        "apart": _CLOCKS_APART,
    }
    heard = [
        Heard(row.id, row.address, row.reading, row.message, tuple(row.items), row.others, row.asked, row.later)
        for row in connection.execute(_HEARD, asked)
    ]
    if not heard:
        return Settled()
    decided = {each.id: decide(each) for each in heard}

    def of(outcome: Outcome) -> list[Heard]:
        return [each for each in heard if decided[each.id][0] == outcome]

    blocks.stop(connection, "sms", [str(each.address) for each in of("stopped")], as_of)
    started = [str(each.address) for each in of("started")]
    blocks.resume(connection, "sms", started, as_of)
    confirmed, cancelled = of("confirmed"), of("cancelled")
    saying.note(connection, _items(confirmed), "confirmed", "sms", as_of)
    gone = appointments.cancel_all(connection, _items(cancelled), as_of)
    saying.note(connection, [number for number, reply in gone.items() if reply.done], "cancelled", "sms", as_of)
    saying.tell_cancelled(connection, [number for number, reply in gone.items() if reply.done], as_of)
    for each in cancelled:
        left = [gone[item].answer for item in each.items if not gone[item].done]
        if left:
            decided[each.id] = ("desk", str(left[0]))
    saying.ask(connection, [each.message for each in of("asked") if each.message is not None], as_of)
    _write(connection, heard, decided, as_of)
    return Settled(len(heard), len(confirmed), len(of("asked")), len(of("cancelled")), len(of("desk")))


def _items(heard: Sequence[Heard]) -> list[int]:
    return sorted({item for each in heard for item in each.items})


def _write(
    connection: sa.Connection, heard: Sequence[Heard], decided: dict[int, tuple[Outcome, str | None]], at: datetime
) -> None:
    """What became of each, and whose it is: the clinic of the text that it answers, else of the number's next or last
    appointment."""
    connection.execute(
        sa.text("""
            UPDATE message_reply r
            SET settled_at = :at, outcome = d.outcome, reason = d.reason, message_id = d.message,
                clinic_id = coalesce(
                    (SELECT m.clinic_id FROM message m WHERE m.id = d.message),
                    (SELECT a.clinic_id FROM patient p JOIN appointment a ON a.patient_id = p.id
                     WHERE p.mobile = r.address OR p.phone = r.address ORDER BY a.starts_at DESC LIMIT 1))
            FROM unnest(CAST(:ids AS bigint[]), CAST(:outcomes AS text[]), CAST(:reasons AS text[]),
                        CAST(:messages AS bigint[])) AS d (id, outcome, reason, message)
            WHERE r.id = d.id"""),
        {
            "at": at,
            "ids": [each.id for each in heard],
            "outcomes": [decided[each.id][0] for each in heard],
            "reasons": [decided[each.id][1] for each in heard],
            "messages": [each.message for each in heard],
        },
    )


@dataclass(frozen=True, slots=True)
class Unread:
    """A reply that only a person understands; names, number and words are for people with access to the records."""

    id: int
    clinic: str | None
    at: Instant
    phone: str | None
    patients: tuple[str, ...]
    """Whose number it is."""
    patient_ids: tuple[int, ...]
    text: str
    reason: str


def to_read(connection: sa.Connection, clinic: str | None = None) -> list[Unread]:
    """The replies that wait for the desk, oldest first."""
    rows = connection.execute(
        sa.text("""
            SELECT r.id, c.code, r.said_at, coalesce(c.time_zone, 'Europe/Rome') AS zone, r.address, r.body, r.reason,
                   coalesce(who.names, '{}') AS names, coalesce(who.ids, '{}') AS ids
            FROM message_reply r LEFT JOIN clinic c ON c.id = r.clinic_id
            LEFT JOIN LATERAL (
                SELECT array_agg(concat_ws(' ', p.first_name, p.last_name) ORDER BY p.id) AS names,
                       array_agg(p.id ORDER BY p.id) AS ids
                FROM patient p WHERE p.mobile = r.address OR p.phone = r.address) who ON true
            WHERE r.outcome = 'desk' AND r.handled_at IS NULL AND (CAST(:clinic AS text) IS NULL OR c.code = :clinic)
            ORDER BY r.received_at, r.id"""),
        {"clinic": clinic},
    )
    return [
        Unread(
            row.id,
            row.code,
            Instant(row.said_at, row.zone),
            row.address,
            tuple(row.names),
            tuple(row.ids),
            row.body,
            row.reason,
        )
        for row in rows
    ]


def handled(connection: sa.Connection, number: int, *, who: str, at: datetime) -> bool:
    """Somebody has read a reply and done what it asks. Returns False where it does not wait (any more)."""
    return bool(
        connection.execute(
            sa.text("""
                UPDATE message_reply SET handled_at = :at, handled_by = :who
                WHERE id = :id AND outcome = 'desk' AND handled_at IS NULL"""),
            {"id": number, "who": who, "at": at},
        ).rowcount
    )
