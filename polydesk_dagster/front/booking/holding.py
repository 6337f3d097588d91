"""From a time that is free to a booking: ``$hold``, ``$renew``, ``$release``, ``$pay``, ``$book``."""

from __future__ import annotations

from typing import Annotated

import sqlalchemy as sa
from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel
from starlette.responses import Response

from polydesk_dagster.clinic.bookings import confirming, holds
from polydesk_dagster.clinic.bookings.answers import Answer, Reply
from polydesk_dagster.clinic.bookings.quotes import Visit, quoted
from polydesk_dagster.clinic.patients import visitors
from polydesk_dagster.clinic.patients.visitors import Known, Visitor
from polydesk_dagster.front.booking.access import Asked, allowed
from polydesk_dagster.front.booking.answering import of_answer, told
from polydesk_dagster.front.booking.once import Attempt, attempt, key_of, once
from polydesk_dagster.front.booking.schema import (
    Appointment,
    BookRequest,
    ContactPoint,
    Done,
    HoldRequest,
    KeyRequest,
    PayRequest,
    Person,
)
from polydesk_dagster.front.booking.showing import Time, booked, local, shown
from polydesk_dagster.front.refusals import RefusedError, teller_of
from polydesk_dagster.front.tokens import Scope
from polydesk_dagster.front.wire import Fault
from polydesk_dagster.told import Teller
from polydesk_dagster.values import Reason

router = APIRouter()

Holds = Annotated[Asked, Depends(allowed(Scope.HOLD))]
Books = Annotated[Asked, Depends(allowed(Scope.BOOK))]
Made = Annotated[Attempt, Depends(attempt)]

_REACHED = sa.text("""
    SELECT EXISTS (SELECT FROM slot s JOIN agenda a ON a.id = s.agenda_id
                   WHERE s.id = :slot AND (CAST(:clinics AS bigint[]) IS NULL OR a.clinic_id = ANY(:clinics)))""")

_HELD = sa.text("""
    SELECT h.service_id, s.agenda_id, s.id AS slot_id, s.starts_at, h.ends_at
    FROM hold h JOIN slot s ON s.id = h.slot_id
    WHERE h.token_hash = :token""")

_REMEMBER = sa.text("""
    INSERT INTO front_booking (appointment_id, key_hash) VALUES (:appointment, :key) ON CONFLICT DO NOTHING""")


def reaches(connection: sa.Connection, asked: Asked, slot_id: int) -> bool:
    """Whether the slot is of a clinic that the caller may book at."""
    clinics = None if asked.caller.clinics is None else list(asked.caller.clinics)
    return bool(connection.scalar(_REACHED, {"slot": slot_id, "clinics": clinics}))


@router.post("/Appointment/$hold", response_model=Appointment, operation_id="hold")
def hold(request: Request, wanted: HoldRequest, asked: Holds, made: Made) -> Response:
    """Keep a time for a visitor while she books: all slots that the service lasts, the doctor, and what it needs."""

    def act(connection: sa.Connection) -> tuple[int, BaseModel]:
        t = teller_of(request)
        if not reaches(connection, asked, wanted.slot.number):
            return of_answer(t, Answer.NOT_OFFERED)
        key = key_of(asked, made)
        reply = holds.place(
            connection,
            slot_id=wanted.slot.number,
            service_id=wanted.service.number,
            token=key,
            visitor=asked.visitor,
            as_of=asked.as_of,
        )
        if reply.answer is not Answer.PLACED:
            return of_answer(t, reply.answer)
        held = connection.execute(_HELD, {"token": holds.hashed(key)}).one()
        time = Time(
            "pending",
            held.slot_id,
            held.agenda_id,
            held.service_id,
            held.starts_at,
            held.ends_at,
            expires_at=reply.expires_at,
        )
        return 200, shown(connection, [time])[0].model_copy(update={"key": key})

    return once(asked, made, act)


def _done(connection: sa.Connection, t: Teller, key: str, reply: Reply, wanted: Answer) -> tuple[int, BaseModel]:
    if reply.answer is not wanted:
        return of_answer(t, reply.answer)
    return 200, Done(code=reply.answer, text=told(t, reply.answer), expires=local(connection, key, reply.expires_at))


