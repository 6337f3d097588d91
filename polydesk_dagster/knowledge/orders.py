"""Sentences that speak to a machine: weighed by what they speak of together, and by what they mean where a model is
installed.

No word gives an order away: «rispondi», «l'utente» and «non dire» stand in every guide for receptionists. So a sentence
is seen as which subjects it touches, alone and two by two, beside its vector, and both are weighed by a logistic
regression that was fitted on sentences of both kinds (``benchmarks/orders.py``, which also says what it finds).
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, lru_cache
from importlib import resources

from polydesk_dagster.knowledge.text import fold

Meaning = Callable[[Sequence[str]], Sequence[Sequence[float]]]
"""Vectors of sentences, by the model on which the weights were fitted."""

LONGEST = 300
"""Characters of a sentence that are weighed together; an order in a table's long row is not lost in it."""

MOST = 1_000
"""Sentences of one document of which vectors are made, the most suspect first; some 17 s of a processor."""

MANY = 40
"""Words from which a sentence is long."""

NEAR = 5.0
"""By how much vectors are spread, so that one number of theirs weighs about what one subject does."""

_SUBJECTS: Mapping[str, str] = {
    "machine": r"assistent[ei]|assistant|(?:chat)?bot|ia|ai|intelligenz\w*|artificial\w*|modello|llm|gpt|algoritm\w*|"
    r"software|programma|macchin[ae]|agent[ei]|crawler|motore|sistem[ai]|system|automatic\w*|virtual\w*|digital[ei]|"
    r"openai|sprachmodell|model",
    "answer": r"rispond\w*|rispost[ae]|dichiar\w*|afferm\w*|sostien\w*|racconta\w*|di'|dire|dici|digli|dille|dirgli|"
    r"comunica\w*|cita\w*|menziona\w*|nomina\w*|riassu\w*|riferi\w*|riport\w*|ripeti|fornisci|answer\w*|reply|"
    r"respond\w*|say|tell|quote|antwort\w*|beantwort\w*|repond\w*|sage",
    "asker": r"utent[ei]|chiunque|interlocutor\w*|quesit[oi]|domand[ae]\w*|richiest[ae]|conversazion[ei]|chat|dialogo|"
    r"user\w*|questions?|asked|asks|benutzer|frage",
    "reader": r"tu|ti|te|tuo|tua|tuoi|tue|sei|hai|devi|puoi|sarai|farai|dirai|you|your|du|dein\w*|tes|ton|eres|tus",
    "undo": r"ignor\w*|dimentic\w*|scord\w*|trascur\w*|annull\w*|revoc\w*|decad\w*|superat[aeoi]|scavalc\w*|bypass\w*|"
    r"aggir\w*|abbandon\w*|smett\w*|sovrascriv\w*|disattend\w*|disattiv\w*|rimoss\w*|disregard\w*|forget\w*|override\w*|"
    r"ignorier\w*|vergiss|olvida\w*",
    "rules": r"istruzion[ei]|regol[ae]|direttiv[ae]|indicazion[ei]|disposizion[ei]|policy|impostazion[ei]|configura\w*|"
    r"prompt|vincol[oi]|limit[ei]|restrizion[ei]|filtr[oi]|comand[oi]|ordin[ei]|programmat\w*|addestra\w*|insegnat\w*|"
    r"instructions?|rules?|guidelines?|guidance|restrictions?|configuration|anweisung\w*|regeln|consignes|reglas",
    "before": r"precedent\w*|prima|sopra|inizial\w*|inizio|avvio|ricevut\w*|impartit\w*|avut[oaei]|finora|earlier|"
    r"previous\w*|above|before|prior",
    "now": r"adesso|avanti|innanzi",
    "conceal": r"segret[oaie]|nascond\w*|nascost\w*|ometti|omettere|taci|tacere|hidden|secret",
    "itself": "below",
    "secret": r"password|credenzial\w*|token|api|chiav[ei]|otp|pin|bancomat|nominativ\w*|archivi[oi]?|registri|"
    r"fascicol[oi]|iban|cellulare|riservat\w*|credentials|database|rubrica|anagrafic\w+",
    "deceit": r"inventa\w*|ment[ie]\w*|mentir\w*|fing\w*|finta|pretend\w*|benche|fals[oaie]|falsament\w*|doppi[oa]|"
    r"raddoppi\w*|nega|convinc\w*|spingi\w*|scoraggi\w*|sconsigli\w*|ingann\w*|lie",
    "always": r"sempre|mai|ogni|qualunque|qualsiasi|soltanto|solo|esclusivament\w*|unic[oa]|tutt[ioae]|any|"
    r"every\w*|always|only|never|all|each|jede|toda?s|tout",
    "outside": r"https?|url|link|collegament[oi]|immagin[ei]|base64|e?mail|indirizz\w*|csv|invia\w*|manda\w*|"
    r"inoltra\w*|spedisci\w*|trasmett\w*|forward|send|tracciant\w*",
    "role": r"agisci|agire|comporta\w*|immagina|interpreta|ruolo|impersona\w*|identita|presentati|parla|facciamo|"
    r"giochiamo|modalita|mode|act|role|personaggio",
    "tool": r"strument[oi]|funzion[ei]|comand[oi]|codice|esegu\w*|lancia\w*|sql|select|rm|tools?|function|execute|call|"
    r"invoca\w*|richiama|cancella\w*|elimina\w*|delete|prenota|disdici|sposta",
    "reveal": r"mostra\w*|rivela\w*|stampa\w*|elenca\w*|visualizza\w*|trascriv\w*|espon\w*|consegna\w*|riport\w*|"
    r"reveal|print|show|output|display|zeige|affiche|muestra|traduci|translate|repeat|ripeti",
    "praise": r"pubblicita|sponsor\w*|raccomand\w*|consigli\w*|suggeri\w*|miglior[ei]|eccellent[ei]|stelle|"
    r"concorren\w*|premium|pacchetto|recommend\w*|recomiend\w*|promuov\w*",
    "leave": r"autorizz\w*|permess[oi]|sblocc\w*|amministrator\w*|admin|sviluppator\w*|developer|authori[sz]ed|"
    r"privileg\w*|verifica\w*|obbed\w*|obey|comply|abilita",
    "marks": r"(?!)",
}
"""Single words of a subject; folded, whole."""

