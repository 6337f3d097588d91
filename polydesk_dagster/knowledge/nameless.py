"""A question without what says who asks: it is kept so that a document can be written, not so that somebody is known.

What stays are words that documents, the catalogue or everyday Italian hold; any other may be a name, and goes, as
numbers and addresses do. What is left is read by a person, who understands it. A patient's name that is an everyday
word too goes where it is written as a name, or beside another.
"""

from __future__ import annotations

import re
from collections.abc import Collection

import sqlalchemy as sa

from polydesk_dagster.knowledge.question import ASKING, everyday_words
from polydesk_dagster.knowledge.text import STOP_WORDS, words

GONE = "…"
"""Stands where something was."""

LONGEST = 300
"""Characters that are kept."""

_ADDRESS = re.compile(r"\S+@\S+|\b(?:https?://|www\.)\S+", re.IGNORECASE)
_CODE = re.compile(r"\b(?=\w*\d)(?=\w*[^\W\d_])\w{9,}\b")
"""Letters and digits mixed, as long as no examination's name is: fiscal codes, accounts, numbers of records."""
_NUMBER = re.compile(r"\+?\d[\d ./\-]{3,}\d|\d{4,}")
"""Telephone numbers, dates, record numbers; «12 ore» and «B12» stay."""
_NAME = r"(?:(?i:de|di|del|della|dello|dal|dalla|la|lo|li|d['’])\s*\b)?[\w'’]+"
_INTRODUCED = re.compile(
    rf"(?P<who>(?i:\b(?:mi chiamo|a nome(?: di)?|il mio (?:cog)?nome è|intestat[oa] a|nat[oa] a))\s+)"
    rf"{_NAME}(?:\s+{_NAME})?"
)
_TITLED = re.compile(
    rf"(?P<who>(?i:\b(?:signor[ae]?|sig\.? ?(?:ra|na)?\.?|dott(?:oressa|ore|or)?\.?(?:ssa)?|prof\.?(?:ssa)?))\s+)"
    rf"{_NAME}(?:\s+[A-ZÀ-Ý][\w'’]+){{0,3}}"
)
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_SHORT = 4
"""Letters beside digits that are kept: «B12», «G6PD»."""

_AT_THE_DESK = frozenset(
    """
    digiuno disdire disdetta disdico prenotazione prenotazioni ticket impegnativa impegnative delega tariffa tariffe
    tariffario esenzione esenzioni referti poliambulatorio ambulatorio ambulatori convenzione convenzioni sportello
    prelievo prelievi fattura fatture bonifico appuntamenti urine ecografia ecografie radiografia radiografie
    ore ora poi mai gia fa va sta do so sa sai fai vai due tre sei ago tac eco rx rm tc ecg bar bus via eta ok no me te
    giu qua qui cup asl iva sms pdf app euro
    """.split()  # noqa: SIM905 - a list of words reads better as text
)
"""Everybody's words at a clinic's desk that films do without, and short ones, which the list leaves out; folded."""

_CLINICAL = re.compile(
    r"\w{3,}(?:scopi|grafi|metri|tomi|terapi|puntur|plastic|pati|biopsi)[ae]|\w{4,}(?:centesi|gramm[ai])"
)
"""What examinations and treatments are called, and people are not: what no document holds is what is to be learnt."""

_GIVEN = frozenset(
    """
    antonio mario angelo salvatore franco bruno michele marco simone guido maria anna elena franca laura sara barbara
    """.split()  # noqa: SIM905
)
"""Given names among everyday words."""

PATIENTS = sa.text("""
    SELECT DISTINCT n.word
    FROM patient p, regexp_split_to_table(lower(p.last_name || ' ' || p.first_name), '[^[:alpha:]]+') AS n (word)
    WHERE n.word = ANY(:words) AND length(n.word) > 2""")
"""Those of some words that a patient is called by."""


def nameless(connection: sa.Connection, question: str, vocabulary: Collection[str]) -> str:
    """``question`` without names, numbers and addresses; ``vocabulary`` holds those of its folded words that documents
    and the catalogue know: «globuli rossi» stays, «Mario Rossi» does not."""
    text = " ".join(question.split())[:LONGEST]
    for pattern in (_ADDRESS, _CODE, _NUMBER):
        text = pattern.sub(GONE, text)
    for pattern in (_INTRODUCED, _TITLED):
        text = pattern.sub(lambda found: found["who"] + GONE, text)
    found = list(_WORD.finditer(text))
    patients = set(connection.scalars(PATIENTS, {"words": [each.group().lower() for each in found]}))
    called = [each.group().lower() in patients for each in found]
    for place in reversed(range(len(found))):
        word = found[place].group()
        parts = words(word)
        known = all(part in vocabulary for part in parts)
        stays = known or all(part in vocabulary or may_stay(part) for part in parts)
        capital = word[0].isupper() and not word.isupper()
        beside = any(called[max(0, place - 1) : place]) or any(called[place + 1 : place + 2])
        named = called[place] and (not known or capital or beside)
        if named or not stays or (capital and place > 0 and not known):
            text = text[: found[place].start()] + GONE + text[found[place].end() :]
    return re.sub(rf"{GONE}(?:\s*{GONE})+", GONE, text)


def may_stay(word: str) -> bool:
    """Whether a folded word is nobody's name, as far as everyday Italian tells."""
    if not word.isalpha():
        return sum(letter.isalpha() for letter in word) <= _SHORT
    common = (
        _CLINICAL.fullmatch(word)
        or word in STOP_WORDS
        or word in ASKING
        or word in _AT_THE_DESK
        or word in everyday_words()
    )
    return len(word) == 1 or (bool(common) and word not in _GIVEN)
