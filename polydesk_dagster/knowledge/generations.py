"""The generations of the index: one answers, the one before waits, a new one is built beside them and swapped in."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version

import sqlalchemy as sa

from polydesk_dagster.knowledge.formats import ocr
from polydesk_dagster.knowledge.library import Library

LANGUAGE = "it-9"
"""Raised whenever reading, splitting, screening, folding, stemming or n-grams change: what was indexed before no longer
fits."""


def pipeline(library: Library) -> str:
    """Everything that decides how a document becomes passages and vectors."""
    embedder = library.embedder.name if library.embedder else "testo"
    return ", ".join(filter(None, (f"kreuzberg {version('kreuzberg')}", ocr.engine(), LANGUAGE, embedder)))


@dataclass(frozen=True, slots=True)
class Generation:
    """One index of all documents, made in one way."""

    id: int
    pipeline: str
    dimension: int | None
    unmerged: bool
    building: bool = False
    abandoned: int | None = None
    """One that a killed run left half built, with vectors of the same making; its passages are there until the end of
    this one's building."""
    passages: int = 0
    """That answer."""


def find(connection: sa.Connection, state: str) -> Generation | None:
    row = connection.execute(
        sa.text("""
            SELECT id, pipeline, dimension, unmerged, passages FROM knowledge_generation WHERE state = :state"""),
        {"state": state},
    ).one_or_none()
    return None if row is None else Generation(**row._asdict())


def rolled_back(connection: sa.Connection, library: Library) -> bool:
    """Whether a person went back from a generation made the way that is configured; blue must not undo that."""
    previous = find(connection, "previous")
    return previous is not None and previous.pipeline == pipeline(library)


def begin(engine: sa.Engine, library: Library, dimension: int | None, as_of: datetime) -> Generation:
    """A new, empty generation; one that a killed run left half built goes, but for its vectors."""
    embedder = library.embedder.name if library.embedder else None
    with engine.begin() as connection:
        left = connection.execute(
            sa.text("DELETE FROM knowledge_generation WHERE state = 'building' RETURNING id, embedder, dimension")
        ).one_or_none()
        generation = connection.execute(
            sa.text("""
                INSERT INTO knowledge_generation (state, pipeline, embedder, dimension, started_at)
                VALUES ('building', :pipeline, :embedder, :dimension, :as_of)
                RETURNING id"""),
            {
                "pipeline": pipeline(library),
                "embedder": embedder,
                "dimension": dimension,
                "as_of": as_of,
            },
        ).scalar_one()
    alike = left is not None and embedder is not None and (left.embedder, left.dimension) == (embedder, dimension)
    abandoned = left.id if left is not None and alike else None
    return Generation(generation, pipeline(library), dimension, unmerged=False, building=True, abandoned=abandoned)


def differences(engine: sa.Engine, building: int, current: int | None, *, lost: bool) -> dict[str, int]:
    """Counts of what the new generation changes, instead of what was read for it; of one whose passages are ``lost``
    every document that stays is changed."""
    with engine.connect() as connection:
        row = connection.execute(
            sa.text("""
                SELECT count(*) FILTER (WHERE c.key IS NULL) AS created,
                       count(*) FILTER (WHERE c.key <> b.key OR c.key IS NOT NULL AND :lost) AS updated,
                       (SELECT count(*) FROM knowledge_entry o WHERE o.generation_id = :current AND NOT EXISTS (
                            SELECT FROM knowledge_entry n
                            WHERE n.generation_id = :building AND n.document_id = o.document_id)) AS retired
                FROM knowledge_entry b
                LEFT JOIN knowledge_entry c ON c.document_id = b.document_id AND c.generation_id = :current
                WHERE b.generation_id = :building"""),
            {"building": building, "current": current, "lost": lost},
        ).one()
    return {name: getattr(row, name) for name in ("created", "updated", "retired")}


