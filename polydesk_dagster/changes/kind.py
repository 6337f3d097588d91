"""What a record kind declares so that the engine can plan, show, apply and undo its changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from polydesk_dagster.outcome import Reason, Report

ACTIONS = ("create", "update", "retire", "delete", "link", "conflict")
"""``link``: nothing of the target changes, the kind's effects do the work; ``conflict``: never written."""

FINDINGS = ("missing_here", "missing_there", "differs", "invalid", "duplicate", "unmapped", "overlapping", "replaced")


class Reject(Exception):  # noqa: N818 -- a verdict on one record, not a fault of the program
    """A record that cannot be staged; ``why`` holds no patient data."""

    def __init__(self, code: str, why: Reason) -> None:
        super().__init__(why.code)
        self.code = code
        self.why = why


class Moved(Exception):  # noqa: N818 -- unwinds the savepoint in which a plan is applied, never leaves ``changes``
    """The records are no longer as the plan saw them: those rows that satisfy ``where``, once unwound, each for the
    reason that the SQL ``why`` gives. An effect raises it to have its plan refused whole."""

    def __init__(self, code: str, where: str, why: str = "'edited_since'") -> None:
        super().__init__(code)
        self.code = code
        self.where = where
        self.why = why


@dataclass(frozen=True, slots=True)
class Limits:
    """How much may change before a person must look. Shares are of 1; counts up to ``few`` never stop a run."""

    minimum: int = 1
    """A source with fewer records than this is taken for broken. 0: it may be empty where there never was any."""
    shrink: float = 0.3
    """Largest share of the records of last time that may be missing."""
    rejected: float = 0.05
    """Largest share of records that may be unreadable before the shape is taken to have changed."""
    retired: float | None = 0.1
    """Largest share of our records in force that one plan may retire."""
    since_confirmed: float = 0.3
    """Largest share of those that were in force when a person last confirmed what came of a source that may have been
    retired since, however slowly."""
    changed: float | None = None
    """Largest share of our records in force that one plan may change."""
    few: int = 5
    enough: int = 1
    """Of fewer records a share says nothing about their shape: each that is unreadable speaks for itself."""
    alike: bool = True
    """Whether records that contradict each other under one key stop all; else only they wait."""


@dataclass(frozen=True, slots=True)
class Guard:
    """A further limit of one kind: ``query`` gives one number (of ``{rows}``, the plan's rows); above ``limit`` the
    plan is not applied without a person's word. What it found is told as ``reason.guard_<name>``, with ``value`` (a
    count of ``noun``, where there is one) and ``limit``; what it looks after as ``guard.<name>``.

    With ``rows`` instead, SQL over ``r``, those rows wait for a person one by one (told as ``reason.row_<name>``) and
    the others go on; what of them a person lets through still needs her word.
    """

    name: str
    query: str = "SELECT 0"
    limit: float = 0
    noun: str | None = None
    rows: str | None = None

    @property
    def flags(self) -> str:
        """SQL over ``r``: it would be written, and the guard speaks against it."""
        return f"r.action <> 'conflict' AND ({self.rows})"