@router.post("/Appointment/$renew", response_model=Done, operation_id="renew")
def renew(request: Request, wanted: KeyRequest, asked: Holds, made: Made) -> Response:
    """Keep it longer: twice, half an hour in all. A refusal changes nothing."""

    def act(connection: sa.Connection) -> tuple[int, BaseModel]:
        reply = holds.renew(connection, token=wanted.key, as_of=asked.as_of)
        return _done(connection, teller_of(request), wanted.key, reply, Answer.RENEWED)

    return once(asked, made, act)


@router.post("/Appointment/$release", response_model=Done, operation_id="release")
def release(request: Request, wanted: KeyRequest, asked: Holds, made: Made) -> Response:
    """Give it back: the visitor went back, or her payment failed."""

    def act(connection: sa.Connection) -> tuple[int, BaseModel]:
        reply = holds.release(connection, token=wanted.key, as_of=asked.as_of)
        return _done(connection, teller_of(request), wanted.key, reply, Answer.RELEASED)

    return once(asked, made, act)


@router.post("/Appointment/$pay", response_model=Done, operation_id="pay")
def pay(request: Request, wanted: PayRequest, asked: Books, made: Made) -> Response:
    """Say that the visitor's payment begins: the time is kept for as long as a payment takes."""

    def act(connection: sa.Connection) -> tuple[int, BaseModel]:
        reply = confirming.begin_confirming(
            connection, token=wanted.key, as_of=asked.as_of, payment_reference=wanted.payment_reference
        )
        return _done(connection, teller_of(request), wanted.key, reply, Answer.CONFIRMING)

    return once(asked, made, act)


@router.post("/Appointment/$book", response_model=Appointment, operation_id="book")
def book(request: Request, wanted: BookRequest, asked: Books, made: Made) -> Response:
    """Make a booking of what is held, at today's price; what is paid is booked even a little late, or is an open case
    for the desk."""
    t = teller_of(request)
    if wanted.patient is not None and Scope.VOUCH not in asked.caller.scopes:
        raise RefusedError(403, Reason("front_may_not_vouch"))

    def act(connection: sa.Connection) -> tuple[int, BaseModel]:
        held = connection.execute(_HELD, {"token": holds.hashed(wanted.key)}).one_or_none()
        if held is None:
            return of_answer(t, Answer.UNKNOWN)
        agreement = wanted.agreement.number if wanted.agreement else None
        price = quoted(connection, [Visit(held.service_id, held.agenda_id, held.starts_at)], agreement)[0]
        if agreement is not None and price is None:
            raise RefusedError(422, Reason("front_no_price"), faults=[Fault(at="body.agreement", code="no_price")])
        patient = None if wanted.patient is None else patient_of(connection, wanted.patient, asked)
        reply = confirming.confirm(
            connection,
            token=wanted.key,
            booking=holds.Booking(
                service_id=held.service_id,
                patient_id=patient.id if patient else None,
                contact_email=_contact(wanted.telecom, "email"),
                contact_phone=_contact(wanted.telecom, "phone"),
                agreement_id=agreement,
                quoted_price=price,
                paid=wanted.paid,
            ),
            as_of=asked.as_of,
        )
        if patient is not None:
            visitors.settle(connection, patient)
        if reply.answer is not Answer.CONFIRMED:
            return of_answer(t, reply.answer)
        assert reply.appointment_id is not None
        connection.execute(_REMEMBER, {"appointment": reply.appointment_id, "key": holds.hashed(wanted.key)})
        return 200, booked(connection, reply.appointment_id).model_copy(update={"key": wanted.key})

    return once(asked, made, act)


def patient_of(connection: sa.Connection, person: Person, asked: Asked) -> Known:
    """The patient who is meant; to be settled afterwards.

    Raises:
        RefusedError: 422 where what is said of her cannot be.
    """
    visitor = Visitor(
        person.family.strip(),
        person.given.strip(),
        person.birth_date,
        person.fiscal_code.upper() if person.fiscal_code else None,
        _contact(person.telecom, "email"),
        _contact(person.telecom, "phone"),
    )
    wrong = visitors.wrong(visitor, asked.as_of)
    if wrong is not None:
        raise RefusedError(422, Reason("front_person_wrong"), faults=[Fault(at="body.patient", code=wrong)])
    return visitors.found_or_added(connection, visitor, asked.as_of)


def _contact(telecom: list[ContactPoint], system: str) -> str | None:
    return next((each.value for each in telecom if each.system == system), None)
