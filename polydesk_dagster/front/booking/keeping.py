"""What becomes of a booking, for whoever has its key: ``$challenge``, ``$verify``, ``$cancel``, ``$move``."""

from __future__ import annotations

from typing import Annotated

import sqlalchemy as sa
from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel
from starlette.responses import Response

from polydesk_dagster.clinic.bookings import appointments, unverified, verification
from polydesk_dagster.clinic.bookings.holds import hashed
from polydesk_dagster.clinic.patients import visitors
from polydesk_dagster.front.booking.access import Asked, allowed
from polydesk_dagster.front.booking.answering import of_answer, told
from polydesk_dagster.front.booking.holding import Books, Made, patient_of, reaches
from polydesk_dagster.front.booking.once import once
from polydesk_dagster.front.booking.schema import (
    Appointment,
    Challenge,
    ChallengeRequest,
    KeyRequest,
    MoveRequest,
    VerifyRequest,
)
from polydesk_dagster.front.booking.showing import booked, local
from polydesk_dagster.front.refusals import teller_of
from polydesk_dagster.front.tokens import Scope
from polydesk_dagster.told import Teller

router = APIRouter()

Changes = Annotated[Asked, Depends(allowed(Scope.CHANGE))]

_OF_KEY = sa.text("""
    SELECT b.appointment_id FROM front_booking b JOIN appointment a ON a.id = b.appointment_id
    WHERE b.key_hash = :key AND (CAST(:clinics AS bigint[]) IS NULL OR a.clinic_id = ANY(:clinics))""")


def _booking(connection: sa.Connection, asked: Asked, key: str) -> int:
    """The booking of a key; 0, which none has, for a key of none, or of a clinic out of reach."""
    clinics = None if asked.caller.clinics is None else list(asked.caller.clinics)
    return int(connection.scalar(_OF_KEY, {"key": hashed(key), "clinics": clinics}) or 0)


@router.post("/Appointment/$challenge", response_model=Challenge, operation_id="challenge")
def challenge(request: Request, wanted: ChallengeRequest, asked: Books, made: Made) -> Response:
    """A secret by which the visitor proves her contact: six digits for a telephone, a token for a link by e-mail. Send
    it; only what comes back by `$verify` proves anything."""
    t = teller_of(request)

    def act(connection: sa.Connection) -> tuple[int, BaseModel]:
        number = _booking(connection, asked, wanted.key)
        issued = verification.issue(connection, appointment_id=number, channel=wanted.channel, as_of=asked.as_of)
        if issued.answer is not unverified.Answer.ISSUED:
            return of_answer(t, issued.answer)
        return 200, Challenge(
            code=issued.answer,
            text=told(t, issued.answer),
            expires=local(connection, wanted.key, issued.expires_at),
            channel=wanted.channel,
            value=issued.contact,
            secret=issued.secret,
        )

    return once(asked, made, act)


@router.post("/Appointment/$verify", response_model=Appointment, operation_id="verify")
def verify(request: Request, wanted: VerifyRequest, asked: Books, made: Made) -> Response:
    """The visitor has sent her secret back: the booking stands, for the patient that she says she is. Ask it only when
    she presses a button: programs open links too."""
    t = teller_of(request)

    def act(connection: sa.Connection) -> tuple[int, BaseModel]:
        patient = patient_of(connection, wanted.patient, asked)
        if wanted.token is not None:
            reply = verification.verify_by_token(
                connection, token=wanted.token, patient_id=patient.id, as_of=asked.as_of
            )
        else:
            assert wanted.key is not None
            assert wanted.code is not None
            reply = verification.verify_by_code(
                connection,
                appointment_id=_booking(connection, asked, wanted.key),
                code=wanted.code,
                patient_id=patient.id,
                as_of=asked.as_of,
            )
        visitors.settle(connection, patient)
        if reply.answer is not unverified.Answer.BOOKED or reply.appointment_id is None:
            return of_answer(t, reply.answer, alternatives=reply.alternatives, count=reply.tries_left)
        return 200, booked(connection, reply.appointment_id)

    return once(asked, made, act)


def _become(t: Teller, connection: sa.Connection, reply: appointments.Reply) -> tuple[int, BaseModel]:
    if not reply.done or reply.appointment_id is None:
        return of_answer(t, reply.answer)
    return 200, booked(connection, reply.appointment_id)


@router.post("/Appointment/$cancel", response_model=Appointment, operation_id="cancel")
def cancel(request: Request, wanted: KeyRequest, asked: Changes, made: Made) -> Response:
    """Cancel a booking before it begins; its time is free at once."""
    t = teller_of(request)

    def act(connection: sa.Connection) -> tuple[int, BaseModel]:
        number = _booking(connection, asked, wanted.key)
        return _become(t, connection, appointments.cancel(connection, appointment_id=number, as_of=asked.as_of))

    return once(asked, made, act)


@router.post("/Appointment/$move", response_model=Appointment, operation_id="move")
def move(request: Request, wanted: MoveRequest, asked: Changes, made: Made) -> Response:
    """Move a booking to another time of its service; it keeps its own until it has the other."""
    t = teller_of(request)

    def act(connection: sa.Connection) -> tuple[int, BaseModel]:
        number = _booking(connection, asked, wanted.key)
        slot = wanted.slot.number if reaches(connection, asked, wanted.slot.number) else 0
        reply = appointments.move(connection, appointment_id=number, slot_id=slot, as_of=asked.as_of)
        return _become(t, connection, reply)

    return once(asked, made, act)
