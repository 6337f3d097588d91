"""The records of every source, in the field names of studiolab's contract: an adapter brings its own into them."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from polydesk_dagster.wire import (
    LARGEST,
    Amount,
    Cadastral,
    Flag,
    Instant,
    IsoDate,
    OptionalAmount,
    OptionalCadastral,
    OptionalDate,
    OptionalProse,
    OptionalRate,
    OptionalText,
    Prose,
    Record,
    Row,
    Text,
    Whole,
    between,
    shaped,
)
from polydesk_dagster.wrong import bad


class Listed(Row, frozen=True, kw_only=True):
    """A record of one of the lists, and which of its fields identifies it if one does."""

    KEY: ClassVar[str | None] = "id"


def _in_order(first: Any, last: Any) -> None:
    if last is not None and last < first:
        raise bad("valid_to_before_from")


class Municipality(Listed, frozen=True, kw_only=True):
    KEY: ClassVar[str | None] = "cadastral_code"

    cadastral_code: Cadastral
    istat_code: Annotated[str, *shaped("[0-9]{6}")]
    name: Text
    other_name: OptionalText = None
    province: Annotated[str, *shaped("[A-Z]{2}")]
    region: Text
    postal_codes: tuple[Annotated[str, *shaped("[0-9]{5}")], ...] = ()
    valid_from: IsoDate
    valid_to: OptionalDate = None
    """Exclusive; None while in force."""
    successor: OptionalCadastral = None

    @staticmethod
    def check(record: Any) -> None:
        _in_order(record.valid_from, record.valid_to)


class Patient(Listed, frozen=True, kw_only=True):
    AT_ONCE: ClassVar[bool] = False
    """Lists hand patients on as they came; and a moment finer than a microsecond msgspec rounds, we cut off."""

    id: Text
    fiscal_code: OptionalText = None
    """Codice fiscale, STP or ENI as studiolab has it: may be wrong."""
    last_name: Text
    first_name: Text
    sex: Annotated[Literal["M", "F"] | None, BeforeValidator(lambda value: value or None)] = None
    birth_date: OptionalDate = None
    birth_place: OptionalCadastral = None
    residence: OptionalCadastral = None
    address: OptionalText = None
    postal_code: OptionalText = None
    email: OptionalText = None
    phone: OptionalText = None
    """As typed by the desk."""
    mobile: OptionalText = None
    deceased_on: OptionalDate = None
    updated_at: Instant


class Collaborator(Listed, frozen=True, kw_only=True):
    id: Text
    title: OptionalText = None
    last_name: Text
    first_name: Text
    fiscal_code: OptionalText = None
    specialties: tuple[Text, ...] = ()
    email: OptionalText = None
    active: Flag
    ends_on: OptionalDate = None


class Service(Listed, frozen=True, kw_only=True):
    id: Text
    code: Text
    name: Prose
    """The nomenclature's full descriptions are long."""
    duration_minutes: Annotated[Whole, *between(1, 480)]
    preparation: OptionalProse = None
    active: Flag


class Agreement(Listed, frozen=True, kw_only=True):
    id: Text
    name: Text
    kind: Literal["insurance", "fund", "company", "public"]
    valid_from: IsoDate
    valid_to: OptionalDate = None
    """Exclusive."""

    @staticmethod
    def check(record: Any) -> None:
        _in_order(record.valid_from, record.valid_to)


class Price(Listed, frozen=True, kw_only=True):
    KEY: ClassVar[str | None] = None

    service_id: Text
    agreement_id: OptionalText = None
    """None: private."""
    collaborator_id: OptionalText = None
    """None: any."""
    amount: Amount
    patient_share: OptionalAmount = None
    currency: Literal["EUR"]
    vat_rate: OptionalRate = None
    valid_from: IsoDate
    valid_to: OptionalDate = None
    """Exclusive."""

    @staticmethod
    def check(record: Any) -> None:
        _in_order(record.valid_from, record.valid_to)
        if record.patient_share is not None and Decimal(record.patient_share) > Decimal(record.amount):
            raise bad("share_above_amount")


class Entity(Record):
    type: Text
    id: Text


class Event(Record):
    """The envelope of one piece of news; what ``data`` must be depends on ``type`` and ``version``."""

    id: Annotated[Text, Field(pattern=r"^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$")]
    sequence: Annotated[Whole, Field(ge=1, le=LARGEST)]
    type: Text
    version: Annotated[Whole, Field(ge=-(2**31), lt=2**31)]
    occurred_at: Instant
    entity: Entity
    data: dict[str, Any]
