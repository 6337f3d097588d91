"""Texts of messages: factory < chain < clinic, written in a sandbox where an unknown variable is an error."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import sqlalchemy as sa
from jinja2 import StrictUndefined, Template, TemplateError, TemplateSyntaxError, meta
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from polydesk_dagster.clinic.messages.factory import FACTORY
from polydesk_dagster.clinic.messages.text import plain, segments

LONGEST_SMS = 4
"""Segments above which the lint complains."""
_LONGEST = 10_000
"""Characters of a rendered text; a loop that writes more is a mistake."""

_ENVIRONMENT = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)


class BrokenTemplateError(Exception):
    """A template that cannot be written; says the variable or the place, never a value."""


@dataclass(frozen=True, slots=True)
class Text:
    """A template's source, or a written message."""

    subject: str | None
    body: str


_FACTORY = {
    (shipped.kind, shipped.variant, shipped.channel, shipped.language): Text(shipped.subject, shipped.body)
    for shipped in FACTORY
}


@lru_cache(maxsize=1024)
def _compiled(source: str) -> Template:
    return _ENVIRONMENT.from_string(source)


def write(subject: str | None, body: str, context: Mapping[str, Any]) -> Text:
    """Render a template; without a subject it is an SMS, and typographic characters that would make it longer go.

    Raises:
        BrokenTemplateError: for a syntax error, an unknown variable, a forbidden access or an endless text.
    """
    try:
        written = _compiled(body).render(context).strip() + ("\n" if subject is not None else "")
        head = None if subject is None else " ".join(_compiled(subject).render(context).split())
    except (TemplateError, SecurityError, OverflowError, TypeError, ValueError, ArithmeticError, LookupError) as error:
        raise BrokenTemplateError(_place(error)) from None
    written = plain(written) if subject is None else written
    if len(written) > _LONGEST or not written.strip():
        raise BrokenTemplateError("il testo è vuoto o troppo lungo")
    return Text(head, written)


def _place(error: Exception) -> str:
    if isinstance(error, TemplateSyntaxError):
        return f"errore di sintassi alla riga {error.lineno}"
    unknown = re.match(r"'(?:[\w.]+ object' has no attribute ')?(\w+)'", str(error))
    return f"variabile sconosciuta: {unknown[1]}" if unknown else type(error).__name__


_PERSON = {"clinica": "Poliambulatorio Prova", "telefono": "+390510000000", "nome": "Mario Rossi"}
_APPOINTMENT = {"ora": "09:30", "iniziali": "", "sede": "Sede centrale"}
_NAMED = {"prestazione": "Prima visita cardiologica", "specialista": "Dott.ssa Bianchi"}
_SAMPLES: dict[tuple[str, str], dict[str, Any]] = {
    ("reminder", "plain"): {**_PERSON, "giorno": "mercoledì 11 marzo", "appuntamenti": [{**_APPOINTMENT, **_NAMED}]},
    ("reminder", "neutral"): {**_PERSON, "giorno": "mercoledì 11 marzo", "appuntamenti": [_APPOINTMENT]},
    ("preparation", "plain"): {
        **_PERSON,
        "giorno": "mercoledì 11 marzo",
        "appuntamenti": [{**_APPOINTMENT, **_NAMED, "preparazione": "A digiuno da 8 ore, acqua permessa."}],
    },
    ("preparation", "neutral"): {**_PERSON, "giorno": "mercoledì 11 marzo", "appuntamenti": [_APPOINTMENT]},
    ("activation", "plain"): {
        **_PERSON,
        "collegamento": "https://portale.example/attiva?codice=" + "x" * 43,
        "giorni": 7,
    },
    ("verification_nudge", "plain"): {
        "clinica": _PERSON["clinica"],
        "telefono": _PERSON["telefono"],
        "giorno": "mercoledì 11 marzo",
        "scadenza": "12:30",
    },
    ("report_ready", "plain"): _PERSON,
    ("service_notice", "plain"): {**_PERSON, "avviso": "domani la sede resta chiusa."},
}
"""What each template may use, with an example of each variable."""

