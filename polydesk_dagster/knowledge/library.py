"""Which files there are, and what the index has yet to learn of them."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

import sqlalchemy as sa

from polydesk_dagster.errors import PermanentError
from polydesk_dagster.failure import failure
from polydesk_dagster.knowledge.embedding import Embedder
from polydesk_dagster.knowledge.reranking import Reranker
from polydesk_dagster.values import Reason


@dataclass(frozen=True, slots=True)
class Library:
    """Where the documents are, where the index is, who makes vectors (None: full text only), who puts the best passages
    in order (None: their own)."""

    folder: Path
    uri: str
    embedder: Embedder | None = None
    reranker: Reranker | None = None
    alone: Reason | None = None
    """Why nobody makes vectors though nobody chose that."""


@dataclass(frozen=True, slots=True)
class File:
    """A file as it was listed."""

    location: Path
    fingerprint: str
    """Size, times and inode: the same fingerprint is the same content, without reading it."""
    size: int


Change = Literal["new", "changed", "gone", "retracted"]


@dataclass(frozen=True, slots=True)
class Task:
    """A document whose passages in a generation are not what its file and row say."""

    change: Change
    path: str
    document: int | None


def fingerprint(status: os.stat_result) -> str:
    return f"{status.st_size}-{status.st_mtime_ns}-{status.st_ctime_ns}-{status.st_ino}"


@dataclass(frozen=True, slots=True)
class Listing:
    """What is under a folder."""

    files: Mapping[str, File]
    """By path, parted by ``/``, accents composed."""
    passed_over: tuple[tuple[str, str], ...] = ()
    """Paths that are not read though somebody may think so, and why: ``symlink``, ``same_name``."""


def listing(folder: Path) -> Listing:
    """The files under ``folder``; hidden ones and Office's lock files left out.

    Raises:
        PermanentError: if a folder cannot be read. A failed listing is not an empty one.
    """
    files: dict[str, File] = {}
    passed_over: list[tuple[str, str]] = []
    pending = [folder]
    try:
        while pending:
            with os.scandir(pending.pop()) as entries:
                for entry in sorted(entries, key=lambda entry: entry.name):
                    location = Path(entry.path)
                    if entry.name.startswith((".", "~$")):
                        continue
                    if entry.is_symlink():
                        passed_over.append((_name(location, folder), "symlink"))
                    elif entry.is_dir():
                        pending.append(location)
                    elif entry.is_file():
                        name, status = _name(location, folder), entry.stat()
                        if name in files:
                            passed_over.append((name, "same_name"))
                        else:
                            files[name] = File(location, fingerprint(status), status.st_size)
    except FileNotFoundError as error:
        if not folder.is_dir():
            raise PermanentError("folder_missing") from error
        return listing(folder)  # something was moved under our eyes
    except OSError as error:
        raise PermanentError("folder_unreadable", error=failure(error, "unknown")) from error
    return Listing(files, tuple(passed_over))


def _name(location: Path, folder: Path) -> str:
    relative = location.relative_to(folder).as_posix()
    text = relative.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return unicodedata.normalize("NFC", text)


def tasks(
    connection: sa.Connection, files: Mapping[str, File], generation: int | None, pipeline: str, as_of: datetime
) -> list[Task]:
    """What differs between the files and a generation (None: an empty one), by path.

    A document in quarantine, or waiting for its next try, differs only once its file or the pipeline does.
    """
    rows = connection.execute(
        sa.text("""
            WITH seen AS (
                SELECT * FROM unnest(CAST(:paths AS text[]), CAST(:fingerprints AS text[])) AS s (path, fingerprint)),
            known AS (
                SELECT d.*, e.document_id IS NOT NULL AS entered, e.fingerprint AS entered_fingerprint,
                       e.scope IS DISTINCT FROM document_scope(d) AS moved,
                       (d.retracted_at IS NOT NULL AND d.retracted_at <= :as_of) AS retracted,
                       concat_ws(' ', CAST(:pipeline AS text), d.cleared_sha256) AS wanted
                FROM document d
                LEFT JOIN knowledge_entry e ON e.document_id = d.id AND e.generation_id = :generation)
            SELECT CASE WHEN k.retracted THEN 'retracted' WHEN s.path IS NULL THEN 'gone'
                        WHEN k.entered THEN 'changed' ELSE 'new' END AS change,
                   coalesce(s.path, k.path) AS path, k.id
            FROM seen s FULL JOIN known k ON k.path = s.path
            WHERE CASE
                WHEN k.retracted THEN k.entered
                WHEN s.path IS NULL THEN k.entered OR k.state IN ('indexed', 'partial', 'retrying', 'quarantined')
                WHEN k.id IS NULL THEN true
                WHEN k.entered AND NOT k.moved AND k.entered_fingerprint = s.fingerprint
                THEN k.state NOT IN ('indexed', 'partial') OR k.state = 'partial' AND k.reader IS DISTINCT FROM k.wanted
                WHEN k.state = 'quarantined'
                THEN (k.fingerprint, k.reader) IS DISTINCT FROM (s.fingerprint, k.wanted)
                WHEN k.state = 'retrying' THEN k.fingerprint IS DISTINCT FROM s.fingerprint OR k.retry_at <= :as_of
                ELSE true END
            ORDER BY 2"""),
        {
            "paths": list(files),
            "fingerprints": [file.fingerprint for file in files.values()],
            "generation": generation,
            "pipeline": pipeline,
            "as_of": as_of,
        },
    )
    return [Task(change, path, document) for change, path, document in rows]
