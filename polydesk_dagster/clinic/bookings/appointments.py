"""What becomes of a booking: the desk books, whoever may cancels it, and it moves to another time.

A booking's seats and its status go together: the schema frees the seats of what is cancelled or expired. Every function
is one transaction of the caller's; a refusal is an answer and changes nothing. One order of locks: the booking, then
slots, then whom and what the service needs.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Literal

import sqlalchemy as sa

from polydesk_dagster.changes.audit import is_reason
from polydesk_dagster.clinic.bookings.holds import OFFERS


class Answer(StrEnum):
    """What became of a request about a booking."""

    BOOKED = "booked"
    MOVED = "moved"
    CANCELLED = "cancelled"

    UNKNOWN = "unknown"
    UNDER_WAY = "under_way"
    """The patient has arrived, or the visit is over: nothing is cancelled or moved any more."""
    NO_LONGER_BOOKED = "no_longer_booked"
    FULL = "full"
    NOT_OFFERED = "not_offered"
    TOO_LATE = "too_late"
    DOCTOR_BUSY = "doctor_busy"
    PATIENT_BUSY = "patient_busy"
    RESOURCE_BUSY = "resource_busy"
    REASON_MISSING = "reason_missing"


@dataclass(frozen=True, slots=True)
class Reply:
    answer: Answer
    appointment_id: int | None = None

    @property
    def done(self) -> bool:
        return self.answer in {Answer.BOOKED, Answer.MOVED, Answer.CANCELLED}


_BUSY = {"doctor": Answer.DOCTOR_BUSY, "patient": Answer.PATIENT_BUSY}
"""What stands in the way, by its kind; any other is a room, an instrument or a technician."""

# What has not been verified in time has expired, whether or not that has been written down.
_LOCK = sa.text("""
    SELECT id, CASE WHEN verify_by(a) <= :as_of THEN 'expired' ELSE status END AS status, starts_at, ends_at,
           service_id, patient_id,
           (SELECT h.id FROM hold h WHERE h.offered_to = a.id AND h.ended_at IS NULL) AS offer
    FROM appointment a WHERE id = ANY (:appointments) ORDER BY id FOR NO KEY UPDATE""")

_WITHDRAW = sa.text("SELECT withdraw_offers(:appointments, :as_of)")

_CANCEL = sa.text("""
    UPDATE appointment SET status = 'cancelled', cancelled_at = :as_of, updated_at = :as_of
    WHERE id = ANY (:appointments)""")
_MAY_CANCEL = frozenset({"unverified", "expired", "booked"})


def cancel(connection: sa.Connection, *, appointment_id: int, as_of: datetime) -> Reply:
    """Cancel a booking; its seats are free at once. Cancelling again answers CANCELLED.

    Answers: CANCELLED, UNDER_WAY, TOO_LATE (it has begun), UNKNOWN.
    """
    return cancel_all(connection, [appointment_id], as_of)[appointment_id]


def cancel_all(connection: sa.Connection, appointments: Collection[int], as_of: datetime) -> dict[int, Reply]:
    """:func:`cancel` of many, each answered by itself."""
    replies = dict.fromkeys(appointments, Reply(Answer.UNKNOWN))
    going = []
    for booking in connection.execute(_LOCK, {"appointments": list(appointments), "as_of": as_of}):
        answer = Answer.CANCELLED
        if booking.status not in _MAY_CANCEL | {"cancelled"}:
            answer = Answer.UNDER_WAY
        elif booking.status != "cancelled" and booking.starts_at <= as_of:
            answer = Answer.TOO_LATE
        elif booking.status != "cancelled":
            going.append(booking.id)
        replies[booking.id] = Reply(answer, booking.id)
    if going:
        connection.execute(_CANCEL, {"appointments": going, "as_of": as_of})
    return replies


_WHERE = sa.text(f"""
    SELECT s.id AS slot_id, s.starts_at, a.id AS agenda_id, a.clinic_id, a.specialist_id, v.duration_minutes AS lasts,
           s.state = 'free' AND a.active AND c.active AND v.active AND v.deleted_at IS NULL AND {OFFERS}
           AND (:by_staff OR a.online AND v.bookable_online) AS offered,
           s.starts_at > CASE WHEN :by_staff THEN CAST(:as_of AS timestamptz)
                              ELSE :as_of + a.min_notice_minutes * interval '1 minute' END AS in_time
    FROM slot s JOIN agenda a ON a.id = s.agenda_id JOIN clinic c ON c.id = a.clinic_id
    JOIN service v ON v.id = :service AND v.clinic_id = a.clinic_id
    WHERE s.id = :slot""")

_RUN = sa.text("SELECT max(ends_at) FROM free_run(:slot, :lasts, :as_of, CAST(:own AS bigint))")

_IN_THE_WAY = sa.text("""
    SELECT in_the_way(:agenda, CAST(:specialist AS bigint), :service, CAST(:patient AS bigint),
                      tstzrange(:starts, :ends), :as_of, NULL, CAST(:own AS bigint))""")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a booking may go, its slots and whom it needs locked until the end of the transaction."""

    slot_id: int
    agenda_id: int
    clinic_id: int
    specialist_id: int | None
    starts_at: datetime
    ends_at: datetime
    lasts: int


