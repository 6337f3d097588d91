"""What the records of outside systems share: how their text, dates and money are read, and how a bad one is set aside.

A record is judged alone: a bad one is rejected with its reason and the rest is kept. Reasons name fields and what is
wrong with them, never their values, which may be a patient's.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from functools import cache
from typing import Annotated, Any, ClassVar, Generic, Protocol, Self, TypeGuard, TypeVar

import msgspec
from msgspec import Meta
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    ValidationError,
    create_model,
    model_validator,
)

from polydesk_dagster.values import Reason
from polydesk_dagster.wrong import bad, reason

_STEERING = (0xAD, 0x61C, 0x180E, *range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x2070), 0xFEFF)
"""What is not seen and joins, parts or turns the text around it."""
_CONTROLS_0 = (*range(9), 0xB, 0xC, *range(0xE, 0x20), 0x7F)
_INVISIBLE = (
    dict.fromkeys((*_CONTROLS_0, *_STEERING), None)
    | dict.fromkeys(range(0x80, 0xA0), "\ufffd")  # letters that were read in the wrong encoding
    | {0xA0: " "}
)
_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_MONEY = re.compile(r"[0-9]{1,8}(\.[0-9]{1,2})?")
_COMMA = re.compile(r"([0-9]+|[0-9]{1,3}(\.[0-9]{3})+),[0-9]{1,2}")
_AMBIGUOUS = re.compile(r"[0-9]{1,3}[.,][0-9]{3}")
_CADASTRAL = re.compile(r"[A-Z][0-9]{3}")
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")

LONGEST = 255
"""Characters of an id, a code or a person's name: two of the longest still fit into one row of an index."""
LONGEST_PROSE = 20_000
LARGEST = 2**62
"""A number in a sequence; what is added to it still fits into a bigint."""


class Record(BaseModel):
    """Base of wire records that are nested, or few: unknown fields are ignored, wrong types are refused rather than
    converted."""

    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)

    @classmethod
    def read(cls, item: Any, context: Mapping[str, Any] | None = None) -> Self:
        """``item`` as this record. Raises pydantic's ValidationError."""
        return cls.model_validate(item, context=context)


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """Base of flat wire records of which lists are long.

    One declaration is read in two ways: what is written as it should be msgspec takes as it is, without a line of
    Python; for everything else pydantic, which cleans it or says all that is wrong with it. Types of this module say
    both.
    """

    AT_ONCE: ClassVar[bool] = True
    """Whether msgspec may read it; not where it would read something otherwise."""

    @staticmethod
    def check(record: Any) -> None:
        """Raise what ``wrong.bad`` makes where fields contradict each other."""

    def __post_init__(self) -> None:
        self.check(self)

    @classmethod
    def read(cls, item: Any, context: Mapping[str, Any] | None = None) -> Self:
        """``item`` as this record. Raises pydantic's ValidationError."""
        if cls.AT_ONCE:
            with suppress(msgspec.ValidationError):
                return msgspec.convert(item, cls)
        return cls(**dict(carefully(cls).model_validate(item, context=context)))


@cache
def carefully(row: type[Row]) -> type[BaseModel]:
    """The model that reads what a row of this type may be, and says what it must not be."""

    def check(record: Any) -> Any:
        row.check(record)
        return record

    declared: dict[str, Any] = {
        field.name: (field.type, ... if field.required else field.default) for field in msgspec.structs.fields(row)
    }
    return create_model(  # pyrefly: ignore[no-matching-overload] - a validator is no plain function
        row.__name__,
        __config__=Record.model_config,
        __validators__={"check": model_validator(mode="after")(check)},
        **declared,
    )


def clean(value: str) -> str:
    """Text as it can be kept: without control characters, those that steer its direction, zero-width characters and
    outer blanks, in Unicode's composed form, a question mark for half a surrogate pair."""
    if value.isascii():
        return (value if value.isprintable() else _CONTROLS.sub("", value)).strip()
    return unicodedata.normalize("NFC", value.translate(_INVISIBLE).encode("utf-8", "replace").decode()).strip()


def storable(value: Any) -> Any:
    """What was read from JSON, without what PostgreSQL's jsonb cannot hold: NUL, halves of surrogate pairs and numbers
    that a float does not hold as they are written."""
    match value:
        case str():
            return value.replace("\0", "").encode("utf-8", "replace").decode()
        case dict():
            return {storable(key): storable(inner) for key, inner in value.items()}
        case list():
            return [storable(inner) for inner in value]
        case Decimal():
            number = float(value)
            return number if Decimal(repr(number)) == value else str(value)
        case float() if not math.isfinite(value):
            return str(value)
        case _:
            return value


def is_number(value: object) -> TypeGuard[int]:
    """Whether what was read from JSON counts or numbers something, within what the database can hold."""
    return type(value) is int and 0 <= value <= LARGEST


def comparable(value: str | None) -> str:
    """A key under which spellings of one name meet: accents, apostrophes for accents, case and spacing are dropped."""
    if not value:
        return ""
    bare = "".join(c for c in unicodedata.normalize("NFKD", clean(value)) if not unicodedata.combining(c))
    return " ".join(re.sub(r"['’`´\-.]", " ", bare).casefold().split())


def _prose(value: object, longest: int = LONGEST_PROSE) -> str:
    if not isinstance(value, str):
        raise bad("not_text")
    cleaned = clean(value)
    if not cleaned:
        raise bad("empty")
    if len(cleaned) > longest:
        raise bad("too_long", longest=longest)
    return cleaned


def _text(value: object) -> str:
    return _prose(value, LONGEST)


