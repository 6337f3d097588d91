"""A question understood: its words after spelling, and how much each tells of the subject."""

from __future__ import annotations

import gzip
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

import sqlalchemy as sa

from polydesk_dagster.knowledge.text import STOP_WORDS, one_edit_away

LONGEST_WORD = 30
"""Letters up to which a word may be misspelt; its neighbours are some fifty a letter."""

ASKING = frozenset(
    """
    costa costano costo costi costerebbe prezzo prezzi tariffa pagare viene vengono fate fare fa faccio fatto
    facendo dosate serve servono servirebbe devo deve dobbiamo voglio vorrei vuole posso puo possibile bisogno
    chiesto segnato prescritto ordinato detto medico dottore dottoressa esame esami analisi test visita controllo
    guardare vedere sapere capire prima dopo volta giorno adesso mio mia figlio figlia marito moglie grazie
    buongiorno salve scusi
    """.split()  # noqa: SIM905 - a list of words reads better as text
)
"""Words that people ask with: they tell little of what is asked for; folded."""

WHEN = frozenset(
    """
    uno una due tre quattro cinque sei sette otto nove dieci primo prima secondo seconda ultimo ultima ultimi ultime
    prossimo prossima prossimi ora ore giorno giorni settimana settimane mese mesi anno anni oggi ieri domani mattina
    sera
    """.split()  # noqa: SIM905
)
"""Words of number and time: they put passages in order, but do not decide whether anything answers; folded."""

ASIDE = 0.3
"""What such a word weighs beside others, and an everyday word that no document holds: an examination that no document
holds is no everyday word."""

SUBJECT = 1.5
"""What the first word that a question is not merely asked with weighs beside others where no document holds it, when it
is decided whether anything answers: «infiltrazioni al ginocchio» is not answered by what speaks of the knee."""

LONGEST = 60
"""Words of a question that are looked at; a whole letter is no question."""


@dataclass(frozen=True, slots=True)
class Question:
    """Words of a question after spelling, those that carry its subject, and their weights."""

    every: tuple[str, ...]
    telling: tuple[str, ...]
    weights: Mapping[str, float]
    unknown: tuple[str, ...]
    corrected: Mapping[str, str]
    also: Mapping[str, tuple[tuple[str, ...], ...]]
    """What documents may call a word of the question instead: each of these, in one or more words."""
    needed: Mapping[str, float]
    """What each telling word weighs where it is asked whether a passage answers at all."""

    @property
    def looked_for(self) -> str:
        """Its telling words, and those of the other names."""
        others = (word for names in self.also.values() for name in names for word in name)
        return " ".join(dict.fromkeys((*self.telling, *others)))

    def with_other_names(self, question: str) -> str:
        """The question as it was put, and after it what documents may call what it asks for."""
        others = dict.fromkeys(" ".join(name) for names in self.also.values() for name in names)
        return f"{question} ({', '.join(others)})" if others else question


def understand(
    connection: sa.Connection,
    generation: int,
    passages: int,
    asked: Sequence[str],
    known: Mapping[str, int],
    lay: Mapping[str, Sequence[str]],
) -> Question:
    """Words that neither a passage nor everyday Italian holds are taken for the commonest known one a letter away."""
    by_length = sorted(lay.items(), key=lambda each: each[0].count(" "))  # «riserve di ferro» says more than «ferro»
    also = {phrase.split()[-1]: tuple(tuple(name.split()) for name in names) for phrase, names in by_length}
    unknown = [w for w in dict.fromkeys(asked) if w not in known and w not in STOP_WORDS and w not in also]
    misspelt = {
        w: one_edit_away(w)
        for w in unknown
        if 4 <= len(w) <= LONGEST_WORD and w.isalpha() and w not in everyday_words()
    }
    corrected: dict[str, str] = {}
    counts = dict(known)
    if misspelt:
        rows = connection.execute(
            sa.text("""
                SELECT DISTINCT ON (m.word) m.word, t.term, t.passages
                FROM unnest(CAST(:words AS text[]), CAST(:near AS text[])) AS m (word, near)
                JOIN knowledge_term t ON t.generation_id = :generation AND t.term = m.near
                ORDER BY m.word, t.passages DESC, t.term"""),
            {
                "generation": generation,
                "words": [word for word, near in misspelt.items() for _ in near],
                "near": [candidate for near in misspelt.values() for candidate in near],
            },
        )
        for word, term, holding in rows:
            corrected[word] = term
            counts[term] = holding
    every = tuple(corrected.get(word, word) for word in asked)
    telling = tuple(dict.fromkeys(word for word in every if word not in STOP_WORDS)) or tuple(dict.fromkeys(every))
    weights = {word: _rarity(passages, counts.get(word, 0)) * _says(word, counts, also) for word in telling}
    needed = {
        word: weight * (ASIDE if word in WHEN and word not in ASKING else 1.0) for word, weight in weights.items()
    }
    subject = next((word for word in telling if word not in ASKING and word not in WHEN), None)
    if subject is not None and subject not in counts and subject not in also:
        needed[subject] = SUBJECT * _rarity(passages, 0)
    return Question(every, telling, weights, tuple(w for w in unknown if w not in corrected), corrected, also, needed)


def _says(word: str, counts: Mapping[str, int], also: Mapping[str, object]) -> float:
    """How much a word may tell of the subject, its rarity apart."""
    absent = word not in counts and word not in also and word in everyday_words()
    return ASIDE if absent or word in ASKING else 1.0


@cache
def everyday_words() -> frozenset[str]:
    """Some twelve thousand words that everybody writes, folded, from film subtitles: «posso» is no slip for «rosso»."""
    packed = resources.files("polydesk_dagster.knowledge").joinpath("lexicon_it.txt.gz").read_bytes()
    return frozenset(gzip.decompress(packed).decode().split())


def _rarity(passages: int, holding: int) -> float:
    """BM25's weight of a word that stands in ``holding`` of ``passages``."""
    return math.log(1 + (max(passages, holding) - holding + 0.5) / (holding + 0.5))
