"""How text is seen by the index: folded words, sentences, character n-grams, spelling neighbours."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache

GRAM = 4
"""Characters of an n-gram, the mark at a word's edge included."""

EDGE = "_"
"""Marks where a word begins and ends; never inside a word, because ``words`` splits on it."""

STOP_WORDS = frozenset(
    """
    a ad al allo ai agli all agl alla alle con col coi da dal dallo dai dagli dall dagl dalla dalle di del dello dei
    degli dell degl della delle in nel nello nei negli nell negl nella nelle su sul sullo sui sugli sull sugl sulla
    sulle per tra fra contro io tu lui lei noi voi loro mio mia miei mie tuo tua tuoi tue suo sua suoi sue nostro
    nostra nostri nostre vostro vostra vostri vostre mi ti ci vi lo la li le gli ne il un uno una ma ed od se perche
    anche come dov dove che chi cui non piu quale quali qual quanto quanti quanta quante quello quelli quella quelle
    questo questi questa queste si tutto tutti i l o e c d ho hai ha abbiamo avete hanno era erano sono fu furono
    stato stata stati state essere sia quando cosa
    """.split()  # noqa: SIM905 - a list of words reads better as text
)
"""Italian words that say nothing of the subject, question words included; folded."""

_MARKS = re.compile(r"[\u0300-\u036f\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f]+")
_WORD = re.compile(r"[^\W_]+")
_SENTENCE_END = re.compile(r"(?<=[.!?;:])\s+|\n{2,}|\n(?=\s*(?:[-*+•·|]|\d+[.)]\s))")  # a line's end alone is none


def fold(text: str) -> str:
    """Lower case, no accents, compatibility forms unified."""
    lower = text.lower()
    return lower if lower.isascii() else _MARKS.sub("", unicodedata.normalize("NFKD", lower))


def words(text: str) -> list[str]:
    """The folded words of a text, in order: letters and digits; an apostrophe parts two words."""
    return _WORD.findall(fold(text))


def marked(sequence: Iterable[str]) -> str:
    """Words joined so that ``_word_`` and ``_two_words_`` can be looked for as substrings."""
    return EDGE + EDGE.join(sequence) + EDGE


def marked_sentences(text: str) -> str:
    """One line a sentence, each ``marked``; what the ranking compares a question with."""
    return "\n".join(marked(found) for sentence in _SENTENCE_END.split(text) if (found := words(sentence)))


def marked_words(text: str) -> list[str]:
    """The words of a ``marked`` text, without looking at its letters again."""
    return [word for word in text.replace("\n", EDGE).split(EDGE) if word]


@lru_cache(maxsize=65_536)
def grams(word: str) -> tuple[str, ...]:
    """The n-grams of one folded word with its edges marked: ``via`` gives ``_via``, ``via_``."""
    text = f"{EDGE}{word}{EDGE}"
    return (text,) if len(text) <= GRAM else tuple(text[i : i + GRAM] for i in range(len(text) - GRAM + 1))


def gram_text(sequence: Iterable[str]) -> str:
    """The n-grams of words, apart by spaces: what the typo-tolerant channel indexes and is asked."""
    return " ".join(gram for word in sequence for gram in grams(word))


_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def one_edit_away(word: str) -> list[str]:
    """Every string that one letter left out, put in, changed, or swapped with the next makes of ``word``."""
    halves = [(word[:i], word[i:]) for i in range(len(word) + 1)]
    near = {left + right[1:] for left, right in halves if right}
    near |= {left + right[1] + right[0] + right[2:] for left, right in halves if len(right) > 1}
    near |= {left + letter + right[1:] for left, right in halves if right for letter in _LETTERS}
    near |= {left + letter + right for left, right in halves for letter in _LETTERS}
    near.discard(word)
    return sorted(near)
