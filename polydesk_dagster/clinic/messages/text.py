"""How a text looks: SMS segments, dates and names in words, and masks for whoever may not read them."""

from __future__ import annotations

import math
import unicodedata
from dataclasses import dataclass
from datetime import date
from functools import lru_cache

CLINICAL = (
    r"diagnos|patolog|oncolog|onkolog|tumor|neoplas|hiv(?!\w)|aids(?!\w)|ivg(?!\w)|abort|interruzione"
    r"|schwangerschaftsabbruch|ser\.?d(?!\w)|tossicodip|dipendenz|psichiatr|psychiatr|gravidanz|schwanger|sifilid"
    r"|epatit|positiv|negativ|esito|befund"
)
"""What tells of somebody's health, in a text or in a service's name; read alike by Python and by PostgreSQL."""

_GSM = frozenset(
    "@£$¥èéùìòÇ\nØø\rÅåΔ_ΦΓΛΩΠΨΣΘΞÆæßÉ !\"#¤%&'()*+,-./0123456789:;<=>?¡ABCDEFGHIJKLMNOPQRSTUVWXYZÄÖÑÜ§¿"
    "abcdefghijklmnopqrstuvwxyzäöñüà"
)
_GSM_DOUBLE = frozenset("\f^{}\\[~]|€")


@dataclass(frozen=True, slots=True)
class Segments:
    """What a text costs as SMS."""

    encoding: str
    """``GSM-7`` or ``UCS-2``."""
    units: int
    """Septets, or UTF-16 units."""
    segments: int
    culprits: str
    """The characters that forced UCS-2, each once."""


def segments(text: str) -> Segments:
    """Segments of ``text``: 160 septets alone or 153 in a chain; 70 or 67 units where one character is not GSM-7.

    A character of two units is never cut in half, so a chain may be longer than the division says.
    """
    culprits = "".join(dict.fromkeys(c for c in text if c not in _GSM and c not in _GSM_DOUBLE))
    if culprits:
        widths = [2 if ord(c) > 0xFFFF else 1 for c in text]
        return Segments("UCS-2", sum(widths), _chain(widths, 70, 67), culprits)
    if not _GSM_DOUBLE.intersection(text):
        return Segments("GSM-7", len(text), 1 if len(text) <= 160 else math.ceil(len(text) / 153), "")
    widths = [2 if c in _GSM_DOUBLE else 1 for c in text]
    return Segments("GSM-7", sum(widths), _chain(widths, 160, 153), "")


def _chain(widths: list[int], alone: int, chained: int) -> int:
    if sum(widths) <= alone:
        return 1
    count, used = 1, 0
    for width in widths:
        if used + width > chained:
            count, used = count + 1, 0
        used += width
    return count


_PLAIN = str.maketrans(
    {
        "À": "A'",
        "È": "E'",
        "Ì": "I'",
        "Ò": "O'",
        "Ù": "U'",
        "’": "'",
        "‘": "'",
        "“": '"',
        "”": '"',
        "«": '"',
        "»": '"',
        "–": "-",
        "—": "-",
        "…": "...",
        "\u00a0": " ",
        "\u202f": " ",
        "\t": " ",
        "\u00ad": None,
        "\u200b": None,
        "\ufeff": None,
        "´": "'",
        "`": "'",
        "•": "-",
        "·": "-",
        "°": "o",
        "º": "o",
        "ª": "a",
        "ç": "c",
        "×": "x",
        "½": "1/2",
        "¼": "1/4",
        "²": "2",
        "³": "3",
        "µ": "u",
        "≥": ">=",
        "≤": "<=",
    }
)


def plain(text: str) -> str:
    """``text`` composed, and with what an Italian keyboard has for typographic characters, where that keeps it within
    GSM-7: one «È» would double the SMS. Else, and so for every name of a person, nothing more is changed."""
    composed = unicodedata.normalize("NFC", text)
    written = composed.translate(_PLAIN)
    return composed if segments(written).culprits else written


@lru_cache(4096)
def readable_number(number: str) -> str:
    """A telephone to be read and dialled from anywhere: ``+390515550000`` → ``+39 051 555 0000``."""
    import phonenumbers

    try:
        parsed = phonenumbers.parse(number, "IT")
    except phonenumbers.NumberParseException:
        return number
    return phonenumbers.format_number(parsed, phonenumbers.PhoneNumberFormat.INTERNATIONAL)


_WEEKDAYS = {
    "it": ("lunedì", "martedì", "mercoledì", "giovedì", "venerdì", "sabato", "domenica"),
    "de": ("Montag", "Dienstag", "Mittwoch", "Donnerstag", "Freitag", "Samstag", "Sonntag"),
}
_MONTHS = {
    "it": (
        *("gennaio", "febbraio", "marzo", "aprile", "maggio", "giugno"),
        *("luglio", "agosto", "settembre", "ottobre", "novembre", "dicembre"),
    ),
    "de": (
        *("Jänner", "Februar", "März", "April", "Mai", "Juni"),
        *("Juli", "August", "September", "Oktober", "November", "Dezember"),
    ),
}


def day_in_words(day: date, language: str) -> str:
    """``mercoledì 11 marzo``; German as in South Tyrol."""
    weekday, month = _WEEKDAYS[language][day.weekday()], _MONTHS[language][day.month - 1]
    return f"{weekday} {day.day} {month}" if language == "it" else f"{weekday}, {day.day}. {month}"


def initials(first_name: str, last_name: str) -> str:
    """``Anna Maria``, ``De Luca`` → ``A. D.``"""
    return " ".join(f"{name.strip()[0].upper()}." for name in (first_name, last_name) if name.strip())


def mask_address(address: str | None) -> str:
    """Enough to recognise an address that one knows, too little to learn one: ``+39…67``, ``m…@e…``."""
    if not address:
        return "—"
    name, at, domain = address.partition("@")
    return f"{name[:1]}…@{domain[:1]}…" if at else f"{address[:3]}…{address[-2:]}"
