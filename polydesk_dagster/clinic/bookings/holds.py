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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Any

import sqlalchemy as sa

from polydesk_dagster import changes
from polydesk_dagster.changes import Kind, Scope, propose
from polydesk_dagster.changes.apply import named
from polydesk_dagster.clinic.bookings.emergency import Press, press
from polydesk_dagster.clinic.clinics import clinic_id
from polydesk_dagster.outcome import Outcome, Reason, Report, Table


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
    NO_CONTACT = "no_contact"
    NO_LONGER_BOOKED = "no_longer_booked"


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
    Answer.NO_CONTACT: "Per prenotare serve un recapito da verificare: scrivi l'email o il numero di telefono.",
    Answer.NO_LONGER_BOOKED: "Questa prenotazione non è più in programma: è stata annullata, o i recapiti non sono "
    "stati verificati in tempo. Prenota di nuovo o telefona in segreteria.",
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
_LOCKED = """
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


def _ask(
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
    WITH {_LOCKED}, extended AS (
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
    hold, lost = _ask(
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


# A payment that is under way must not lose its slot: the seat is kept until somebody says how it went. So none starts
# where the booking would be refused.
_BEGIN = sa.text(f"""
    WITH {_LOCKED}, working AS MATERIALIZED (
        SELECT locked.open AND a.active AND c.active AS open
        FROM locked JOIN agenda a ON a.id = locked.agenda_id JOIN clinic c ON c.id = a.clinic_id
    ), pinned AS (
        UPDATE seat SET held_until = 'infinity'
        FROM locked, working WHERE seat.hold_id = locked.id AND locked.kept AND locked.state = 'live' AND working.open
        RETURNING seat.hold_id
    ), begun AS (
        UPDATE hold SET state = 'confirming', confirming_since = :as_of, last_activity_at = :as_of
        FROM pinned WHERE hold.id = pinned.hold_id
    )
    SELECT locked.id, locked.state, locked.expires_at, locked.appointment_id, working.open, pinned.hold_id
    FROM locked CROSS JOIN working LEFT JOIN pinned ON true""")


def begin_confirming(connection: sa.Connection, *, token: str, as_of: datetime) -> Reply:
    """Say that the visitor's payment has started: from now on the hold does not expire.

    It must end in :func:`confirm` or :func:`release`. After ``PAYMENT_GRACE`` the sweeper lists it for a person.

    Answers: CONFIRMING, SLOT_CLOSED; EXPIRED, REVOKED, RELEASED, CONFIRMED, NO_LONGER_BOOKED, UNKNOWN.
    """
    hold, lost = _ask(connection, _BEGIN, token, as_of)
    if hold is None:
        return lost
    if hold.hold_id is not None or hold.state == "confirming":
        return Reply(Answer.CONFIRMING, hold.id)
    return lost if hold.open else Reply(Answer.SLOT_CLOSED, hold.id)


# The seat passes from the hold to the appointment; nothing is written unless it does. A seat that somebody took over
# after the expiry, by a clock a moment ahead of ours, is no longer the hold's. Once a payment is under way, what the
# clinic takes off its offer no longer counts.
_CONFIRM = sa.text(f"""
    WITH {_LOCKED}, offered AS (
        SELECT locked.id AS hold_id, locked.slot_id, a.clinic_id, a.id AS agenda_id, a.specialist_id, locked.starts_at,
               locked.ends_at, least(:as_of + :verification, locked.starts_at - :before_start) AS verify_by,
               locked.state = 'confirming'
               OR a.active AND (SELECT c.active FROM clinic c WHERE c.id = a.clinic_id) AS working
        FROM locked JOIN agenda a ON a.id = locked.agenda_id
        JOIN service v ON v.id = :service AND v.clinic_id = a.clinic_id
        LEFT JOIN agenda_service o ON o.agenda_id = a.id AND o.service_id = v.id
        WHERE locked.kept
          AND (locked.state = 'confirming'
               OR locked.open AND v.active AND v.deleted_at IS NULL AND v.bookable_online
                  AND (v.id = a.service_id OR o.agenda_id IS NOT NULL))
    ), seated AS (
        UPDATE seat SET hold_id = NULL, held_until = NULL, appointment_id = nextval('appointment_id_seq')
        FROM offered
        WHERE seat.hold_id = offered.hold_id AND offered.working
          AND (CAST(:patient AS bigint) IS NOT NULL OR :paid OR offered.verify_by >= :as_of + :shortest)
        RETURNING seat.appointment_id
    ), written AS (
        INSERT INTO appointment (id, clinic_id, agenda_id, slot_id, service_id, specialist_id, patient_id, agreement_id,
                                 starts_at, ends_at, status, channel, quoted_price, contact_email, contact_phone,
                                 verification_expires_at, paid_at, created_at, updated_at)
        SELECT seated.appointment_id, o.clinic_id, o.agenda_id, o.slot_id, :service, o.specialist_id, :patient,
               :agreement, o.starts_at, o.ends_at,
               CASE WHEN CAST(:patient AS bigint) IS NULL THEN 'unverified' ELSE 'booked' END, 'online', :price, :email,
               :phone, CASE WHEN CAST(:patient AS bigint) IS NULL THEN o.verify_by END,
               CASE WHEN :paid THEN CAST(:as_of AS timestamptz) END, :as_of, :as_of
        FROM seated, offered o
        RETURNING id
    ), consumed AS (
        UPDATE hold SET state = 'confirmed', ended_at = :as_of, last_activity_at = :as_of, appointment_id = written.id
        FROM written, locked WHERE hold.id = locked.id
    )
    SELECT locked.id, locked.state, locked.expires_at, locked.appointment_id, locked.open, written.id AS booked,
           offered.verify_by, offered.working
    FROM locked LEFT JOIN offered ON true LEFT JOIN written ON true""").columns(
    *map(sa.column, ("id", "state", "expires_at", "appointment_id", "open", "booked", "verify_by", "working"))
)


def confirm(connection: sa.Connection, *, token: str, booking: Booking, as_of: datetime, terms: Terms = TERMS) -> Reply:
    """Turn a hold into an appointment: booked for a known patient, else unverified.

    Confirming again answers CONFIRMED with the same appointment, however late, while that stands. A hold whose payment
    had begun is confirmed even if its slot, its agenda or its clinic was closed or the service withdrawn meanwhile: the
    desk finds that booking (of a closed slot among the orphans), and the visitor has not paid for nothing.

    Answers: CONFIRMED, SLOT_CLOSED, SERVICE_NOT_OFFERED, TOO_LATE_TO_VERIFY, NO_CONTACT; EXPIRED, REVOKED, RELEASED,
    NO_LONGER_BOOKED, UNKNOWN.
    """
    if not booking.verifiable:
        return Reply(Answer.NO_CONTACT)
    hold, lost = _ask(
        connection,
        _CONFIRM,
        token,
        as_of,
        service=booking.service_id,
        patient=booking.patient_id,
        agreement=booking.agreement_id,
        price=booking.quoted_price,
        email=booking.contact_email,
        phone=booking.contact_phone,
        paid=booking.paid,
        verification=terms.verification,
        before_start=terms.verification_before_start,
        shortest=terms.shortest_verification,
    )
    if hold is None:
        return lost
    if hold.booked is not None:
        return Reply(Answer.CONFIRMED, hold.id, appointment_id=hold.booked)
    if hold.state == "live" and not hold.open:
        return Reply(Answer.SLOT_CLOSED, hold.id)
    if hold.verify_by is None:
        return Reply(Answer.SERVICE_NOT_OFFERED, hold.id)
    if not hold.working:
        return Reply(Answer.SLOT_CLOSED, hold.id)
    too_late = booking.patient_id is None and not booking.paid and hold.verify_by < as_of + terms.shortest_verification
    return Reply(Answer.TOO_LATE_TO_VERIFY, hold.id) if too_late else lost


_RELEASE = sa.text(f"""
    WITH {_LOCKED}, freed AS (
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
    hold, lost = _ask(connection, _RELEASE, token, as_of)
    return lost if hold is None else Reply(Answer.RELEASED, hold.id)


# What an operator reads for a hold: a visitor is nobody's name, so the slot names it.
_NAMED = """
    c.code || ', ' || a.name || ', ' || to_char(s.starts_at AT TIME ZONE c.time_zone, 'DD/MM/YYYY HH24:MI') AS what
    FROM hold t JOIN slot s ON s.id = t.slot_id JOIN agenda a ON a.id = s.agenda_id JOIN clinic c ON c.id = t.clinic_id
    WHERE t.ended_at IS NULL AND (CAST(:clinic_id AS bigint) IS NULL OR t.clinic_id = :clinic_id)"""

_FREE_SEATS = "DELETE FROM seat WHERE hold_id IN (SELECT id FROM {rows} r WHERE r.action = 'update')"

_GRACE = f"interval '{PAYMENT_GRACE.total_seconds():g} seconds'"

_PAST = "t.state = 'live' AND t.expires_at <= :as_of"
_STUCK = f"t.state = 'confirming' AND t.confirming_since <= :as_of - {_GRACE}"
_UNPAID = "t.id = ANY(CAST(:unpaid AS bigint[]))"

_NEVER_PUT_BACK = "un orario liberato non torna a chi lo aveva, che deve sceglierlo di nuovo"

EXPIRED_HOLD = Kind(
    name="expired_hold",
    label="orari rimasti bloccati",
    table="hold",
    key="r.what",
    owned=("state", "ended_at"),
    carried={"what": "text"},
    volatile=True,
    still=f"({_PAST} OR {_STUCK} AND {_UNPAID})",
    after=(_FREE_SEATS,),
    final=_NEVER_PUT_BACK,
    expires=timedelta(minutes=2),
)

_EXPIRED_HOLDS = f"""
    SELECT CASE WHEN t.state = 'live' OR {_UNPAID} THEN 'update' ELSE 'conflict' END AS action,
           CAST(NULL AS text) AS finding,
           CASE WHEN t.state = 'live' THEN 'scaduto'
                WHEN {_UNPAID} THEN 'pagamento verificato: non riuscito'
                ELSE 'blocco ' || t.id || ': pagamento in corso da '
                     || CAST(extract(epoch FROM CAST(:as_of AS timestamptz) - t.confirming_since) / 60 AS integer)
                     || ' minuti, controlla se è riuscito' END AS reason,
           t.id,
           CASE WHEN t.state = 'live' THEN 'expired' WHEN {_UNPAID} THEN 'released' ELSE t.state END AS state,
           CASE WHEN t.state = 'live' OR {_UNPAID} THEN CAST(:as_of AS timestamptz) END AS ended_at, {_NAMED}
      AND ({_PAST} OR {_STUCK})
"""

_DUE = sa.text(f"SELECT EXISTS (SELECT FROM hold t WHERE {_PAST}) OR EXISTS (SELECT FROM hold t WHERE {_STUCK})")


def nothing_expired(connection: sa.Connection, as_of: datetime) -> str | None:
    """Why the sweeper has nothing to do, in Italian; None if some hold has expired or some payment is stuck."""
    due = connection.scalar(_DUE, {"as_of": as_of})
    return None if due else "nessun orario è rimasto bloccato"


# Of the holds that a person calls unpaid, those that are not a payment under way for longer than the grace. A mistyped
# number may be none that an id can be.
_NOT_UNPAID = sa.text(f"""
    SELECT n.id, CASE WHEN t.id IS NULL THEN 'non esiste' || coalesce(' in ' || CAST(:clinic AS text), '')
                      WHEN t.state = 'confirming' THEN 'è in pagamento da troppo poco: il pagamento può ancora riuscire'
                      ELSE 'non ha un pagamento in corso' END AS why, c.code AS clinic
    FROM unnest(CAST(:unpaid AS numeric[])) n (id)
    LEFT JOIN hold t ON t.id = CAST(CASE WHEN n.id BETWEEN 1 AND {2**63 - 1} THEN n.id END AS bigint)
                    AND (CAST(:clinic_id AS bigint) IS NULL OR t.clinic_id = :clinic_id)
    LEFT JOIN clinic c ON c.id = t.clinic_id
    WHERE ({_STUCK}) IS NOT TRUE
    ORDER BY n.id""")


def _not_unpaid(connection: sa.Connection, scope: Scope, as_of: datetime) -> Report | None:
    """Why what a person said of payments cannot be so, by the number of each hold; None if it can."""
    values = {**scope.parameters, "as_of": as_of, "clinic": scope.clinic, "clinic_id": scope.clinic_id}
    reasons = tuple(
        Reason("not_unpaid", f"Il blocco {row.id} {row.why}: controlla il numero nell'elenco.", row.clinic)
        for row in connection.execute(_NOT_UNPAID, values)
    )
    return Report(Outcome.REFUSED, reasons=reasons) if reasons else None


def release_expired(
    connection: sa.Connection,
    as_of: datetime,
    *,
    clinic: str | None = None,
    preview: bool = False,
    unpaid: Sequence[int] = (),
    actor: str = "dagster",
) -> Report:
    """Tidy the holds whose time has passed, as a volatile plan in the caller's transaction.

    A payment that has been under way for longer than ``PAYMENT_GRACE`` is listed for a person, one reason a hold, and
    left alone, unless ``unpaid`` names its hold: a person has looked and the payment did not go through. Refused, with
    nothing written, when ``unpaid`` names a hold that is no such payment.

    Raises:
        PermanentError: for an unknown clinic.
    """
    scope = Scope(
        "release_expired_holds",
        clinic,
        clinic_id(connection, clinic),
        {"unpaid": sorted(unpaid)},
    )
    refusal = _not_unpaid(connection, scope, as_of)
    if refusal is not None:
        return refusal
    plan = propose(connection, EXPIRED_HOLD, scope, _EXPIRED_HOLDS, as_of=as_of)
    stuck = tuple(named(connection, plan, EXPIRED_HOLD, "payment_stuck", "r.action = 'conflict'", "r.reason"))
    shown = replace(changes.preview(connection, plan, EXPIRED_HOLD), reasons=stuck)
    if preview:
        return shown
    report = changes.apply(connection, plan.id, as_of=as_of, actor=actor)
    return replace(report, reasons=(*report.reasons, *shown.reasons), tables=shown.tables)


def _payments_left_alone(connection: sa.Connection, rows: str, _as_of: datetime) -> Report | None:
    number = connection.scalar(
        sa.text(f"""
            SELECT count(*) FROM {rows} r JOIN hold t ON t.id = r.id
            WHERE r.action = 'conflict' AND t.state = 'confirming'""")
    )
    if not number:
        return None
    said = "1 pagamento in corso: non toccato" if number == 1 else f"{number} pagamenti in corso: non toccati"
    return Report(Outcome.NOTHING_TO_DO, reasons=(Reason("payments_under_way", said, count=number),))


REVOKED_HOLD = Kind(
    name="revoked_hold",
    label="tutti gli orari bloccati",
    table="hold",
    key="r.what",
    owned=("state", "ended_at"),
    carried={"what": "text"},
    volatile=True,
    # What has expired, or no longer has, since the plan was looked at would leave the wrong tombstone.
    still="t.state = 'live' AND (r.state = 'expired') = (t.expires_at <= :as_of)",
    after=(
        _FREE_SEATS,
        "UPDATE hold SET ended_at = :as_of FROM {rows} r WHERE r.action = 'update' AND hold.id = r.id",
    ),
    final=_NEVER_PUT_BACK,
    effect=_payments_left_alone,
    expires=timedelta(minutes=5),
)

_ALL_HOLDS = f"""
    SELECT CASE t.state WHEN 'live' THEN 'update' ELSE 'conflict' END AS action, CAST(NULL AS text) AS finding,
           CASE WHEN t.state = 'confirming' THEN 'pagamento in corso: non si tocca'
                WHEN t.expires_at <= :as_of THEN 'scaduto'
                ELSE 'attivo ' || CAST(greatest(extract(epoch FROM CAST(:as_of AS timestamptz) - t.last_activity_at), 0)
                                       AS integer) || ' secondi fa' END AS reason,
           t.id,
           CASE WHEN t.state = 'confirming' THEN t.state WHEN t.expires_at <= :as_of THEN 'expired' ELSE 'revoked' END
               AS state,
           CASE WHEN t.state = 'live' THEN CAST(:as_of AS timestamptz) END AS ended_at, {_NAMED}
"""

_EXPOSURE = sa.text("""
    SELECT c.code, count(*) FILTER (WHERE h.state = 'live' AND h.expires_at > :as_of) AS live,
           count(*) FILTER (WHERE h.state = 'live' AND h.expires_at <= :as_of) AS expired,
           count(*) FILTER (WHERE h.state = 'confirming') AS confirming,
           CAST(extract(epoch FROM CAST(:as_of AS timestamptz) - max(h.last_activity_at)) AS integer) AS quiet_seconds,
           count(*) FILTER (WHERE h.state = 'live' AND h.expires_at > :as_of
                              AND (SELECT count(*) FROM seat
                                   WHERE seat.slot_id = h.slot_id
                                     AND (seat.appointment_id IS NOT NULL OR seat.held_until > :as_of)) >= s.capacity)
               AS exposed
    FROM hold h JOIN clinic c ON c.id = h.clinic_id JOIN slot s ON s.id = h.slot_id
    WHERE h.ended_at IS NULL AND (CAST(:clinic_id AS bigint) IS NULL OR h.clinic_id = :clinic_id)
    GROUP BY c.code ORDER BY c.code""")


def release_all(
    connection: sa.Connection, as_of: datetime, given: Press, *, clinic: str | None = None, preview: bool = False
) -> Report:
    """Take every hold away behind the gate of :mod:`clinic.emergency`, in the caller's transaction.

    Holds whose payment is under way are refused. The others become tombstones: who confirms late is told that the
    slot is no longer reserved, so nothing can be overbooked.

    Raises:
        PermanentError: for an unknown clinic.
    """
    scope = Scope("release_all_holds", clinic, clinic_id(connection, clinic))
    report = press(
        connection,
        given,
        scope=scope,
        kind=REVOKED_HOLD,
        propose=lambda: propose(connection, REVOKED_HOLD, scope, _ALL_HOLDS, as_of=as_of),
        as_of=as_of,
        preview=preview,
    )
    if not (preview or given.looks_only):
        return report
    rows = connection.execute(_EXPOSURE, {"as_of": as_of, "clinic_id": scope.clinic_id}).all()
    columns = ("Clinica", "Attivi", "Scaduti", "In pagamento", "Secondi dall'ultima attività", "Di orari pieni")
    exposure = Table("Chi sta prenotando adesso", columns, tuple(tuple(row) for row in rows), len(rows))
    losing = sum(row.exposed for row in rows)
    figures = {**report.figures, "Visitatori che potrebbero perdere l'ultimo posto": losing}
    return replace(report, figures=figures, tables=(exposure, *report.tables))
