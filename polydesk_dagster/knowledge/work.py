"""One blue or yellow run: what it was given, and what it has to tell."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import sqlalchemy as sa

from polydesk_dagster.knowledge.generations import pipeline
from polydesk_dagster.knowledge.library import Library, Task
from polydesk_dagster.knowledge.store import Store
from polydesk_dagster.outcome import Counts, Reason, Report, Table, done

SHOWN = 50

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
    reasons: list[Reason] = field(default_factory=list)
    changes: list[tuple[object, ...]] = field(default_factory=list)

    def note(self, count: str, path: str, code: str, why: str) -> None:
        """One document, by what became of it."""
        self.counts[count] += 1
        if code not in {"new", "changed"}:
            self.reasons.append(Reason(code, f"«{path}» {why}."))
        if len(self.changes) < SHOWN:
            self.changes.append((path, _WORDS.get(code, "in quarantena"), why))

    def recount(self, differences: Mapping[str, int]) -> None:
        """What a new generation changes, instead of what was read for it."""
        for name, number in differences.items():
            self.counts[name] = number

    def note_leaving(self, leaving: Sequence[Task], cited: int) -> None:
        """Documents that were let go, of which ``cited`` were in the index."""
        self.counts["retired"] += cited
        for task in leaving[: max(0, SHOWN - len(self.changes))]:
            self.changes.append((task.path, _WORDS[task.change], ""))


def preview(found: Sequence[Task], files: int, reasons: Sequence[Reason]) -> Report:
    """What a run would do with ``found`` of so many files."""
    by = Counter(task.change for task in found)
    counts = Counts(
        created=by["new"],
        updated=by["changed"],
        retired=by["gone"] + by["retracted"],
        unchanged=files - by["new"] - by["changed"],
    )
    rows = tuple((task.path, _WORDS[task.change], "") for task in found)
    return Report(done(counts), counts, tuple(reasons), tables=(Table(*_CHANGES, rows[:SHOWN], len(rows)),))


def report(connection: sa.Connection, account: Account, generation: int, files: int) -> Report:
    """What a run did to a generation, of so many files."""
    touched = sum(account.counts[name] for name in ("created", "updated", "failed", "skipped"))
    counts = Counts(**account.counts, unchanged=files - touched)
    quarantine = quarantined(connection)
    tables = [quarantine] if quarantine.total else []
    if account.changes:
        total = counts.changed + counts.failed + counts.skipped
        tables.insert(0, Table(*_CHANGES, tuple(account.changes), total))
    return Report(done(counts), counts, tuple(account.reasons[:SHOWN]), overview(connection, generation), tuple(tables))


_CHANGES = ("Documenti cambiati", ("Documento", "Che cosa", "Perché"))
_WORDS = {"new": "nuovo", "changed": "cambiato", "gone": "non c'è più", "retracted": "ritirato", "vanished": "sparito"}


def overview(connection: sa.Connection, generation: int) -> dict[str, int | float | str]:
    """Documents and passages by state, by Italian label."""
    row = connection.execute(
        sa.text("""
            SELECT (SELECT count(*) FROM knowledge_entry WHERE generation_id = g.id) AS documents, g.passages,
                   (SELECT count(*) FROM document WHERE state = 'quarantined') AS quarantined,
                   (SELECT count(*) FROM document WHERE state = 'retrying') AS retrying,
                   (SELECT count(*) FROM document WHERE retracted_at IS NOT NULL) AS retracted, g.id, g.probes, g.recall
            FROM knowledge_generation g WHERE g.id = :id"""),
        {"id": generation},
    ).one()
    figures: dict[str, int | float | str] = {
        "Documenti nell'indice": row.documents,
        "Passaggi nell'indice": row.passages,
        "Documenti in quarantena": row.quarantined,
        "Documenti da riprovare": row.retrying,
        "Documenti ritirati": row.retracted,
        "Generazione": row.id,
    }
    if row.recall is not None:
        figures["Domande di prova"] = row.probes
        figures["Domande di prova con risposta"] = float(row.recall)
    return figures


def quarantined(connection: sa.Connection) -> Table:
    rows = connection.execute(
        sa.text("""
            SELECT path, reason, changed_at::date, count(*) OVER () FROM document
            WHERE state = 'quarantined' ORDER BY changed_at DESC, path LIMIT :shown"""),
        {"shown": SHOWN},
    ).all()
    cells = tuple((path, reason, str(day)) for path, reason, day, _ in rows)
    return Table("Quarantena", ("Documento", "Perché", "Dal"), cells, rows[0][3] if rows else 0)
