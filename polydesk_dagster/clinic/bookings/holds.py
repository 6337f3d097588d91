"""Holds: a slot kept for one visitor while a booking is being made. What a booking front end calls.

The visitor's browser keeps a token (:func:`new_token`); we keep its hash. The life of a hold::

    place ──► live ──► confirm ──► confirmed (an appointment; the seat is now its)
               │  └──► begin_confirming ──► confirming ──► confirm      (a payment is under way)
               ├──► release ──► released
               ├──► its time passes ──► expired      (in every read at once; the sweeper only tidies)
               └──► release all ──► revoked          (a tombstone: a late confirm is told so)

Every function is one transaction of the caller's: call it, commit, tell the visitor the answer. A refusal is
an answer, not an exception, and changes nothing. Calling again with the same token gives the same answer, so a lost
response is repaired by asking again.

What keeps them exclusive: one seat row per unit of a slot's capacity, its primary key, and one order of locks, hold
then slot then seat. Whoever gives or takes a seat holds the slot's row; whoever ends a hold holds the hold's row.
A service that lasts longer than a slot takes the following ones too, all or none, under one hold. Whom and what it
needs besides (the doctor wherever she works, a room, an instrument) stands in ``occupancy``, which the schema keeps in
step with holds and bookings; what a booking occupies stays with its hold until something of it moves.

Payment and confirmation are ``clinic.bookings.confirming``; what ends holds by itself is ``sweeping``, what ends them
all ``releasing``.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import sqlalchemy as sa

from polydesk_dagster.clinic.bookings.answers import Answer, Reply
from polydesk_dagster.database import engine


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
    payment: timedelta = timedelta(minutes=20)
    """How long a payment under way keeps its slots; the schema allows no more than 30 minutes."""

    def __post_init__(self) -> None:
        if not timedelta(minutes=5) <= self.lifetime <= timedelta(minutes=15):
            raise ValueError(f"la durata di un blocco va da 5 a 15 minuti, non {self.lifetime}")
        if not self.lifetime <= self.longest <= timedelta(minutes=30):
            raise ValueError(f"un blocco non dura in tutto più di 30 minuti, non {self.longest}")
        if not 0 <= self.renewals <= 2:
            raise ValueError(f"un blocco si rinnova al più 2 volte, non {self.renewals}")
        if not timedelta(minutes=2) < self.payment <= timedelta(minutes=30):
            raise ValueError(f"un pagamento tiene l'orario al più 30 minuti, non {self.payment}")


TERMS = Terms()


@dataclass(frozen=True, slots=True)
class Booking:
    """What the visitor chose, to be written when the hold is confirmed.

    Without ``patient_id`` the booking is unverified: it keeps its seat until ``verification_expires_at``, and unless it
    is paid it needs a contact to verify.
    """

    service_id: int
    patient_id: int | None = None
    contact_email: str | None = None
    contact_phone: str | None = None
    agreement_id: int | None = None
    quoted_price: Decimal | None = None
    paid: bool = False
    """A paid booking stands whether or not its contacts are ever verified."""

    def __post_init__(self) -> None:
        for name in ("contact_email", "contact_phone"):
            object.__setattr__(self, name, (getattr(self, name) or "").strip() or None)  # a blank is no contact

    @property
    def verifiable(self) -> bool:
        """Whether it stands, or somebody can make it stand."""
        return self.patient_id is not None or self.paid or bool(self.contact_email or self.contact_phone)

    @property
    def bound(self) -> dict[str, object]:
        """What statements that write a booking bind of it."""
        return {
            "service": self.service_id,
            "patient": self.patient_id,
            "agreement": self.agreement_id,
            "price": self.quoted_price,
            "email": self.contact_email,
            "phone": self.contact_phone,
        }


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


OFFERS = """(v.id = a.service_id
           OR EXISTS (SELECT FROM agenda_service o WHERE o.agenda_id = a.id AND o.service_id = v.id))"""
"""SQL: the agenda ``a`` offers the service ``v``."""

# One statement a request, and what a booking costs most a function of the schema, which keeps its plans; so a hold
# costs little more than the bare insert. A statement's snapshot is older than the locks that it waits for, a volatile
# function's is not. The two that every booking runs are asked of the driver itself.
_PLACE = "SELECT answer, hold, expires FROM place_hold(%s, %s, %s, %s, %s, %s, %s)"

_KNOWN = sa.text("""
    SELECT h.state, h.expires_at, h.appointment_id,
           EXISTS (SELECT FROM seat t JOIN slot s ON s.id = t.slot_id WHERE t.hold_id = h.id AND s.state <> 'free')
               AS closed
    FROM hold h WHERE h.id = :hold""")


def place(
    connection: sa.Connection,
    *,
    slot_id: int,
    service_id: int,
    token: str,
    visitor: str,
    as_of: datetime,
    terms: Terms = TERMS,
) -> Reply:
    """Keep for a visitor the slots that a service takes from ``slot_id`` on: a unit of each, all or none, and with them
    the doctor and what else the service needs.

    ``visitor`` is whatever tells one visitor from another (a session's id); it is stored as a hash. Placing again with
    a token that is known answers what became of that hold.

    Answers: PLACED, FULL, TOO_MANY, TOO_SOON, NOT_OFFERED, SERVICE_NOT_OFFERED; for a known token its hold's state,
    SLOT_CLOSED or NO_LONGER_BOOKED.
    """
    wanted = (slot_id, service_id, hashed(token), hashed(visitor), as_of, terms.lifetime, terms.per_visitor)
    answer, number, expires = engine.ask(connection, _PLACE, wanted)
    if answer != "known":
        return Reply(Answer(answer), number, expires)
    hold = connection.execute(_KNOWN, {"hold": number}).one()
    over = _over(connection, hold, as_of) or (Answer.SLOT_CLOSED if hold.closed and hold.state == "live" else None)
    return Reply(over or Answer.PLACED, number, None if over else hold.expires_at, hold.appointment_id)


# The hold and its slots, locked, so that nobody ends the one or gives the others' seats away meanwhile; ``kept`` is the
# one test of whether a hold still keeps its seats.
LOCKED = """
    found AS MATERIALIZED (
        SELECT h.id, h.slot_id, h.service_id, h.state, h.created_at, h.expires_at, h.renewals, h.appointment_id,
               h.seats, s.agenda_id, s.starts_at, coalesce(h.ends_at, s.ends_at) AS ends_at,
               s.state = 'free' AND s.starts_at > :as_of AS begins_open,
               h.state IN ('live', 'confirming') AND h.expires_at > :as_of AS in_force
        FROM hold h JOIN slot s ON s.id = h.slot_id
        WHERE h.token_hash = :token
        FOR NO KEY UPDATE OF h, s
    ), locked AS MATERIALIZED (
        SELECT found.*, in_force AND (seats = 1 OR seats_of_hold(id) = seats) AS kept,
               begins_open AND (seats = 1 OR NOT EXISTS (SELECT FROM seat t JOIN slot s ON s.id = t.slot_id
                                                         WHERE t.hold_id = found.id AND s.state <> 'free')) AS open
        FROM found
    )"""


_STATE = sa.text("SELECT id, state, expires_at, appointment_id FROM hold WHERE id = :hold")

_GONE = sa.text("SELECT status IN ('cancelled', 'expired') FROM appointment WHERE id = :appointment")


def end_of(connection: sa.Connection, hold_id: int, as_of: datetime) -> Reply:
    """What became of a hold that no longer keeps its seats."""
    hold = connection.execute(_STATE, {"hold": hold_id}).one()
    return Reply(_over(connection, hold, as_of) or Answer.EXPIRED, hold.id, appointment_id=hold.appointment_id)


def _over(connection: sa.Connection, hold: sa.Row[Any], as_of: datetime) -> Answer | None:
    """Why a hold no longer keeps its seat, or None while it does. Its booking may have ended since."""
    if hold.state == "confirmed" and connection.scalar(_GONE, {"appointment": hold.appointment_id}):
        return Answer.NO_LONGER_BOOKED
    if hold.state in _ENDED:
        return _ENDED[hold.state]
    return Answer.EXPIRED if hold.expires_at <= as_of else None


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
    ), once AS (
        SELECT DISTINCT hold_id, held_until FROM extended
    ), renewed AS (
        UPDATE hold SET expires_at = once.held_until, last_activity_at = :as_of, renewals = hold.renewals + 1
        FROM once WHERE hold.id = once.hold_id
    )
    SELECT locked.*, once.held_until, EXISTS (SELECT FROM seat WHERE hold_id = locked.id) AS seated
    FROM locked LEFT JOIN once ON true""")


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
