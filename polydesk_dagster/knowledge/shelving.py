"""Whose documents are: by the first folder of their path, as a person has set it, or nobody's yet; found again by their
content when they are moved, renamed or copied, so that who may read them never hangs on a name.

In doubt the stricter scope holds: a document that is known under several scopes is given the narrowest of each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import PurePosixPath
from typing import Any

import sqlalchemy as sa

from polydesk_dagster.knowledge.library import File

FOLDER = "(CASE WHEN document.path LIKE '%/%' THEN lower(trim(split_part(document.path, '/', 1))) END)"
"""The first folder that a document lies in, however people write its name; none of one that lies in none."""


@dataclass(frozen=True, slots=True)
class Shelved:
    """What placing the files came to."""

    moved: tuple[tuple[str, str], ...]
    """Documents that are found under another path: before, now."""
    nobodys: tuple[str, ...]
    """Paths of documents that newly are nobody's."""


def unknown(connection: sa.Connection, files: Mapping[str, File]) -> list[str]:
    """The paths whose file no document was read from yet, new or written over; none while there are no documents."""
    rows = connection.execute(
        sa.text("""
            SELECT f.path
            FROM unnest(CAST(:paths AS text[]), CAST(:fingerprints AS text[])) AS f (path, fingerprint)
            LEFT JOIN document d ON d.path = f.path
            WHERE d.fingerprint IS DISTINCT FROM f.fingerprint AND EXISTS (SELECT FROM document)"""),
        {"paths": list(files), "fingerprints": [file.fingerprint for file in files.values()]},
    )
    return list(rows.scalars())


def place(
    connection: sa.Connection, paths: Sequence[str], digests: Mapping[str, Sequence[str]], as_of: datetime
) -> Shelved:
    """Give every file its document: the one that had this content and whose file is gone, a new one with the scope of
    what it is a copy of, or a new one; then say whose each is.

    ``digests`` holds the content's digest of the ``unknown`` among ``paths``, as far as they could be read, and after
    it those that it had under other endings of its name.
    """
    moved = _recognise(connection, paths, digests, as_of)
    connection.execute(
        sa.text("""
            INSERT INTO document (path, scoped_by, changed_at)
            SELECT p.path, 'folder', :as_of FROM unnest(CAST(:paths AS text[])) AS p (path)
            WHERE NOT EXISTS (SELECT FROM document d WHERE d.path = p.path)"""),
        {"paths": list(paths), "as_of": as_of},
    )
    return Shelved(tuple(moved), _resolve(connection, paths))


def anything_to_place(connection: sa.Connection) -> bool:
    """Whether a document that is nobody's lies in a folder that has come to be somebody's."""
    return bool(
        connection.scalar(
            sa.text(f"""
                SELECT EXISTS (
                    SELECT FROM document JOIN clinic c ON lower(trim(c.code)) = {FOLDER}
                    WHERE document.scoped_by = 'nobody' AND document.state <> 'gone')""")
        )
    )


def _recognise(
    connection: sa.Connection, paths: Sequence[str], digests: Mapping[str, Sequence[str]], as_of: datetime
) -> list[tuple[str, str]]:
    rows = connection.execute(
        sa.text("""
            SELECT id, path, sha256, path <> ALL(CAST(:paths AS text[])) AS missing FROM document
            WHERE sha256 = ANY(:digests) OR path = ANY(:unknown) ORDER BY path"""),
        {
            "digests": list({each for known in digests.values() for each in known}),
            "unknown": list(digests),
            "paths": list(paths),
        },
    ).all()
    there = {row.path: row for row in rows}
    alike: dict[str, list[Any]] = {}
    for row in rows:
        alike.setdefault(row.sha256, []).append(row)
    moved = []
    taken: set[int] = set()
    for path, digest in sorted(digests.items()):
        own = there.get(path)
        twins = [row for each in digest for row in alike.get(each, ())]
        left = [row for row in twins if row.missing and row.id not in taken]
        if not twins or (own is not None and own in twins):
            continue
        same_name = [row for row in left if PurePosixPath(row.path).name == PurePosixPath(path).name]
        if own is not None:  # another document's content came under this one's name
            _narrow(connection, path, [own.id, *(row.id for row in twins)])
            continue
        if left:
            found = (same_name or left)[0]
            taken.add(found.id)
            connection.execute(
                sa.text("UPDATE document SET path = :path, changed_at = :as_of WHERE id = :id"),
                {"path": path, "id": found.id, "as_of": as_of},
            )
            moved.append((found.path, path))
        else:
            connection.execute(
                sa.text("INSERT INTO document (path, scoped_by, changed_at) VALUES (:path, 'folder', :as_of)"),
                {"path": path, "as_of": as_of},
            )
        one = len(same_name) == 1
        _narrow(connection, path, [same_name[0].id] if one else [row.id for row in twins])
    return moved


def _narrow(connection: sa.Connection, path: str, twins: Sequence[int]) -> None:
    """Who may read a document, no wider than it was for any of these."""
    connection.execute(
        sa.text("""
            UPDATE document d
            SET audience = t.audience, retracted_at = t.retracted_at, valid_from = t.valid_from, valid_to = t.valid_to,
                clinic_id = coalesce(d.clinic_id, t.clinic_id),
                scoped_by = CASE WHEN d.scoped_by = 'person' THEN 'person'
                                 WHEN t.clinic_id IS NOT NULL
                                      AND (t.set_by_person AND t.clinics = 1 OR d.path NOT LIKE '%/%')
                                 THEN 'person' ELSE 'folder' END
            FROM (
                SELECT (array_agg(audience ORDER BY role_rank(audience) DESC))[1] AS audience,
                       min(retracted_at) AS retracted_at, max(valid_from) AS valid_from,
                       CASE WHEN min(valid_to) > max(valid_from) OR max(valid_from) IS NULL
                            THEN min(valid_to) ELSE max(valid_from) + 1 END AS valid_to,
                       min(clinic_id) AS clinic_id, count(DISTINCT clinic_id) AS clinics,
                       bool_or(scoped_by = 'person') AS set_by_person
                FROM document WHERE id = ANY(:twins)) t
            WHERE d.path = :path"""),
        {"path": path, "twins": list(twins)},
    )


def _resolve(connection: sa.Connection, paths: Sequence[str]) -> tuple[str, ...]:
    """Whose each document is that no person has set, anew at every run: clinics come, folders are spoken for."""
    rows = connection.execute(
        sa.text(f"""
            WITH lying AS (
                SELECT id, scoped_by, {FOLDER} AS folder FROM document
                WHERE scoped_by <> 'person' AND path = ANY(:paths)),
            placed AS (
                SELECT d.id, coalesce(f.clinic_id, c.id) AS clinic_id, d.scoped_by AS before,
                       CASE WHEN d.folder IS NOT NULL AND f.name IS NULL AND c.id IS NULL THEN 'nobody'
                            ELSE 'folder' END AS scoped_by
                FROM lying d
                LEFT JOIN knowledge_folder f ON f.name = d.folder
                LEFT JOIN clinic c ON f.name IS NULL AND lower(trim(c.code)) = d.folder)
            UPDATE document d SET clinic_id = p.clinic_id, scoped_by = p.scoped_by
            FROM placed p
            WHERE d.id = p.id AND (d.clinic_id, d.scoped_by) IS DISTINCT FROM (p.clinic_id, p.scoped_by)
            RETURNING d.path, d.scoped_by, p.before"""),
        {"paths": list(paths)},
    )
    return tuple(sorted(row.path for row in rows if row.scoped_by == "nobody" and row.before != "nobody"))