def _optional(read: Callable[[object], object]) -> Callable[[object], object]:
    def optional(value: object) -> object:
        blank = value is None or (isinstance(value, str) and not clean(value))
        return None if blank else read(value)

    return optional


def _iso_date(value: object) -> date:
    if not isinstance(value, str) or not _DATE.fullmatch(cleaned := clean(value)):
        raise bad("not_iso_date")
    try:
        return date.fromisoformat(cleaned)
    except ValueError:
        raise bad("no_such_day") from None


def _instant(value: object) -> datetime:
    if not isinstance(value, str):
        raise bad("not_an_instant")
    try:
        moment = datetime.fromisoformat(clean(value))
    except ValueError:
        raise bad("not_an_instant") from None
    if moment.tzinfo is None:
        raise bad("no_offset")
    return moment


def _money(value: object) -> Decimal:
    if not isinstance(value, str):
        raise bad("money_not_text")
    cleaned = clean(value)
    if _COMMA.fullmatch(cleaned):
        cleaned = cleaned.replace(".", "").replace(",", ".")
    if _AMBIGUOUS.fullmatch(cleaned):
        raise bad("money_ambiguous")
    if not _MONEY.fullmatch(cleaned):
        raise bad("not_money")
    return Decimal(cleaned)


def _amount(value: object) -> str:
    return str(_money(value))


def _rate(value: object) -> str:
    rate = _money(value)
    if rate > 100:
        raise bad("above_hundred")
    return str(rate)


def _cadastral(value: object) -> str:
    if not _CADASTRAL.fullmatch(text := _text(value)):
        raise bad("not_cadastral")
    return text


def _plain(longest: int) -> Meta:
    """Text that ``clean`` leaves as it is."""
    return Meta(pattern=rf"^[!-~](?:[ -~]{{0,{longest - 2}}}[!-~])?\Z")


def shaped(pattern: str) -> tuple[Meta, BeforeValidator, Any]:
    """A ``Text`` of which ``pattern`` is the whole; for ``Annotated[str, *shaped(…)]``."""
    return Meta(pattern=rf"^(?:{pattern})\Z"), BeforeValidator(_text), Field(pattern=f"^(?:{pattern})$")


def between(least: int, most: int) -> tuple[Meta, Any]:
    """The same of whole numbers."""
    return Meta(ge=least, le=most), Field(ge=least, le=most)


# What is written as it should be, for msgspec, and who reads everything else. A blank where a value is optional is an
# absent value.
_PlainText = Annotated[str, _plain(LONGEST)]
_PlainProse = Annotated[str, _plain(LONGEST_PROSE)]
_PlainAmount = Annotated[str, Meta(pattern=rf"^(?!0[0-9]){_MONEY.pattern}\Z")]
_PlainRate = Annotated[str, Meta(pattern=r"^(?!0[0-9])(?:100(?:\.00?)?|[0-9]{1,2}(?:\.[0-9]{1,2})?)\Z")]
_PlainCadastral = Annotated[str, Meta(pattern=rf"^{_CADASTRAL.pattern}\Z")]

Text = Annotated[_PlainText, BeforeValidator(_text)]
"""An id, a code or a name."""
Prose = Annotated[_PlainProse, BeforeValidator(_prose)]
"""Text that nothing is looked up by, and that may be long."""
IsoDate = Annotated[date, BeforeValidator(_iso_date)]
Instant = Annotated[datetime, BeforeValidator(_instant)]
Amount = Annotated[_PlainAmount, BeforeValidator(_amount)]
"""Money, exact, as the text of a decimal."""
Cadastral = Annotated[_PlainCadastral, BeforeValidator(_cadastral)]
OptionalText = Annotated[_PlainText | None, BeforeValidator(_optional(_text))]
OptionalProse = Annotated[_PlainProse | None, BeforeValidator(_optional(_prose))]
OptionalDate = Annotated[date | None, BeforeValidator(_optional(_iso_date))]
OptionalCadastral = Annotated[_PlainCadastral | None, BeforeValidator(_optional(_cadastral))]
OptionalAmount = Annotated[_PlainAmount | None, BeforeValidator(_optional(_amount))]
OptionalRate = Annotated[_PlainRate | None, BeforeValidator(_optional(_rate))]
Whole = StrictInt
Flag = StrictBool


@dataclass(frozen=True, slots=True)
class Rejected:
    """A record set aside. ``key`` is its identity where that could be read: what we hold under it must not be taken
    for gone."""

    position: int
    key: str | None
    reason: Reason
    raw: Any
    """As it came; for the database, never for a log."""


class Readable(Protocol):
    """A ``Record`` or a ``Row``."""

    @classmethod
    def read(cls, item: Any, context: Mapping[str, Any] | None = None) -> Self: ...


R = TypeVar("R", bound=Readable)


@dataclass(frozen=True, slots=True)
class Sorted(Generic[R]):
    valid: tuple[R, ...]
    rejected: tuple[Rejected, ...]


def sort_records(
    model: type[R], items: Sequence[Any], key: str | None = None, context: Mapping[str, Any] | None = None
) -> Sorted[R]:
    """Each item as ``model``, or rejected with its reason. ``key`` names the identifying field, if one does;
    ``context`` is handed to the model's validators."""
    valid: list[R] = []
    rejected: list[Rejected] = []
    read = model.read
    for position, item in enumerate(items):
        try:
            valid.append(read(item, context))
        except ValidationError as error:
            rejected.append(Rejected(position, _key(item, key), reason(error), item))
    return Sorted(tuple(valid), tuple(rejected))


def _key(item: object, key: str | None) -> str | None:
    value = item.get(key) if key is not None and isinstance(item, Mapping) else None
    return clean(value) or None if isinstance(value, str) else None
