"""Texts of messages: factory < chain < clinic, written in a sandbox where an unknown variable is an error."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

import sqlalchemy as sa

from polydesk_dagster.clinic.messages import sandbox
from polydesk_dagster.clinic.messages.factory import FACTORY
from polydesk_dagster.clinic.messages.sandbox import BrokenTemplateError
from polydesk_dagster.clinic.messages.text import CLINICAL, plain, segments
from polydesk_dagster.values import Reason, Term, Value

LONGEST_SMS = 4
"""Segments above which the lint complains."""


@dataclass(frozen=True, slots=True)
class Text:
    """A template's source, or a written message."""

    subject: str | None
    body: str


_FACTORY = {
    (shipped.kind, shipped.variant, shipped.channel, shipped.language): Text(shipped.subject, shipped.body)
    for shipped in FACTORY
}


def write(subject: str | None, body: str, context: Mapping[str, Any]) -> Text:
    """Render a template; without a subject it is an SMS, and typographic characters that would make it longer go.

    Raises:
        BrokenTemplateError: for whatever keeps it from being written.
    """
    written = sandbox.render(body, context).strip() + ("\n" if subject is not None else "")
    head = None if subject is None else " ".join(sandbox.render(subject, context).split())
    written = plain(written) if subject is None else written
    if not written.strip():
        raise BrokenTemplateError("template_empty")
    return Text(head, written)


_PERSON = {"clinica": "Poliambulatorio Prova", "telefono": "+390510000000", "nome": "Mario Rossi"}
_ANSWER = {"risposte": True, "collegamento": "https://polydesk.example/v/" + "x" * 22}
_APPOINTMENT = {"ora": "09:30", "iniziali": "", "sede": "Sede centrale"}
_NAMED = {"prestazione": "Prima visita cardiologica", "specialista": "Dott.ssa Bianchi"}
_SAMPLES: dict[tuple[str, str], dict[str, Any]] = {
    ("reminder", "plain"): {
        **_PERSON,
        **_ANSWER,
        "giorno": "mercoledì 11 marzo",
        "appuntamenti": [{**_APPOINTMENT, **_NAMED}],
    },
    ("reminder", "neutral"): {**_PERSON, **_ANSWER, "giorno": "mercoledì 11 marzo", "appuntamenti": [_APPOINTMENT]},
    ("preparation", "plain"): {
        **_PERSON,
        **_ANSWER,
        "giorno": "mercoledì 11 marzo",
        "appuntamenti": [{**_APPOINTMENT, **_NAMED, "preparazione": "A digiuno da 8 ore, acqua permessa."}],
    },
    ("preparation", "neutral"): {**_PERSON, **_ANSWER, "giorno": "mercoledì 11 marzo", "appuntamenti": [_APPOINTMENT]},
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
    ("confirmation", "plain"): {
        **_PERSON,
        **_ANSWER,
        "spostato": False,
        "giorno": "mercoledì 11 marzo",
        "appuntamenti": [{**_APPOINTMENT, **_NAMED}],
    },
    ("confirmation", "neutral"): {
        **_PERSON,
        **_ANSWER,
        "spostato": False,
        "giorno": "mercoledì 11 marzo",
        "appuntamenti": [_APPOINTMENT],
    },
    ("cancel_question", "plain"): {**_PERSON, "giorno": "mercoledì 11 marzo", "appuntamenti": [_APPOINTMENT]},
    ("cancel_question", "neutral"): {**_PERSON, "giorno": "mercoledì 11 marzo", "appuntamenti": [_APPOINTMENT]},
    ("cancellation", "plain"): {
        **_PERSON,
        "giorno": "mercoledì 11 marzo",
        "appuntamenti": [{**_APPOINTMENT, **_NAMED}],
    },
    ("cancellation", "neutral"): {**_PERSON, "giorno": "mercoledì 11 marzo", "appuntamenti": [_APPOINTMENT]},
    ("report_ready", "plain"): {**_PERSON, "iniziali": ""},
    ("service_notice", "plain"): {
        **_PERSON,
        "avviso": "domani la sede resta chiusa.",
        "collegamento": _ANSWER["collegamento"],
    },
}
"""What each template may use, with an example of each variable."""


_CALENDAR = {"it": "Appuntamento, {clinic}", "de": "Termin, {clinic}"}


def calendar_title(language: str, clinic: str) -> str:
    """How an appointment is called in its patient's calendar: others look at calendars, so never by the service."""
    return _CALENDAR.get(language, _CALENDAR["it"]).format(clinic=clinic)


def example(kind: str, variant: str) -> Mapping[str, Any]:
    """Values for every variable of a text, none of them anybody's."""
    return _SAMPLES[kind, variant]


