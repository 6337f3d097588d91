"""Which files there are, and what the index has yet to learn of them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

import sqlalchemy as sa

from polydesk_dagster.errors import PermanentError
from polydesk_dagster.knowledge.embedding import Embedder


@dataclass(frozen=True, slots=True)
class Library:
    """Where the documents are, where the index is, who makes vectors (None: full text only)."""

    folder: Path
    uri: str
    embedder: Embedder | None = None


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


def listing(folder: Path) -> dict[str, File]:
    """The files under ``folder`` by their path, parted by ``/``; hidden ones, Office's lock files and links left out.

    Raises:
        PermanentError: if a folder cannot be read. A failed listing is not an empty one.
    """
    files: dict[str, File] = {}
    pending = [folder]
    try:
        while pending:
            with os.scandir(pending.pop()) as entries:
                for entry in entries:
                    if entry.name.startswith((".", "~$")) or entry.is_symlink():
                        continue
                    if entry.is_dir():
                        pending.append(Path(entry.path))
                    elif entry.is_file():
                        location = Path(entry.path)
                        status = entry.stat()
                        files[_name(location, folder)] = File(location, fingerprint(status), status.st_size)
    except FileNotFoundError as error:
        if not folder.is_dir():
            raise PermanentError("folder_missing") from error
        return listing(folder)  # something was moved under our eyes
    except OSError as error:
        raise PermanentError("folder_unreadable", error=error.strerror or type(error).__name__) from error
    return files


def _name(location: Path, folder: Path) -> str:
    relative = location.relative_to(folder).as_posix()
    return relative.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


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


def register(connection: sa.Connection, paths: list[str], as_of: datetime) -> dict[str, int]:
    """Rows for files that have none; the first folder of a path, if it is a clinic's code, says whose it is.

    Returns the ids by path.
    """
    rows = connection.execute(
        sa.text("""
            INSERT INTO document (path, clinic_id, changed_at)
            SELECT p.path, c.id, :as_of
            FROM unnest(CAST(:paths AS text[])) AS p (path)
            LEFT JOIN clinic c ON p.path LIKE '%/%' AND c.code = split_part(p.path, '/', 1)
            ON CONFLICT (path) DO UPDATE SET path = excluded.path
            RETURNING path, id"""),
        {"paths": paths, "as_of": as_of},
    )
    return {row.path: row.id for row in rows}
