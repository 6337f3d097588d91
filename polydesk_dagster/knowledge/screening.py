"""Passages that a person must see before anybody is given them: a patient's identity, orders to whoever reads.

Signals are weighed, since none proves it alone; what is found sets aside the passage, never the document around it.
"""

from __future__ import annotations

import base64
import re
import unicodedata
from collections.abc import Sequence
from itertools import filterfalse

from polydesk_dagster.knowledge.orders import Meaning, addressed

ENOUGH = 3
"""Weight from which a passage is set aside."""

_BETWEEN = r"[\s.\-_/|*]{0,3}"
"""What may part the characters of a number that is written apart, down to one in each cell of a form."""


def _apart(*characters: str) -> str:
    """These characters in order, together or apart."""
    return _BETWEEN.join(characters)


_LETTER, _FIGURE = "[A-Z]", "[0-9LMNPQRSTUV]"
_OF_CODE = (*[_LETTER] * 6, *[_FIGURE] * 2, "[ABCDEHLMPRST]", *[_FIGURE] * 2, _LETTER, *[_FIGURE] * 3, _LETTER)
_CODE = re.compile(rf"(?<![A-Za-z0-9]){_apart(*_OF_CODE)}(?![A-Za-z0-9])", re.IGNORECASE)
LEAST_DIGITS = 2
"""Of a fiscal code written apart; words of prose may have its letters, never its digits."""
_HEALTH_CARD = re.compile(rf"(?<!\d){_apart(*'80380', *['[0-9]'] * 15)}(?!\d)")
_IBAN = re.compile(
    rf"(?<![A-Za-z0-9]){_apart(*'IT', *['[0-9]'] * 2, _LETTER, *['[0-9A-Z]'] * 22)}(?![A-Za-z0-9])", re.IGNORECASE
)
_MOBILE = re.compile(
    r"(?<![\d+])(?:\+39[ .]?)?3\d{2}[ .\-/]?(?:\d[ .\-]?){5,6}\d(?!\d)"
    r"|(?<!\d)(?<!\d[ .\-/_|])(?:\+ ?3 ?9 ?)?3([ .\-/_|]{1,3})\d(?:\1\d){7,8}(?!\1?\d)"
)
DIGITS_OF_BIRTH, DIGITS_OF_MOBILE, DIGITS_OF_CARD = 5, 9, 20
"""That the shortest of each has: in most passages there are not so many."""
_DIGIT = re.compile(r"\d")
_PERSON = re.compile(
    r"\b(?:assistit[oa]|sig\.(?:ra)?|signora?|nat[oa]\s+(?:il|a)|residente\s+(?:in|a))\b",
    re.IGNORECASE,
)
_BORN = re.compile(r"\bnat[oa]\s+(?:\w+\s+){0,3}il\s+\d{1,2}[/. ]\s?(?:\d{1,2}|[a-z]+)[/. ]\s?\d{4}", re.IGNORECASE)
_EXAMPLE = re.compile(
    r"\b(?:esempi[oa]?|fac[- ]?simile|campione|modello|ad\s+es\.?|p\.?\s?es\.?|tipo:)\b", re.IGNORECASE
)
SAMPLES = frozenset(
    {"RSSMRA80A01H501U", "RSSMRA85T10A562S", "RSSMRA70A01H501S", "VRDGPP80A01H501T", "BNCLRA80A41H501Y"}
)
"""Fiscal codes of Mario Rossi and his kin, which stand in instructions everywhere."""


def _any(*alternatives: str) -> str:
    return f"(?:{'|'.join(alternatives)})"


def _near(first: str, words_between: int, second: str) -> str:
    """``second`` with at most so many words between it and ``first``."""
    return rf"\b{first}\W+(?:\w+\W+){{0,{words_between}}}{second}"