_CLINICAL = re.compile(
    r"diagnos|patolog|oncolog|onkolog|tumor|neoplas|hiv\b|aids\b|ivg\b|abort|interruzione|schwangerschaftsabbruch|ser\.?d\b"
    r"|tossicodip|dipendenz|psichiatr|psychiatr|gravidanz|schwanger|sifilid|epatit|positiv|negativ|esito|befund",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong with a template; an error forbids its use, else it is advice."""

    error: bool
    message: str


def lint(kind: str, variant: str, channel: str, subject: str | None, body: str) -> list[Finding]:
    """What is wrong with a text before anybody is sent it."""
    sample = _SAMPLES.get((kind, variant))
    if sample is None:
        return [Finding(True, f"non esiste un template «{kind}» di tipo «{variant}»")]
    found = []
    clinical = _CLINICAL.search(f"{subject or ''}\n{body}")
    if clinical:
        found.append(Finding(True, f"la parola «{clinical[0]}» rivela lo stato di salute: toglila"))
    try:
        for source in filter(None, (subject, body)):
            unknown = meta.find_undeclared_variables(_ENVIRONMENT.parse(source)) - sample.keys()
            found += [Finding(True, f"variabile sconosciuta: {name}") for name in sorted(unknown)]
        if found:
            return found
        text = write(subject, body, sample)
    except TemplateSyntaxError as error:
        return [*found, Finding(True, f"errore di sintassi alla riga {error.lineno}")]
    except BrokenTemplateError as error:
        return [*found, Finding(True, str(error))]
    if "{{ clinica }}" not in body and "{{clinica}}" not in body:
        found.append(Finding(True, "non dice chi scrive: usa {{ clinica }}"))
    if channel == "sms":
        size = segments(text.body)
        if size.culprits:
            found.append(
                Finding(False, f"«{size.culprits}» obbliga a UCS-2: {size.segments} SMS invece di {_plain(text.body)}")
            )
        if size.segments > LONGEST_SMS:
            found.append(Finding(False, f"occupa {size.segments} SMS: al più {LONGEST_SMS}"))
    return found


def _plain(text: str) -> int:
    return segments("".join(c if not segments(c).culprits else "x" for c in text)).segments


@dataclass(frozen=True, slots=True)
class Version:
    """One state of one template."""

    id: int
    layer: str
    clinic_id: int | None
    kind: str
    variant: str
    channel: str
    language: str
    subject: str | None
    body: str | None


class Need(NamedTuple):
    """Which text a message needs, and as of which revision."""

    kind: str
    variant: str
    channel: str
    language: str
    clinic_id: int
    revision: int


class Shelf:
    """All versions of all templates, to be taken from as they stood at a revision."""

    def __init__(self, versions: Sequence[Version]) -> None:
        self._versions: dict[tuple[str, str, str, str, str, int | None], list[Version]] = {}
        for version in sorted(versions, key=lambda version: version.id, reverse=True):
            key = (version.kind, version.variant, version.channel, version.language, version.layer, version.clinic_id)
            self._versions.setdefault(key, []).append(version)
        self._found: dict[Need, Text | None] = {}

    @classmethod
    def load(cls, connection: sa.Connection) -> Shelf:
        rows = connection.execute(
            sa.text("""SELECT id, layer, clinic_id, kind, variant, channel, language, subject, body
                       FROM message_template_version""")
        )
        return cls([Version(*row) for row in rows])

    def find(self, need: Need) -> Text | None:
        """The text of the narrowest layer that had one at the revision; a language that lacks it falls to Italian."""
        if need not in self._found:
            self._found[need] = next(self._candidates(need), None)
        return self._found[need]

    def _candidates(self, need: Need) -> Iterator[Text]:
        for language in dict.fromkeys((need.language, "it")):
            for layer, owner in (("clinic", need.clinic_id), ("chain", None)):
                key = (need.kind, need.variant, need.channel, language, layer, owner)
                current = next((v for v in self._versions.get(key, []) if v.id <= need.revision), None)
                if current is not None and current.body is not None:
                    yield Text(current.subject, current.body)
            shipped = _FACTORY.get((need.kind, need.variant, need.channel, language))
            if shipped is not None:
                yield shipped
