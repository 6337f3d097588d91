"""What goes in and comes out, as it is written on the wire; the published description is made of these classes."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Annotated, Literal

from pydantic import AwareDatetime, Field, StringConstraints, model_validator

from polydesk_dagster.front.wire import Reference, Wire

EARLIEST, LATEST = datetime(2000, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)

_NUMBER = r"[1-9][0-9]{0,17}"
_PLAIN = r"^[^\x00-\x1f\x7f]*$"
"""No control characters: what people type has none."""

Number = Annotated[int, Field(ge=1, le=10**18 - 1)]
Instant = Annotated[AwareDatetime, Field(ge=EARLIEST, lt=LATEST)]
Key = Annotated[
    str,
    StringConstraints(pattern=r"^[A-Za-z0-9_-]{20,100}$"),
    Field(
        description="What `$hold` answered: whoever shows it may change the booking. Keep it as you would a password."
    ),
]
Name = Annotated[str, StringConstraints(min_length=1, max_length=100, pattern=r"^[^\x00-\x20\x7f][^\x00-\x1f\x7f]*$")]


class SlotReference(Reference):
    reference: Annotated[str, StringConstraints(pattern=rf"^Slot/{_NUMBER}$")]


class ServiceReference(Reference):
    reference: Annotated[str, StringConstraints(pattern=rf"^HealthcareService/{_NUMBER}$")]


class AgreementReference(Reference):
    reference: Annotated[str, StringConstraints(pattern=rf"^InsurancePlan/{_NUMBER}$")]


class ContactPoint(Wire):
    system: Literal["email", "phone"]
    value: Annotated[str, StringConstraints(min_length=3, max_length=200, pattern=_PLAIN)]


class Person(Wire):
    """Who the visit is for."""

    family: Name
    given: Name
    birth_date: date
    fiscal_code: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9]{16}$")] | None = None
    telecom: Annotated[list[ContactPoint], Field(max_length=2, default_factory=list)]


class HoldRequest(Wire):
    slot: SlotReference
    service: ServiceReference


class KeyRequest(Wire):
    key: Key


class PayRequest(KeyRequest):
    payment_reference: Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=_PLAIN)] | None = None


class BookRequest(KeyRequest):
    """Without `patient` the booking waits until one of `telecom` is verified; with it the front end vouches for who its
    visitor is, which takes the scope `vouch`."""

    telecom: Annotated[list[ContactPoint], Field(max_length=2, default_factory=list)]
    patient: Person | None = None
    agreement: AgreementReference | None = None
    paid: bool = False


class ChallengeRequest(KeyRequest):
    channel: Literal["email", "phone"]


class VerifyRequest(Wire):
    """Either the `token` of a link sent by e-mail, or the `key` with the `code` sent to the telephone."""

    token: Key | None = None
    key: Key | None = None
    code: Annotated[str, StringConstraints(pattern=r"^[0-9 ]{6,12}$")] | None = None
    patient: Person

    @model_validator(mode="after")
    def _one_way(self) -> VerifyRequest:
        if (self.token is None) == (self.key is None) or (self.key is None) != (self.code is None):
            raise ValueError("token, or key with code")
        return self


class MoveRequest(KeyRequest):
    slot: SlotReference


class Money(Wire):
    value: str = Field(description="Euros with a point, as text", pattern=r"^[0-9]+\.[0-9]{2}$")
    currency: Literal["EUR"] = "EUR"


class Participant(Wire):
    actor: Reference


class CodeableConcept(Wire):
    code: str
    text: str


class Appointment(Wire):
    """A time: `proposed` by a search, `pending` while it is held or waits to be verified, `booked`, or `cancelled`."""

    resource_type: Literal["Appointment"] = "Appointment"
    status: Literal["proposed", "pending", "booked", "cancelled"]
    start: datetime = Field(description="With the offset of the clinic's zone")
    end: datetime
    service_type: CodeableConcept
    slot: Reference | None = None
    participant: list[Participant] = Field(
        description="HealthcareService, Location and, where there is one, Practitioner"
    )
    price: Money | None = Field(None, description="What the patient pays; missing where no price is in force")
    key: str | None = None
    expires: datetime | None = Field(None, description="Until when it is kept: held, or waiting to be verified")


class Entry(Wire):
    resource: Appointment


class Bundle(Wire):
    resource_type: Literal["Bundle"] = "Bundle"
    type: Literal["searchset"] = "searchset"
    total: int
    entry: list[Entry]


class Done(Wire):
    """That it was done, in words for the visitor."""

    code: str
    text: str
    expires: datetime | None = Field(None, description="With the offset of the clinic's zone")


class Challenge(Done):
    """What to send where: we do not send it, and do not know it any more."""

    channel: Literal["email", "phone"]
    value: str
    secret: str
