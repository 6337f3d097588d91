"""From a hold to a booking: a payment under way, and the confirmation that gives the hold's seat to an appointment.

What a booking front end calls when its visitor has chosen (``clinic.bookings.holds`` says how a hold begins).
"""

from __future__ import annotations

from datetime import datetime

import sqlalchemy as sa

from polydesk_dagster.clinic.bookings import payments
from polydesk_dagster.clinic.bookings.answers import Answer, Reply
from polydesk_dagster.clinic.bookings.holds import LOCKED, OFFERS, TERMS, Booking, Terms, ask

# A payment that is under way keeps its slots for a while of its own; none starts where the booking would be refused.
_BEGIN = sa.text(f"""
    WITH {LOCKED}, working AS MATERIALIZED (
        SELECT locked.open AND a.active AND c.active AS open
        FROM locked JOIN agenda a ON a.id = locked.agenda_id JOIN clinic c ON c.id = a.clinic_id
    ), pinned AS (
        UPDATE seat SET held_until = :as_of + :payment
        FROM locked, working WHERE seat.hold_id = locked.id AND locked.kept AND locked.state = 'live' AND working.open
        RETURNING seat.hold_id
    ), once AS (
        SELECT DISTINCT hold_id FROM pinned
    ), begun AS (
        UPDATE hold SET state = 'confirming', confirming_since = :as_of, last_activity_at = :as_of,
                        expires_at = :as_of + :payment, payment_reference = :reference
        FROM once WHERE hold.id = once.hold_id
    )
    SELECT locked.id, locked.state, locked.expires_at, locked.appointment_id, working.open, once.hold_id
    FROM locked CROSS JOIN working LEFT JOIN once ON true""")


def begin_confirming(
    connection: sa.Connection,
    *,
    token: str,
    as_of: datetime,
    payment_reference: str | None = None,
    terms: Terms = TERMS,
) -> Reply:
    """Say that the visitor's payment has started: the hold has the time of a payment from now on.

    It should end in :func:`confirm` or :func:`holds.release`. After ``PAYMENT_GRACE`` the sweeper lists it for a
    person, who looks it up by ``payment_reference``; when its time is over the slots are free and the payment is an
    open case. Beginning again gives no more time.

    Answers: CONFIRMING, SLOT_CLOSED; EXPIRED, REVOKED, RELEASED, CONFIRMED, NO_LONGER_BOOKED, UNKNOWN.
    """
    given = {"payment": terms.payment, "reference": payment_reference or None}
    hold, lost = ask(connection, _BEGIN, token, as_of, **given)
    if hold is None:
        return lost
    if hold.hold_id is not None:
        return Reply(Answer.CONFIRMING, hold.id, as_of + terms.payment)
    if hold.state == "confirming":
        return Reply(Answer.CONFIRMING, hold.id, hold.expires_at)
    return lost if hold.open else Reply(Answer.SLOT_CLOSED, hold.id)