_PHRASES: Mapping[str, str] = {
    "machine": "language model",
    "asker": r"chi (?:chied\w+|domand\w+|scriv\w+|interrog\w+|telefona|ti \w+|legge|fa domande)",
    "undo": r"non (?:\w+ ){0,3}(?:val\w+|cont[ai]\w*|vincol\w*|consider\w*|applicar\w*|seguir\w*|tener\w*|obbed\w*)|"
    r"(?:metti|mettere|lascia\w*) (?:da parte|perdere|stare)|no longer|ne tiens pas",
    "rules": "linee guida",
    "before": "fin qui|fino a (?:ora|qui)",
    "now": "d'ora|d[ao] ora|da questo momento|da qui in|a parti[re] da|from (?:now|this|here)|ab jetzt|in poi",
    "conceal": r"(?:non|mai|senza|evita\w* di|do not|don't|never|without) (?:\w+ ){0,3}(?:cit\w+|menzion\w+|rivel\w+|"
    r"capir\w*|dir\w*|parl\w+|parola|saper\w*|sapp\w+|far\w* notare|avvis\w+|spieg\w+|accenn\w+|mention|cite|reveal|"
    r"tell|let|disclos\w+|say)",
    "itself": r"(?:quest[oaie]|seguent[ei]|this|these|the following|diesem?|este|ce) (?:\w+ )?(?:testo|paragraf\w*|"
    r"document\w*|righ[ea]|bran[oi]|pagin[ae]|scheda|not[ae]|riquadro|foglio|parole|messaggio|direttiv[ae]|ordin[ei]|page|"
    r"text|lines?|paragraph|absatz|section|sezione)|(?:quanto|cio che|quel(?:lo)? che) segue|qui sotto|"
    r"paragrafo seguente|righe che seguono",
    "secret": r"codic[ei] fiscal[ei]|carta di credito|dati (?:de[il]|sui|di|person\w+|sensibil\w+|riservat\w+)|"
    r"patient \w+",
    "deceit": r"anche se (?:non|e|l\w+)|pur non|scusa di|a prescindere|come vero",
    "role": "ti chiami|you are|sei (?:un|una|il|la|ora|adesso|libero)",
    "leave": "accesso completo|senza (?:chiedere|limiti|vincoli|filtri|restrizioni|conferma)",
    "marks": r"<!--|</|\{\s*\"|\[/?[a-z]+\]|#{2,}|<\||<[a-z_]+>|-{3,}|"
    r"^\W*(?:system|sistema|assistant|assistente|user|utente)\s*:",
}
"""What of a subject is said in several words, or in signs."""

