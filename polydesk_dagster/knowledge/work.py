"""One blue or yellow run: what it was given, and what it has to tell."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from polydesk_dagster.knowledge.contents import losses_of
from polydesk_dagster.knowledge.formats.text import Loss
from polydesk_dagster.knowledge.generations import pipeline
from polydesk_dagster.knowledge.library import Library, Task
from polydesk_dagster.knowledge.shelving import Shelved
from polydesk_dagster.knowledge.store import Store
from polydesk_dagster.outcome import Counts, Report, Table, done
from polydesk_dagster.values import Count, Instant, Reason, Several, Share, Term, Value, mapping_from_json

SHOWN = 50

SHOWN_PAGES = 20

Progress = Callable[[int, int, str], None]


@dataclass(slots=True)
class Work:
    """What every step of a run needs."""

    engine: sa.Engine
    as_of: datetime
    library: Library
    patience: float
    progress: Progress
    pipeline: str = field(init=False)
    store: Store = field(init=False)
    account: Account = field(init=False)

    def __post_init__(self) -> None:
        self.pipeline = pipeline(self.library)
        self.store = Store(self.library.uri)
        self.account = Account()


@dataclass(slots=True)
class Account:
    """What became of the documents, as it happens."""

    counts: Counter[str] = field(default_factory=Counter)
    set_aside: int = 0
    """Documents newly left to a person."""
    reasons: list[Reason] = field(default_factory=list)
    changes: list[tuple[Value, ...]] = field(default_factory=list)

    def note(self, count: str, path: str, change: str, why: Reason | None = None) -> None:
        """One document, by what became of it."""
        self.counts[count] += 1
        self._tell(path, change, why)

    def note_quarantined(self, path: str, why: Reason, *, newly: bool) -> None:
        """A document that was not read; what has waited since an earlier run is only counted."""
        self.counts["aside"] += 1
        if newly:
            self.set_aside += 1
            self._tell(path, "quarantined", why)

    def note_partial(self, path: str, losses: Sequence[Loss], *, newly: bool) -> None:
        """A document that was read in part."""
        if newly:
            self.set_aside += 1
            self._tell(path, "partial", lost(losses))

    def _tell(self, path: str, change: str, why: Reason | None) -> None:
        if why is not None:
            self.reasons.append(Reason(f"document_{change}", {"path": path, "why": why}))
        if len(self.changes) < SHOWN:
            self.changes.append((path, Term("document_change", change), why))

    def note_shelved(self, shelved: Shelved) -> None:
        """Documents that were found again elsewhere, and those that newly are nobody's."""
        self.changes += [(now, Term("document_change", "moved"), before) for before, now in shelved.moved[:SHOWN]]
        self.set_aside += len(shelved.nobodys)
        folders = Counter(path.split("/", 1)[0] for path in shelved.nobodys)
        self.reasons += [
            Reason("document_nobodys", {"folder": folder, "documents": Count("document", many)})
            for folder, many in folders.items()
        ]

    def note_passed_over(self, passed_over: Sequence[tuple[str, str]]) -> None:
        """What lies in the folder and is not read."""
        self.reasons += [Reason("passed_over", {"path": path, "why": Reason(why)}) for path, why in passed_over]

    def recount(self, differences: Mapping[str, int]) -> None:
        """What a new generation changes, instead of what was read for it."""
        for name, number in differences.items():
            self.counts[name] = number

    def note_leaving(self, leaving: Sequence[Task], cited: int) -> None:
        """Documents that were let go, of which ``cited`` were in the index."""
        self.counts["retired"] += cited
        for task in leaving[: max(0, SHOWN - len(self.changes))]:
            self.changes.append((task.path, Term("document_change", task.change), None))


def lost(losses: Sequence[Loss]) -> Reason:
    """What of a document was not read, as one reason."""
    return Reason("losses", {"losses": Several(tuple(loss_reason(loss) for loss in losses))})


def loss_reason(loss: Loss) -> Reason:
    """One loss; its pages are named where it has some."""
    what: Value = Count(f"loss.{loss.code}", loss.count)
    if loss.sure is not None:
        what = Reason("loss_sure", {"loss": what, "sure": Share(loss.sure / 100)})
    if not loss.pages:
        return Reason("loss", {"loss": what})
    return Reason("loss_on_pages", {"loss": what, "pages": Several(loss.pages[:SHOWN_PAGES])}, count=len(loss.pages))


