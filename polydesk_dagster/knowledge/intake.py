"""Documents taken into a generation: opened, split, and written a batch at a time."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date, timedelta

import sqlalchemy as sa

from polydesk_dagster.errors import PermanentError
from polydesk_dagster.failure import failure
from polydesk_dagster.knowledge import contents, generations
from polydesk_dagster.knowledge.contents import Content
from polydesk_dagster.knowledge.embedding import Packaged
from polydesk_dagster.knowledge.formats.plain import TEXT
from polydesk_dagster.knowledge.formats.text import UnreadableError
from polydesk_dagster.knowledge.generations import Generation
from polydesk_dagster.knowledge.library import File, Task, fingerprint
from polydesk_dagster.knowledge.reading import LARGEST, Reader, ReaderDiedError
from polydesk_dagster.knowledge.store import Row, text_digest
from polydesk_dagster.knowledge.text import words
from polydesk_dagster.knowledge.work import Work
from polydesk_dagster.values import Reason, Several, to_json

TRIES = 3
FIRST_WAIT = timedelta(minutes=10)
"""Before a second try at a document that killed its reader; four times as long before the third."""

FLUSH_PASSAGES = 2_000
FLUSH_DOCUMENTS = 500
"""What is held in memory at once."""
FLUSH_EMBEDDED = 250
"""Passages where vectors are made of them, a fifth of a processor's second each: a killed run loses less."""


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
    known: tuple[str, str | None]
    """Its state and the digest that the state speaks of, before this run."""


@dataclass(slots=True)
class Batch:
    """What is written together: passages of new contents, and who cites which content."""

    most: int = FLUSH_PASSAGES
    rows: list[Row] = field(default_factory=list)
    contents: dict[str, Content] = field(default_factory=dict)
    entries: list[dict[str, object]] = field(default_factory=list)
    troubles: list[dict[str, object]] = field(default_factory=list)
    as_before: list[dict[str, object]] = field(default_factory=list)
    """Documents that go on citing what they cited in the generation before."""

    @property
    def full(self) -> bool:
        return len(self.rows) >= self.most or len(self.entries) + len(self.troubles) >= FLUSH_DOCUMENTS


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
        documents = _documents(connection, list(kinds), files)
        ready = contents.ready(connection, generation.id)
    most = FLUSH_PASSAGES if work.library.embedder is None else FLUSH_EMBEDDED
    batch = Batch(most)
    with Reader(work.patience, meaning=isinstance(work.library.embedder, Packaged)) as reader:
        for number, document in enumerate(documents):
            _read(work, reader, document, kinds[document.path], ready, batch)
            if batch.full:
                counted += flush(work, generation, batch)
                ready |= batch.contents
                batch = Batch(most)
                work.progress(number + 1, len(documents), "progress.documents_read")
    counted += flush(work, generation, batch)
    work.progress(len(documents), len(documents), "progress.documents_read")
    return counted


