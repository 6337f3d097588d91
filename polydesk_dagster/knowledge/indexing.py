"""The index kept up with the documents: blue for what is new, changed or gone; yellow for a new generation.

PostgreSQL says what counts: a content's passages are written to LanceDB first and become answers with one commit, and
stop being answers with one commit before they are deleted there. So a run killed anywhere leaves every question with
whole documents, and leftovers that the next run finds in PostgreSQL and removes.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from importlib.metadata import version

import sqlalchemy as sa

from polydesk_dagster.database.locks import exclusive
from polydesk_dagster.errors import PermanentError
from polydesk_dagster.knowledge import probing
from polydesk_dagster.knowledge.library import File, Library, Task, fingerprint, listing, register, tasks
from polydesk_dagster.knowledge.reader import TEXT, UnreadableError
from polydesk_dagster.knowledge.reading import LARGEST, PATIENCE, Reader, ReaderDiedError, objection
from polydesk_dagster.knowledge.splitting import Passage, split, title_of
from polydesk_dagster.knowledge.store import Row, Store
from polydesk_dagster.knowledge.text import marked_words
from polydesk_dagster.outcome import Counts, Outcome, Reason, Report, Table, done

LANGUAGE = "it-1"
"""Raised whenever splitting, folding, stemming or n-grams change: what was indexed before no longer fits."""

GUARD = "too_many_removals"
GUARD_SHARE = 0.2
GUARD_LEAST = 3

TRIES = 3
FIRST_WAIT = timedelta(minutes=10)
"""Before a second try at a document that killed its reader; four times as long before the third."""

FLUSH_PASSAGES = 2_000
FLUSH_DOCUMENTS = 500
"""What is held in memory at once."""

SHOWN = 50

Progress = Callable[[int, int, str], None]


def pipeline(library: Library) -> str:
    """Everything that decides how a document becomes passages and vectors."""
    embedder = library.embedder.name if library.embedder else "testo"
    return f"kreuzberg {version('kreuzberg')}, {LANGUAGE}, {embedder}"


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
    run = _Run(engine, as_of, library, preview=preview, past_guard=past_guard, progress=progress, patience=patience)
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
    run = _Run(engine, as_of, library, preview=preview, past_guard=past_guard, progress=progress, patience=patience)
    return _alone(engine, run.yellow)


def roll_back(engine: sa.Engine) -> Report:
    """Answer from the generation before the current one again; doing it twice changes nothing."""

    def swap() -> Report:
        with engine.begin() as connection:
            if _generation(connection, "previous") is None:
                return Report.refused("no_previous", "Non c'è una generazione precedente a cui tornare.")
            connection.execute(sa.text("DELETE FROM knowledge_generation WHERE state = 'building'"))
            for before, after in (("current", "building"), ("previous", "current"), ("building", "previous")):
                connection.execute(
                    sa.text("""
                        UPDATE knowledge_generation SET state = :after, revision = revision + 1
                        WHERE state = :before"""),
                    {"before": before, "after": after},
                )
        message = "Si risponde di nuovo con la generazione precedente dell'indice."
        return Report(Outcome.OK, Counts(updated=1), (Reason("rolled_back", message),))

    return _alone(engine, swap)


def anything_due(connection: sa.Connection, library: Library, as_of: datetime) -> bool:
    """Whether a blue run would find something to do; cheap, and never opens the index."""
    current = _generation(connection, "current")
    if current is None:
        return library.folder.is_dir()
    if current.pipeline != pipeline(library):
        return not _rolled_back(connection, library)
    if current.unmerged or _unsettled(connection, current.id):
        return True
    return bool(tasks(connection, listing(library.folder), current.id, current.pipeline, as_of))


def _alone(engine: sa.Engine, work: Callable[[], Report]) -> Report:
    """Blue and yellow are two services over one index: whoever comes second leaves."""
    with exclusive(engine, "knowledge index") as taken:
        if not taken:
            return Report.skipped("already_running", "L'indice è già in lavorazione: questa volta non serve.")
        return work()


@dataclass(frozen=True, slots=True)
class _Generation:
    id: int
    pipeline: str
    dimension: int | None
    unmerged: bool
    building: bool = False


def _generation(connection: sa.Connection, state: str) -> _Generation | None:
    row = connection.execute(
        sa.text("""
            SELECT id, pipeline, dimension, unmerged FROM knowledge_generation WHERE state = :state"""),
        {"state": state},
    ).one_or_none()
    return None if row is None else _Generation(*row)


def _rolled_back(connection: sa.Connection, library: Library) -> bool:
    """Whether a person went back from a generation made the way that is configured; blue must not undo that."""
    previous = _generation(connection, "previous")
    return previous is not None and previous.pipeline == pipeline(library)


def _unsettled(connection: sa.Connection, generation: int) -> dict[str, list[str]]:
    """Keys of contents that are on their way in or out, by state."""
    rows = connection.execute(
        sa.text("""
            SELECT state, array_agg(key) AS keys_ FROM knowledge_content
            WHERE generation_id = :generation AND state <> 'ready' GROUP BY state"""),
        {"generation": generation},
    )
    return {row.state: row.keys_ for row in rows}


@dataclass(frozen=True, slots=True)
class _Document:
    id: int
    path: str
    file: File
    scope: str
    clinic: int | None
    audience: int
    valid_from: date | None
    valid_to: date | None
    cleared: str | None
    attempts: int
    """At this very file."""


@dataclass(slots=True)
class _Batch:
    """What is written together: passages of new contents, and who cites which content."""

    rows: list[Row] = field(default_factory=list)
    contents: dict[str, tuple[str | None, int]] = field(default_factory=dict)
    entries: list[dict[str, object]] = field(default_factory=list)
    troubles: list[dict[str, object]] = field(default_factory=list)

    @property
    def full(self) -> bool:
        return len(self.rows) >= FLUSH_PASSAGES or len(self.entries) + len(self.troubles) >= FLUSH_DOCUMENTS


class _Run:
    """One blue or yellow run."""

    def __init__(
        self,
        engine: sa.Engine,
        as_of: datetime,
        library: Library,
        *,
        preview: bool,
        past_guard: str | None,
        progress: Progress | None,
        patience: float,
    ) -> None:
        self.engine = engine
        self.as_of = as_of
        self.library = library
        self.preview = preview
        self.past_guard = past_guard
        self.progress = progress or (lambda _done, _total, _what: None)
        self.patience = patience
        self.pipeline = pipeline(library)
        self.store = Store(library.uri)
        self.reasons: list[Reason] = []
        self.changes: list[tuple[object, ...]] = []
        self.counts: Counter[str] = Counter()
        self.words: Counter[str] = Counter()
        """Of a generation that is being built: written once, at its end."""

    # What is asked for

    def blue(self) -> Report:
        with self.engine.begin() as connection:
            current = _generation(connection, "current")
            rolled_back = _rolled_back(connection, self.library)
        if current is None:
            return self.yellow()
        if current.pipeline != self.pipeline:
            if rolled_back:
                return Report.refused(
                    "rolled_back",
                    "Si risponde con una generazione precedente, fatta in un altro modo: per aggiornare usa l'icona "
                    "gialla.",
                )
            self.reasons.append(Reason("pipeline_changed", "È cambiato come si leggono i documenti: indice rifatto."))
            return self.yellow()
        files, refusal = self._listing()
        if refusal is not None:
            return refusal
        with self.engine.begin() as connection:
            found = tasks(connection, files, current.id, self.pipeline, self.as_of)
            refusal = self._guard(connection, current.id, [task for task in found if task.change == "gone"], files)
            leftovers = current.unmerged or bool(_unsettled(connection, current.id))
        if refusal is not None:
            return refusal
        if self.preview:
            return self._preview(found, files)
        if found or leftovers:
            self._sweep(current.id)
            self._take_in(current, files, [task for task in found if task.change in {"new", "changed"}])
            self._let_go(current.id, [task for task in found if task.change in {"gone", "retracted"}])
            self._sweep(current.id)
            self._merge(current.id)
        return self._report(current.id, len(files))

    def yellow(self) -> Report:
        files, refusal = self._listing()
        if refusal is not None:
            return refusal
        with self.engine.begin() as connection:
            current = _generation(connection, "current")
            found = tasks(connection, files, None, self.pipeline, self.as_of)
            gone = tasks(connection, files, current.id, self.pipeline, self.as_of) if current else []
            refusal = self._guard(
                connection, current.id if current else None, [task for task in gone if task.change == "gone"], files
            )
            retracted = self._retracted(connection)
        if refusal is not None:
            return refusal
        every = [Task("new", path, None) for path in files if path not in retracted]
        if self.preview:
            return self._preview(every, files)
        dimension = self._dimension()
        building = self._begin(dimension)
        self._take_in(building, files, every)
        if refusal := self._flaw(building, current, files):
            self._discard(building.id, refusal.reasons[0].message)
            return refusal
        self._compare(building.id, current.id if current else None)
        self._swap(building.id)
        self._let_go(building.id, [task for task in found if task.change == "gone"])
        self.store.drop(self._kept())
        return self._report(building.id, len(files))

    # The steps

    def _listing(self) -> tuple[dict[str, File], Report | None]:
        try:
            return listing(self.library.folder), None
        except PermanentError as error:
            with self.engine.connect() as connection:
                known = connection.scalar(sa.text("SELECT EXISTS (SELECT FROM knowledge_entry)"))
            if known or self.library.folder.exists():
                return {}, Report.refused("unreadable_folder", str(error))
            message = "La cartella dei documenti non c'è ancora: creala e mettici le guide."
            return {}, Report.skipped("no_folder", message)

    def _guard(
        self, connection: sa.Connection, generation: int | None, gone: Sequence[Task], files: dict[str, File]
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
        message = f"Mancano {lost} documenti su {known}"
        if self.past_guard == GUARD:
            self.reasons.append(Reason("past_guard", f"{message}: ritirati perché richiesto.", count=lost))
            return None
        return Report.refused(
            GUARD,
            f"{message}: l'indice resta com'è. Controlla la cartella; se è giusto così, ripeti con past_guard={GUARD}.",
        )

    def _retracted(self, connection: sa.Connection) -> set[str]:
        return set(
            connection.scalars(sa.text("SELECT path FROM document WHERE retracted_at <= :as_of"), {"as_of": self.as_of})
        )

    def _dimension(self) -> int | None:
        """Also proves that the embedder works, before anything is touched."""
        return None if self.library.embedder is None else len(self.library.embedder.embed(["dimensione"])[0])

    def _begin(self, dimension: int | None) -> _Generation:
        """A new, empty generation; one that a killed run left half built goes."""
        with self.engine.begin() as connection:
            connection.execute(sa.text("DELETE FROM knowledge_generation WHERE state = 'building'"))
            generation = connection.execute(
                sa.text("""
                    INSERT INTO knowledge_generation (state, pipeline, embedder, dimension, started_at)
                    VALUES ('building', :pipeline, :embedder, :dimension, :as_of)
                    RETURNING id"""),
                {
                    "pipeline": self.pipeline,
                    "embedder": self.library.embedder.name if self.library.embedder else None,
                    "dimension": dimension,
                    "as_of": self.as_of,
                },
            ).scalar_one()
        self.store.create(generation, dimension)
        return _Generation(generation, self.pipeline, dimension, unmerged=False, building=True)

    def _take_in(self, generation: _Generation, files: dict[str, File], wanted: Sequence[Task]) -> None:
        """Read, split and write documents, a batch at a time."""
        if not wanted:
            return
        kinds = {task.path: task.change for task in wanted}
        with self.engine.begin() as connection:
            register(connection, list(kinds), self.as_of)
            documents = self._documents(connection, list(kinds), files)
            ready = set(
                connection.scalars(
                    sa.text("SELECT key FROM knowledge_content WHERE generation_id = :id AND state = 'ready'"),
                    {"id": generation.id},
                )
            )
        batch = _Batch()
        with Reader(self.patience) as reader:
            for number, document in enumerate(documents):
                self._read(reader, document, kinds[document.path], ready, batch)
                if batch.full:
                    self._flush(generation, batch)
                    ready |= batch.contents.keys()
                    batch = _Batch()
                    self.progress(number + 1, len(documents), "documenti letti")
        self._flush(generation, batch)
        self.progress(len(documents), len(documents), "documenti letti")

    def _documents(self, connection: sa.Connection, paths: list[str], files: dict[str, File]) -> list[_Document]:
        rows = connection.execute(
            sa.text("""
                SELECT d.id, d.path, document_scope(d) AS scope, d.clinic_id, role_rank(d.audience) AS audience,
                       d.valid_from, d.valid_to, d.cleared_sha256, d.fingerprint,
                       CASE WHEN d.state = 'retrying' THEN d.attempts ELSE 0 END AS attempts
                FROM document d WHERE d.path = ANY(:paths) ORDER BY d.path"""),
            {"paths": paths},
        )
        return [
            _Document(
                row.id,
                row.path,
                files[row.path],
                row.scope,
                row.clinic_id,
                row.audience,
                row.valid_from,
                row.valid_to,
                row.cleared_sha256,
                row.attempts if row.fingerprint == files[row.path].fingerprint else 0,
            )
            for row in rows
        ]

    def _read(self, reader: Reader, document: _Document, change: str, ready: set[str], batch: _Batch) -> None:
        """One document into the batch: its passages, or that they are there already, or why there are none."""
        sha256 = None
        try:
            data, seen = _bytes(document.file)
            sha256 = _digest(data, document.file.location.suffix.lower())
            key = hashlib.sha256(f"{sha256}\n{self.pipeline}\n{document.scope}".encode()).hexdigest()[:32]
            if key not in ready and key not in batch.contents:
                passages, title = self._passages(reader, data, document, sha256)
                batch.contents[key] = (title, len(passages))
                batch.rows += [
                    Row(key, number, p, document.clinic, document.audience, document.valid_from, document.valid_to)
                    for number, p in enumerate(passages)
                ]
        except FileNotFoundError:
            self._note("skipped", document, "vanished", "è sparito durante la lettura: se ne riparla al prossimo giro")
        except (UnreadableError, ReaderDiedError) as error:
            self._trouble(document, batch, error.code, str(error), sha256, lasting=isinstance(error, UnreadableError))
        except OSError as error:
            self._trouble(document, batch, "unreadable_file", f"non si apre ({error.strerror})", sha256, lasting=False)
        else:
            self._note("created" if change == "new" else "updated", document, change, "")
            batch.entries.append(
                {
                    "document": document.id,
                    "key": key,
                    "fingerprint": seen,
                    "sha256": sha256,
                    "scope": document.scope,
                    "size": len(data),
                }
            )

    def _passages(
        self, reader: Reader, data: bytes, document: _Document, sha256: str
    ) -> tuple[list[Passage], str | None]:
        reading = reader.read(data, document.file.location.suffix.lower())
        if sha256 != document.cleared:
            objected = objection("\n".join(page.markdown for page in reading.pages))
            if objected is not None:
                raise objected
        passages = split(reading.pages)
        if not passages:
            raise UnreadableError("no_text", "il file non contiene testo")
        return passages, reading.title or title_of(reading.pages)

    def _trouble(
        self, document: _Document, batch: _Batch, code: str, why: str, sha256: str | None, *, lasting: bool
    ) -> None:
        attempts = document.attempts + 1
        quarantined = lasting or attempts >= TRIES
        self._note("failed", document, code, why if quarantined else f"{why}; si riprova")
        batch.troubles.append(
            {
                "document": document.id,
                "state": "quarantined" if quarantined else "retrying",
                "code": code,
                "reason": why,
                "fingerprint": document.file.fingerprint,
                "reader": " ".join(filter(None, (self.pipeline, document.cleared))),
                "attempts": attempts,
                "retry_at": None if quarantined else self.as_of + FIRST_WAIT * 4 ** (attempts - 1),
                "size": document.file.size,
                "sha256": sha256,
            }
        )

    def _note(self, count: str, document: _Document, code: str, why: str) -> None:
        self.counts[count] += 1
        if code not in {"new", "changed"}:
            self.reasons.append(Reason(code, f"«{document.path}» {why}."))
        if len(self.changes) < SHOWN:
            self.changes.append((document.path, _WORDS.get(code, "in quarantena"), why))

    def _flush(self, generation: _Generation, batch: _Batch) -> None:
        """Write a batch: first its passages, where no question sees them, then one commit that makes them count."""
        if batch.contents:
            with self.engine.begin() as connection:
                connection.execute(
                    sa.text("""
                        INSERT INTO knowledge_content (generation_id, key)
                        SELECT :generation, unnest(CAST(:keys AS text[]))"""),
                    {"generation": generation.id, "keys": list(batch.contents)},
                )
                connection.execute(
                    sa.text("UPDATE knowledge_generation SET unmerged = true WHERE id = :id"), {"id": generation.id}
                )
            self.store.add(generation.id, batch.rows, self._vectors(generation, batch.rows))
        with self.engine.begin() as connection:
            if generation.building:
                self.words.update(_words(row.marked for row in batch.rows))
            else:
                _add_words(connection, generation.id, _words(row.marked for row in batch.rows))
            connection.execute(
                sa.text("""
                    UPDATE knowledge_content c SET state = 'ready', title = n.title, passages = n.passages
                    FROM unnest(CAST(:keys AS text[]), CAST(:titles AS text[]), CAST(:passages AS integer[]))
                         AS n (key, title, passages)
                    WHERE c.generation_id = :generation AND c.key = n.key"""),
                {
                    "generation": generation.id,
                    "keys": list(batch.contents),
                    "titles": [title for title, _ in batch.contents.values()],
                    "passages": [count for _, count in batch.contents.values()],
                },
            )
            self._cite(connection, generation.id, batch.entries)
            self._set_aside(connection, batch.troubles)
            _retire(connection, generation.id)
            _moved(connection, generation.id)

    def _vectors(self, generation: _Generation, rows: Sequence[Row]) -> list[list[float]] | None:
        if self.library.embedder is None:
            return None
        distinct = list(dict.fromkeys(row.context for row in rows))
        vectors = dict(zip(distinct, self.library.embedder.embed(distinct), strict=True))
        lengths = {len(vector) for vector in vectors.values()}
        if lengths != {generation.dimension}:
            raise PermanentError(
                f"Il modello degli embedding dà vettori di {sorted(lengths)} numeri, l'indice ne ha "
                f"{generation.dimension}: usa l'icona gialla. L'indice non è stato toccato."
            )
        return [vectors[row.context] for row in rows]

    def _cite(self, connection: sa.Connection, generation: int, entries: list[dict[str, object]]) -> None:
        if not entries:
            return
        connection.execute(  # what this very run let go a moment ago may be cited again
            sa.text("""
                UPDATE knowledge_content SET state = 'ready'
                WHERE generation_id = :generation AND state = 'retired' AND key = ANY(:keys)"""),
            {"generation": generation, "keys": [entry["key"] for entry in entries]},
        )
        connection.execute(
            sa.text("""
                WITH read AS (
                    SELECT * FROM jsonb_to_recordset(CAST(:entries AS jsonb))
                        AS e (document bigint, key text, fingerprint text, sha256 text, scope text, size bigint)),
                entered AS (
                    INSERT INTO knowledge_entry (generation_id, document_id, key, fingerprint, sha256, scope)
                    SELECT :generation, document, key, fingerprint, sha256, scope FROM read
                    ON CONFLICT (generation_id, document_id) DO UPDATE
                    SET key = excluded.key, fingerprint = excluded.fingerprint, sha256 = excluded.sha256,
                        scope = excluded.scope)
                UPDATE document d
                SET state = 'indexed', fingerprint = read.fingerprint, reader = :pipeline, size_bytes = read.size,
                    sha256 = read.sha256, attempts = 0, reason_code = NULL, reason = NULL, retry_at = NULL,
                    changed_at = :as_of
                FROM read WHERE d.id = read.document"""),
            {"entries": _json(entries), "generation": generation, "pipeline": self.pipeline, "as_of": self.as_of},
        )

    def _set_aside(self, connection: sa.Connection, troubles: list[dict[str, object]]) -> None:
        """What could not be read is shown, and no more; what was indexed of it before goes on answering."""
        if not troubles:
            return
        connection.execute(
            sa.text("""
                UPDATE document d
                SET state = t.state, reason_code = t.code, reason = t.reason, fingerprint = t.fingerprint,
                    reader = t.reader, attempts = t.attempts, retry_at = t.retry_at, size_bytes = t.size,
                    sha256 = t.sha256, changed_at = :as_of
                FROM jsonb_to_recordset(CAST(:troubles AS jsonb))
                    AS t (document bigint, state text, code text, reason text, fingerprint text, reader text,
                          attempts integer, retry_at timestamptz, size bigint, sha256 text)
                WHERE d.id = t.document"""),
            {"troubles": _json(troubles), "as_of": self.as_of},
        )

    def _let_go(self, generation: int, leaving: Sequence[Task]) -> None:
        """Documents that are gone or retracted no longer cite anything."""
        if not leaving:
            return
        with self.engine.begin() as connection:
            removed = connection.execute(
                sa.text("""
                    DELETE FROM knowledge_entry
                    WHERE generation_id = :generation AND document_id = ANY(:documents) RETURNING document_id"""),
                {"generation": generation, "documents": [task.document for task in leaving]},
            )
            self.counts["retired"] += len(removed.all())
            connection.execute(
                sa.text("""
                    UPDATE document SET state = 'gone', reason_code = NULL, reason = NULL, retry_at = NULL,
                                        changed_at = :as_of
                    WHERE id = ANY(:documents) AND state <> 'gone'"""),
                {"documents": [task.document for task in leaving if task.change == "gone"], "as_of": self.as_of},
            )
            _retire(connection, generation)
            _moved(connection, generation)
        for task in leaving[: max(0, SHOWN - len(self.changes))]:
            self.changes.append((task.path, _WORDS[task.change], ""))

    def _sweep(self, generation: int) -> None:
        """Delete the passages that no longer count, and those that a killed run wrote in vain."""
        with self.engine.begin() as connection:
            unsettled = _unsettled(connection, generation)
        if not unsettled:
            return
        if retired := unsettled.get("retired"):
            counted = _words(self.store.marked(generation, retired))
            with self.engine.begin() as connection:
                _take_words(connection, generation, counted)
                connection.execute(
                    sa.text("""
                        UPDATE knowledge_content SET state = 'dropping'
                        WHERE generation_id = :generation AND key = ANY(:keys)"""),
                    {"generation": generation, "keys": retired},
                )
                connection.execute(
                    sa.text("UPDATE knowledge_generation SET unmerged = true WHERE id = :id"), {"id": generation}
                )
        keys = [key for state in unsettled.values() for key in state]
        self.store.delete(generation, keys)
        with self.engine.begin() as connection:
            connection.execute(
                sa.text("DELETE FROM knowledge_content WHERE generation_id = :generation AND key = ANY(:keys)"),
                {"generation": generation, "keys": keys},
            )
            _moved(connection, generation)

    def _merge(self, generation: int) -> None:
        with self.engine.begin() as connection:
            pending = connection.scalar(
                sa.text("SELECT unmerged FROM knowledge_generation WHERE id = :id"), {"id": generation}
            )
        if not pending:
            return
        self.store.merge(generation)
        with self.engine.begin() as connection:
            connection.execute(
                sa.text("UPDATE knowledge_generation SET unmerged = false WHERE id = :id"), {"id": generation}
            )
            _moved(connection, generation)

    def _flaw(self, building: _Generation, current: _Generation | None, files: dict[str, File]) -> Report | None:
        """Why the new generation must not answer: documents lost, passages missing, probe questions unanswered."""
        with self.engine.begin() as connection:
            _add_words(connection, building.id, self.words)
            _moved(connection, building.id)
            contents = connection.execute(
                sa.text("SELECT key, passages FROM knowledge_content WHERE generation_id = :id"), {"id": building.id}
            )
            written = {row.key: row.passages for row in contents}
            lost = connection.execute(
                sa.text("""
                    SELECT d.id, d.path FROM knowledge_entry e JOIN document d ON d.id = e.document_id
                    WHERE e.generation_id = :current AND d.path = ANY(:paths) AND NOT EXISTS (
                        SELECT FROM knowledge_entry n
                        WHERE n.generation_id = :building AND n.document_id = e.document_id)
                      AND (d.retracted_at IS NULL OR d.retracted_at > :as_of)"""),
                {
                    "current": current.id if current else None,
                    "building": building.id,
                    "as_of": self.as_of,
                    "paths": list(files),
                },
            ).all()
            refusal = self._guard(
                connection,
                current.id if current else None,
                [Task("gone", path, number) for number, path in lost],
                files,
            )
        if refusal is not None:
            return refusal
        if self.store.passages_by_key(building.id) != written:
            return Report.failed("incomplete", "La nuova generazione non ha tutti i passaggi: resta quella di prima.")
        self.store.index(building.id)
        result = probing.probe(self.engine, self.as_of, self.library, building.id, current.id if current else None)
        with self.engine.begin() as connection:
            connection.execute(
                sa.text("""
                    UPDATE knowledge_generation SET probes = :probes, recall = :recall, similarity = :similarity
                    WHERE id = :id"""),
                {
                    "id": building.id,
                    "probes": result.asked,
                    "recall": result.recall,
                    "similarity": result.similarity,
                },
            )
        return None if result.flaw is None else Report.refused("probes", result.flaw)

    def _compare(self, building: int, current: int | None) -> None:
        """Counts of what the new generation changes, instead of what was read for it."""
        with self.engine.connect() as connection:
            row = connection.execute(
                sa.text("""
                    SELECT count(*) FILTER (WHERE c.key IS NULL) AS created,
                           count(*) FILTER (WHERE c.key <> b.key) AS updated,
                           (SELECT count(*) FROM knowledge_entry o WHERE o.generation_id = :current AND NOT EXISTS (
                                SELECT FROM knowledge_entry n
                                WHERE n.generation_id = :building AND n.document_id = o.document_id)) AS retired
                    FROM knowledge_entry b
                    LEFT JOIN knowledge_entry c ON c.document_id = b.document_id AND c.generation_id = :current
                    WHERE b.generation_id = :building"""),
                {"building": building, "current": current},
            ).one()
        for name in ("created", "updated", "retired"):
            self.counts[name] = getattr(row, name)

    def _swap(self, generation: int) -> None:
        """One commit: from here on questions are answered by the new generation; the one before stays for one step
        back."""
        with self.engine.begin() as connection:
            _forget(connection, "previous")
            for before, after in (("previous", "dropped"), ("current", "previous"), ("building", "current")):
                connection.execute(
                    sa.text("UPDATE knowledge_generation SET state = :after WHERE state = :before"),
                    {"before": before, "after": after},
                )
            connection.execute(
                sa.text("""
                    UPDATE knowledge_generation
                    SET finished_at = :as_of, unmerged = false, revision = revision + 1 WHERE id = :id"""),
                {"id": generation, "as_of": self.as_of},
            )
        with self.engine.begin() as connection:  # questions come before the server's own statistics do
            connection.execute(sa.text("ANALYZE document, knowledge_content, knowledge_entry, knowledge_term"))

    def _discard(self, generation: int, why: str) -> None:
        with self.engine.begin() as connection:
            _forget(connection, "building")
            connection.execute(
                sa.text("""
                    UPDATE knowledge_generation SET state = 'dropped', note = :why, finished_at = :as_of
                    WHERE id = :id"""),
                {"id": generation, "why": why, "as_of": self.as_of},
            )
        self.store.drop(self._kept())

    def _kept(self) -> list[int]:
        with self.engine.connect() as connection:
            return list(connection.scalars(sa.text("SELECT id FROM knowledge_generation WHERE state <> 'dropped'")))

    # What is told

    def _preview(self, found: Iterable[Task], files: dict[str, File]) -> Report:
        by = Counter(task.change for task in found)
        counts = Counts(
            created=by["new"],
            updated=by["changed"],
            retired=by["gone"] + by["retracted"],
            unchanged=len(files) - by["new"] - by["changed"],
        )
        rows = tuple((task.path, _WORDS[task.change], "") for task in found)
        return Report(done(counts), counts, tuple(self.reasons), tables=(Table(*_CHANGES, rows[:SHOWN], len(rows)),))

    def _report(self, generation: int, files: int) -> Report:
        touched = sum(self.counts[name] for name in ("created", "updated", "failed", "skipped"))
        counts = Counts(**self.counts, unchanged=files - touched)
        with self.engine.connect() as connection:
            figures = overview(connection, generation)
            quarantine = quarantined(connection)
        tables = [quarantine] if quarantine.total else []
        if self.changes:
            total = counts.changed + counts.failed + counts.skipped
            tables.insert(0, Table(*_CHANGES, tuple(self.changes), total))
        return Report(done(counts), counts, tuple(self.reasons[:SHOWN]), figures, tuple(tables))


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


def _retire(connection: sa.Connection, generation: int) -> None:
    """Contents that no document cites any more stop being answers."""
    connection.execute(
        sa.text("""
            UPDATE knowledge_content c SET state = 'retired'
            WHERE c.generation_id = :generation AND c.state = 'ready' AND NOT EXISTS (
                SELECT FROM knowledge_entry e WHERE e.generation_id = c.generation_id AND e.key = c.key)"""),
        {"generation": generation},
    )


def _forget(connection: sa.Connection, state: str) -> None:
    """All that is known of what a generation holds; its row stays, for the history."""
    for table in ("knowledge_content", "knowledge_term"):
        connection.execute(
            sa.text(f"""
                DELETE FROM {table}
                WHERE generation_id = (SELECT id FROM knowledge_generation WHERE state = :state)"""),
            {"state": state},
        )


def _moved(connection: sa.Connection, generation: int) -> None:
    connection.execute(
        sa.text("""
            UPDATE knowledge_generation g
            SET revision = revision + 1,
                documents = (SELECT count(*) FROM knowledge_entry WHERE generation_id = g.id),
                passages = (SELECT coalesce(sum(passages), 0) FROM knowledge_content
                            WHERE generation_id = g.id AND state = 'ready')
            WHERE id = :id"""),
        {"id": generation},
    )


def _words(texts: Iterable[str]) -> Counter[str]:
    """In how many of these marked texts each word stands."""
    counted: Counter[str] = Counter()
    for text in texts:
        counted.update(set(marked_words(text)))
    return counted


def _add_words(connection: sa.Connection, generation: int, counted: Counter[str]) -> None:
    if not counted:
        return
    connection.execute(
        sa.text("""
            INSERT INTO knowledge_term AS t (generation_id, term, passages)
            SELECT :generation, term, passages
            FROM unnest(CAST(:terms AS text[]), CAST(:passages AS integer[])) AS n (term, passages)
            ON CONFLICT (generation_id, term) DO UPDATE SET passages = t.passages + excluded.passages"""),
        {"generation": generation, "terms": list(counted), "passages": list(counted.values())},
    )


def _take_words(connection: sa.Connection, generation: int, counted: Counter[str]) -> None:
    connection.execute(
        sa.text("""
            UPDATE knowledge_term t SET passages = t.passages - n.passages
            FROM unnest(CAST(:terms AS text[]), CAST(:passages AS integer[])) AS n (term, passages)
            WHERE t.generation_id = :generation AND t.term = n.term"""),
        {"generation": generation, "terms": list(counted), "passages": list(counted.values())},
    )
    connection.execute(
        sa.text("DELETE FROM knowledge_term WHERE generation_id = :generation AND passages <= 0"),
        {"generation": generation},
    )


def _bytes(file: File) -> tuple[bytes, str | None]:
    """A file's bytes and the fingerprint of exactly these, None if it was written to meanwhile."""
    import os

    with file.location.open("rb") as source:
        before = os.fstat(source.fileno())
        if before.st_size > LARGEST:
            raise UnreadableError("too_large", f"supera {LARGEST // 1024**2} MB")
        data = source.read(LARGEST + 1)
        after = os.fstat(source.fileno())
    whole = fingerprint(before) == fingerprint(after) and len(data) == after.st_size
    return data, fingerprint(after) if whole else None


def _digest(data: bytes, suffix: str) -> str:
    """Of the content: a byte-order mark or another end of line in a text is the same text."""
    if suffix in TEXT:
        data = data.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n")
    return hashlib.sha256(suffix.encode() + b"\0" + data).hexdigest()


def _json(rows: list[dict[str, object]]) -> str:
    import json

    return json.dumps(rows, default=lambda value: value.isoformat())
