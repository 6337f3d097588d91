"""What a cell of a workbook may hold: as people and spreadsheets write it, as we keep it, and back."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal, InvalidOperation
from functools import cache
from typing import Any

from polydesk_dagster.changes.fields import RESOURCE_KINDS, WEEKDAYS
from polydesk_dagster.clinic.messages.kinds import KINDS
from polydesk_dagster.values import Money, Reason, Several, Term, Value

DOMAINS: Mapping[str, tuple[str, ...]] = {
    "weekday": WEEKDAYS,
    "yes_no": ("yes", "no"),
    "language": ("it", "de"),
    "resource_kind": RESOURCE_KINDS,
    "closure_effect": ("closed", "open"),
    "role": ("desk", "specialist", "manager", "superuser"),
    "message_kind": tuple(KINDS),
    "text_variant": ("plain", "neutral"),
    "channel": ("sms", "email"),
}
"""The closed lists that a cell may be one of."""

LONGEST = 2000
"""Characters that a cell may hold; the texts of messages have their own bound."""


class UnfitError(Exception):
    """A cell that does not hold what its column is for."""

    def __init__(self, code: str, **values: Value) -> None:
        super().__init__(code)
        self.reason = Reason(code, values)


Terms = Mapping[str, Mapping[str, str]]
"""By list of ours: what people call each of its members, folded, and its code."""


def folded(text: str) -> str:
    """``text`` as it is compared: without case, accents, punctuation and repeated blanks."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return " ".join(re.sub(r"[^\w\s]", " ", plain.casefold()).split())


@dataclass(frozen=True, slots=True)
class Cell:
    """A kind of cell. ``read`` takes what the spreadsheet holds, never blank, and gives what is kept; ``domain`` names
    the closed list that it is one of."""

    sql: str
    read: Callable[[Any, Terms], Any]
    domain: str | None = None
    width: int = 18
    """Of its column, in characters."""
    style: str | None = None
    """How a spreadsheet shows it."""
    spread: bool = False
    """Whether ``read`` gives several values, each of which makes a row of its own."""


def text(value: object) -> str:
    """What a person reads in the cell: numbers without the point that spreadsheets give them.

    Raises:
        UnfitError: if it is longer than a cell may be.
    """
    match value:
        case bool():
            said = "1" if value else "0"
        case float() if value.is_integer():
            said = str(int(value))
        case datetime() | date():
            said = value.isoformat()
        case _:
            said = unicodedata.normalize("NFC", str(value))
    said = "\n".join(" ".join(line.split()) for line in said.strip().splitlines())
    if len(said) > LONGEST:
        raise UnfitError("cell_too_long", most=LONGEST)
    return said


_MINUTES = re.compile(r"(?<=[0-9])\s*(?:min|minuti|minutes|minuten|')\.?$", re.IGNORECASE)


def _whole(least: int, most: int) -> Callable[[Any, Terms], int]:
    def read(value: object, _: Terms) -> int:
        said = _MINUTES.sub("", text(value))
        if not re.fullmatch(r"[0-9]{1,9}", said) or not least <= int(said) <= most:
            raise UnfitError("cell_whole", value=said, least=least, most=most)
        return int(said)

    return read


_AMOUNT = re.compile(r"([0-9]{1,3}(?:\.[0-9]{3})+|[0-9]+)(?:,([0-9]{1,2}))?|([0-9]+)\.([0-9]{1,2})")


DEAREST = Decimal(100_000)
"""No price of a clinic is as much: it is another number that slipped into the column."""


def _money(value: object, _: Terms) -> Decimal:
    if isinstance(value, int | float | Decimal) and not isinstance(value, bool):
        try:
            exact = Decimal(str(value))
            cents = exact.quantize(Decimal("0.01"))
        except InvalidOperation:
            raise UnfitError("cell_money", value=str(value)) from None
        # A sum that a formula made carries the dust of binary fractions; a third decimal is somebody's.
        if abs(exact - cents) > Decimal("0.000001") or cents < 0:
            raise UnfitError("cell_money", value=str(value))
        return _price(cents)
    said = text(value)
    found = _AMOUNT.fullmatch(re.sub(r"€|EUR|\s", "", said))
    if found is None:
        raise UnfitError("cell_money", value=said)
    whole, cents_, other, others = found.groups()
    return _price(Decimal(f"{(whole or other).replace('.', '')}.{cents_ or others or '00'}"))


def _price(amount: Decimal) -> Decimal:
    if amount >= DEAREST:
        raise UnfitError("cell_dear", value=f"{amount:f}", most=Money(DEAREST))
    return amount.quantize(Decimal("0.01"))


_DAY = re.compile(r"([0-9]{1,2})[/.\-]([0-9]{1,2})[/.\-]([0-9]{4}|[0-9]{2})|([0-9]{4})-([0-9]{2})-([0-9]{2})")
_WRITTEN = re.compile(r"([0-9]{1,2})[°º.]?\s+([^\W\d_]+)\.?\s+([0-9]{4})")
_SPOKEN = ("it", "en", "de")
_EXCEL_EPOCH = date(1899, 12, 30)


@cache
def _months() -> dict[str, int]:
    """The number of a month by its name, whole or short, in every language of ours."""
    from babel.dates import get_month_names

    names = [get_month_names(width, locale=language) for language in _SPOKEN for width in ("wide", "abbreviated")]
    return {folded(name.rstrip(".")): number for months in names for number, name in months.items()}