@dataclass(frozen=True, slots=True)
class Source:
    """How records from outside become comparable with ours.

    ``columns`` are the staged columns and their SQL types, in COPY order; the engine adds ``n`` (record number from
    1), ``problem`` (a finding) and ``reason`` (Italian). ``prepare`` turns one wire record into values in that
    order, optionally followed by problem and reason; it raises :class:`Reject`.

    ``desired`` is a query over ``{stage}`` giving ``n``, ``problem``, ``reason`` and the kind's ``fixed``, ``owned``
    and ``carried`` columns; it becomes the temporary table ``wanted`` (alias d), with an index on ``indexed``
    (column names; for ``judge`` these are what the planner is told the spread of).
    ``current`` gives our rows in scope (alias c), with their ``source_key``, by which the source knows the row. ``key``
    holds the expressions (``{}`` is the alias) that tell records apart; two rows are the same thing when their keys
    are equal, or as ``join`` says. ``retire`` assigns, by column, what becomes of a ``c`` that is gone from the source,
    where ``retirable`` holds; None: being absent means nothing. ``blocked`` gives an Italian reason, or null, why a
    change of ``c`` into ``d`` must not be written. :today is the date in Italy, and in ``desired`` :snapshot the
    source's.

    A kind that only ever adds (a million rows, perhaps) gives ``judge`` instead of ``desired`` and ``current``: its
    records are copied straight into the plan's rows ``{rows}`` as creations, those with a problem as conflicts, and
    the statements of ``judge`` take out or mark the few that are something else. Columns that are neither the table's
    nor ``carried`` are there for the kind's own statements: nobody is shown them, and they make no difference between
    two records.

    Records that differ in one of the columns ``apart`` (staged ones) are never the same thing: where no two are alike
    in all of them, which :repeats says, nothing is looked through for repetitions.

    ``compared`` are the tables that a list which was read as it is now could not be compared with again without reading
    it: whatever is written to them is counted (``list_change``), and while nothing is, an unchanged list stays unread.
    """

    columns: Mapping[str, str]
    prepare: Callable[[Any], Sequence[Any]]
    label: Callable[[Any], str]
    """The record's key for the quarantine, e.g. its id."""
    key: tuple[str, ...]
    apart: tuple[str, ...] = ()
    join: str | None = None
    indexed: str | None = None
    desired: str | None = None
    alone: bool = False
    """Whether ``desired`` has a boolean column ``alone``, true where no other record can have the same key."""
    current: str | None = None
    retire: Mapping[str, str] | None = None
    retirable: str = "true"
    in_force: str | None = None
    """What ``c`` counts among our records in force; None: what is ``retirable``."""
    blocked: str = "CAST(NULL AS text)"
    reason: str = "CAST(NULL AS text)"
    """Why, as SQL over ``d`` and ``c``; null is the plain reason of the action."""
    finding: str = "CAST(NULL AS text)"
    """Likewise what it is besides; what is ``replaced`` by a record that was read gives way, whatever was not."""
    reconsider: tuple[str, ...] = ()
    """Statements on the plan's rows ``{rows}`` once they are made: those that cannot stand beside each other or beside
    what stays become conflicts."""
    noted: Mapping[str, str] = field(default_factory=dict)
    """What is told though nothing is written for it: by the code of its reason which of our rows ``c`` are counted."""
    judge: tuple[str, ...] = ()
    compared: tuple[str, ...] = ()
    text: tuple[str, ...] = ()
    """Staged columns of free text, looked through for a broken encoding."""
    untold: tuple[str, ...] = ()
    """Columns of ours of which this source says nothing, which is not that they are empty: what we hold stays."""


