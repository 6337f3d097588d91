"""The arithmetic of fiscal codes: what a code says of its person, without omocodia, and its check letter."""

from __future__ import annotations

import re
from functools import cache, lru_cache

from codicefiscale import codicefiscale

from polydesk_dagster.changes.why import kept
from polydesk_dagster.values import Reason, Several, Term

PROVISIONAL = "PRV"
"""Eleven digits that are given until there is a real code: like an STP they are given up for it."""

SUBSTITUTES = "LMNPQRSTUV"
"""The letters that stand for 0 to 9 where two people would have the same code."""

_FOLD = str.maketrans(SUBSTITUTES, "0123456789")
_DIGIT_PLACES = (6, 7, 9, 10, 12, 13, 14)
_MONTHS = " ABCDEHLMPRST"
_FISCAL_CODE = re.compile(
    rf"[A-Z]{{6}}[0-9{SUBSTITUTES}]{{2}}[ABCDEHLMPRST][0-9{SUBSTITUTES}]{{2}}[A-Z][0-9{SUBSTITUTES}]{{3}}[A-Z]"
)
_REGIONAL = re.compile(r"(STP|ENI)[0-9]{13}")
_PROVISIONAL = re.compile(r"[0-9]{11}")

_VOWELS, _CONSONANTS = b"aeiou", b"bcdfghjklmnpqrstvwxyz"


def _letters(name: str) -> tuple[str, str] | None:
    """Consonants and vowels of one plain word, as nearly every name is; what else a name may be the library knows, and
    takes eight times as long."""
    if not (name.isascii() and name.isalpha()):
        return None
    low = name.lower().encode()
    return low.translate(None, _VOWELS).decode(), low.translate(None, _CONSONANTS).decode()


def last_name_part(name: str) -> str:
    """The three letters of a fiscal code that a last name makes."""
    if (letters := _letters(name)) is None:
        return codicefiscale.encode_lastname(name)
    return "".join(letters).ljust(3, "x")[:3].upper()


def first_name_part(name: str) -> str:
    """The three letters of a first name: of more than three consonants the second is left out."""
    if (letters := _letters(name)) is None:
        return codicefiscale.encode_firstname(name)
    consonants, vowels = letters
    if len(consonants) > 3:
        consonants = consonants[0] + consonants[2:]
    return (consonants[:3] + vowels).ljust(3, "x")[:3].upper()


def birth_part(day: str, sex: str) -> str:
    """The five characters of a fiscal code that an ISO date of birth and the sex make; women's days count from 41."""
    return f"{day[2:4]}{_MONTHS[int(day[5:7])]}{int(day[8:]) + (40 if sex == 'F' else 0):02d}"


@cache
def _check_values() -> tuple[bytes, bytes]:
    """What each character is worth in an odd and in an even place, as tables for ``bytes.translate``; the values of
    the odd places are asked of the library once."""
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    odd, even = bytearray(256), bytearray(256)
    base = ord(codicefiscale.encode_cin("A" * 15)) - 1
    for character in letters + "0123456789":
        even[ord(character)] = int(character) if character.isdigit() else letters.index(character)
        odd[ord(character)] = (ord(codicefiscale.encode_cin(character + "A" * 14)) - base) % 26
    return bytes(odd), bytes(even)


def check_letter(code: str) -> str:
    """The last letter of a fiscal code from its first fifteen characters."""
    return chr(65 + _worth(code[:15]) % 26)


def _worth(part: str, at: int = 0) -> int:
    """What ``part`` of a code, which begins ``at`` so many characters, adds to the check letter."""
    odd, even = _check_values()
    characters = part.encode("ascii")
    return sum(characters[at % 2 :: 2].translate(odd)) + sum(characters[1 - at % 2 :: 2].translate(even))


# The parts of a code, which are few, each with what it is worth: so a whole code takes no arithmetic on its letters.
def _with_worth(part: str, at: int) -> tuple[str, int]:
    return part, _worth(part, at)


@lru_cache(65_536)
def _last(name: str) -> tuple[str, int]:
    return _with_worth(last_name_part(name), 0)


@lru_cache(65_536)
def _first(name: str) -> tuple[str, int]:
    return _with_worth(first_name_part(name), 3)


@lru_cache(1024)
def _year(digits: str) -> tuple[str, int]:
    return _with_worth(digits, 6)


@lru_cache(1024)
def _of_the_year(day: str, sex: str) -> tuple[str, int]:
    return _with_worth(birth_part(f"0000{day}", sex)[2:], 8)


@lru_cache(16_384)
def _place(code: str) -> tuple[str, int]:
    return _with_worth(code, 11)


_SUMS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ" * 15
"""The check letter by what all parts are worth together, which is 25 a character at most."""


def code_of(last_name: str, first_name: str, sex: str, birth_date: str, birth_place: str) -> str:
    """The fiscal code that belongs to such a person, without omocodia."""
    last, a = _last(last_name)
    first, b = _first(first_name)
    year, c = _year(birth_date[2:4])
    day, d = _of_the_year(birth_date[4:], sex)
    place, e = _place(birth_place)
    return f"{last}{first}{year}{day}{place}{_SUMS[a + b + c + d + e]}"


def fold(code: str) -> str:
    """The code without omocodia: digits where substitutes stand, and the check letter that then belongs to it."""
    characters = list(code[:15])
    for place in _DIGIT_PLACES:
        characters[place] = characters[place].translate(_FOLD)
    folded = "".join(characters)
    return folded + check_letter(folded)


def examine(
    code: str, *, last_name: str, first_name: str, sex: str | None, birth_date: str | None, birth_place: str | None
) -> tuple[str, str, str | None]:
    """The code's kind, its canonical form, and why it cannot be this person's (as ``changes.why`` keeps it), or None.

    Only what is known of the person is compared. Raises ValueError for what is no code at all.
    """
    if _REGIONAL.fullmatch(code):
        return code[:3], code, None
    if _PROVISIONAL.fullmatch(code):
        if not _sums_up(code):
            raise ValueError("code_check_digit")
        return PROVISIONAL, code, None
    if not _FISCAL_CODE.fullmatch(code):
        raise ValueError("code_shape")
    if code[15] != check_letter(code):
        raise ValueError("code_check_letter")
    canonical = fold(code)
    wrong = []
    if canonical[:3] != last_name_part(last_name):
        wrong.append("last_name")
    if canonical[3:6] != first_name_part(first_name):
        wrong.append("first_name")
    if birth_date is not None and canonical[6:11] not in {birth_part(birth_date, s) for s in ([sex] if sex else "MF")}:
        wrong.append("birth_date_or_sex")
    elif birth_date is None and sex is not None and (int(canonical[9:11]) > 40) != (sex == "F"):
        wrong.append("sex")
    if birth_place is not None and canonical[11:15] != birth_place:
        wrong.append("birth_place")
    return "CF", canonical, disagrees(tuple(wrong)) if wrong else None


def _sums_up(digits: str) -> bool:
    """Whether the last of eleven digits is the one that belongs to the others (Luhn's)."""
    worth = [int(digit) if place % 2 == 0 else sum(divmod(2 * int(digit), 10)) for place, digit in enumerate(digits)]
    return sum(worth) % 10 == 0


@cache
def disagrees(wrong: tuple[str, ...]) -> str:
    """What of a person a code contradicts, as a row keeps it."""
    return kept(Reason("code_disagrees", {"wrong": Several(tuple(Term("identity", what) for what in wrong))}))
