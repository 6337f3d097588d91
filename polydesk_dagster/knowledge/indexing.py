"""The index kept up with the documents: blue for what is new, changed or gone; yellow for a new generation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime

import sqlalchemy as sa

from polydesk_dagster.changes.past import no_such_guard
from polydesk_dagster.database.locks import exclusive
from polydesk_dagster.errors import PermanentError
from polydesk_dagster.knowledge import carrying, contents, generations, intake, probing, shelving
from polydesk_dagster.knowledge import work as told
from polydesk_dagster.knowledge.generations import Generation, pipeline
from polydesk_dagster.knowledge.library import File, Library, Task, listing, tasks
from polydesk_dagster.knowledge.reading import PATIENCE
from polydesk_dagster.knowledge.store import Store
from polydesk_dagster.knowledge.work import Progress, Work
from polydesk_dagster.outcome import Counts, Outcome, Reason, Report

GUARD = "too_many_removals"
PROBES = "probes"
GUARDS = (GUARD, PROBES)
"""Names of the guards that a person who has looked may go past."""

LOCK = "knowledge index"
"""Whoever holds the lock of this name has the index, and what the database says of it, to itself."""

GUARD_SHARE = 0.2
GUARD_LEAST = 3


def refresh(
    engine: sa.Engine,
    as_of: datetime,
    library: Library,
    *,
    preview: bool = False,
    past_guard: str | None = None,
    progress: Progress | None = None,
    patience: float = PATIENCE,
) -> Report:
    """Blue: index what is new or changed, drop what is gone. Builds the first generation, and a new one when the
    pipeline is another than the current generation's."""
    if (refusal := _mistyped(past_guard)) is not None:
        return refusal
    run = _Run(Work(engine, as_of, library, patience, progress or _silent), preview=preview, past_guard=past_guard)
    return _alone(engine, run.blue)


def rebuild(
    engine: sa.Engine,
    as_of: datetime,
    library: Library,
    *,
    preview: bool = False,
    past_guard: str | None = None,
    progress: Progress | None = None,
    patience: float = PATIENCE,
) -> Report:
    """Yellow: read every document again into a new generation, and answer from it once it is whole and as good."""
    if (refusal := _mistyped(past_guard)) is not None:
        return refusal
    run = _Run(Work(engine, as_of, library, patience, progress or _silent), preview=preview, past_guard=past_guard)
    return _alone(engine, run.yellow)


def _mistyped(past_guard: str | None) -> Report | None:
    why = no_such_guard(() if past_guard is None else (past_guard,), GUARDS)
    return None if why is None else Report(Outcome.REFUSED, reasons=(why,))


def roll_back(engine: sa.Engine, *, preview: bool = False) -> Report:
    """Answer from the generation before the current one again; doing it twice changes nothing. A ``preview`` says
    whether there is one."""

    def back() -> Report:
        if preview:
            with engine.connect() as connection:
                there = generations.find(connection, "previous") is not None
        else:
            there = generations.step_back(engine)
        if not there:
            return Report.refused("no_previous")
        if preview:
            return Report(Outcome.OK, Counts(updated=1), (Reason("would_roll_back"),), preview=True)
        return Report(Outcome.OK, Counts(updated=1), (Reason("rolled_back"),))

    return _alone(engine, back)


def anything_due(connection: sa.Connection, library: Library, as_of: datetime) -> bool:
    """Whether a blue run would find something to do; cheap, and never opens the index."""
    current = generations.find(connection, "current")
    if current is None:
        return library.folder.is_dir()
    if current.pipeline != pipeline(library):
        return not generations.rolled_back(connection, library)
    if (
        current.unmerged
        or contents.unsettled(connection, current.id)
        or not Store(library.uri).there(current.id, current.passages)
    ):
        return True
    if shelving.anything_to_place(connection):
        return True
    return bool(tasks(connection, listing(library.folder).files, current.id, current.pipeline, as_of))


def _silent(_done: int, _total: int, _what: str) -> None:
    pass


