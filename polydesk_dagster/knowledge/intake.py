"""Documents taken into a generation: opened, split, and written a batch at a time."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta

import sqlalchemy as sa

from polydesk_dagster.errors import PermanentError
from polydesk_dagster.knowledge import contents
from polydesk_dagster.knowledge.generations import Generation
from polydesk_dagster.knowledge.library import File, Task, fingerprint, register
from polydesk_dagster.knowledge.reader import TEXT, UnreadableError
from polydesk_dagster.knowledge.reading import LARGEST, Reader, ReaderDiedError, objection
from polydesk_dagster.knowledge.splitting import Passage, split, title_of
from polydesk_dagster.knowledge.store import Row
from polydesk_dagster.knowledge.work import Work

TRIES = 3
FIRST_WAIT = timedelta(minutes=10)
"""Before a second try at a document that killed its reader; four times as long before the third."""

FLUSH_PASSAGES = 2_000
FLUSH_DOCUMENTS = 500
"""What is held in memory at once."""


@dataclass(frozen=True, slots=True)
class Document:
    """A document as it is to be read: its file, and who may be given it."""

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
class Batch:
    """What is written together: passages of new contents, and who cites which content."""

    rows: list[Row] = field(default_factory=list)
    contents: dict[str, tuple[str | None, int]] = field(default_factory=dict)
    entries: list[dict[str, object]] = field(default_factory=list)
    troubles: list[dict[str, object]] = field(default_factory=list)

    @property
    def full(self) -> bool:
        return len(self.rows) >= FLUSH_PASSAGES or len(self.entries) + len(self.troubles) >= FLUSH_DOCUMENTS


def take_in(work: Work, generation: Generation, files: Mapping[str, File], wanted: Sequence[Task]) -> Counter[str]:
    """Read, split and write documents, a batch at a time.

    Returns in how many of the passages written each word stands: the words of a generation that is being built are
    written once, at its end.
    """
    counted: Counter[str] = Counter()
    if not wanted:
        return counted
    kinds = {task.path: task.change for task in wanted}
    with work.engine.begin() as connection:
        register(connection, list(kinds), work.as_of)
        documents = _documents(connection, list(kinds), files)
        ready = contents.ready(connection, generation.id)
    batch = Batch()
    with Reader(work.patience) as reader:
        for number, document in enumerate(documents):
            _read(work, reader, document, kinds[document.path], ready, batch)
            if batch.full:
                counted += flush(work, generation, batch)
                ready |= batch.contents.keys()
                batch = Batch()
                work.progress(number + 1, len(documents), "documenti letti")
    counted += flush(work, generation, batch)
    work.progress(len(documents), len(documents), "documenti letti")
    return counted


def _documents(connection: sa.Connection, paths: list[str], files: Mapping[str, File]) -> list[Document]:
    rows = connection.execute(
        sa.text("""
            SELECT d.id, d.path, document_scope(d) AS scope, d.clinic_id, role_rank(d.audience) AS audience,
                   d.valid_from, d.valid_to, d.cleared_sha256, d.fingerprint,
                   CASE WHEN d.state = 'retrying' THEN d.attempts ELSE 0 END AS attempts
            FROM document d WHERE d.path = ANY(:paths) ORDER BY d.path"""),
        {"paths": paths},
    )
    return [
        Document(
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


def _read(work: Work, reader: Reader, document: Document, change: str, ready: set[str], batch: Batch) -> None:
    """One document into the batch: its passages, or that they are there already, or why there are none."""
    sha256 = None
    try:
        data, seen = _bytes(document.file)
        sha256 = digest(data, document.file.location.suffix.lower())
        key = hashlib.sha256(f"{sha256}\n{work.pipeline}\n{document.scope}".encode()).hexdigest()[:32]
        if key not in ready and key not in batch.contents:
            passages, title = _passages(reader, data, document, sha256)
            batch.contents[key] = (title, len(passages))
            batch.rows += [
                Row(key, number, p, document.clinic, document.audience, document.valid_from, document.valid_to)
                for number, p in enumerate(passages)
            ]
    except FileNotFoundError:
        work.account.note(
            "skipped", document.path, "vanished", "è sparito durante la lettura: se ne riparla al prossimo giro"
        )
    except (UnreadableError, ReaderDiedError) as error:
        _trouble(work, document, batch, error.code, str(error), sha256, lasting=isinstance(error, UnreadableError))
    except OSError as error:
        _trouble(work, document, batch, "unreadable_file", f"non si apre ({error.strerror})", sha256, lasting=False)
    else:
        work.account.note("created" if change == "new" else "updated", document.path, change, "")
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


def _passages(reader: Reader, data: bytes, document: Document, sha256: str) -> tuple[list[Passage], str | None]:
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
    work: Work, document: Document, batch: Batch, code: str, why: str, sha256: str | None, *, lasting: bool
) -> None:
    attempts = document.attempts + 1
    quarantined = lasting or attempts >= TRIES
    work.account.note("failed", document.path, code, why if quarantined else f"{why}; si riprova")
    batch.troubles.append(
        {
            "document": document.id,
            "state": "quarantined" if quarantined else "retrying",
            "code": code,
            "reason": why,
            "fingerprint": document.file.fingerprint,
            "reader": " ".join(filter(None, (work.pipeline, document.cleared))),
            "attempts": attempts,
            "retry_at": None if quarantined else work.as_of + FIRST_WAIT * 4 ** (attempts - 1),
            "size": document.file.size,
            "sha256": sha256,
        }
    )


def flush(work: Work, generation: Generation, batch: Batch) -> Counter[str]:
    """Write a batch: first its passages, where no question sees them, then one commit that makes them count."""
    if batch.contents:
        with work.engine.begin() as connection:
            contents.announce(connection, generation.id, list(batch.contents))
        work.store.add(generation.id, batch.rows, _vectors(work, generation, batch.rows))
    counted = contents.words(row.marked for row in batch.rows)
    with work.engine.begin() as connection:
        if not generation.building:
            contents.add_words(connection, generation.id, counted)
        contents.make_ready(connection, generation.id, batch.contents)
        contents.cite(connection, generation.id, batch.entries, work.pipeline, work.as_of)
        contents.set_aside(connection, batch.troubles, work.as_of)
        contents.retire(connection, generation.id)
        contents.moved(connection, generation.id)
    return counted


def _vectors(work: Work, generation: Generation, rows: Sequence[Row]) -> list[list[float]] | None:
    if work.library.embedder is None:
        return None
    distinct = list(dict.fromkeys(row.context for row in rows))
    vectors = dict(zip(distinct, work.library.embedder.embed(distinct), strict=True))
    lengths = {len(vector) for vector in vectors.values()}
    if lengths != {generation.dimension}:
        raise PermanentError(
            f"Il modello degli embedding dà vettori di {sorted(lengths)} numeri, l'indice ne ha "
            f"{generation.dimension}: usa l'icona gialla. L'indice non è stato toccato."
        )
    return [vectors[row.context] for row in rows]


def _bytes(file: File) -> tuple[bytes, str | None]:
    """A file's bytes and the fingerprint of exactly these, None if it was written to meanwhile."""
    with file.location.open("rb") as source:
        before = os.fstat(source.fileno())
        if before.st_size > LARGEST:
            raise UnreadableError("too_large", f"supera {LARGEST // 1024**2} MB")
        data = source.read(LARGEST + 1)
        after = os.fstat(source.fileno())
    whole = fingerprint(before) == fingerprint(after) and len(data) == after.st_size
    return data, fingerprint(after) if whole else None


def digest(data: bytes, suffix: str) -> str:
    """Of the content: a byte-order mark or another end of line in a text is the same text."""
    if suffix in TEXT:
        data = data.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n")
    return hashlib.sha256(suffix.encode() + b"\0" + data).hexdigest()