Effect = Callable[[sa.Connection, str, datetime], Report | None]
"""Called inside apply with the connection, a FROM item that yields the applied rows, and as_of."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of record: its table, and whose each column is.

    ``fixed`` columns are written when a row is created, ``owned`` ones also when it changes; ``kept`` ones are the
    clinic's and never written; where they are no longer the table's defaults, somebody has worked with a new row, but
    for those that a service works out (``derived``). ``carried`` columns (name → SQL type) travel with the plan's rows
    without being the table's. Where ``identity`` is ``("id",)`` the engine gives new rows their id when it plans them.

    A ``volatile`` kind's rows are tested one by one when applied (``still``, SQL over ``t``, must hold too) and those
    that changed are skipped; any other plan is applied whole or not at all.

    ``before`` and ``after`` are SQL statements of the same transaction, run on the applied rows ``{rows}``;
    ``undo_before`` and ``undo_after`` likewise when a plan is undone. They may name :plan_id, :clinic_id and :as_of;
    ``:undoes`` is the plan that is taken back, null where none is.
    """

    name: str
    table: str
    key: str
    """SQL over ``r`` that names a row for people, e.g. ``r.external_id``."""
    told: bool = False
    """Whether ``key`` gives a reason as ``why`` makes it, told in the reader's words, instead of a name."""
    owned: tuple[str, ...] = ()
    fixed: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    derived: tuple[str, ...] = ()
    carried: Mapping[str, str] = field(default_factory=dict)
    identity: tuple[str, ...] = ("id",)
    masked: tuple[str, ...] = ()
    """Columns that only ``polydesk plan show`` shows."""
    private: bool = False
    """Rows hold patient data: shown only by ``polydesk plan show``."""
    volatile: bool = False
    orders: bool = False
    """Its records are orders: a row to create is something to do, and nothing that we lack."""
    still: str = "true"
    taken: str | None = None
    """SQL over ``t`` and ``r``: when it holds for some ``t``, the row ``r`` to create exists already."""
    sole: str | None = None
    """The name of the constraint that refuses whatever is ``taken``: whether something is, is then asked only once it
    has. Who has no such constraint is asked first."""
    alike: tuple[str, ...] = ()
    """Other ways in which that may be so, where the kind is not volatile. Each is looked for by itself: one condition
    of several alternatives would have to be tried row by row. ``{rows}`` is the plan's."""
    barred: str | None = None
    """An Italian reason, SQL over ``t`` (the target, or nulls) and ``r``, why a row must not be written; null if it
    may. Tested when the plan is made, where such a row is a conflict, and again when it is applied, which is then
    refused."""
    moved: str | None = None
    """An Italian reason, SQL over ``r``, why a row to create no longer fits what it was counted from; null if it does.
    Tested when a plan that is not volatile is applied."""
    source: Source | None = None
    dependents: tuple[str, ...] = ()
    """Tables that refer to this one and whose rows ``undo_before`` takes away with a creation."""
    held: str = "CAST(NULL AS text)"
    """An Italian reason, SQL over ``t``, why a creation can no longer be undone; null if it can."""
    whole: bool = False
    """A plan is one decision: none of its rows can be held back by itself."""
    final: str | None = None
    """The Italian reason why what was applied is never taken back."""
    called: str | None = None
    """SQL over ``t``: what people call a record of ours by, where a person may say which one a source's record is."""
    together: str | None = None
    """SQL over ``r``: rows for which it is equal are about one thing, and are held and taken back all or none."""
    undo_reconsider: tuple[str, ...] = ()
    """Statements on the rows ``{rows}`` of a plan that takes another back, as those of a source's ``reconsider``: what
    cannot stand beside what stays becomes a conflict."""
    limits: Limits = Limits()
    guards: tuple[Guard, ...] = ()
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    after_updates: tuple[str, ...] = ()
    """Those to run before ``after`` that find something only where a plan's rows change what there is: of one that
    only adds they are not asked."""
    undo_before: tuple[str, ...] = ()
    undo_after: tuple[str, ...] = ()
    effect: Effect | None = None
    last: Callable[[sa.Connection, str, datetime], None] | None = None
    """Called like ``effect``, after it, but not where a plan is taken back."""
    expires: timedelta = timedelta(minutes=30)

    def __post_init__(self) -> None:
        twice = set(self.owned) & set(self.kept) | set(self.fixed) & set(self.kept) | set(self.fixed) & set(self.owned)
        if twice:
            raise ValueError(f"kind {self.name}: whose are {', '.join(sorted(twice))}?")

    @property
    def row_guards(self) -> tuple[Guard, ...]:
        return tuple(guard for guard in self.guards if guard.rows is not None)

    @property
    def on(self) -> str:
        """SQL: the plan's row ``r`` is about the table's row ``t``."""
        return " AND ".join(f"t.{name} = r.{name}" for name in self.identity)

    @property
    def written(self) -> tuple[str, ...]:
        """The columns of a plan row that are the table's, identity aside."""
        return tuple(column for column in (*self.fixed, *self.owned) if column not in self.identity)

    @property
    def compared(self) -> tuple[str, ...]:
        """The columns that must still be as the plan saw them."""
        return tuple(column for column in self.owned if column not in self.identity)