def preview(found: Sequence[Task], files: int, reasons: Sequence[Reason]) -> Report:
    """What a run would do with ``found`` of so many files."""
    by = Counter(task.change for task in found)
    counts = Counts(
        created=by["new"],
        updated=by["changed"],
        retired=by["gone"] + by["retracted"],
        unchanged=files - by["new"] - by["changed"],
    )
    rows = tuple((task.path, Term("document_change", task.change), None) for task in found)
    table = Table("documents_changed", CHANGED, rows[:SHOWN], len(rows))
    return Report(done(counts), counts, shown(reasons), tables=(table,), preview=True)


def report(connection: sa.Connection, account: Account, generation: int, files: int) -> Report:
    """What a run did to a generation, of so many files."""
    figures = overview(connection, generation)
    known = dict(account.counts)
    aside = known.pop("aside", 0)
    quarantined = figures["index_quarantined"]
    waiting = quarantined + figures["index_partial"] + figures["index_nobodys"]
    touched = sum(known.get(name, 0) for name in ("created", "updated", "failed", "skipped"))
    unchanged = max(0, files - touched - max(aside, quarantined))
    counts = Counts(**known, waiting=waiting, unchanged=unchanged)
    set_aside = shelved(connection)
    tables = [set_aside] if set_aside.total else []
    if account.changes:
        total = counts.changed + counts.failed + counts.skipped + account.set_aside
        tables.insert(0, Table("documents_changed", CHANGED, tuple(account.changes), total))
    outcome = done(counts, set_aside=account.set_aside)
    return Report(outcome, counts, shown(account.reasons), figures, tuple(tables))


def shown(reasons: Sequence[Reason]) -> tuple[Reason, ...]:
    """The first of these, and how many more there are."""
    more = len(reasons) - SHOWN
    return tuple(reasons) if more <= 0 else (*reasons[:SHOWN], Reason("reasons_more", count=more))


CHANGED = ("document", "document_change", "document_why")


def overview(connection: sa.Connection, generation: int) -> dict[str, Any]:
    """Documents and passages by state, as figures."""
    row = connection.execute(
        sa.text("""
            SELECT (SELECT count(*) FROM knowledge_entry WHERE generation_id = g.id) AS documents, g.passages,
                   (SELECT count(*) FROM document d JOIN knowledge_entry e ON e.document_id = d.id
                    WHERE e.generation_id = g.id AND d.stale_since IS NOT NULL) AS stale,
                   s.quarantined, s.partial, s.retrying, s.retracted, s.nobodys, g.id, g.probes, g.recall
            FROM knowledge_generation g, (
                SELECT count(*) FILTER (WHERE state = 'quarantined') AS quarantined,
                       count(*) FILTER (WHERE state = 'partial') AS partial,
                       count(*) FILTER (WHERE state = 'retrying') AS retrying,
                       count(*) FILTER (WHERE retracted_at IS NOT NULL) AS retracted,
                       count(*) FILTER (WHERE scoped_by = 'nobody' AND state = 'indexed') AS nobodys
                FROM document) s
            WHERE g.id = :id"""),
        {"id": generation},
    ).one()
    figures: dict[str, Any] = {
        "index_documents": row.documents,
        "index_passages": row.passages,
        "index_quarantined": row.quarantined,
        "index_partial": row.partial,
        "index_nobodys": row.nobodys,
        "index_stale": row.stale,
        "index_retrying": row.retrying,
        "index_retracted": row.retracted,
        "index_generation": row.id,
    }
    if row.recall is not None:
        figures["index_probes"] = row.probes
        figures["index_probes_answered"] = Share(float(row.recall))
    return figures


def shelved(connection: sa.Connection) -> Table:
    """Documents that wait for a person, the latest first."""
    rows = connection.execute(
        sa.text("""
            SELECT path, state, reason_code, reason_values, losses, changed_at, count(*) OVER () AS total FROM document
            WHERE state IN ('quarantined', 'partial') ORDER BY changed_at DESC, path LIMIT :shown"""),
        {"shown": SHOWN},
    ).all()
    cells = tuple(
        (
            row.path,
            Term("document_state", row.state),
            why(row.reason_code, row.reason_values, row.losses),
            Instant(row.changed_at),
        )
        for row in rows
    )
    return Table(
        "quarantine",
        ("document", "document_state", "document_why", "document_since"),
        cells,
        rows[0].total if rows else 0,
    )


def why(code: str | None, values: Mapping[str, Any], losses: Sequence[Sequence[Any]]) -> Reason | None:
    """Why a document's row stands as it does."""
    if code is not None:
        return Reason(code, mapping_from_json(values))
    return lost(losses_of(losses)) if losses else None
