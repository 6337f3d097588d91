"""From a hold to a booking: a payment under way, and the confirmation that gives the hold's seat to an appointment.

What a booking front end calls when its visitor has chosen (``clinic.bookings.holds`` says how a hold begins).
"""

from __future__ import annotations

from datetime import datetime

import sqlalchemy as sa

from polydesk_dagster.clinic.bookings import payments
from polydesk_dagster.clinic.bookings.answers import Answer, Reply
from polydesk_dagster.clinic.bookings.holds import LOCKED, TERMS, Booking, Terms, ask, end_of, hashed
from polydesk_dagster.database import engine

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


_CONFIRM = """
    SELECT answer, hold, booking
    FROM confirm_hold(%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)"""

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
    given = (
        hashed(token),
        booking.service_id,
        booking.patient_id,
        booking.agreement_id,
        booking.quoted_price,
        booking.contact_email,
        booking.contact_phone,
        booking.paid,
        as_of,
        terms.verification,
        terms.verification_before_start,
        terms.shortest_verification,
    )
    answer, hold, appointment = engine.ask(connection, _CONFIRM, given)
    if answer == "over":
        return end_of(connection, hold, as_of)
    return Reply(Answer(answer), hold, appointment_id=appointment)