def find_place(
    connection: sa.Connection,
    slot_id: int,
    service_id: int,
    patient_id: int | None,
    as_of: datetime,
    *,
    by_staff: bool,
    overlaps: bool = False,
    own: int | None = None,
) -> Place | Answer:
    """Where a service may be booked from ``slot_id`` on, locked until the end of the transaction; or why not."""
    asked = {"slot": slot_id, "service": service_id, "as_of": as_of, "by_staff": by_staff}
    found = connection.execute(_WHERE, asked).one_or_none()
    if found is None or not found.offered:
        return Answer.NOT_OFFERED
    if not found.in_time:
        return Answer.TOO_LATE
    ends = connection.scalar(_RUN, {**asked, "lasts": found.lasts, "own": own})
    if ends is None:
        return Answer.FULL
    needed = {
        "agenda": found.agenda_id,
        "specialist": found.specialist_id,
        "service": service_id,
        "patient": None if overlaps else patient_id,
        "starts": found.starts_at,
        "ends": ends,
        "as_of": as_of,
        "own": own,
    }
    kind = connection.scalar(_IN_THE_WAY, needed)
    if kind is not None:
        return _BUSY.get(kind, Answer.RESOURCE_BUSY)
    return Place(
        found.slot_id, found.agenda_id, found.clinic_id, found.specialist_id, found.starts_at, ends, found.lasts
    )


SEAT = sa.text("SELECT seat_booking(:appointment, :slot, :lasts, :as_of)")

_MOVE = sa.text("""
    UPDATE appointment
    SET slot_id = :slot, agenda_id = :agenda, specialist_id = :specialist, starts_at = :starts, ends_at = :ends,
        start_version = start_version + CASE WHEN starts_at = :starts THEN 0 ELSE 1 END, updated_at = :as_of
    WHERE id = :appointment""")


def move(
    connection: sa.Connection, *, appointment_id: int, slot_id: int, as_of: datetime, by_staff: bool = False
) -> Reply:
    """Move a booking to where ``slot_id`` begins, its service's whole length: the new seats first, its own not in its
    own way, nor a place that is kept for it. Without ``by_staff`` only to what may be booked online, in time.

    Answers: MOVED (again, where it is there already); FULL, NOT_OFFERED, TOO_LATE, DOCTOR_BUSY, PATIENT_BUSY,
    RESOURCE_BUSY; NO_LONGER_BOOKED (cancelled, or not verified in time), UNDER_WAY, UNKNOWN.
    """
    booking = connection.execute(_LOCK, {"appointments": [appointment_id], "as_of": as_of}).one_or_none()
    if booking is None:
        return Reply(Answer.UNKNOWN)
    if booking.status in {"cancelled", "expired"}:
        return Reply(Answer.NO_LONGER_BOOKED, booking.id)
    if booking.status not in {"unverified", "booked"}:
        return Reply(Answer.UNDER_WAY, booking.id)
    if booking.starts_at <= as_of:
        return Reply(Answer.TOO_LATE, booking.id)
    with connection.begin_nested() if booking.offer is not None else nullcontext() as trial:
        if trial is not None:
            connection.execute(_WITHDRAW, {"appointments": [booking.id], "as_of": as_of})
        place = find_place(
            connection, slot_id, booking.service_id, booking.patient_id, as_of, by_staff=by_staff, own=booking.id
        )
        if isinstance(place, Answer):
            if trial is not None:
                trial.rollback()
            return Reply(place, booking.id)
    given = {"appointment": booking.id, "slot": place.slot_id, "lasts": place.lasts, "as_of": as_of}
    connection.execute(SEAT, given)
    connection.execute(
        _MOVE,
        {
            **given,
            "agenda": place.agenda_id,
            "specialist": place.specialist_id,
            "starts": place.starts_at,
            "ends": place.ends_at,
        },
    )
    return Reply(Answer.MOVED, booking.id)


_BOOK = sa.text("""
    INSERT INTO appointment (clinic_id, agenda_id, slot_id, service_id, specialist_id, patient_id, agreement_id,
                             starts_at, ends_at, status, channel, quoted_price, overlap_reason, created_at, updated_at)
    VALUES (:clinic, :agenda, :slot, :service, :specialist, :patient, :agreement, :starts, :ends, 'booked', :channel,
            :price, :overlap, :as_of, :as_of)
    RETURNING id""")


def book(
    connection: sa.Connection,
    *,
    slot_id: int,
    service_id: int,
    patient_id: int,
    as_of: datetime,
    channel: Literal["desk", "phone"] = "desk",
    agreement_id: int | None = None,
    quoted_price: Decimal | None = None,
    overlap_reason: str | None = None,
) -> Reply:
    """Book for a patient at the desk or on the telephone, online or not. With an ``overlap_reason`` the patient may
    have something else at that time; the doctor, rooms and instruments never.

    Answers: BOOKED with the booking's id; FULL, NOT_OFFERED, TOO_LATE, DOCTOR_BUSY, PATIENT_BUSY, RESOURCE_BUSY;
    REASON_MISSING for an overlap without a real reason.
    """
    if overlap_reason is not None and not is_reason(overlap_reason):
        return Reply(Answer.REASON_MISSING)
    overlaps = overlap_reason is not None
    place = find_place(connection, slot_id, service_id, patient_id, as_of, by_staff=True, overlaps=overlaps)
    if isinstance(place, Answer):
        return Reply(place)
    booked = connection.scalar(
        _BOOK,
        {
            "clinic": place.clinic_id,
            "agenda": place.agenda_id,
            "slot": place.slot_id,
            "service": service_id,
            "specialist": place.specialist_id,
            "patient": patient_id,
            "agreement": agreement_id,
            "starts": place.starts_at,
            "ends": place.ends_at,
            "channel": channel,
            "price": quoted_price,
            "overlap": overlap_reason,
            "as_of": as_of,
        },
    )
    connection.execute(SEAT, {"appointment": booked, "slot": place.slot_id, "lasts": place.lasts, "as_of": as_of})
    return Reply(Answer.BOOKED, booked)
