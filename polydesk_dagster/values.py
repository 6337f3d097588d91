"""The values that rules hand over to whoever tells them: typed, without words, and the same again out of JSON.

How they look in a language is decided in ``told``; what a run returns as a whole is ``outcome``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any

ROME = "Europe/Rome"


@dataclass(frozen=True, slots=True)
class Instant:
    """A point in time, told as the clocks of ``zone`` show it."""

    at: datetime
    zone: str = ROME

    def __post_init__(self) -> None:
        if self.at.tzinfo is None:
            raise ValueError("an instant needs its offset from UTC")


@dataclass(frozen=True, slots=True)
class Money:
    amount: Decimal
    currency: str = "EUR"


@dataclass(frozen=True, slots=True)
class Share:
    """A part of a whole, 0 to 1, told in percent."""

    fraction: float


@dataclass(frozen=True, slots=True)
class Count:
    """``n`` things; ``noun`` is their name in the catalogues, which know its plural."""

    noun: str
    n: int


@dataclass(frozen=True, slots=True)
class Term:
    """One of a closed list of ours, such as a state: ``domain`` names the list."""

    domain: str
    code: str


@dataclass(frozen=True, slots=True)
class Named:
    """What has a code and a name that people know it by."""

    code: str
    name: str


@dataclass(frozen=True, slots=True)
class ServiceKey:
    """A row of the page, by its key in the catalogue."""

    key: str


@dataclass(frozen=True, slots=True)
class Duration:
    seconds: float


@dataclass(frozen=True, slots=True)
class Several:
    """Values that are listed one after the other."""

    items: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Reason:
    """Why something was not simply done.

    ``code`` is stable English and names the sentence in the catalogues; ``values`` fill it in: the thing, the value,
    the remedy. Neither ever holds patient data. A reason among the values is the cause of this one.
    """

    code: str
    values: Mapping[str, Value] = field(default_factory=dict, hash=False)
    clinic: str | None = None
    count: int = 1

    def as_dict(self) -> dict[str, object]:
        """Stable keys for JSON; ``Reason.from_dict`` reads them back."""
        return {"code": self.code, "values": to_json(self.values), "clinic": self.clinic, "count": self.count}

    @classmethod
    def from_dict(cls, kept: Mapping[str, Any]) -> Reason:
        """A reason out of JSON; rows from before there were codes and values hold their sentence."""
        values = {SAID: kept["message"]} if "message" in kept else mapping_from_json(kept["values"])
        return cls(kept["code"], values, kept.get("clinic"), kept.get("count", 1))


SAID = "said"
"""The value of a reason that was kept as a sentence, before there were codes and values."""

Value = (
    str
    | bool
    | int
    | float
    | Decimal
    | date
    | time
    | Instant
    | Money
    | Share
    | Count
    | Term
    | Named
    | ServiceKey
    | Duration
    | Several
    | Reason
    | None
)


def to_json(value: Value | Mapping[str, Value]) -> Any:
    """``value`` as JSON holds it: what JSON has no type for is an object with one telling key."""
    match value:
        case Mapping():
            return {name: to_json(each) for name, each in value.items()}
        case Instant():
            return {"instant": value.at.isoformat(), "zone": value.zone}
        case Money():
            return {"money": str(value.amount), "currency": value.currency}
        case Share():
            return {"share": value.fraction}
        case Count():
            return {"count": value.n, "noun": value.noun}
        case Term():
            return {"term": value.code, "domain": value.domain}
        case Named():
            return {"named": value.code, "name": value.name}
        case ServiceKey():
            return {"service": value.key}
        case Duration():
            return {"seconds": value.seconds}
        case Several():
            return [to_json(each) for each in value.items]
        case Reason():
            return {"reason": value.as_dict()}
        case Decimal():
            return {"decimal": str(value)}
        case datetime():
            raise TypeError("a moment is given as an Instant")
        case date():
            return {"date": value.isoformat()}
        case time():
            return {"time": value.isoformat()}
        case _:
            return value


def from_json(kept: Any) -> Value:
    """The value that ``to_json`` gave."""
    if isinstance(kept, list):
        return Several(tuple(map(from_json, kept)))
    if not isinstance(kept, dict):
        return kept
    match kept:
        case {"instant": at, "zone": zone}:
            return Instant(datetime.fromisoformat(at), zone)
        case {"money": amount, "currency": currency}:
            return Money(Decimal(amount), currency)
        case {"share": fraction}:
            return Share(fraction)
        case {"count": n, "noun": noun}:
            return Count(noun, n)
        case {"term": code, "domain": domain}:
            return Term(domain, code)
        case {"named": code, "name": name}:
            return Named(code, name)
        case {"service": key}:
            return ServiceKey(key)
        case {"seconds": seconds}:
            return Duration(seconds)
        case {"reason": reason}:
            return Reason.from_dict(reason)
        case {"decimal": number}:
            return Decimal(number)
        case {"date": day}:
            return date.fromisoformat(day)
        case {"time": clock}:
            return time.fromisoformat(clock)
    raise ValueError(f"no value: {sorted(kept)}")


def mapping_from_json(kept: Mapping[str, Any]) -> dict[str, Value]:
    return {name: from_json(each) for name, each in kept.items()}