def usable(kind: str, variant: str) -> list[str]:
    """What a text may use, each as it is written there."""
    return [_as_written(name, value) for name, value in sorted(example(kind, variant).items())]


def _as_written(name: str, value: object) -> str:
    if isinstance(value, list):
        return f"{{% for a in {name} %}} {' '.join(_as_written(f'a.{field}', '') for field in value[0])} {{% endfor %}}"
    return f"{{% if {name} %}} … {{% endif %}}" if isinstance(value, bool) else f"{{{{ {name} }}}}"


_LATER = "17:45"
_ALWAYS = frozenset({"clinica", "nome", "giorno", "scadenza", "avviso", "giorni", "ora", "preparazione"})
"""What a message is never without; anything else may be empty."""


def _situations(sample: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The example as the people who are written to will differ: all that may be there or nothing of it, one appointment
    or two, each yes or no either way."""
    flags = [name for name, value in sample.items() if isinstance(value, bool)]
    for empty, two, *answers in product((False, True), repeat=2 + len(flags)):
        said = _emptied(sample) if empty else {**sample}
        if "appuntamenti" in sample:
            first = _emptied(sample["appuntamenti"][0]) if empty else {**sample["appuntamenti"][0], "iniziali": "A. B."}
            said["appuntamenti"] = [first, {**first, "ora": _LATER}] if two else [first]
        elif two:
            continue
        yield said | dict(zip(flags, answers, strict=True))


def _emptied(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: "" if isinstance(value, str) and name not in _ALWAYS else value for name, value in values.items()}


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong with a template; an error forbids its use, else it is advice."""

    error: bool
    reason: Reason


def _error(code: str, **values: Value) -> Finding:
    return Finding(True, Reason(code, values))


def lint(kind: str, variant: str, channel: str, subject: str | None, body: str) -> list[Finding]:
    """What is wrong with a text before anybody is sent it."""
    sample = _SAMPLES.get((kind, variant))
    if sample is None:
        return [_error("template_unknown_kind", kind=Term("message_kind", kind), variant=variant)]
    found = []
    clinical = re.search(CLINICAL, f"{subject or ''}\n{body}", re.IGNORECASE)
    if clinical:
        found.append(_error("template_clinical", word=clinical[0]))
    try:
        for source in filter(None, (subject, body)):
            unknown = sandbox.check(source) - sample.keys()
            found += [_error("template_variable", value=name) for name in sorted(unknown)]
        if found:
            return found
        text = write(subject, body, sample)
        written = [(each, write(subject, body, each)) for each in _situations(sample)]
    except BrokenTemplateError as error:
        return [*found, _error(error.code, value=error.value)]
    if "{{ clinica }}" not in body and "{{clinica}}" not in body:
        found.append(_error("template_anonymous"))
    said = f"{text.subject or ''} {text.body}"
    if "giorno" in sample and sample["giorno"] not in said:
        found.append(Finding(False, Reason("template_no_day")))
    if any(_keeps_back(each, done) for each, done in written):
        found.append(Finding(False, Reason("template_first_alone")))
    if channel == "sms":
        size = segments(text.body)
        if size.culprits:
            reason = Reason(
                "template_ucs2",
                {"characters": size.culprits, "segments": size.segments, "instead": _plain(text.body)},
            )
            found.append(Finding(False, reason))
        if size.segments > LONGEST_SMS:
            found.append(Finding(False, Reason("template_segments", {"segments": size.segments, "most": LONGEST_SMS})))
    return found


def _keeps_back(situation: Mapping[str, Any], text: Text) -> bool:
    """Whether somebody with two appointments on that day reads of the first alone."""
    hours = [each["ora"] for each in situation.get("appuntamenti", ())]
    return len(hours) > 1 and hours[0] in text.body and hours[-1] not in text.body


def _plain(text: str) -> int:
    return segments("".join(c if not segments(c).culprits else "x" for c in text)).segments


@dataclass(frozen=True, slots=True)
class Customised:
    """A text that is in force instead of the factory's; ``clinic`` is None for the chain's."""

    clinic: str | None
    kind: str
    variant: str
    channel: str
    language: str
    subject: str | None
    body: str


def customised(connection: sa.Connection) -> list[Customised]:
    """The chain's first, then clinic by clinic."""
    rows = connection.execute(
        sa.text("""
            SELECT c.code, t.kind, t.variant, t.channel, t.language, t.subject, t.body
            FROM message_template t LEFT JOIN clinic c ON c.id = t.clinic_id
            WHERE t.retired_at IS NULL ORDER BY c.code NULLS FIRST, 2, 3, 4, 5""")
    )
    return [Customised(*row) for row in rows]


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
