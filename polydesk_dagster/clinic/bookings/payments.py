"""Money for a slot that the visitor no longer had: booked again while it is free, else an open case for the desk.

A case is also opened for a payment of which nobody has said how it ended (``sweeping``, ``releasing``). It is settled
by a person: booked elsewhere, given back, or found never to have been paid.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

import sqlalchemy as sa

from polydesk_dagster.changes import audit
from polydesk_dagster.clinic.bookings.answers import Answer, Reply
from polydesk_dagster.clinic.bookings.appointments import SEAT, Place, find_place
from polydesk_dagster.clinic.bookings.appointments import Answer as Refusal
from polydesk_dagster.clinic.bookings.holds import Booking
from polydesk_dagster.values import Instant

_HOLD = sa.text("""
    SELECT h.id, h.slot_id, h.clinic_id, h.appointment_id, s.starts_at, coalesce(h.service_id, :service) AS service_id,
           a.status AS booked_as
    FROM hold h JOIN slot s ON s.id = h.slot_id LEFT JOIN appointment a ON a.id = h.appointment_id
    WHERE h.id = :hold FOR NO KEY UPDATE OF h""")

_BOOK = sa.text("""
    INSERT INTO appointment (clinic_id, agenda_id, slot_id, service_id, specialist_id, patient_id, agreement_id,
                             starts_at, ends_at, status, channel, quoted_price, contact_email, contact_phone,
                             verification_expires_at, paid_at, overlap_reason, created_at, updated_at)
    VALUES (:clinic, :agenda, :slot, :service, :specialist, :patient, :agreement, :starts, :ends, :status, 'online',
            :price, :email, :phone, CASE WHEN CAST(:patient AS bigint) IS NULL THEN CAST(:starts AS timestamptz) END,
            :as_of, :overlap, :as_of, :as_of)
    RETURNING id""")

# What has ended stays as it ended, but knows what came of it.
_REMEMBER = sa.text("""
    UPDATE hold SET appointment_id = :appointment, last_activity_at = :as_of,
                    state = CASE WHEN ended_at IS NULL THEN 'expired' ELSE state END,
                    ended_at = coalesce(ended_at, :as_of)
    WHERE id = :hold""")

_RESOLVE_BY_BOOKING = sa.text("""
    UPDATE payment_case SET resolved_at = :as_of, resolution = 'booked', resolved_by = 'online'
    WHERE hold_id = :hold AND resolved_at IS NULL""")

_OPEN = sa.text("""
    INSERT INTO payment_case AS c (clinic_id, hold_id, kind, payment_reference, service_id, slot_id, starts_at,
                                   patient_id, contact_email, contact_phone, price, opened_at)
    SELECT h.clinic_id, h.id, 'paid_too_late', h.payment_reference, :service, h.slot_id, :starts, :patient, :email,
           :phone, :price, :as_of
    FROM hold h WHERE h.id = :hold
    ON CONFLICT (hold_id) DO UPDATE
        SET kind = 'paid_too_late', patient_id = EXCLUDED.patient_id, contact_email = EXCLUDED.contact_email,
            contact_phone = EXCLUDED.contact_phone, price = EXCLUDED.price
        WHERE c.kind = 'unanswered' AND c.resolved_at IS NULL""")

OVERLAP = "pagato a blocco scaduto"
"""Why a paid booking may stand beside another of its patient: the desk sees both, the money is not lost."""


def keep(connection: sa.Connection, *, hold_id: int, booking: Booking, as_of: datetime) -> Reply:
    """Book what was paid for a hold that is over, if its time is free, else keep the payment as an open case. Asking
    again gives the same answer.

    Answers: CONFIRMED with the booking, PAID_TOO_LATE, NO_LONGER_BOOKED.
    """
    given = {**booking.bound, "hold": hold_id, "as_of": as_of}
    hold = connection.execute(_HOLD, given).one()
    if hold.appointment_id is not None:
        gone = hold.booked_as in {"cancelled", "expired"}
        answer = Answer.NO_LONGER_BOOKED if gone else Answer.CONFIRMED
        return Reply(answer, hold_id, appointment_id=hold.appointment_id)
    wanted = (hold.slot_id, hold.service_id, booking.patient_id, as_of)
    place = find_place(connection, *wanted, by_staff=True)
    beside_another = place is Refusal.PATIENT_BUSY
    if beside_another:
        place = find_place(connection, *wanted, by_staff=True, overlaps=True)
    if not isinstance(place, Place):
        connection.execute(_OPEN, {**given, "service": hold.service_id, "starts": hold.starts_at})
        return Reply(Answer.PAID_TOO_LATE, hold_id)
    booked = connection.scalar(
        _BOOK,
        {
            **given,
            "clinic": place.clinic_id,
            "agenda": place.agenda_id,
            "slot": place.slot_id,
            "service": hold.service_id,
            "specialist": place.specialist_id,
            "starts": place.starts_at,
            "ends": place.ends_at,
            "status": "unverified" if booking.patient_id is None else "booked",
            "overlap": OVERLAP if beside_another else None,
        },
    )
    connection.execute(SEAT, {"appointment": booked, "slot": place.slot_id, "lasts": place.lasts, "as_of": as_of})
    connection.execute(_REMEMBER, {"hold": hold_id, "appointment": booked, "as_of": as_of})
    connection.execute(_RESOLVE_BY_BOOKING, {"hold": hold_id, "as_of": as_of})
    return Reply(Answer.CONFIRMED, hold_id, appointment_id=booked)


OPEN_UNANSWERED = """
    INSERT INTO payment_case (clinic_id, hold_id, kind, payment_reference, service_id, slot_id, starts_at, opened_at)
    SELECT h.clinic_id, h.id, 'unanswered', h.payment_reference, h.service_id, h.slot_id, s.starts_at, :as_of
    FROM {rows} r JOIN hold h ON h.id = r.id JOIN slot s ON s.id = h.slot_id
    WHERE r.action = 'update' AND r.state IN ('expired', 'revoked') AND h.confirming_since IS NOT NULL
    ON CONFLICT (hold_id) DO NOTHING"""
"""SQL of a plan's kind: the payments among its holds, of which nobody has said how they ended."""