_DROP = _any(
    r"(?<!non )(?<!non deve )(?<!non devono )(?<!non dovete )"
    r"(?:ignor\w+|dimentic\w+|scord\w+|trascur\w+|disattend\w*|annull\w+|sovrascriv\w*|aggir\w+)",
    "lascia(?:te)? (?:perdere|stare)|non dare (?:retta|ascolto|peso)",
    "ignore|disregard|forget|override|bypass|(?:do not|don't|stop) follow(?:ing)?",
    r"ignorier\w*|vergiss|oublie\w*|olvida\w*",
)
_SET_ASIDE = "non (?:considerare|tener(?:e)? conto|seguire|rispettare)"
"""What a leaflet says of an older one too."""
_PAST = _any(
    r"precedent\w*|sopra|prima|ricevut\w*|attual\w*|de?i?l? sistema|iniziali|original\w*|che (?:vi|ti) hanno dato",
    r"previous|prior|above|earlier|system|vorherig\w*|bisherig\w*|obig\w*|anterior\w*",
)
_RULES = _any(
    r"istruzion\w*|regol\w*|direttiv\w*|ordini|prompt|limit\w*",
    r"instructions?|rules|guidelines|messages|anweisung\w*|instrucciones|consignes",
)
_MACHINE = _any(
    r"intelligenza artificiale|chatbot|modello linguistico|llm|gpt|language model|(?:una?|an|un')\W*(?:ia|ai)|ia"
)
_EVERYTHING = _any("tutto", "everything", "quello che", "cio che", "quanto")
_SECRET = _any(
    "prompt|istruzioni di sistema|password|credenziali|api key|token|dati dei pazienti|codici fiscali",
    "patient data|system",
)
_SIGNALS = tuple(
    (weight, re.compile(pattern))
    for weight, pattern in (
        (3, _near(_DROP, 4, _near(_RULES, 3, _PAST))),
        (3, _near(_DROP, 4, _near(_PAST, 2, _RULES))),
        (2, _near(_DROP, 3, _RULES)),
        (3, _near(_DROP, 2, _near(_EVERYTHING, 6, _PAST))),
        (2, _near(_SET_ASIDE, 4, _any(_near(_RULES, 3, _PAST), _near(_EVERYTHING, 6, _PAST)))),
        (3, _near(_RULES, 2, _PAST) + r"\W+ignoral[ei]\b"),
        (1, rf"\b(?:le tue|your) {_RULES}"),
        (2, r"\b(?:nuove istruzioni|new instructions)\s*:"),
        (2, r"\b(?:obbedisci|obey)\b"),
        (3, r"<\|im_(?:start|end)\|>|\[/?inst\]|<</?sys>>|</?system>|\bbegin system\b"),
        (3, r"#{2,}\s*instruction\s*:"),
        (2, r"(?:^|\n)\W*(?:system|sistema|assistant|assistente)\s*:"),
        (1, r"(?:^|\n)\W*(?:user|human)\s*:"),
        (1, r"\b(?:nota|istruzion[ei]|messaggio|avviso|attenzione)\W+(?:per\W+)?(?:(?:l|all)\W+)?assistente\b"),
        (2, r"\b(?:nota|istruzion[ei]|messaggio)\W+per\W+il\W+modello\s*:"),
        (3, _near(_any("nota", "istruzion[ei]", "messaggio", "avviso", "note", "message"), 2, _MACHINE) + r"\s*[:,.]"),
        (3, _near("se", 1, _near(_any("sei", "stai"), 3, _MACHINE)) + r"\b"),
        (2, rf"\b{_any('prompt di sistema', 'system prompt', 'istruzioni (?:di sistema|nascoste)', 'jailbreak')}\b"),
        (3, r"\b(?:tuo|your) (?:system )?prompt\b"),
        (
            3,
            _near(
                _any(r"stampa\w*|mostra\w*|ripeti|rivela\w*|elenca", "print|show|repeat|reveal|translate|traduci"),
                3,
                rf"(?:le tue|your) {_RULES}\W+(?:iniziali|di sistema|nascoste|originali|e mostra)",
            ),
        ),
        (
            3,
            _near(
                _any("ripeti", "copia", "riporta", "repeat", "copy"),
                2,
                _near(
                    _any("parola per parola", "verbatim", "word for word"),
                    6,
                    _any("ricevuto|sopra|inizio", "above|beginning"),
                ),
            ),
        ),
        (2, rf"\b{_any('developer mode', 'dan mode', 'modalita (?:sviluppatore|senza limiti)')}\b"),
        (
            2,
            _near(
                _any("da ora in poi", "d'ora in poi", "from now on", "a partire da adesso"),
                3,
                _any("sei", "sarai", "agisci", "rispondi", "comportati", "you", "act", "respond"),
            ),
        ),
        (2, rf"\b{_any('sei ora', 'adesso sei', 'fingi di essere', 'comportati come', 'agisci come', 'impersona')}\b"),
        (2, rf"\b{_any('you are now', 'act as', 'pretend to be')}\b"),
        (2, r"\b(?:esci|uscire) dal (?:tuo )?(?:ruolo|personaggio)\b"),
        (
            3,
            _near(
                _any("rispondi", "agisci", "answer", "respond", "act"),
                2,
                _any("senza (?:restrizioni|limiti|filtri|censure)", "without (?:any )?(?:limits|restrictions|filters)"),
            ),
        ),
        (3, r"\b(?:disattiva|disabilita|disable|turn off) (?:i tuoi|le tue|your)\b"),
        (2, r"\btuo (?:unico|solo|nuovo) (?:compito|scopo|obiettivo|ruolo)\b"),
        (2, r"\b(?:in questa (?:conversazione|chat)|(?:per|a) (?:questa|ogni|la prossima) domanda)\b"),
        (1, rf"\b{_any('assistente', 'intelligenza artificiale', 'chatbot', 'modello linguistico')}\b"),
        (1, rf"\b{_any('language model', 'llm', 'gpt', 'unrestricted ai', 'bot')}\b"),
        (
            2,
            _near(
                _any(
                    r"rivela\w*|mostra\w*|stampa\w*|ripeti|elenca|invia\w*|scrivi|dimmi|ripetimi",
                    "reveal|print|show|repeat|send|output",
                ),
                5,
                _SECRET,
            ),
        ),
        (
            2,
            _near(
                _any(
                    r"non (?:dire|rivelare|menzionare|informare)\w*|senza (?:dire|avvisare|informare)\w*",
                    "do not (?:tell|mention|reveal)|don't tell",
                ),
                4,
                _any(r"utente|paziente|operator\w*|nessuno", "user|anyone|human"),
            ),
        ),
        (
            3,
            _near(
                _any("non (?:rivelare|menzionare|dire)", "do not (?:mention|reveal)"),
                2,
                r"(?:quest[oe]|this) (?:testo|documento|messaggio|istruzioni|text|document|message)",
            ),
        ),
        (1, r"\b(?:chiama|usa|esegui|invoca|call|use)\W+(?:lo strumento|la funzione|the tool|the function)\b"),
        (
            2,
            _near(
                r"(?:disdici|disdetta|cancella\w*|annulla\w*|elimina\w*|cancel|delete|invia\w*|manda\w*|send)",
                2,
                "(?:tutt[ie]|all) (?:(?:gli|le|i|the) )?"
                + _any("appuntamenti|prenotazioni|pazienti|dati|conversazioni", "appointments|bookings|patients"),
            ),
        ),
        (1, _near("rispondi", 1, "(?:che|in (?:inglese|tedesco|francese|spagnolo|russo|cinese))")),
        (3, _near("(?:from (?:now|here) on|starting now)", 2, "(?:answer|respond|reply|say) only")),
        (
            2,
            _near(
                _any("rispondi", "respond", "reply", "answer"),
                2,
                _any("sempre", "solo", "soltanto", "esclusivamente", "only", "always"),
            ),
        ),
        (1, _near(_any("devi", "you must"), 4, _any("obbedire", "eseguire", "obey", "execute", "comply"))),
        (1, r"https?://\S+\?\S*="),
    )
)
_TRIGGERS = (
    *[
        "ignor",
        "dimentic",
        "scord",
        "trascur",
        "disattend",
        "annull",
        "sovrascriv",
        "aggir",
        "considerare",
        "tenere",
        "seguire",
        "rispettare",
    ],
    *[
        "disregard",
        "forget",
        "overrid",
        "bypass",
        "im_",
        "inst",
        "system",
        "sistema",
        "assistant",
        "prompt",
        "nascoste",
        "jailbreak",
        "mode",
        "modalita",
    ],
    *[
        "fingi",
        "comportati",
        "agisci",
        "impersona",
        "pretend",
        "rivela",
        "mostra",
        "stampa",
        "invia",
        "reveal",
        "print",
        "send",
        "token",
        "password",
    ],
    *["senza", "don't", "rispondi", "respond", "reply", "answer"],
    *("in poi", "from now", "partire da", "sei ora", "adesso sei", "you are", "act as", "non dire", "do not"),
    *("lascia", "dare retta", "dare ascolto", "dare peso", "follow", "vergiss", "oublie", "olvida", "tener conto"),
    *("nuove istruzioni", "new instructions", "obbedisci", "obey", "instruction:", "intelligenza artificiale"),
    *(
        "il modello",
        "modello ling",
        "chatbot",
        "se sei",
        "se stai",
        "ripeti ",
        "verbatim",
        "repeat",
        "traduci",
        "translate",
        "dal ruolo",
    ),
    *("dal tuo ruolo", "dal personaggio", "answer", "disattiva ", "disabilita", "disable", "turn off", "unico compito"),
    *(
        "lo strumento",
        "la funzione",
        "questa domanda",
        "ogni domanda",
        "the tool",
        "the function",
        "from here",
        "starting now",
        "questa conversazione",
        "non menzionare",
    ),
)
"""Without one of these nothing weighs enough: most passages are done with after looking for them."""
_AT_A_WORD = [p.pattern[2:] for _, p in _SIGNALS if p.pattern.startswith(r"\b") and r"|\b" not in p.pattern]
_ELSEWHERE = [p.pattern for _, p in _SIGNALS if p.pattern[2:] not in _AT_A_WORD]
_ANY_SIGNAL = re.compile(rf"\b{_any(*map(_any, _AT_A_WORD))}|{_any(*map(_any, _ELSEWHERE))}")
"""All of them, looked for at once: nearly every passage has none."""
_INVISIBLE = re.compile(r"[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff\U000e0000-\U000e007f]")
_FLAG = re.compile("\U0001f3f4[\U000e0020-\U000e007f]+")
"""Flags of regions are written with tags."""
_WRITTEN_UNSEEN = re.compile(
    "[\U000e0020-\U000e007e]{3,}|[\u200b-\u200d\u2060-\u2064\ufeff]{8,}|[\U000e0100-\U000e01ef]{4,}"
)
_SPACED = re.compile(r"\b(?:\w[ .\-_*]){4,}\w\b")
_DISGUISED = re.compile(r"[013457@$](?:(?<=[a-z].)[a-z]|(?<=\b.)[a-z]{3})")
_LEET = str.maketrans("013457@$", "oieastas")
_FOREIGN = re.compile("[\u0131\u03b1-\u03c9\u0430-\u045f]")
_LOOKALIKES = str.maketrans(
    "\u0131\u03b1\u03b5\u03b9\u03bd\u03bf\u03c1\u03c4\u03c5\u0430\u0435\u043a\u043c\u043e\u043f\u0440\u0441\u0442\u0443\u0445\u0456\u0455\u0458",
    "iaeivoptuaekmonpctyxisj",
)
"""Letters of other alphabets that look like ours."""
_JOINED = re.compile(r"(?<=[a-z])[_\-](?=[a-z])")
_BASE64 = re.compile(r"(?<![A-Za-z0-9+/])[A-Za-z0-9+/]{24,}={0,2}")