def _alone(engine: sa.Engine, run: Callable[[], Report]) -> Report:
    """Blue and yellow are two services over one index: whoever comes second leaves."""
    with exclusive(engine, LOCK) as taken:
        if not taken:
            return Report.skipped("index_busy")
        return run()


class _Run:
    """One blue or yellow run."""

    def __init__(self, work: Work, *, preview: bool, past_guard: str | None) -> None:
        self.work = work
        self.engine = work.engine
        self.preview = preview
        self.past_guard = past_guard
        self.lost = False
        """Whether the passages of the current generation are no longer there."""

    # What is asked for

    def blue(self) -> Report:
        work = self.work
        with self.engine.begin() as connection:
            current = generations.find(connection, "current")
            rolled_back = generations.rolled_back(connection, work.library)
        if current is None:
            return self.yellow()
        if current.pipeline != work.pipeline:
            if rolled_back:
                return Report.refused("older_generation")
            work.account.reasons.append(Reason("pipeline_changed"))
            return self.yellow()
        if not work.store.there(current.id, current.passages):
            return self._made_anew()
        files, refusal = self._listing()
        if refusal is not None:
            return refusal
        with self._placed(files) as connection:
            found = tasks(connection, files, current.id, work.pipeline, work.as_of)
            refusal = self._guard(connection, current.id, [task for task in found if task.change == "gone"], files)
            leftovers = current.unmerged or bool(contents.unsettled(connection, current.id))
            if refusal is not None or self.preview:
                connection.rollback()
        if refusal is not None:
            return refusal
        if self.preview:
            return told.preview(found, len(files), work.account.reasons)
        if found or leftovers:
            try:
                self._keep_up(current, files, found)
            except PermanentError as error:
                if error.reason.code != "index_unreadable":
                    raise
                work.account = told.Account()
                return self._made_anew()
        return self._report(current.id, len(files))

    def _made_anew(self) -> Report:
        self.lost = True
        self.work.account.reasons.append(Reason("index_lost"))
        return self.yellow()

    def yellow(self) -> Report:
        work = self.work
        files, refusal = self._listing()
        if refusal is not None:
            return refusal
        with self._placed(files) as connection:
            current = generations.find(connection, "current")
            found = tasks(connection, files, None, work.pipeline, work.as_of)
            gone = tasks(connection, files, current.id, work.pipeline, work.as_of) if current else []
            refusal = self._guard(
                connection, current.id if current else None, [task for task in gone if task.change == "gone"], files
            )
            retracted = self._retracted(connection)
            if refusal is not None or self.preview:
                connection.rollback()
        if refusal is not None:
            return refusal
        every = [Task("new", path, None) for path in files if path not in retracted]
        if self.preview:
            return told.preview(every, len(files), work.account.reasons)
        dimension = self._dimension()
        building = generations.begin(self.engine, work.library, dimension, work.as_of)
        work.store.create(building.id, dimension)
        words = intake.take_in(work, building, files, every)
        if current is not None:
            words += carrying.carry(work, building, current, files)
        if refusal := self._flaw(building, current, files, words):
            generations.discard(self.engine, building.id, refusal.reasons[0].code, work.as_of)
            work.store.drop(generations.kept(self.engine))
            return refusal
        before = current.id if current else None
        work.account.recount(generations.differences(self.engine, building.id, before, lost=self.lost))
        generations.swap(self.engine, building.id, work.as_of)
        self._let_go(building.id, [task for task in found if task.change == "gone"])
        work.store.drop(generations.kept(self.engine))
        return self._report(building.id, len(files))

    # The steps

    def _keep_up(self, current: Generation, files: Mapping[str, File], found: Sequence[Task]) -> None:
        """Bring a generation up to what was found."""
        contents.sweep(self.engine, self.work.store, current.id)
        intake.take_in(self.work, current, files, [task for task in found if task.change in {"new", "changed"}])
        self._let_go(current.id, [task for task in found if task.change in {"gone", "retracted"}])
        contents.sweep(self.engine, self.work.store, current.id)
        contents.merge(self.engine, self.work.store, current.id)

    @contextmanager
    def _placed(self, files: Mapping[str, File]) -> Iterator[sa.Connection]:
        """A transaction in which every file has its document, and every document its scope."""
        with self.engine.connect() as connection:
            new = shelving.unknown(connection, files)
        digests = intake.digests(files, new)
        with self.engine.begin() as connection:
            self.work.account.note_shelved(shelving.place(connection, list(files), digests, self.work.as_of))
            yield connection

    def _listing(self) -> tuple[Mapping[str, File], Report | None]:
        folder = self.work.library.folder
        try:
            found = listing(folder)
        except PermanentError as error:
            with self.engine.connect() as connection:
                known = connection.scalar(sa.text("SELECT EXISTS (SELECT FROM knowledge_entry)"))
            if known or folder.exists():
                return {}, Report(Outcome.REFUSED, reasons=(error.reason,))
            return {}, Report.skipped("no_folder")
        self.work.account.note_passed_over(found.passed_over)
        return found.files, None

    def _guard(
        self, connection: sa.Connection, generation: int | None, gone: Sequence[Task], files: Mapping[str, File]
    ) -> Report | None:
        """A listing that lost much is suspect: a share not mounted, a folder moved."""
        known = connection.scalar(
            sa.text("SELECT count(*) FROM knowledge_entry WHERE generation_id = :generation"),
            {"generation": generation},
        )
        entered = connection.execute(
            sa.text("""
                SELECT document_id FROM knowledge_entry
                WHERE generation_id = :generation AND document_id = ANY(:documents)"""),
            {"generation": generation, "documents": [task.document for task in gone]},
        )
        lost = len(entered.all())
        many = lost >= GUARD_LEAST and lost > GUARD_SHARE * (known or 0)
        if not (many or (lost and not files)):
            return None
        missing = {"lost": lost, "known": known}
        if self.past_guard == GUARD:
            self.work.account.reasons.append(Reason("past_removals", missing, count=lost))
            return None
        return Report.refused(GUARD, {**missing, "guard": GUARD})

    def _retracted(self, connection: sa.Connection) -> set[str]:
        return set(
            connection.scalars(
                sa.text("SELECT path FROM document WHERE retracted_at <= :as_of"), {"as_of": self.work.as_of}
            )
        )

    def _dimension(self) -> int | None:
        """Also proves that the embedder works, before anything is touched."""
        embedder = self.work.library.embedder
        return None if embedder is None else len(embedder.embed(["dimensione"])[0])

    def _let_go(self, generation: int, leaving: Sequence[Task]) -> None:
        if leaving:
            cited = contents.let_go(self.engine, generation, leaving, self.work.as_of)
            self.work.account.note_leaving(leaving, cited)

    def _flaw(
        self, building: Generation, current: Generation | None, files: Mapping[str, File], words: Counter[str]
    ) -> Report | None:
        """Why the new generation must not answer: documents lost, passages missing, probe questions unanswered."""
        work = self.work
        before = current.id if current else None
        with self.engine.begin() as connection:
            contents.add_words(connection, building.id, words)
            contents.moved(connection, building.id)
            written = contents.passages(connection, building.id)
            lost = generations.lost(connection, building.id, before, list(files), work.as_of)
            gone = [Task("gone", path, number) for number, path in lost]
            refusal = self._guard(connection, before, gone, files)
        if refusal is not None:
            return refusal
        if work.store.passages_by_key(building.id) != written:
            return Report.failed("index_incomplete")
        work.store.index(building.id)
        result = probing.probe(self.engine, work.as_of, work.library, building.id, before)
        generations.measured(self.engine, building.id, result.asked, result.recall, result.similarity)
        if result.flaw is None:
            return None
        if current is None:
            work.account.reasons.append(Reason("probes_first", {"why": result.flaw}))
            return None
        if self.past_guard == PROBES:
            work.account.reasons.append(Reason("past_probes", {"why": result.flaw}))
            return None
        return Report(Outcome.REFUSED, reasons=(result.flaw,))

    def _report(self, generation: int, files: int) -> Report:
        with self.engine.connect() as connection:
            return told.report(connection, self.work.account, generation, files)
