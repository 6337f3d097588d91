"""What every rule returns: an outcome, counts, and reasons that a receptionist understands.

Codes and values, no sentences; how they are said, in Dagster or on a terminal, is decided in ``told``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from typing import Any

from polydesk_dagster.values import Count, Reason, Several, Value

__all__ = [
    "EXIT_STATUS",
    "SHOWN_ROWS",
    "WHAT_TO_DO",
    "Counts",
    "Outcome",
    "Reason",
    "Report",
    "Table",
    "combine",
    "done",
]


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


WHAT_TO_DO = "what_to_do"
"""The figure that says what a person does next."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Records by what became of them."""

    created: int = 0
    updated: int = 0
    retired: int = 0
    skipped: int = 0
    waiting: int = 0
    """Records that wait for a person: in conflict, in review or quarantine, doubtful, held, not to be sent."""
    failed: int = 0
    unchanged: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})

    @property
    def changed(self) -> int:
        return self.created + self.updated + self.retired

    def as_dict(self) -> dict[str, int]:
        return {f.name: getattr(self, f.name) for f in fields(self)}


SHOWN_ROWS = 50
"""Rows of a table that a page shows and that its run keeps; all of them are with their plan."""


@dataclass(frozen=True, slots=True)
class Table:
    """A capped table for people, by keys that the catalogues name; no patient data."""

    key: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    """Cells are values."""
    total: int
    """How many rows there are in all; ``rows`` may hold fewer."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a rule did, or for a ``preview`` what it would do."""

    outcome: Outcome
    counts: Counts = Counts()
    reasons: tuple[Reason, ...] = ()
    figures: Mapping[str, Any] = field(default_factory=dict)
    """Further numbers of this service, by key."""
    tables: tuple[Table, ...] = ()
    plan_id: int | None = None
    preview: bool = False

    @classmethod
    def skipped(cls, code: str, values: Mapping[str, Value] | None = None, clinic: str | None = None) -> Report:
        return cls(Outcome.SKIPPED, reasons=(Reason(code, values or {}, clinic),))

    @classmethod
    def refused(cls, code: str, values: Mapping[str, Value] | None = None, clinic: str | None = None) -> Report:
        return cls(Outcome.REFUSED, reasons=(Reason(code, values or {}, clinic),))

    @classmethod
    def failed(cls, code: str, values: Mapping[str, Value] | None = None, clinic: str | None = None) -> Report:
        return cls.of_failure(Reason(code, values or {}, clinic))

    @classmethod
    def of_failure(cls, reason: Reason) -> Report:
        return cls(Outcome.FAILED, counts=Counts(failed=1), reasons=(reason,))

    def of_clinic(self, clinic: str | None) -> Report:
        """The same where each reason says that it is this ``clinic``'s: beside others' nobody would know."""
        if clinic is None or all(reason.clinic is not None for reason in self.reasons):
            return self
        named = (replace(reason, clinic=reason.clinic or clinic) for reason in self.reasons)
        return replace(self, reasons=tuple(named))


def done(counts: Counts, *, set_aside: int = 0) -> Outcome:
    """The outcome that the counts alone speak of: something failed, something changed, or nothing had to.

    ``set_aside`` is how many records this run newly gave to a person: then it is partial, and refused where nothing
    else came of it. What waited before is among ``counts.waiting`` and does not colour the run.
    """
    if counts.failed:
        return Outcome.PARTIAL if counts.changed or counts.unchanged or set_aside else Outcome.FAILED
    if set_aside:
        return Outcome.PARTIAL if counts.changed or counts.unchanged else Outcome.REFUSED
    return Outcome.OK if counts.changed else Outcome.NOTHING_TO_DO


def combine(reports: Iterable[Report], *, steps: bool = False) -> Report:
    """One report for several parts of one run (its clinics, its steps).

    Parts that all failed, were all refused or all skipped keep that word; where some went well and some did not the
    whole is partial. Beside a refusal, parts that had nothing to do or were skipped are no part success: a person has
    to look. Beside a failure they are none where the parts are ``steps`` of one clinic's run; clinics that had nothing
    to do are well. Of several plans the last that something is to be done with is the whole's, and a reason
    ``other_plans`` names the others. What parts say alike is said once, and those first that had something to do.
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
    figures: dict[str, Value] = {}
    for part in parts:
        for label, figure in part.figures.items():
            value: Value = figure
            before = figures.get(label)
            if isinstance(before, int | float) and isinstance(value, int | float):
                value = before + value
            elif isinstance(before, Count) and isinstance(value, Count) and before.noun == value.noun:
                value = Count(value.noun, before.n + value.n)
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
        preview=bool(parts) and all(part.preview for part in parts),
    )


def _other_plans(plans: list[int]) -> Reason:
    return Reason("other_plans", {"plans": Several(tuple(sorted(plans)))}, count=len(plans))