def objections(texts: Sequence[str], meaning: Meaning | None = None) -> list[str | None]:
    """Why a person should look at each of these passages first: ``personal_data``, ``instructions``, or None.

    Orders are known by how they are worded and hidden, and their sentences by what they speak of together; with
    ``meaning`` also by what that means.
    """
    found = [_objection(text) for text in texts]
    free = [place for place, code in enumerate(found) if code is None]
    for place, suspect in zip(free, addressed([texts[place] for place in free], meaning), strict=True):
        found[place] = "instructions" if suspect else None
    return found


def _objection(text: str) -> str | None:
    if _of_persons(text) >= ENOUGH:
        return "personal_data"
    return "instructions" if _hidden(text) or _of_orders(text) >= ENOUGH else None


def _hidden(text: str) -> bool:
    """Whether something is written in characters that nobody sees: letters of tags, or bits in widths of nothing."""
    return not text.isascii() and bool(_WRITTEN_UNSEEN.search(_FLAG.sub("", text)))


def _of_persons(text: str) -> int:
    digits = len(_DIGIT.findall(text))
    if digits < LEAST_DIGITS:
        return 0  # whatever is looked for has more
    codes = {_together(found.group()) for found in _CODE.finditer(text)} - SAMPLES
    codes = {code for code in codes if sum(c.isdigit() for c in code) >= LEAST_DIGITS}
    real = sum(map(_has_check_letter, codes))
    weight = (1 if real == 1 and _EXAMPLE.search(text) else 3) * real
    weight += 2 * sum(_is_iban(found.group()) for found in _IBAN.finditer(text))
    if digits >= DIGITS_OF_BIRTH:
        weight += 3 * len(_BORN.findall(text))
    if digits >= DIGITS_OF_MOBILE:
        weight += min(2, sum(1 for _ in _MOBILE.finditer(text)))
    if digits >= DIGITS_OF_CARD:
        weight += 3 * len(_HEALTH_CARD.findall(text))
    return weight + bool(weight and _PERSON.search(text))


