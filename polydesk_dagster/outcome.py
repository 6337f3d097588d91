"""What every rule returns: an outcome, counts, and reasons that a receptionist understands.

Pure values; how they look in Dagster or on a terminal is decided by whoever shows them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum


class Outcome(StrEnum):
    """How a run ended, from best to worst news for the operator."""

    OK = "ok"
    NOTHING_TO_DO = "nothing_to_do"
    SKIPPED = "skipped"
    PARTIAL = "partial"
    REFUSED = "refused"
    FAILED = "failed"


EXIT_STATUS: Mapping[Outcome, int] = {
    Outcome.OK: 0,
    Outcome.NOTHING_TO_DO: 0,
    Outcome.SKIPPED: 0,
    Outcome.PARTIAL: 1,
    Outcome.REFUSED: 3,
    Outcome.FAILED: 4,
}
"""The command's exit status for each outcome; 2 is kept for wrong usage."""


OUTCOME_WORDS: Mapping[str, tuple[str, str]] = {
    Outcome.OK: ("riuscito", "ok"),
    Outcome.NOTHING_TO_DO: ("niente da fare", "nothing to do"),
    Outcome.SKIPPED: ("saltato", "skipped"),
    Outcome.PARTIAL: ("riuscito in parte", "partial"),
    Outcome.REFUSED: ("rifiutato", "refused"),
    Outcome.FAILED: ("fallito", "failed"),
}
"""Each outcome in Italian and in English."""

COUNT_WORDS: Mapping[str, tuple[str, str]] = {
    "created": ("creati", "created"),
    "updated": ("modificati", "updated"),
    "retired": ("ritirati", "retired"),
    "skipped": ("saltati", "skipped"),
    "failed": ("falliti", "failed"),
    "unchanged": ("invariati", "unchanged"),
}
"""Each count in Italian and in English."""


WHAT_TO_DO = "Che cosa fare"
"""The label of the figure that says what a person does next."""


def in_words(counts: Mapping[str, int], *, english: bool = False) -> str:
    """The counts that are not zero: ``1 creato, 3 saltati``."""
    words = ((number, COUNT_WORDS[key][english]) for key, number in counts.items() if number)
    return ", ".join(
        f"{number} {word.removesuffix('i') + 'o' if number == 1 and not english else word}" for number, word in words
    )


@dataclass(frozen=True, slots=True)
class Counts:
    """Records by what became of them."""

    created: int = 0
    updated: int = 0
    retired: int = 0
    skipped: int = 0
    failed: int = 0
    unchanged: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})

    @property
    def changed(self) -> int:
        return self.created + self.updated + self.retired

    def as_dict(self) -> dict[str, int]:
        return {f.name: getattr(self, f.name) for f in fields(self)}


@dataclass(frozen=True, slots=True)
class Reason:
    """Why something was not simply done. ``code`` is stable English; ``message`` is Italian, names the thing, the
    clinic, the value and the remedy, and never holds patient data."""

    code: str
    message: str
    clinic: str | None = None
    count: int = 1

    def as_dict(self) -> dict[str, object]:
        return {"code": self.code, "message": self.message, "clinic": self.clinic, "count": self.count}


SHOWN_ROWS = 50
"""Rows of a table that a page shows and that its run keeps; all of them are with their plan."""


@dataclass(frozen=True, slots=True)
class Table:
    """A capped table for people: Italian column titles, plain cells, no patient data."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[object, ...], ...]
    total: int
    """How many rows there are in all; ``rows`` may hold fewer."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a rule did, or for a preview what it would do."""

    outcome: Outcome
    counts: Counts = Counts()
    reasons: tuple[Reason, ...] = ()
    figures: Mapping[str, int | float | str] = field(default_factory=dict)
    """Further numbers of this service, by Italian label."""
    tables: tuple[Table, ...] = ()
    plan_id: int | None = None

    @classmethod
    def skipped(cls, code: str, message: str, clinic: str | None = None) -> Report:
        return cls(Outcome.SKIPPED, reasons=(Reason(code, message, clinic),))

    @classmethod
    def refused(cls, code: str, message: str, clinic: str | None = None) -> Report:
        return cls(Outcome.REFUSED, reasons=(Reason(code, message, clinic),))

    @classmethod
    def failed(cls, code: str, message: str, clinic: str | None = None) -> Report:
        return cls(Outcome.FAILED, counts=Counts(failed=1), reasons=(Reason(code, message, clinic),))


def done(counts: Counts) -> Outcome:
    """The outcome that the counts alone speak of: something failed, something changed, or nothing had to."""
    if counts.failed:
        return Outcome.PARTIAL if counts.changed or counts.unchanged else Outcome.FAILED
    return Outcome.OK if counts.changed else Outcome.NOTHING_TO_DO


def combine(reports: Iterable[Report], *, steps: bool = False) -> Report:
    """One report for several parts of one run (its clinics, its steps).

    Parts that all failed, were all refused or all skipped keep that word; where some went well and some did not the
    whole is partial. Beside a refusal, parts that had nothing to do or were skipped are no part success: a person has
    to look. Beside a failure they are none where the parts are ``steps`` of one clinic's run; clinics that had nothing
    to do are well. Of several plans the last that something is to be done with is the whole's, and a reason
    ``plan:ID,ID`` names the others. What parts say alike is said once, and those first that had something to do.
    """
    parts = list(reports)
    outcomes = {part.outcome for part in parts}
    working = outcomes - {Outcome.NOTHING_TO_DO, Outcome.SKIPPED}
    if outcomes == {Outcome.SKIPPED}:
        outcome = Outcome.SKIPPED
    elif not working:
        outcome = Outcome.NOTHING_TO_DO
    elif working in ({Outcome.OK}, {Outcome.REFUSED}):
        (outcome,) = working
    elif len(outcomes) == 1:
        outcome = outcomes.pop()
    elif (working if steps else outcomes) <= {Outcome.REFUSED, Outcome.FAILED}:
        outcome = Outcome.FAILED
    else:
        outcome = Outcome.PARTIAL
    figures: dict[str, int | float | str] = {}
    for part in parts:
        for label, figure in part.figures.items():
            value = figure
            before = figures.get(label)
            if isinstance(before, int | float) and isinstance(value, int | float):
                value = before + value
            figures[label] = value
    told = [reason for part in sorted(parts, key=lambda part: part.outcome not in working) for reason in part.reasons]
    plans = [part.plan_id for part in parts if part.plan_id is not None and part.outcome in working]
    plans = plans or [part.plan_id for part in parts if part.plan_id is not None][-1:]
    others = [_other_plans(plans[:-1])] if plans[1:] else []
    return Report(
        outcome,
        sum((part.counts for part in parts), Counts()),
        tuple(dict.fromkeys([*told, *others])),
        figures,
        tuple(table for part in parts for table in part.tables),
        plans[-1] if plans else None,
    )


def _other_plans(plans: list[int]) -> Reason:
    numbers = ", ".join(map(str, plans))
    they = f"C'è anche il piano {numbers}" if len(plans) == 1 else f"Ci sono anche i piani {numbers}"
    return Reason(f"plan:{numbers.replace(' ', '')}", f"{they}: «polydesk plan show NUMERO».", count=len(plans))
