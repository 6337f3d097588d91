"""How a patient proves the e-mail address or the telephone number of an online booking. What a booking front end calls.

::

    issue(email) ──► a link with a token ──► GET: look, a page with a button ──► POST: verify_by_token
    issue(phone) ──► six digits by SMS ────► a page that asks for them ────────► POST: verify_by_code

Either channel suffices. A secret works once; a newer one of its channel takes its place. Only a POST confirms: mail
scanners open links. Every function is one transaction of the caller's: call it, commit *whatever the answer* (a wrong
code counts), show its sentence. Asking again with the same secret gives the same answer, so a lost response is
repaired by asking again.

One order of locks: the booking, then what :func:`clinic.bookings.verify` takes. Whoever writes a secret holds its
booking's row, so tries are counted one after the other however many arrive at once.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Literal

import sqlalchemy as sa

from polydesk_dagster.clinic.bookings.holds import hashed, new_token
from polydesk_dagster.clinic.bookings.unverified import Answer, Reply, verify

Channel = Literal["email", "phone"]

TRIES = 5
"""Wrong codes after which a code is worth nothing; the schema allows no more."""
CODE_LIFE = timedelta(minutes=10)
TOKEN_LIFE = timedelta(days=8)
"""Longer than an expired booking can be brought back."""
WORK = 2**14
"""scrypt's for a code: some hundredths of a second and 16 MB for each guess. A constant on purpose, no setting."""
MOST = 5
"""Secrets of one channel for one booking: with their tries, one chance in 40,000 to guess a code."""


@dataclass(frozen=True, slots=True)
class Issued:
    """ISSUED with what to send where and until when it works, or why there is nothing to send."""

    answer: Answer
    secret: str = field(default="", repr=False)
    contact: str = field(default="", repr=False)
    expires_at: datetime | None = None


_LOCK = sa.text("""
    SELECT status, starts_at, contact_email AS email, contact_phone AS phone
    FROM appointment WHERE id = :appointment FOR NO KEY UPDATE""")

_VOID = sa.text("""
    UPDATE verification SET voided_at = :as_of
    WHERE appointment_id = :appointment AND channel = :channel AND voided_at IS NULL""")

_ISSUE = sa.text("""
    INSERT INTO verification (appointment_id, channel, secret_hash, salt, created_at, expires_at)
    VALUES (:appointment, :channel, :hash, :salt, :as_of, :expires_at)""")


def issue(connection: sa.Connection, *, appointment_id: int, channel: Channel, as_of: datetime) -> Issued:
    """Make a new secret for one contact of a booking; the older one of that channel is void. Send it to ``contact``
    after the commit: the secret itself is stored nowhere.

    Answers: ISSUED; BOOKED (it stands already), NO_CONTACT, TOO_MANY_SECRETS, TOO_LATE, GONE.
    """
    booking = connection.execute(_LOCK, {"appointment": appointment_id}).one_or_none()
    if booking is None or booking.status == "cancelled":
        return Issued(Answer.GONE)
    if booking.status not in {"unverified", "expired"}:
        return Issued(Answer.BOOKED)
    if booking.starts_at <= as_of:
        return Issued(Answer.TOO_LATE)
    contact = booking.email if channel == "email" else booking.phone
    if not contact or not contact.strip():
        return Issued(Answer.NO_CONTACT)
    which = {"appointment": appointment_id, "channel": channel, "as_of": as_of}
    made = connection.scalar(
        sa.text("SELECT count(*) FROM verification WHERE appointment_id = :appointment AND channel = :channel"), which
    )
    if made >= MOST:
        return Issued(Answer.TOO_MANY_SECRETS)
    secret, salt = (new_token(), None) if channel == "email" else (_new_code(), secrets.token_bytes(16))
    life = TOKEN_LIFE if channel == "email" else CODE_LIFE
    expires_at = min(as_of + life, booking.starts_at)
    connection.execute(_VOID, which)
    hash_ = hashed(secret) if salt is None else _stretched(secret, salt)
    connection.execute(_ISSUE, {**which, "hash": hash_, "salt": salt, "expires_at": expires_at})
    return Issued(Answer.ISSUED, secret, contact, expires_at)


def _new_code() -> str:
    return f"{secrets.randbelow(1_000_000):06d}"


def _stretched(code: str, salt: bytes) -> bytes:
    """A code as it is stored: scrypt, 32 bytes."""
    return hashlib.scrypt(code.encode(), salt=salt, n=WORK, r=8, p=1, dklen=32)