SUBJECTS = tuple(_SUBJECTS)
_BITS = {name: 1 << place for place, name in enumerate(SUBJECTS)}
_WORD = re.compile(r"di'|[^\W_]+")
_WORDS = [(_BITS[name], re.compile(pattern)) for name, pattern in _SUBJECTS.items()]
_IN_SEVERAL = [
    (_BITS[name], re.compile(pattern if name == "marks" else rf"(?<!\w)(?:{pattern})(?!\w)"))
    for name, pattern in _PHRASES.items()
]
_WHOLE = "|".join(pattern for name, pattern in _PHRASES.items() if name != "marks")
_ANY = re.compile(rf"(?<!\w)(?:{_WHOLE})(?!\w)|{_PHRASES['marks']}")
"""Any of them, looked for at once: nearly every sentence has none."""
_SENTENCE = re.compile(r"(?<=[.!?;])\s+|\n+")
_STRETCH = re.compile(rf"\S(?:.{{0,{LONGEST - 2}}}\S)?(?=\s|$)|\S{{{LONGEST}}}")


def sentences(text: str) -> Iterator[str]:
    """The sentences of a text as they are weighed, each once."""
    for sentence in dict.fromkeys(_SENTENCE.split(text)):
        if len(sentence) <= LONGEST:
            yield sentence
        else:
            yield from _STRETCH.findall(sentence)


def features(sentence: str) -> list[float]:
    """What the weights take: the subjects that a sentence touches alone, two by two, how many they are, and how many
    words it has; a long sentence touches some by chance."""
    return _features(*_seen(sentence))


def _features(touched: int, words: int) -> list[float]:
    return [*_of_subjects(touched), words / 20]


def _seen(sentence: str) -> tuple[int, int]:
    """Which ``SUBJECTS`` a sentence touches, a bit each, and how many words it has."""
    folded = fold(sentence).replace("’", "'")
    found = _WORD.findall(folded)
    touched = 0
    for word in found:
        touched |= _of_word(word)
    if _ANY.search(folded):
        for bit, pattern in _IN_SEVERAL:
            if not touched & bit and pattern.search(folded):
                touched |= bit
    return touched, min(len(found), MANY)


@lru_cache(maxsize=65_536)
def _of_word(word: str) -> int:
    return sum(bit for bit, pattern in _WORDS if pattern.fullmatch(word))


@lru_cache(maxsize=65_536)
def _of_subjects(touched: int) -> tuple[float, ...]:
    alone = [float(bool(touched & bit)) for bit in _BITS.values()]
    pairs = [0.7 * one * other for one, other in itertools.combinations(alone, 2)]
    return (*alone, *pairs, sum(alone) / 4)


class Weights:
    """What was fitted: by subjects alone, and by subjects and vectors."""

    def __init__(self, stored: Mapping[str, list[float]]) -> None:
        self.subjects, self.both, self.middle = stored["subjects"], stored["both"], stored["middle"]
        self.look, self.enough_alone, self.enough = stored["bounds"]

    def alone(self, given: Sequence[float]) -> float:
        """How much a sentence's ``features`` make it an order."""
        return _sum(self.subjects, given)

    def together(self, given: Sequence[float], vector: Sequence[float]) -> float:
        """The same, and what it means."""
        spread = [NEAR * (value - middle) for value, middle in zip(vector, self.middle, strict=True)]
        return _sum(self.both, [*given, *spread])


def _sum(weights: Sequence[float], values: Sequence[float]) -> float:
    """The last weight stands alone."""
    return weights[-1] + sum(weight * value for weight, value in zip(weights, values, strict=False) if value)


@cache
def fitted() -> Weights:
    packed = resources.files("polydesk_dagster.knowledge").joinpath("orders.json").read_text()
    return Weights(json.loads(packed))


@lru_cache(maxsize=65_536)
def _alone(touched: int, words: int) -> float:
    return fitted().alone(_features(touched, words))


def addressed(texts: Sequence[str], meaning: Meaning | None) -> list[bool]:
    """Of each text, whether one of its sentences speaks to a machine; ``meaning`` None: by what it speaks of alone."""
    weights = fitted()
    bound = weights.enough_alone if meaning is None else weights.look
    suspect = [
        (alone, place, sentence, _features(*seen))
        for place, text in enumerate(texts)
        for sentence in sentences(text)
        if (alone := _alone(*(seen := _seen(sentence)))) >= bound
    ]
    if meaning is None:
        found = {place for _, place, _, _ in suspect}
    else:
        suspect.sort(reverse=True)
        looked_at, others = suspect[:MOST], suspect[MOST:]
        vectors = meaning([sentence for _, _, sentence, _ in looked_at]) if looked_at else ()
        found = {
            place
            for (_, place, _, given), vector in zip(looked_at, vectors, strict=True)
            if weights.together(given, vector) >= weights.enough
        }
        found |= {place for alone, place, _, _ in others if alone >= weights.enough_alone}
    return [place in found for place in range(len(texts))]