def _documents(connection: sa.Connection, paths: list[str], files: Mapping[str, File]) -> list[Document]:
    rows = connection.execute(
        sa.text("""
            SELECT d.id, d.path, document_scope(d) AS scope, d.clinic_id, role_rank(d.audience) AS audience,
                   d.valid_from, d.valid_to, d.cleared_sha256, d.fingerprint, d.state, d.sha256,
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
            (row.state, row.sha256),
        )
        for row in rows
    ]


def _read(
    work: Work, reader: Reader, document: Document, change: str, ready: Mapping[str, Content], batch: Batch
) -> None:
    """One document into the batch: its passages, or that they are there already, or why there are none."""
    sha256 = None
    suffix = document.file.location.suffix.lower()
    try:
        data, seen = _bytes(document.file)
        sha256 = digest(data, suffix)
        cleared = sha256 == document.cleared
        said = "\n".join([sha256, work.pipeline, document.scope, *(["cleared"] if cleared else [])])
        key = hashlib.sha256(said.encode()).hexdigest()[:32]
        content = ready.get(key) or batch.contents.get(key)
        if content is None:
            reading = reader.read(data, suffix, cleared=cleared)
            content = batch.contents[key] = Content(reading.title, len(reading.passages), reading.losses)
            batch.rows += [
                Row(key, number, p, document.clinic, document.audience, document.valid_from, document.valid_to)
                for number, p in enumerate(reading.passages)
            ]
    except FileNotFoundError:
        work.account.note("skipped", document.path, "vanished", Reason("vanished"))
    except UnreadableError as error:
        _trouble(work, document, batch, error, sha256, lasting=True)
    except ReaderDiedError as error:
        _trouble(work, document, batch, error, sha256, lasting=False)
    except OSError as error:
        told = ReaderDiedError("unreadable_file", error=failure(error, "unknown"))
        _trouble(work, document, batch, told, sha256, lasting=False)
    else:
        partial = content.wants_eyes and not cleared
        work.account.note("created" if change == "new" else "updated", document.path, change)
        if partial:
            newly = document.known != ("partial", sha256)
            work.account.note_partial(document.path, content.losses, newly=newly)
        batch.entries.append(
            {
                "document": document.id,
                "key": key,
                "fingerprint": seen,
                "sha256": sha256,
                "scope": document.scope,
                "size": len(data),
                "state": "partial" if partial else "indexed",
                "reader": _reader(work, document),
                "names": " ".join(words(f"{document.file.location.stem}\n{content.title or ''}")),
            }
        )


def _reader(work: Work, document: Document) -> str:
    """What a document's state depends on besides its file: another pipeline, or a person's look, reads it again."""
    return " ".join(filter(None, (work.pipeline, document.cleared)))


def _trouble(
    work: Work,
    document: Document,
    batch: Batch,
    error: UnreadableError | ReaderDiedError,
    sha256: str | None,
    *,
    lasting: bool,
) -> None:
    attempts = document.attempts + 1
    quarantined = lasting or attempts >= TRIES
    why = Reason(error.code, error.values)
    if quarantined:
        work.account.note_quarantined(document.path, why, newly=document.known != ("quarantined", sha256))
    else:
        work.account.note("failed", document.path, "retrying", why)
    batch.troubles.append(
        {
            "document": document.id,
            "state": "quarantined" if quarantined else "retrying",
            "code": error.code,
            "values": to_json(error.values),
            "fingerprint": document.file.fingerprint,
            "reader": _reader(work, document),
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
        contents.cite(connection, generation.id, batch.entries, work.as_of)
        contents.cite_as_before(connection, generation.id, batch.as_before)
        contents.set_aside(connection, batch.troubles, work.as_of)
        contents.retire(connection, generation.id)
        contents.moved(connection, generation.id)
    return counted


def _vectors(work: Work, generation: Generation, rows: Sequence[Row]) -> list[list[float]] | None:
    if work.library.embedder is None:
        return None
    distinct = list(dict.fromkeys(row.context for row in rows))
    vectors = _known_vectors(work, generation, distinct)
    missing = [text for text in distinct if text not in vectors]
    vectors |= zip(missing, work.library.embedder.embed(missing) if missing else (), strict=True)
    lengths = {len(vector) for vector in vectors.values()}
    if lengths != {generation.dimension}:
        raise PermanentError("embeddings_length", given=Several(tuple(sorted(lengths))), wanted=generation.dimension)
    return [vectors[row.context] for row in rows]


def _known_vectors(work: Work, generation: Generation, texts: Sequence[str]) -> dict[str, list[float]]:
    """Vectors of the same texts by the same model, of the generation that answers and of one that a killed run left;
    nothing is embedded twice, and a shelf that takes longer than a run may last is done in several."""
    with work.engine.connect() as connection:
        current = generations.find(connection, "current")
        model = connection.scalar(
            sa.text("SELECT embedder FROM knowledge_generation WHERE id = :id"), {"id": current.id if current else None}
        )
    same = work.library.embedder is not None and model == work.library.embedder.name
    have = [generation.abandoned] if generation.abandoned is not None else []
    if current is not None and same and current.dimension == generation.dimension:
        have.append(current.id)
    by_digest = {text_digest(text): text for text in texts}
    vectors: dict[str, list[float]] = {}
    for source in filter(work.store.there, have):
        with suppress(PermanentError):  # a damaged one has none to give
            vectors |= {by_digest[known]: vector for known, vector in work.store.vectors(source, list(by_digest))}
    return vectors


def _bytes(file: File) -> tuple[bytes, str | None]:
    """A file's bytes and the fingerprint of exactly these, None if it was written to meanwhile."""
    with file.location.open("rb") as source:
        before = os.fstat(source.fileno())
        if before.st_size > LARGEST:
            raise UnreadableError("too_large", megabytes=LARGEST // 1024**2)
        data = source.read(LARGEST + 1)
        after = os.fstat(source.fileno())
    whole = fingerprint(before) == fingerprint(after) and len(data) == after.st_size
    return data, fingerprint(after) if whole else None


def digests(files: Mapping[str, File], paths: Sequence[str]) -> dict[str, list[str]]:
    """By path the digest of these files, of those that can be read, and of a text those it had under other endings."""
    found = {}
    for path in paths:
        try:
            data, _ = _bytes(files[path])
        except (OSError, UnreadableError):
            continue
        suffix = files[path].location.suffix.lower()
        endings = [suffix, *sorted(TEXT - {suffix})] if suffix in TEXT else [suffix]
        found[path] = [digest(data, ending) for ending in endings]
    return found


def digest(data: bytes, suffix: str) -> str:
    """Of the content: a byte-order mark or another end of line in a text is the same text."""
    if suffix in TEXT:
        data = data.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n")
    return hashlib.sha256(suffix.encode() + b"\0" + data).hexdigest()
