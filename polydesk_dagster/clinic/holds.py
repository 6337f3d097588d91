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
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Any

import sqlalchemy as sa

from polydesk_dagster.database.locks import lock_key


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

PAYMENT_GRACE = timedelta(minutes=2)
"""After this, a hold whose payment is still under way needs a person's look; it is never taken away by itself."""


class Answer(StrEnum):
    """What became of a request."""

    PLACED = "placed"
    RENEWED = "renewed"
    CONFIRMING = "confirming"
    CONFIRMED = "confirmed"
    RELEASED = "released"

    FULL = "full"
    NOT_OFFERED = "not_offered"
    TOO_SOON = "too_soon"
    TOO_MANY = "too_many"
    UNKNOWN = "unknown"
    EXPIRED = "expired"
    REVOKED = "revoked"
    NO_MORE_RENEWALS = "no_more_renewals"
    SLOT_CLOSED = "slot_closed"
    SERVICE_NOT_OFFERED = "service_not_offered"
    TOO_LATE_TO_VERIFY = "too_late_to_verify"


SENTENCES: Mapping[Answer, str] = {
    Answer.PLACED: "L'orario è riservato per te: completa la prenotazione entro il tempo indicato.",
    Answer.RENEWED: "Hai ancora qualche minuto per completare la prenotazione.",
    Answer.CONFIRMING: "Stiamo registrando la prenotazione: l'orario resta tuo.",
    Answer.CONFIRMED: "La prenotazione è registrata.",
    Answer.RELEASED: "L'orario è stato lasciato libero: scegline un altro, o di nuovo lo stesso.",
    Answer.FULL: "Questo orario non è più libero: scegline un altro.",
    Answer.NOT_OFFERED: "Questo orario non si può prenotare online: scegline un altro o telefona alla segreteria.",
    Answer.TOO_SOON: "È troppo tardi per prenotare online questo orario: scegline un altro o telefona alla segreteria.",
    Answer.TOO_MANY: "Hai già altri orari in sospeso: completa o lascia quelli prima di sceglierne un altro.",
    Answer.UNKNOWN: "Non troviamo questa prenotazione in corso: scegli di nuovo l'orario.",
    Answer.EXPIRED: "Il tempo per completare la prenotazione è scaduto e l'orario è tornato libero: scegline uno.",
    Answer.REVOKED: "L'orario non è più riservato per te: la clinica ha liberato gli orari in sospeso. Scegline uno.",
    Answer.NO_MORE_RENEWALS: "Non è possibile avere altro tempo: completa la prenotazione entro la scadenza.",
    Answer.SLOT_CLOSED: "Nel frattempo l'agenda è stata chiusa in questo orario: scegline un altro.",
    Answer.SERVICE_NOT_OFFERED: "Questa prestazione non si può prenotare online in questo orario.",
    Answer.TOO_LATE_TO_VERIFY: "Manca troppo poco alla visita per verificare i recapiti: telefona in segreteria.",
}
"""What the visitor reads."""

DONE = frozenset({Answer.PLACED, Answer.RENEWED, Answer.CONFIRMING, Answer.CONFIRMED, Answer.RELEASED})