_FOUND = """
    SELECT v.id, v.appointment_id, v.secret_hash, v.salt, v.tries, v.expires_at, v.used_at, v.voided_at,
           a.status, a.starts_at
    FROM verification v JOIN appointment a ON a.id = v.appointment_id WHERE """

# A token is looked up by its hash: how long that takes says nothing about the token.
_BY_TOKEN = sa.text(_FOUND + "v.channel = 'email' AND v.secret_hash = :hash")

_CODE = sa.text(_FOUND + "v.channel = 'phone' AND v.appointment_id = :appointment AND v.voided_at IS NULL")

_WRONG = sa.text("UPDATE verification SET tries = tries + 1 WHERE id = :id")

_USED = sa.text("UPDATE verification SET used_at = :as_of WHERE id = :id")


def look(connection: sa.Connection, *, token: str, as_of: datetime) -> Reply:
    """What a POST with ``token`` would find, for the page that a GET shows; changes nothing.

    Answers: READY with the booking's id; BOOKED, USED, REPLACED, EXPIRED, TOO_LATE, GONE, UNKNOWN.
    """
    found = connection.execute(_BY_TOKEN, {"hash": hashed(token)}).one_or_none()
    if found is None:
        return Reply(Answer.UNKNOWN)
    return Reply(_over(found, as_of) or Answer.READY, appointment_id=found.appointment_id)


def verify_by_token(connection: sa.Connection, *, token: str, patient_id: int, as_of: datetime) -> Reply:
    """Use the token of an e-mail's link, and let the booking stand for ``patient_id``, who has proved the address.

    The token is used up only when the booking stands: where its slot was taken it may be tried again.

    Answers: BOOKED; TAKEN, CLOSED or ELSEWHERE with alternatives; TOO_LATE, GONE; USED, REPLACED, EXPIRED, UNKNOWN.
    """
    asked = {"hash": hashed(token)}
    found = connection.execute(_BY_TOKEN, asked).one_or_none()
    if found is not None:
        connection.execute(_LOCK, {"appointment": found.appointment_id})
        found = connection.execute(_BY_TOKEN, asked).one_or_none()
    return Reply(Answer.UNKNOWN) if found is None else _redeem(connection, found, patient_id, as_of)


def verify_by_code(
    connection: sa.Connection, *, appointment_id: int, code: str, patient_id: int, as_of: datetime
) -> Reply:
    """Use the code that was sent to a booking's telephone; otherwise as :func:`verify_by_token`. Spaces in it do not
    count. ``appointment_id`` comes from the visitor's session, never from an address that anybody may change.

    Answers: as there, and WRONG_CODE with ``tries_left``, TOO_MANY_TRIES.
    """
    connection.execute(_LOCK, {"appointment": appointment_id})
    found = connection.execute(_CODE, {"appointment": appointment_id}).one_or_none()
    if found is None:
        return Reply(Answer.UNKNOWN)
    if found.tries >= TRIES:
        return Reply(Answer.TOO_MANY_TRIES)
    over = _over(found, as_of)
    if over is not None and found.used_at is None:
        return Reply(over, appointment_id=appointment_id)
    given = _stretched("".join(code.split()), bytes(found.salt))
    if not hmac.compare_digest(given, bytes(found.secret_hash)):
        connection.execute(_WRONG, {"id": found.id})
        left = TRIES - found.tries - 1
        return Reply(Answer.WRONG_CODE, tries_left=left) if left else Reply(Answer.TOO_MANY_TRIES)
    return _redeem(connection, found, patient_id, as_of)


def _over(found: sa.Row[Any], as_of: datetime) -> Answer | None:
    """What is to be answered to a secret that can no longer be used, or None while it can."""
    if found.used_at is not None:
        return Answer.USED if found.status in {"unverified", "expired", "cancelled"} else Answer.BOOKED
    if found.status == "cancelled":
        return Answer.GONE
    if found.voided_at is not None:
        return Answer.REPLACED
    if found.expires_at <= as_of:
        return Answer.TOO_LATE if found.starts_at <= as_of else Answer.EXPIRED
    return None


def _redeem(connection: sa.Connection, found: sa.Row[Any], patient_id: int, as_of: datetime) -> Reply:
    over = _over(found, as_of)
    if over is not None:
        return Reply(over, appointment_id=found.appointment_id)
    reply = verify(connection, appointment_id=found.appointment_id, patient_id=patient_id, as_of=as_of)
    if reply.answer is Answer.BOOKED:
        connection.execute(_USED, {"id": found.id, "as_of": as_of})
    return replace(reply, appointment_id=found.appointment_id)