def _day(value: object, _: Terms) -> date:
    if isinstance(value, datetime):
        return value.date()
    if isinstance(value, date):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool) and 20_000 < value < 80_000:
        return _EXCEL_EPOCH + timedelta(days=int(value))
    said = text(value)
    found = _DAY.fullmatch(said)
    try:
        if found is not None:
            day, month, year, *iso = found.groups()
            if year is None:
                return date(*(int(part) for part in iso))
            return date(int(year) + (2000 if len(year) == 2 else 0), int(month), int(day))
        if (written := _WRITTEN.fullmatch(said)) is not None:
            return date(int(written[3]), _months().get(folded(written[2]), 0), int(written[1]))
    except ValueError:
        pass
    raise UnfitError("cell_date", value=said)


def _clock(value: object, _: Terms) -> time:
    if isinstance(value, datetime) and value.year > 1900:
        value = value.time()
    if isinstance(value, datetime):  # 8.30 in a cell of hours: what the spreadsheet keeps as the eighth day of 1900
        value -= datetime(1899, 12, 31)  # noqa: DTZ001
    if isinstance(value, timedelta):
        value = round(value / timedelta(days=1), 6)
    if isinstance(value, float) and 0 <= value < 1:
        hours, minutes = divmod(round(value * 1440), 60)
        return time(hours % 24, minutes)
    if isinstance(value, time):
        if value.second or value.microsecond:
            raise UnfitError("cell_time", value=value.isoformat())
        return value
    # 8.30 as a number has lost its nought; 8.50 would be half past eight to some.
    said = f"{value}0" if isinstance(value, float) and re.fullmatch(r"[0-9]+\.[1-4]", str(value)) else text(value)
    found = re.fullmatch(r"(?:ore\s+)?([0-9]{1,2})(?:[:.,h]([0-9]{2}))?(?::00)?", said, re.IGNORECASE)
    if found is None or int(found[1]) > 24 or int(found[2] or 0) > 59 or (int(found[1]) == 24 and int(found[2] or 0)):
        raise UnfitError("cell_time", value=said)
    return time(int(found[1]) % 24, int(found[2] or 0))


def _one_of(domain: str) -> Callable[[Any, Terms], str]:
    def read(value: object, terms: Terms) -> str:
        said = folded(text(value))
        code = terms[domain].get(said)
        if code is None:
            allowed = Several(tuple(Term(domain, each) for each in DOMAINS[domain]))
            raise UnfitError("cell_choice", value=text(value), allowed=allowed)
        return code

    return read


_AND = re.compile(r"[;,/+&\n]|\s(?:e|ed|and|und)\s", re.IGNORECASE)
_TO = re.compile(r"\s*(?:[-\u2013\u2014]|\b(?:a|al|to|bis)\b)\s*", re.IGNORECASE)
_FROM = re.compile(r"^(?:da|dal|from|von)\s+", re.IGNORECASE)


def _days(value: object, terms: Terms) -> tuple[str, ...]:
    """«lunedì», «lun-ven», «mar e gio»: the days that are meant, each once, in the order in which they are said."""
    one, found = _one_of("weekday"), list[str]()
    for part in filter(None, map(str.strip, _AND.split(text(value)))):
        ends = [WEEKDAYS.index(one(said, terms)) for said in _TO.split(_FROM.sub("", part))]
        if len(ends) > 2 or ends[0] > ends[-1]:
            raise UnfitError("cell_days", value=text(value))
        found += WEEKDAYS[ends[0] : ends[-1] + 1]
    return tuple(dict.fromkeys(found)) or (one(value, terms),)


def _yes(value: object, terms: Terms) -> bool:
    return value if isinstance(value, bool) else _one_of("yes_no")(value, terms) == "yes"


def _listed(value: object, _: Terms) -> list[str]:
    parts = (part.strip() for part in re.split(r"[;,\n]", text(value)))
    return list(dict.fromkeys(part for part in parts if part))


def _fitting(pattern: str, code: str, *, upper: bool = True) -> Callable[[Any, Terms], str]:
    def read(value: object, _: Terms) -> str:
        said = text(value)
        said = said.upper() if upper else said
        if not re.fullmatch(pattern, said):
            raise UnfitError(code, value=said)
        return said

    return read


def choice(domain: str, *, width: int = 18) -> Cell:
    """One of a closed list of ours, by what people call it."""
    return Cell("text", _one_of(domain), domain, width)


def whole(least: int, most: int) -> Cell:
    """A number without decimals from ``least`` to ``most``."""
    return Cell("integer", _whole(least, most), width=12)


TEXT = Cell("text", lambda value, _: text(value), width=28)
LONG = Cell("text", lambda value, _: text(value), width=60)
BODY = Cell("text", lambda value, _: str(value).replace("\r\n", "\n"), width=80)
CLINIC = Cell("text", _fitting(r"[A-Z0-9][A-Z0-9_-]{0,31}", "cell_clinic_code"), width=10)
CODE = Cell("text", lambda value, _: text(value), width=14)
MONEY = Cell("numeric", _money, width=12, style="#,##0.00 €")
DAY = Cell("date", _day, width=12, style="DD/MM/YYYY")
CLOCK = Cell("time", _clock, width=8, style="HH:MM")
DAYS = Cell("text", _days, "weekday", spread=True)
YES_NO = Cell("boolean", _yes, "yes_no", 8)
CODES = Cell("text[]", _listed, width=32)
CADASTRAL = Cell("text", _fitting(r"[A-Z][0-9]{3}", "cell_cadastral"), width=12)
FISCAL_CODE = Cell(
    "text",
    _fitting(r"[A-Z]{6}[0-9LMNPQRSTUV]{2}[A-Z][0-9LMNPQRSTUV]{2}[A-Z][0-9LMNPQRSTUV]{3}[A-Z]", "cell_fiscal_code"),
    width=20,
)
EMAIL = Cell("text", _fitting(r"[^@\s]+@[^@\s]+\.[^@\s]+", "cell_email", upper=False), width=30)