_ENDED = {
    "confirmed": Answer.CONFIRMED,
    "released": Answer.RELEASED,
    "expired": Answer.EXPIRED,
    "revoked": Answer.REVOKED,
}


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to one request about one hold."""

    answer: Answer
    hold_id: int | None = None
    expires_at: datetime | None = None
    """Until when the slot is kept, after a placed or renewed hold."""
    appointment_id: int | None = None

    @property
    def sentence(self) -> str:
        return SENTENCES[self.answer]

    @property
    def done(self) -> bool:
        """Whether what was asked has been done. A hold found released answers RELEASED to any request: compare the
        answer where that matters."""
        return self.answer in DONE


@dataclass(frozen=True, slots=True)
class Booking:
    """What the visitor chose, to be written when the hold is confirmed.

    Without ``patient_id`` the booking is unverified: it keeps its seat until ``verification_expires_at``.
    """

    service_id: int
    patient_id: int | None = None
    contact_email: str | None = None
    contact_phone: str | None = None
    agreement_id: int | None = None
    quoted_price: Decimal | None = None
    paid: bool = False
    """A paid booking stands whether or not its contacts are ever verified."""


def new_token() -> str:
    """A token that nobody can guess, for the visitor to keep; only its hash is stored."""
    return secrets.token_urlsafe(32)


def hashed(secret: str) -> bytes:
    """How a token, or whatever tells one visitor from another, is stored: sha256, 32 bytes."""
    return hashlib.sha256(secret.encode()).digest()


# The visitor's lock makes the limit per visitor exact; the slot's row is where all who want a seat queue up.
_QUEUE_FOR_SLOT = sa.text("""
    WITH visitor AS MATERIALIZED (SELECT pg_advisory_xact_lock(:visitor_lock))
    SELECT s.capacity, s.state, s.starts_at, a.min_notice_minutes, a.clinic_id,
           a.online AND a.active AND c.active AS offered
    FROM visitor, slot s JOIN agenda a ON a.id = s.agenda_id JOIN clinic c ON c.id = a.clinic_id
    WHERE s.id = :slot
    FOR NO KEY UPDATE OF s""")

# A free unit if there is one, else one whose hold has expired. Nothing is written unless the seat is.
_PLACE = sa.text("""
    WITH again AS (
        SELECT id, state, expires_at, appointment_id FROM hold WHERE token_hash = :token
    ), others AS (
        SELECT count(*) AS held FROM hold
        WHERE visitor_hash = :visitor AND (state = 'confirming' OR state = 'live' AND expires_at > :as_of)
    ), unit AS (
        SELECT u.unit
        FROM generate_series(1, CAST(:capacity AS integer)) AS u (unit)
        LEFT JOIN seat ON seat.slot_id = :slot AND seat.unit = u.unit
        WHERE seat.unit IS NULL OR seat.held_until <= :as_of
        ORDER BY seat.unit IS NOT NULL, u.unit
        LIMIT 1
    ), seated AS (
        INSERT INTO seat (slot_id, unit, hold_id, held_until)
        SELECT :slot, unit.unit, nextval('hold_id_seq'), :expires_at
        FROM unit, others
        WHERE others.held < :per_visitor AND NOT EXISTS (SELECT FROM again)
        ON CONFLICT (slot_id, unit) DO UPDATE SET hold_id = EXCLUDED.hold_id, held_until = EXCLUDED.held_until
            WHERE seat.held_until <= :as_of
        RETURNING hold_id
    ), placed AS (
        INSERT INTO hold (id, clinic_id, slot_id, token_hash, visitor_hash, created_at, expires_at, last_activity_at)
        SELECT hold_id, :clinic, :slot, :token, :visitor, :as_of, :expires_at, :as_of FROM seated
        RETURNING id
    )
    SELECT placed.id AS hold_id, others.held, again.id AS again_id, again.state, again.expires_at, again.appointment_id
    FROM others LEFT JOIN placed ON true LEFT JOIN again ON true""")


def place(
    connection: sa.Connection, *, slot_id: int, token: str, visitor: str, as_of: datetime, terms: Terms = TERMS
) -> Reply:
    """Keep one unit of a slot for a visitor.

    ``visitor`` is whatever tells one visitor from another (a session's id); it is stored as a hash. Placing again with
    a token that is known answers what became of that hold.

    Answers: PLACED, FULL, TOO_MANY, TOO_SOON, NOT_OFFERED; for a known token its hold's state.
    """
    visitor_hash = hashed(visitor)
    slot = connection.execute(
        _QUEUE_FOR_SLOT, {"visitor_lock": lock_key("hold", visitor_hash.hex()), "slot": slot_id}
    ).one_or_none()
    if slot is None or not slot.offered or slot.state != "free":
        return Reply(Answer.NOT_OFFERED)
    if slot.starts_at <= as_of + timedelta(minutes=slot.min_notice_minutes):
        return Reply(Answer.TOO_SOON)
    expires_at = min(as_of + terms.lifetime, slot.starts_at)
    row = connection.execute(
        _PLACE,
        {
            "slot": slot_id,
            "clinic": slot.clinic_id,
            "capacity": slot.capacity,
            "token": hashed(token),
            "visitor": visitor_hash,
            "as_of": as_of,
            "expires_at": expires_at,
            "per_visitor": terms.per_visitor,
        },
    ).one()
    if row.hold_id is not None:
        return Reply(Answer.PLACED, row.hold_id, expires_at)
    if row.again_id is not None:
        answer = _ended(row.state, row.expires_at, as_of) or Answer.PLACED
        return Reply(answer, row.again_id, row.expires_at if answer is Answer.PLACED else None, row.appointment_id)
    return Reply(Answer.TOO_MANY if row.held >= terms.per_visitor else Answer.FULL)


_LOCK_HOLD = sa.text("""
    SELECT h.id, h.slot_id, h.state, h.created_at, h.expires_at, h.renewals, h.appointment_id,
           s.state AS slot_state, s.starts_at
    FROM hold h JOIN slot s ON s.id = h.slot_id
    WHERE h.token_hash = :token
    FOR NO KEY UPDATE OF h, s""")


def _lock(connection: sa.Connection, token: str) -> sa.Row[Any] | None:
    """The hold of a token with its row and its slot's locked, so that nobody ends it or gives its seat away now."""
    return connection.execute(_LOCK_HOLD, {"token": hashed(token)}).one_or_none()


def _ended(state: str, expires_at: datetime, as_of: datetime) -> Answer | None:
    """Why a hold no longer keeps its seat, or None while it does: the one test of renew, confirm and release.

    A hold whose payment is under way does not expire.
    """
    if state in _ENDED:
        return _ENDED[state]
    return Answer.EXPIRED if state == "live" and expires_at <= as_of else None


_EXTEND = sa.text("""
    WITH kept AS (
        UPDATE seat SET held_until = :expires_at WHERE hold_id = :hold RETURNING hold_id
    )
    UPDATE hold SET expires_at = :expires_at, last_activity_at = :as_of, renewals = renewals + 1
    FROM kept WHERE hold.id = kept.hold_id
    RETURNING hold.id""")


def renew(connection: sa.Connection, *, token: str, as_of: datetime, terms: Terms = TERMS) -> Reply:
    """Give the visitor more time, within the terms. A refusal never moves the expiry.

    Answers: RENEWED, NO_MORE_RENEWALS, CONFIRMING (needs no renewal); EXPIRED, REVOKED, RELEASED, CONFIRMED, UNKNOWN.
    """
    hold = _lock(connection, token)
    if hold is None:
        return Reply(Answer.UNKNOWN)
    over = _ended(hold.state, hold.expires_at, as_of)
    if over is not None:
        return Reply(over, hold.id, appointment_id=hold.appointment_id)
    if hold.state == "confirming":
        return Reply(Answer.CONFIRMING, hold.id)
    until = min(as_of + terms.lifetime, hold.created_at + terms.longest, hold.starts_at)
    if hold.renewals >= terms.renewals or until <= hold.expires_at:
        return Reply(Answer.NO_MORE_RENEWALS, hold.id, hold.expires_at)
    kept = connection.execute(_EXTEND, {"hold": hold.id, "expires_at": until, "as_of": as_of}).one_or_none()
    return Reply(Answer.RENEWED, hold.id, until) if kept else Reply(Answer.EXPIRED, hold.id)


# A payment that is under way must not lose its slot: the seat is kept until somebody says how it went.
_BEGIN = sa.text("""
    WITH kept AS (
        UPDATE seat SET held_until = 'infinity' WHERE hold_id = :hold RETURNING hold_id
    )
    UPDATE hold SET state = 'confirming', confirming_since = :as_of, last_activity_at = :as_of
    FROM kept WHERE hold.id = kept.hold_id
    RETURNING hold.id""")


def begin_confirming(connection: sa.Connection, *, token: str, as_of: datetime) -> Reply:
    """Say that the visitor's payment has started: from now on the hold does not expire.

    It must end in :func:`confirm` or :func:`release`. After ``PAYMENT_GRACE`` the sweeper lists it for a person.

    Answers: CONFIRMING, SLOT_CLOSED; EXPIRED, REVOKED, RELEASED, CONFIRMED, UNKNOWN.
    """
    hold = _lock(connection, token)
    if hold is None:
        return Reply(Answer.UNKNOWN)
    over = _ended(hold.state, hold.expires_at, as_of)
    if over is not None:
        return Reply(over, hold.id, appointment_id=hold.appointment_id)
    if hold.state == "confirming":
        return Reply(Answer.CONFIRMING, hold.id)
    if hold.slot_state != "free" or hold.starts_at <= as_of:
        return Reply(Answer.SLOT_CLOSED, hold.id)
    kept = connection.execute(_BEGIN, {"hold": hold.id, "as_of": as_of}).one_or_none()
    return Reply(Answer.CONFIRMING if kept else Answer.EXPIRED, hold.id)


# The seat passes from the hold to the appointment; nothing is written unless it does. A seat that somebody took over
# after the expiry, by a clock a moment ahead of ours, is no longer the hold's.
_CONFIRM = sa.text("""
    WITH booked AS (
        UPDATE seat SET hold_id = NULL, held_until = NULL, appointment_id = nextval('appointment_id_seq')
        WHERE hold_id = :hold
          AND EXISTS (SELECT FROM service v JOIN slot s ON s.id = :slot JOIN agenda a ON a.id = s.agenda_id
                      WHERE v.id = :service AND v.clinic_id = a.clinic_id
                        AND v.active AND v.deleted_at IS NULL AND v.bookable_online
                        AND (a.service_id = v.id
                             OR EXISTS (SELECT FROM agenda_service o WHERE o.agenda_id = a.id AND o.service_id = v.id)))
        RETURNING appointment_id
    ), written AS (
        INSERT INTO appointment (id, clinic_id, agenda_id, slot_id, service_id, specialist_id, patient_id, agreement_id,
                                 starts_at, ends_at, status, channel, quoted_price, contact_email, contact_phone,
                                 verification_expires_at, paid_at, created_at, updated_at)
        SELECT booked.appointment_id, a.clinic_id, a.id, s.id, :service, a.specialist_id, :patient, :agreement,
               s.starts_at, s.ends_at, :status, 'online', :price, :email, :phone,
               :verify_by, :paid_at, :as_of, :as_of
        FROM booked, slot s JOIN agenda a ON a.id = s.agenda_id
        WHERE s.id = :slot
        RETURNING id
    ), consumed AS (
        UPDATE hold SET state = 'confirmed', ended_at = :as_of, last_activity_at = :as_of, appointment_id = written.id
        FROM written WHERE hold.id = :hold
    )
    SELECT written.id AS appointment_id, EXISTS (SELECT FROM seat WHERE hold_id = :hold) AS seated
    FROM (VALUES (1)) AS one LEFT JOIN written ON true""")


def confirm(connection: sa.Connection, *, token: str, booking: Booking, as_of: datetime, terms: Terms = TERMS) -> Reply:
    """Turn a hold into an appointment: booked for a known patient, else unverified.

    Confirming again answers CONFIRMED with the same appointment, however late. A hold whose payment had begun is
    confirmed even if its slot was closed meanwhile: the desk finds that booking among the orphans, and the visitor has
    not paid for nothing.

    Answers: CONFIRMED, SLOT_CLOSED, SERVICE_NOT_OFFERED, TOO_LATE_TO_VERIFY; EXPIRED, REVOKED, RELEASED, UNKNOWN.
    """
    hold = _lock(connection, token)
    if hold is None:
        return Reply(Answer.UNKNOWN)
    over = _ended(hold.state, hold.expires_at, as_of)
    if over is not None:
        return Reply(over, hold.id, appointment_id=hold.appointment_id)
    if hold.state == "live" and (hold.slot_state != "free" or hold.starts_at <= as_of):
        return Reply(Answer.SLOT_CLOSED, hold.id)
    verify_by = None
    if booking.patient_id is None:
        verify_by = min(as_of + terms.verification, hold.starts_at - terms.verification_before_start)
        if not booking.paid and verify_by < as_of + terms.shortest_verification:
            return Reply(Answer.TOO_LATE_TO_VERIFY, hold.id)
    row = connection.execute(
        _CONFIRM,
        {
            "hold": hold.id,
            "slot": hold.slot_id,
            "service": booking.service_id,
            "patient": booking.patient_id,
            "agreement": booking.agreement_id,
            "price": booking.quoted_price,
            "email": booking.contact_email,
            "phone": booking.contact_phone,
            "status": "booked" if verify_by is None else "unverified",
            "verify_by": verify_by,
            "paid_at": as_of if booking.paid else None,
            "as_of": as_of,
        },
    ).one()
    if row.appointment_id is None:
        return Reply(Answer.SERVICE_NOT_OFFERED if row.seated else Answer.EXPIRED, hold.id)
    return Reply(Answer.CONFIRMED, hold.id, appointment_id=row.appointment_id)


_END = """
    WITH freed AS (
        DELETE FROM seat WHERE hold_id = ANY(:holds)
    )
    UPDATE hold SET state = :state, ended_at = :as_of WHERE id = ANY(:holds)"""


def release(connection: sa.Connection, *, token: str, as_of: datetime) -> Reply:
    """Give the slot back at once: the visitor went back, or the payment failed.

    Answers: RELEASED; EXPIRED, REVOKED, CONFIRMED, UNKNOWN.
    """
    hold = _lock(connection, token)
    if hold is None:
        return Reply(Answer.UNKNOWN)
    over = _ended(hold.state, hold.expires_at, as_of)
    if over is not None:
        return Reply(over, hold.id, appointment_id=hold.appointment_id)
    connection.execute(sa.text(_END), {"holds": [hold.id], "state": "released", "as_of": as_of})
    return Reply(Answer.RELEASED, hold.id)
