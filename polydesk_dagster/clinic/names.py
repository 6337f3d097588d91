"""The name by which a specialist stands in a list: what an Italian reader looks under, whatever was typed."""

from __future__ import annotations

import re
import unicodedata

_PLAIN_TITLES = {
    *("dott", "dottssa", "dottore", "dottoressa", "dr", "drssa", "dssa", "prof", "profssa"),
    *("professore", "professoressa", "primdr"),
}
"""Titles even without a point (written here without any)."""

_POINTED_TITLES = {"avv", "ing", "sig", "sigra", "signa", "rag", "geom", "arch", "med", "dent", "univ", "prim", "chir"}
"""Titles only with a point: without one they may be a name (Ing, Med)."""

_PARTICLES = {
    *("de", "di", "da", "d", "del", "dello", "della", "dell", "dei", "degli", "delle", "dal", "dallo", "dalla"),
    *("dall", "dai", "dagli", "dalle", "lo", "la", "li", "le", "von", "van", "zu"),
}

_WITHOUT_DECOMPOSITION = str.maketrans(
    {"Ø": "O", "Ł": "L", "Đ": "D", "Æ": "AE", "Œ": "OE", "Þ": "TH", "Ð": "D", "İ": "I", "Ħ": "H", "Ŧ": "T"}
)

_APOSTROPHES = re.compile(r"['’‘`´ʼ′]")
_TITLE = re.compile(r"^\s*([^\W\d_]++(?:\.\s?(?:ssa|ra)\b)?)(\.?)[\s\-]*(?=.*\w)", re.IGNORECASE)
_GAP = "  "
"""Between surname and first name: lower than any letter after one blank, so ROSSI comes before ROSSI BIANCHI."""


def fold(text: str) -> str:
    """Capitals, digits and single blanks: without accents, apostrophes and punctuation. Idempotent."""
    capitals = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).upper())
    bare = "".join(c for c in capitals if not unicodedata.combining(c)).translate(_WITHOUT_DECOMPOSITION)
    return " ".join(re.sub(r"[\W_]", " ", _APOSTROPHES.sub("", bare)).split())


def without_titles(name: str) -> str:
    """The name without the titles before it; a name that is nothing but a title stays."""
    while match := _TITLE.match(name):
        word, point = match.groups()
        title = re.sub(r"[.\s]", "", word).lower()
        if title not in _PLAIN_TITLES and not ((point or "." in word) and title in _POINTED_TITLES):
            break
        name = name[match.end() :]
    return name.strip()


def sort_name(last_name: str, first_name: str) -> str:
    """The key under which a specialist is listed: compare it byte by byte and break ties by id.

    Particles belong to the surname and join it (De Luca, D'Angelo, Della Rocca); the parts of a double surname stay
    words, hyphen or not, so the Rossi come before the Rossi Bianchi and those before the Rossini.
    """
    surname = _joined(fold(_APOSTROPHES.sub("' ", without_titles(last_name))), last_name)
    return _GAP.join(part for part in (surname, fold(without_titles(first_name))) if part)


def order_key(stored: str | None, manual: bool, last_name: str, first_name: str) -> str:
    """What lists are ordered by: the stored sort name (folded if set by hand), or what it would be if there is none."""
    if not stored:
        return sort_name(last_name, first_name)
    return fold(stored) if manual else stored


def _joined(folded: str, given: str) -> str:
    words: list[str] = []
    prefix = ""
    elided = {fold(word) for word in re.findall(r"(\w+)['’‘`´ʼ′]\s?(?=\w)", given)}
    for word in folded.split():
        if word.lower() in _PARTICLES or word in elided:
            prefix += word
        else:
            words.append(prefix + word)
            prefix = ""
    return " ".join([*words, prefix] if prefix else words)