# The seat passes from the hold to the appointment; nothing is written unless it does. A seat that somebody took over
# after the expiry, by a clock a moment ahead of ours, is no longer the hold's. Once a payment is under way, what the
# clinic takes off its offer no longer counts; that the patient is elsewhere counts until it is paid. What is paid asks
# all the same: others who book the patient wait for it, and then see it.
_CONFIRM = sa.text(f"""
    WITH {LOCKED}, offered AS MATERIALIZED (
        SELECT locked.id AS hold_id, locked.slot_id, a.clinic_id, a.id AS agenda_id, a.specialist_id, locked.starts_at,
               locked.ends_at, least(:as_of + :verification, locked.starts_at - :before_start) AS verify_by,
               locked.state = 'confirming'
               OR a.active AND (SELECT c.active FROM clinic c WHERE c.id = a.clinic_id) AS working,
               CAST(:patient AS bigint) IS NOT NULL
               AND in_the_way(NULL, NULL, NULL, :patient, tstzrange(locked.starts_at, locked.ends_at), :as_of)
                   IS NOT NULL AS elsewhere
        FROM locked JOIN agenda a ON a.id = locked.agenda_id
        JOIN service v ON v.id = :service AND v.clinic_id = a.clinic_id
        WHERE locked.kept AND coalesce(locked.service_id, v.id) = v.id
          AND (locked.state = 'confirming'
               OR locked.open AND v.active AND v.deleted_at IS NULL AND v.bookable_online AND {OFFERS})
    ), numbered AS MATERIALIZED (
        SELECT nextval('appointment_id_seq') AS id FROM offered
        WHERE offered.working AND (:paid OR NOT offered.elsewhere)
          AND (CAST(:patient AS bigint) IS NOT NULL OR :paid OR offered.verify_by >= :as_of + :shortest)
    ), seated AS (
        UPDATE seat SET hold_id = NULL, appointment_id = numbered.id,
                        held_until = CASE WHEN CAST(:patient AS bigint) IS NULL AND NOT :paid THEN offered.verify_by END
        FROM offered, numbered WHERE seat.hold_id = offered.hold_id
        RETURNING seat.appointment_id
    ), written AS (
        INSERT INTO appointment (id, clinic_id, agenda_id, slot_id, service_id, specialist_id, patient_id, agreement_id,
                                 starts_at, ends_at, status, channel, quoted_price, contact_email, contact_phone,
                                 verification_expires_at, paid_at, created_at, updated_at)
        SELECT numbered.id, o.clinic_id, o.agenda_id, o.slot_id, :service, o.specialist_id, :patient,
               :agreement, o.starts_at, o.ends_at,
               CASE WHEN CAST(:patient AS bigint) IS NULL THEN 'unverified' ELSE 'booked' END, 'online', :price, :email,
               :phone, CASE WHEN CAST(:patient AS bigint) IS NULL THEN o.verify_by END,
               CASE WHEN :paid THEN CAST(:as_of AS timestamptz) END, :as_of, :as_of
        FROM numbered, offered o
        WHERE EXISTS (SELECT FROM seated)
        RETURNING id
    ), consumed AS (
        UPDATE hold SET state = 'confirmed', ended_at = :as_of, last_activity_at = :as_of, appointment_id = written.id
        FROM written, locked WHERE hold.id = locked.id
    )
    SELECT locked.id, locked.state, locked.expires_at, locked.appointment_id, locked.open, locked.kept,
           written.id AS booked,
           offered.verify_by, offered.working, offered.elsewhere
    FROM locked LEFT JOIN offered ON true LEFT JOIN written ON true""").columns(
    *map(
        sa.column,
        ("id", "state", "expires_at", "appointment_id", "open", "kept", "booked", "verify_by", "working", "elsewhere"),
    )
)


_OVER = {Answer.EXPIRED, Answer.REVOKED, Answer.RELEASED, Answer.SLOT_CLOSED}
"""What a visitor who has paid is not simply told."""


def confirm(connection: sa.Connection, *, token: str, booking: Booking, as_of: datetime, terms: Terms = TERMS) -> Reply:
    """Turn a hold into an appointment: booked for a known patient, else unverified.

    What is paid is never simply refused: where the hold is over its time is booked again if it is free, else the
    payment is an open case for the desk (``clinic.bookings.payments``).

    Confirming again answers CONFIRMED with the same appointment, however late, while that stands. A hold whose payment
    had begun is confirmed even if its slot, its agenda or its clinic was closed or the service withdrawn meanwhile: the
    desk finds that booking (of a closed slot among the orphans), and the visitor has not paid for nothing. A patient
    who has another appointment then is ELSEWHERE, and the hold stays, unless it is ``paid``: that is booked, and the
    check ``nobody_in_two_places`` finds it.

    The service must be the one that the hold is for.

    Answers: CONFIRMED, PAID_TOO_LATE, SLOT_CLOSED, SERVICE_NOT_OFFERED, ELSEWHERE, TOO_LATE_TO_VERIFY, NO_CONTACT;
    EXPIRED, REVOKED, RELEASED, NO_LONGER_BOOKED, UNKNOWN.
    """
    if not booking.verifiable:
        return Reply(Answer.NO_CONTACT)
    reply = _confirm(connection, token, booking, as_of, terms)
    if booking.paid and reply.hold_id is not None and reply.answer in _OVER:
        return payments.keep(connection, hold_id=reply.hold_id, booking=booking, as_of=as_of)
    return reply


def _confirm(connection: sa.Connection, token: str, booking: Booking, as_of: datetime, terms: Terms) -> Reply:
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
    if not hold.kept:
        return lost
    if hold.state == "live" and not hold.open:
        return Reply(Answer.SLOT_CLOSED, hold.id)
    if hold.verify_by is None:
        return Reply(Answer.SERVICE_NOT_OFFERED, hold.id)
    if not hold.working:
        return Reply(Answer.SLOT_CLOSED, hold.id)
    if hold.elsewhere and not booking.paid:
        return Reply(Answer.ELSEWHERE, hold.id)
    too_late = booking.patient_id is None and not booking.paid and hold.verify_by < as_of + terms.shortest_verification
    return Reply(Answer.TOO_LATE_TO_VERIFY, hold.id) if too_late else lost
