"""A patient as studiolab writes one, made fit to be staged: text, dates, telephones, whether the code is hers, and a
hash of who it is."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from functools import cache, lru_cache
from hashlib import blake2b
from operator import itemgetter
from struct import Struct
from typing import Any

from polydesk_dagster.changes.kind import Reject
from polydesk_dagster.clinic.patients.fiscal_codes import code_of, examine
from polydesk_dagster.values import Reason
from polydesk_dagster.wire import LONGEST, clean, comparable

_CADASTRAL = re.compile(r"[A-Z][0-9]{3}")
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_EMAIL = re.compile(r"[^@\s\"<>(),;:]+@(?:[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?\.)+[A-Za-z]{2,}")
_SURROGATE = re.compile("[\ud800-\udfff]")


@cache
def _national() -> tuple[re.Pattern[str], ...]:
    from phonenumbers import PhoneMetadata

    italy: Any = PhoneMetadata.metadata_for_region("IT", None)
    return tuple(re.compile(kind.national_number_pattern) for kind in (italy.mobile, italy.fixed_line))


_TYPED = re.compile(r"[\s./()-]+")
_MOBILE = re.compile(r"3[2-9][0-9]{8}")
"""Nearly every number that is written; the library, which takes long to load, knows what else is one."""


def e164(typed: str) -> str | None:
    """A telephone as the desk typed it, in international form; None if it cannot be one."""
    if _MOBILE.fullmatch(typed):
        return f"+39{typed}"
    national = _TYPED.sub("", typed).removeprefix("+39")
    if _MOBILE.fullmatch(national) or (
        8 <= len(national) <= 11 and any(kind.fullmatch(national) for kind in _national())
    ):
        return f"+39{national}"
    return _foreign(typed)


@lru_cache(65_536)
def _foreign(typed: str) -> str | None:
    import phonenumbers

    try:
        number = phonenumbers.parse(typed, "IT")
    except phonenumbers.NumberParseException:
        return None
    if not phonenumbers.is_valid_number(number):
        return None
    return phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164)


def _text(value: object) -> str | None:
    if value is None:
        return None
    if type(value) is not str:
        raise Reject("invalid", Reason("not_text"))
    if not (value.isascii() and value.isprintable()):
        if "\0" in value or _SURROGATE.search(value):
            raise Reject("invalid", Reason("strange_characters"))
        value = clean(value)
    if len(value) > LONGEST:
        raise Reject("invalid", Reason("too_long", {"longest": LONGEST}))
    return value.strip() or None


_DAYS = frozenset((date(2001, 1, 1) + timedelta(n)).isoformat()[4:] for n in range(365))


def _day(value: str) -> str:
    """The date that ``value`` is, or nothing; what needs no calendar is told by its month and day."""
    year = value[:4]
    plain = value[4:] in _DAYS and year.isascii() and year.isdigit() and year != "0000"
    return value if plain else _odd_day(value)


@lru_cache(8192)
def _odd_day(value: str) -> str:
    try:
        return date.fromisoformat(day).isoformat() if _DATE.fullmatch(day := clean(value)) else ""
    except ValueError:
        return ""


def _all_plain(texts: Sequence[Any]) -> bool:
    """Whether nothing has to be done to any of these: one look for all, because nearly all are so."""
    said = list(filter(None, texts))
    try:
        joined = "|".join(said)
    except TypeError:
        return False
    return (
        len(joined) <= LONGEST
        and joined.isascii()
        and joined.isprintable()
        and " |" not in joined
        and "| " not in joined
        and joined == joined.strip()
        and len(said) + texts.count(None) == len(texts)
    )


def _date(value: object) -> str | None:
    day = _day(value) if type(value) is str else ""
    if not day and _text(value) is not None:
        raise Reject("invalid", Reason("not_a_date"))
    return day or None


@lru_cache(65_536)
def _is_place(value: str | None) -> bool:
    return value is None or _CADASTRAL.fullmatch(value) is not None


_TEXT_FIELDS = (
    "id",
    "last_name",
    "first_name",
    "fiscal_code",
    "birth_place",
    "residence",
    "address",
    "postal_code",
    "email",
    "phone",
    "mobile",
)
_OTHER_FIELDS = ("sex", "birth_date", "deceased_on", "updated_at")
_TEXTS, _OTHERS = itemgetter(*_TEXT_FIELDS), itemgetter(*_OTHER_FIELDS)
_IDENTITY = ("fiscal_code", "last_name", "first_name", "birth_date", "sex")
_ABSENT = dict.fromkeys((*_TEXT_FIELDS, *_OTHER_FIELDS))


_WHO = itemgetter(*_IDENTITY)


def fingerprint(item: Mapping[str, Any]) -> int:
    """A hash of who ``item``, a patient as the source writes one, is: code, folded names, date of birth, sex."""
    try:
        said = "|".join(_WHO(item))
        folded = _folded(said) if said.isascii() and said.isprintable() else None
    except (KeyError, TypeError):
        folded = None
    if folded is None:
        folded = "|".join([comparable(value) if isinstance(value := item.get(f), str) else "" for f in _IDENTITY])
    return _hashed(folded)


def _folded(said: str) -> str | None:
    """What ``comparable`` makes of plain text that is hashed, where it has next to nothing to do, as for nearly all."""
    if "'" in said or "." in said or "`" in said:
        return None
    said = said.lower().replace("-", " ")
    spaced = "  " in said or " |" in said or "| " in said or said[0] == " " or said[-1] == " "
    return None if spaced else said


_NUMBER = Struct(">q").unpack


def _hashed(folded: str) -> int:
    return int(_NUMBER(blake2b(folded.encode("utf-8", "replace"), digest_size=8).digest())[0])


def prepare(item: Mapping[str, Any]) -> tuple[str | None, ...]:
    """One patient of studiolab as staged values, the hash of who it is after them, problem and reason last.

    A record whose code is wrong or disagrees with the person is a problem for the review; a telephone or an address
    that cannot be one is left empty. Raises Reject when the record cannot be read at all.
    """
    if type(item) is not dict and not isinstance(item, Mapping):
        raise Reject("invalid", Reason("not_an_object"))
    try:
        texts, (sex, born, died, updated_at) = _TEXTS(item), _OTHERS(item)
    except KeyError:
        whole = {**_ABSENT, **item}
        texts, (sex, born, died, updated_at) = _TEXTS(whole), _OTHERS(whole)
    if not (plain := _all_plain(texts)):
        texts = [_text(value) for value in texts]
    external_id, last_name, first_name, code, birth_place, residence, address, postal_code, email, phone, mobile = texts
    if not (external_id and last_name and first_name and updated_at):
        raise Reject("invalid", Reason("patient_incomplete"))
    if sex == "":
        sex = None
    if sex is not None and sex not in ("M", "F"):
        raise Reject("invalid", Reason("sex_unknown"))
    birth_date = None if born is None else _date(born)
    deceased_on = None if died is None else _date(died)
    if birth_date and deceased_on and deceased_on < birth_date:
        raise Reject("invalid", Reason("died_before_birth"))
    if not (_is_place(birth_place) and _is_place(residence)):
        raise Reject("invalid", Reason("place_unknown"))
    canonical = kind = problem = reason = folded = None
    if code is not None:
        known = sex and birth_date and birth_place
        if known and code == code_of(last_name, first_name, sex, birth_date, birth_place):
            canonical, kind = code, "CF"
            folded = _folded(f"{code}|{last_name}|{first_name}|{birth_date}|{sex}") if plain else None
        else:
            code = code.upper().replace(" ", "")
            try:
                kind, canonical, reason = examine(
                    code,
                    last_name=last_name,
                    first_name=first_name,
                    sex=sex,
                    birth_date=birth_date,
                    birth_place=birth_place,
                )
            except ValueError as wrong:
                code, reason = None, str(wrong)
            problem = "invalid" if reason else None
    elif birth_date is None:
        problem, reason = "invalid", "no_code_no_birth_date"
    if email is not None and not _EMAIL.fullmatch(email):
        email = None
    return (
        external_id,
        code,
        canonical,
        kind,
        last_name,
        first_name,
        sex,
        birth_date,
        birth_place,
        residence,
        address,
        postal_code,
        email,
        e164(phone) if phone else None,
        e164(mobile) if mobile else None,
        deceased_on,
        str(_hashed(folded) if folded is not None else fingerprint(item)),
        problem,
        reason,
    )


COLUMNS = {
    "fiscal_code": "text",
    "fiscal_code_canonical": "text",
    "fiscal_code_kind": "text",
    "last_name": "text",
    "first_name": "text",
    "sex": "text",
    "birth_date": "date",
    "birth_place": "text",
    "residence": "text",
    "address": "text",
    "postal_code": "text",
    "email": "text",
    "phone": "text",
    "mobile": "text",
    "deceased_on": "date",
}