def lost(
    connection: sa.Connection, building: int, current: int | None, paths: list[str], as_of: datetime
) -> list[tuple[int, str]]:
    """Documents (id, path) whose files are there, that the current generation cites and the new one does not."""
    rows = connection.execute(
        sa.text("""
            SELECT d.id, d.path FROM knowledge_entry e JOIN document d ON d.id = e.document_id
            WHERE e.generation_id = :current AND d.path = ANY(:paths) AND NOT EXISTS (
                SELECT FROM knowledge_entry n
                WHERE n.generation_id = :building AND n.document_id = e.document_id)
              AND (d.retracted_at IS NULL OR d.retracted_at > :as_of)"""),
        {"current": current, "building": building, "as_of": as_of, "paths": paths},
    )
    return [(row.id, row.path) for row in rows]


def answered(connection: sa.Connection, as_of: datetime, limit: int = 30) -> list[tuple[int, float]]:
    """The last generations begun until ``as_of``, oldest first, each with the share of the probe questions that it
    answered; those that were asked none are not among them."""
    rows = connection.execute(
        sa.text("""
            SELECT id, CAST(recall AS float) FROM knowledge_generation
            WHERE recall IS NOT NULL AND started_at <= :as_of ORDER BY id DESC LIMIT :limit"""),
        {"as_of": as_of, "limit": limit},
    )
    return [(row[0], row[1]) for row in rows][::-1]


def measured(engine: sa.Engine, generation: int, asked: int, recall: float | None, similarity: float | None) -> None:
    """What the probe questions came to."""
    with engine.begin() as connection:
        connection.execute(
            sa.text("""
                UPDATE knowledge_generation SET probes = :probes, recall = :recall, similarity = :similarity
                WHERE id = :id"""),
            {"id": generation, "probes": asked, "recall": recall, "similarity": similarity},
        )


def swap(engine: sa.Engine, generation: int, as_of: datetime) -> None:
    """One commit: from here on questions are answered by the new generation; the one before stays for one step
    back."""
    with engine.begin() as connection:
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
            {"id": generation, "as_of": as_of},
        )
    with engine.begin() as connection:  # questions come before the server's own statistics do
        connection.execute(sa.text("ANALYZE document, knowledge_content, knowledge_entry, knowledge_term"))


def step_back(engine: sa.Engine) -> bool:
    """The generation before the current one answers again; False if there is none."""
    with engine.begin() as connection:
        if find(connection, "previous") is None:
            return False
        connection.execute(sa.text("DELETE FROM knowledge_generation WHERE state = 'building'"))
        for before, after in (("current", "building"), ("previous", "current"), ("building", "previous")):
            connection.execute(
                sa.text("""
                    UPDATE knowledge_generation SET state = :after, revision = revision + 1
                    WHERE state = :before"""),
                {"before": before, "after": after},
            )
    return True


def discard(engine: sa.Engine, generation: int, why: str, as_of: datetime) -> None:
    """A generation that must not answer: what is known of its contents goes, its row stays with the reason."""
    with engine.begin() as connection:
        _forget(connection, "building")
        connection.execute(
            sa.text("""
                UPDATE knowledge_generation SET state = 'dropped', note = :why, finished_at = :as_of
                WHERE id = :id"""),
            {"id": generation, "why": why, "as_of": as_of},
        )


def kept(engine: sa.Engine) -> list[int]:
    """Those whose passages LanceDB must go on holding."""
    with engine.connect() as connection:
        return list(connection.scalars(sa.text("SELECT id FROM knowledge_generation WHERE state <> 'dropped'")))


def _forget(connection: sa.Connection, state: str) -> None:
    """All that is known of what a generation holds; its row stays, for the history."""
    for table in ("knowledge_content", "knowledge_term"):
        connection.execute(
            sa.text(f"""
                DELETE FROM {table}
                WHERE generation_id = (SELECT id FROM knowledge_generation WHERE state = :state)"""),
            {"state": state},
        )
