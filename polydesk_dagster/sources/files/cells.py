"""What a cell of a spreadsheet means in a field of a record; what it cannot mean is left for the record to refuse."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any

from polydesk_dagster.sources.files.maps import Column
from polydesk_dagster.wire import clean, comparable, is_number

ERRORS = frozenset({"#N/A", "#N/D", "#REF!", "#RIF!", "#VALUE!", "#VALORE!", "#NAME?", "#NOME?", "#DIV/0!", "#NUM!"})
"""What a spreadsheet shows where a formula failed, in English and Italian: no value of anybody's."""

_DAY_ONE = date(1899, 12, 30)
_SERIAL = re.compile(r"[2-7][0-9]{4}(\.0+)?")
_NOISE = re.compile(r"-?[0-9]+\.[0-9]{7,}")
_MONEY_MARKS = re.compile(r"€|EUR|euro|[\s\u00a0']", re.IGNORECASE)
_WHOLE = re.compile(r"([0-9]+)(?:[.,]0+)?\s*(?:min|minuti|')?\.?", re.IGNORECASE)
_CLOCK = re.compile(r"([0-9]{1,2}):([0-5][0-9])(?::00)?")
_DAYS = ("%d/%m/%Y", "%d-%m-%Y", "%d.%m.%Y", "%Y%m%d", "%Y/%m/%d")
_YES = frozenset({"si", "s", "yes", "y", "true", "vero", "1", "x", "attivo", "attiva", "1 0"})
_NO = frozenset({"no", "n", "false", "falso", "0", "", "cessato", "cessata", "0 0"})


def _day(text: str) -> str:
    """A date as Italians write it, as ISO does with or without a time, or as the number that Excel keeps."""
    if _SERIAL.fullmatch(text):
        return (_DAY_ONE + timedelta(days=int(text.partition(".")[0]))).isoformat()
    bare = text.partition(" ")[0].partition("T")[0]
    for form in _DAYS:
        try:
            return datetime.strptime(bare, form).date().isoformat()  # noqa: DTZ007
        except ValueError:
            continue
    return bare


def _money(text: str) -> str:
    """Without the sign of the currency, and without what a binary fraction adds to two decimals."""
    bare = _MONEY_MARKS.sub("", text)
    if _NOISE.fullmatch(bare):
        exact, rounded = Decimal(bare), Decimal(bare).quantize(Decimal("0.01"))
        return str(rounded) if abs(exact - rounded) < Decimal("0.000001") else bare
    return bare


def _whole(text: str) -> int | str:
    if found := _CLOCK.fullmatch(text):
        return int(found[1]) * 60 + int(found[2])
    found = _WHOLE.fullmatch(text)
    return int(found[1]) if found else text


def _flag(text: str) -> bool | str:
    said = comparable(text)
    return True if said in _YES else False if said in _NO else text


READ: dict[str, Callable[[str], Any]] = {
    **dict.fromkeys(("valid_from", "valid_to", "birth_date", "deceased_on", "ends_on"), _day),
    **dict.fromkeys(("amount", "patient_share", "vat_rate"), _money),
    "duration_minutes": _whole,
    "active": _flag,
}
"""How a field's cell is read; every other is text."""

SEVERAL = frozenset({"specialties", "postal_codes"})


def value(field: str, column: Column, cell: str) -> Any:
    """What ``cell`` says of ``field``; None where it is blank."""
    text = clean(cell)
    if text in column.values:
        said = column.values[text]
        return READ[field](str(said)) if is_number(said) and field in READ else said
    if column.digits is not None and text.removesuffix(".0").isdigit():
        text = text.removesuffix(".0").zfill(column.digits)
    if field in SEVERAL:
        return [part for part in map(str.strip, text.split(column.split or ",")) if part]
    if not text:
        return _flag(text) if field == "active" else None
    return READ.get(field, str)(text)
