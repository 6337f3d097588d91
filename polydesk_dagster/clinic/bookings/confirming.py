"""From a hold to a booking: a payment under way, and the confirmation that gives the hold's seat to an appointment.

What a booking front end calls when its visitor has chosen (``clinic.bookings.holds`` says how a hold begins).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

import sqlalchemy as sa

from polydesk_dagster.clinic.bookings.answers import Answer, Reply
from polydesk_dagster.clinic.bookings.holds import LOCKED, TERMS, Terms, ask


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


# A payment that is under way must not lose its slot: the seat is kept until somebody says how it went. So none starts
# where the booking would be refused.
_BEGIN = sa.text(f"""
    WITH {LOCKED}, working AS MATERIALIZED (
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
    hold, lost = ask(connection, _BEGIN, token, as_of)
    if hold is None:
        return lost
    if hold.hold_id is not None or hold.state == "confirming":
        return Reply(Answer.CONFIRMING, hold.id)
    return lost if hold.open else Reply(Answer.SLOT_CLOSED, hold.id)


# The seat passes from the hold to the appointment; nothing is written unless it does. A seat that somebody took over
# after the expiry, by a clock a moment ahead of ours, is no longer the hold's. Once a payment is under way, what the
# clinic takes off its offer no longer counts.
_CONFIRM = sa.text(f"""
    WITH {LOCKED}, offered AS (
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
    hold, lost = ask(
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