def waiting(connection: sa.Connection, clinic_id: int | None = None) -> int:
    """How many cases wait for the desk."""
    found = connection.scalar(
        sa.text("""SELECT count(*) FROM payment_case
                   WHERE resolved_at IS NULL AND (CAST(:clinic AS bigint) IS NULL OR clinic_id = :clinic)"""),
        {"clinic": clinic_id},
    )
    return int(found or 0)


@dataclass(frozen=True, slots=True)
class Case:
    """Money of which the desk must say what becomes. Names and contacts are for people with access to the records."""

    id: int
    clinic: str
    kind: str
    """``unanswered``: begun, and nobody has said how it ended; ``paid_too_late``: paid, and the time was gone."""
    reference: str | None
    """By which the payment can be looked up at whoever took it."""
    at: Instant
    """The start that was wanted."""
    service: str
    patient_id: int | None
    patient: str
    contacts: tuple[str, ...]
    price: Decimal | None
    opened_at: Instant


def cases(connection: sa.Connection, clinic: str | None = None, *, limit: int = 1000) -> list[Case]:
    """The open cases, the oldest first."""
    rows = connection.execute(
        sa.text("""
            SELECT n.id, c.code, n.kind, n.payment_reference, n.starts_at, c.time_zone, coalesce(v.name, ''), p.id,
                   concat_ws(' ', p.first_name, p.last_name),
                   array_remove(ARRAY[p.mobile, p.phone, n.contact_phone, n.contact_email], NULL), n.price, n.opened_at
            FROM payment_case n JOIN clinic c ON c.id = n.clinic_id LEFT JOIN service v ON v.id = n.service_id
            LEFT JOIN patient p ON p.id = n.patient_id
            WHERE n.resolved_at IS NULL AND (CAST(:clinic AS text) IS NULL OR c.code = :clinic)
            ORDER BY n.opened_at, n.id LIMIT :limit"""),
        {"clinic": clinic, "limit": limit},
    )
    return [
        Case(
            number,
            code,
            kind,
            reference,
            Instant(at, zone),
            service,
            patient,
            name,
            tuple(dict.fromkeys(to)),
            price,
            Instant(opened, zone),
        )
        for number, code, kind, reference, at, zone, service, patient, name, to, price, opened in rows
    ]


RESOLUTIONS = ("booked", "refunded", "unpaid")
"""Booked elsewhere, given back, or found never to have been paid."""


def settle(connection: sa.Connection, case_id: int, *, resolution: str, actor: str, as_of: datetime) -> bool:
    """Say what became of a case, one of ``RESOLUTIONS``; False if there is no open one with this id. It is audited."""
    clinic = connection.scalar(
        sa.text("""UPDATE payment_case n SET resolved_at = :as_of, resolution = :resolution, resolved_by = :actor
                   FROM clinic c WHERE n.id = :case AND n.resolved_at IS NULL AND c.id = n.clinic_id
                   RETURNING c.code"""),
        {"case": case_id, "resolution": resolution, "actor": actor, "as_of": as_of},
    )
    if clinic is None:
        return False
    detail = {"case": case_id, "resolution": resolution}
    audit.append(
        connection, as_of=as_of, actor=actor, action="payment", service="bookings", clinic=clinic, detail=detail
    )
    return True
