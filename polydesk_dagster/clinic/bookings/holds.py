"""Holds: a slot kept for one visitor while a booking is being made. What a booking front end calls.

The visitor's browser keeps a token (:func:`new_token`); we keep its hash. The life of a hold::

    place ──► live ──► confirm ──► confirmed (an appointment; the seat is now its)
               │  └──► begin_confirming ──► confirming ──► confirm      (a payment is under way)
               ├──► release ──► released
               ├──► its time passes ──► expired      (in every read at once; the sweeper only tidies)
               └──► release all ──► revoked          (a tombstone: a late confirm is told so)

Every function is one transaction of the caller's: call it, commit, answer the visitor with ``sentence``. A refusal is
an answer, not an exception, and changes nothing. Calling again with the same token gives the same answer, so a lost
response is repaired by asking again.

What keeps them exclusive: one seat row per unit of a slot's capacity, its primary key, and one order of locks, hold
then slot then seat. Whoever gives or takes a seat holds the slot's row; whoever ends a hold holds the hold's row.

Payment and confirmation are ``clinic.bookings.confirming``; what ends holds by itself is ``sweeping``, what ends them
all ``releasing``.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from polydesk_dagster.clinic.bookings.answers import Answer, Reply


@dataclass(frozen=True, slots=True)
class Terms:
    """How long a visitor may keep a slot, and how many."""

    lifetime: timedelta = timedelta(minutes=10)
    longest: timedelta = timedelta(minutes=30)
    """From the first moment, renewals included; the schema allows no more than 30 minutes."""
    renewals: int = 2
    per_visitor: int = 2
    verification: timedelta = timedelta(hours=2)
    """What a visitor who is not signed in has to verify the e-mail or the telephone number."""
    verification_before_start: timedelta = timedelta(hours=1)
    """Verification ends this long before the start at the latest."""
    shortest_verification: timedelta = timedelta(minutes=10)

    def __post_init__(self) -> None:
        if not timedelta(minutes=5) <= self.lifetime <= timedelta(minutes=15):
            raise ValueError(f"la durata di un blocco va da 5 a 15 minuti, non {self.lifetime}")
        if not self.lifetime <= self.longest <= timedelta(minutes=30):
            raise ValueError(f"un blocco non dura in tutto più di 30 minuti, non {self.longest}")
        if not 0 <= self.renewals <= 2:
            raise ValueError(f"un blocco si rinnova al più 2 volte, non {self.renewals}")


TERMS = Terms()

_ENDED = {
    "confirmed": Answer.CONFIRMED,
    "released": Answer.RELEASED,
    "expired": Answer.EXPIRED,
    "revoked": Answer.REVOKED,
}


def new_token() -> str:
    """A token that nobody can guess, for the visitor to keep; only its hash is stored."""
    return secrets.token_urlsafe(32)


def hashed(secret: str) -> bytes:
    """How a token, or whatever tells one visitor from another, is stored: sha256, 32 bytes."""
    return hashlib.sha256(secret.encode()).digest()


# One statement a request, so that a hold costs little more than the bare insert. A statement's snapshot is older than
# the locks that it waits for: rows that it locks are re-read, and what it writes is tested against the newest row by
# ON CONFLICT or by UPDATE. A unit that was lost that way leaves ``hold_id`` null although one seemed free; with the
# slot's row now ours, looking once more is final. The two that every booking runs name their columns, so that
# SQLAlchemy works out how to read a row once and not at every request.
_PLACE = sa.text("""
    WITH visitor AS MATERIALIZED (
        SELECT held, known FROM holds_of_visitor(:visitor, :token, :as_of)
    ), wanted AS MATERIALIZED (
        SELECT s.id, a.clinic_id, s.capacity, visitor.held, visitor.known,
               s.state = 'free' AND a.online AND a.active AND c.active AS offered,
               s.starts_at > :as_of + a.min_notice_minutes * interval '1 minute' AS in_time,
               least(:as_of + :lifetime, s.starts_at) AS expires_at
        FROM visitor, slot s JOIN agenda a ON a.id = s.agenda_id JOIN clinic c ON c.id = a.clinic_id
        WHERE s.id = :slot
        FOR NO KEY UPDATE OF s
    ), unit AS (
        SELECT u.unit
        FROM wanted CROSS JOIN LATERAL generate_series(1, wanted.capacity) AS u (unit)
        LEFT JOIN seat ON seat.slot_id = :slot AND seat.unit = u.unit
        WHERE wanted.offered AND wanted.in_time AND wanted.known IS NULL AND wanted.held < :per_visitor
          AND (seat.unit IS NULL OR seat.held_until <= :as_of)
        ORDER BY seat.unit IS NOT NULL, u.unit
        LIMIT 1
    ), seated AS (
        INSERT INTO seat (slot_id, unit, hold_id, held_until)
        SELECT wanted.id, unit.unit, nextval('hold_id_seq'), wanted.expires_at FROM unit, wanted
        ON CONFLICT (slot_id, unit) DO UPDATE SET hold_id = EXCLUDED.hold_id, held_until = EXCLUDED.held_until
            WHERE seat.held_until <= :as_of
        RETURNING hold_id
    ), placed AS (
        INSERT INTO hold (id, clinic_id, slot_id, token_hash, visitor_hash, created_at, expires_at, last_activity_at)
        SELECT seated.hold_id, wanted.clinic_id, wanted.id, :token, :visitor, :as_of, wanted.expires_at, :as_of
        FROM seated, wanted
        RETURNING id
    )
    SELECT wanted.offered, wanted.in_time, wanted.held, wanted.known, wanted.expires_at, placed.id AS hold_id
    FROM wanted LEFT JOIN placed ON true""").columns(
    *map(sa.column, ("offered", "in_time", "held", "known", "expires_at", "hold_id"))
)

_KNOWN = sa.text("SELECT state, expires_at, appointment_id FROM hold WHERE id = :hold")


def place(
    connection: sa.Connection, *, slot_id: int, token: str, visitor: str, as_of: datetime, terms: Terms = TERMS
) -> Reply:
    """Keep one unit of a slot for a visitor.

    ``visitor`` is whatever tells one visitor from another (a session's id); it is stored as a hash. Placing again with
    a token that is known answers what became of that hold.

    Answers: PLACED, FULL, TOO_MANY, TOO_SOON, NOT_OFFERED; for a known token its hold's state, or NO_LONGER_BOOKED.
    """
    wanted = {
        "slot": slot_id,
        "token": hashed(token),
        "visitor": hashed(visitor),
        "as_of": as_of,
        "lifetime": terms.lifetime,
        "per_visitor": terms.per_visitor,
    }
    for _ in range(2):
        row = connection.execute(_PLACE, wanted).one_or_none()
        if row is None or (row.known is None and not row.offered):
            return Reply(Answer.NOT_OFFERED)
        if row.hold_id is not None:
            return Reply(Answer.PLACED, row.hold_id, row.expires_at)
        if row.known is not None:
            hold = connection.execute(_KNOWN, {"hold": row.known}).one()
            over = _over(connection, hold, as_of)
            return Reply(over or Answer.PLACED, row.known, None if over else hold.expires_at, hold.appointment_id)
        if not row.in_time:
            return Reply(Answer.TOO_SOON)
        if row.held >= terms.per_visitor:
            return Reply(Answer.TOO_MANY)
    return Reply(Answer.FULL)


# The hold and its slot, locked, so that nobody ends the one or gives the other's seat away meanwhile; ``kept`` is the
# one test of whether a hold still keeps its seat. A payment under way does not expire.
LOCKED = """
    locked AS MATERIALIZED (
        SELECT h.id, h.slot_id, h.state, h.created_at, h.expires_at, h.renewals, h.appointment_id,
               s.agenda_id, s.starts_at, s.ends_at, s.state = 'free' AND s.starts_at > :as_of AS open,
               h.state = 'confirming' OR h.state = 'live' AND h.expires_at > :as_of AS kept
        FROM hold h JOIN slot s ON s.id = h.slot_id
        WHERE h.token_hash = :token
        FOR NO KEY UPDATE OF h, s
    )"""


_GONE = sa.text("SELECT status IN ('cancelled', 'expired') FROM appointment WHERE id = :appointment")


def _over(connection: sa.Connection, hold: sa.Row[Any], as_of: datetime) -> Answer | None:
    """Why a hold no longer keeps its seat, or None while it does. Its booking may have ended since."""
    if hold.state == "confirmed" and connection.scalar(_GONE, {"appointment": hold.appointment_id}):
        return Answer.NO_LONGER_BOOKED
    if hold.state in _ENDED:
        return _ENDED[hold.state]
    return Answer.EXPIRED if hold.state == "live" and hold.expires_at <= as_of else None


def ask(
    connection: sa.Connection, statement: sa.Executable, token: str, as_of: datetime, **values: object
) -> tuple[sa.Row[Any] | None, Reply]:
    """Run the statement of one request. Returns its row while the hold keeps its seat, else None and the refusal."""
    row = connection.execute(statement, {"token": hashed(token), "as_of": as_of, **values}).one_or_none()
    if row is None:
        return None, Reply(Answer.UNKNOWN)
    over = _over(connection, row, as_of)
    if over is not None:
        return None, Reply(over, row.id, appointment_id=row.appointment_id)
    return row, Reply(Answer.EXPIRED, row.id)


_RENEW = sa.text(f"""
    WITH {LOCKED}, extended AS (
        UPDATE seat SET held_until = least(:as_of + :lifetime, locked.created_at + :longest, locked.starts_at)
        FROM locked
        WHERE seat.hold_id = locked.id AND locked.kept AND locked.state = 'live' AND locked.renewals < :renewals
          AND least(:as_of + :lifetime, locked.created_at + :longest, locked.starts_at) > locked.expires_at
        RETURNING seat.hold_id, seat.held_until
    ), renewed AS (
        UPDATE hold SET expires_at = extended.held_until, last_activity_at = :as_of, renewals = hold.renewals + 1
        FROM extended WHERE hold.id = extended.hold_id
    )
    SELECT locked.*, extended.held_until, EXISTS (SELECT FROM seat WHERE hold_id = locked.id) AS seated
    FROM locked LEFT JOIN extended ON true""")


def renew(connection: sa.Connection, *, token: str, as_of: datetime, terms: Terms = TERMS) -> Reply:
    """Give the visitor more time, within the terms. A refusal never moves the expiry.

    Answers: RENEWED, NO_MORE_RENEWALS, CONFIRMING (needs no renewal); EXPIRED, REVOKED, RELEASED, CONFIRMED,
    NO_LONGER_BOOKED, UNKNOWN.
    """
    hold, lost = ask(
        connection,
        _RENEW,
        token,
        as_of,
        lifetime=terms.lifetime,
        longest=terms.longest,
        renewals=terms.renewals,
    )
    if hold is None:
        return lost
    if hold.state == "confirming":
        return Reply(Answer.CONFIRMING, hold.id)
    if hold.held_until is not None:
        return Reply(Answer.RENEWED, hold.id, hold.held_until)
    return Reply(Answer.NO_MORE_RENEWALS, hold.id, hold.expires_at) if hold.seated else lost


_RELEASE = sa.text(f"""
    WITH {LOCKED}, freed AS (
        DELETE FROM seat USING locked WHERE seat.hold_id = locked.id AND locked.kept
    ), ended AS (
        UPDATE hold SET state = 'released', ended_at = :as_of, last_activity_at = :as_of
        FROM locked WHERE hold.id = locked.id AND locked.kept
    )
    SELECT * FROM locked""")


def release(connection: sa.Connection, *, token: str, as_of: datetime) -> Reply:
    """Give the slot back at once: the visitor went back, or the payment failed.

    Answers: RELEASED; EXPIRED, REVOKED, CONFIRMED, NO_LONGER_BOOKED, UNKNOWN.
    """
    hold, lost = ask(connection, _RELEASE, token, as_of)
    return lost if hold is None else Reply(Answer.RELEASED, hold.id)