def _has_check_letter(code: str) -> bool:
    from codicefiscale import codicefiscale

    return bool(codicefiscale.encode_cin(code[:15]) == code[15])


def _together(apart: str) -> str:
    """What is written apart, in capitals and without what parts it."""
    return "".join(c for c in apart if c.isalnum()).upper()


def _is_iban(text: str) -> bool:
    code = _together(text)
    return int("".join(str(int(c, 36)) for c in code[4:] + code[:4])) % 97 == 1


def _of_orders(text: str) -> int:
    """The weight of a text as it stands, or as it reads without what was put in to hide it."""
    folded = "".join(filterfalse(unicodedata.combining, unicodedata.normalize("NFKD", text.lower())))
    open_text = _INVISIBLE.sub("", folded)
    readings = {open_text, _SPACED.sub(lambda found: re.sub(r"[ .\-_*]", "", found.group()), open_text)}
    if _DISGUISED.search(open_text):
        readings.add(open_text.translate(_LEET))
    if _FOREIGN.search(open_text):
        readings.add(open_text.translate(_LOOKALIKES))
    if _JOINED.search(open_text):
        readings |= {_JOINED.sub(between, open_text) for between in (" ", "")}
    readings.update(_decoded(found.group()) for found in _BASE64.finditer(text))
    weight = max(map(_weight, readings))
    return weight + (1 if weight and len(open_text) < len(folded) else 0)


def _decoded(text: str) -> str:
    """What is written in base 64, or nothing where it is no text."""
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True).decode("ascii").lower()
    except ValueError:
        return ""


def _weight(text: str) -> int:
    if not any(trigger in text for trigger in _TRIGGERS) or not _ANY_SIGNAL.search(text):
        return 0
    return sum(weight for weight, pattern in _SIGNALS if pattern.search(text))
