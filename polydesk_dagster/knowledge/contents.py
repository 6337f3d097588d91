"""What PostgreSQL knows of a generation's contents: which of them count, who cites them, in how many passages each word
stands.

A content's passages are written to LanceDB first and become answers with one commit here, and stop being answers with
one commit before they are deleted there. So a run killed anywhere leaves every question with whole documents, and
leftovers that the next run finds here and removes.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from polydesk_dagster.knowledge.formats.text import Loss
from polydesk_dagster.knowledge.library import Task
from polydesk_dagster.knowledge.store import Store
from polydesk_dagster.knowledge.text import marked_words

ATTENTION = frozenset(
    {
        "pages_without_text",
        "words_lost",
        "formulas_without_value",
        "form_unread",
        "held_personal_data",
        "held_instructions",
        "ocr_doubtful",
    }
)
"""Losses for which a document counts as read in part until a person has looked at it; the others are only told."""


def unsettled(connection: sa.Connection, generation: int) -> dict[str, list[str]]:
    """Keys of contents that are on their way in or out, by state."""
    rows = connection.execute(
        sa.text("""
            SELECT state, array_agg(key) AS keys_ FROM knowledge_content
            WHERE generation_id = :generation AND state <> 'ready' GROUP BY state"""),
        {"generation": generation},
    )
    return {row.state: row.keys_ for row in rows}


@dataclass(frozen=True, slots=True)
class Content:
    """One reading of some bytes under one visibility."""

    title: str | None
    passages: int
    losses: tuple[Loss, ...]

    @property
    def wants_eyes(self) -> bool:
        """Whether something of it is missing that a person should know of."""
        return any(loss.code in ATTENTION for loss in self.losses)


def ready(connection: sa.Connection, generation: int) -> dict[str, Content]:
    """Contents that are answers, by key."""
    rows = connection.execute(
        sa.text("""
            SELECT key, title, passages, losses FROM knowledge_content
            WHERE generation_id = :id AND state = 'ready'"""),
        {"id": generation},
    )
    return {row.key: Content(row.title, row.passages, losses_of(row.losses)) for row in rows}


def losses_of(stored: Sequence[Sequence[Any]]) -> tuple[Loss, ...]:
    """Losses out of the database's JSON."""
    return tuple(Loss(code, count, tuple(pages), *sure) for code, count, pages, *sure in stored)


def passages(connection: sa.Connection, generation: int) -> dict[str, int]:
    """How many passages each content has."""
    rows = connection.execute(
        sa.text("SELECT key, passages FROM knowledge_content WHERE generation_id = :id"), {"id": generation}
    )
    return {row.key: row.passages for row in rows}


def announce(connection: sa.Connection, generation: int, keys: Sequence[str]) -> None:
    """Say which contents are about to be written, so that what a killed run leaves is found again."""
    connection.execute(
        sa.text("""
            INSERT INTO knowledge_content (generation_id, key)
            SELECT :generation, unnest(CAST(:keys AS text[]))"""),
        {"generation": generation, "keys": list(keys)},
    )
    connection.execute(sa.text("UPDATE knowledge_generation SET unmerged = true WHERE id = :id"), {"id": generation})


def make_ready(connection: sa.Connection, generation: int, written: Mapping[str, Content]) -> None:
    """Contents whose passages are all written become answers."""
    rows: list[dict[str, object]] = [
        {"key": key, "title": content.title, "passages": content.passages, "losses": _plain(content.losses)}
        for key, content in written.items()
    ]
    connection.execute(
        sa.text("""
            UPDATE knowledge_content c
            SET state = 'ready', title = n.title, passages = n.passages, losses = n.losses
            FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS n (key text, title text, passages integer, losses jsonb)
            WHERE c.generation_id = :generation AND c.key = n.key"""),
        {"generation": generation, "rows": _json(rows)},
    )


def _plain(losses: Sequence[Loss]) -> list[list[object]]:
    told: list[list[object]] = [[loss.code, loss.count, list(loss.pages)] for loss in losses]
    return [[*each, *([] if loss.sure is None else [loss.sure])] for each, loss in zip(told, losses, strict=True)]


def cite(connection: sa.Connection, generation: int, entries: list[dict[str, object]], as_of: datetime) -> None:
    """Documents that were read cite their contents; ``state`` says whether whole or in part."""
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
                    AS e (document bigint, key text, fingerprint text, sha256 text, scope text, size bigint, state text,
                          reader text, names text)),
            entered AS (
                INSERT INTO knowledge_entry (generation_id, document_id, key, fingerprint, sha256, scope)
                SELECT :generation, document, key, fingerprint, sha256, scope FROM read
                ON CONFLICT (generation_id, document_id) DO UPDATE
                SET key = excluded.key, fingerprint = excluded.fingerprint, sha256 = excluded.sha256,
                    scope = excluded.scope)
            UPDATE document d
            SET state = read.state, fingerprint = read.fingerprint, reader = read.reader, size_bytes = read.size,
                sha256 = read.sha256, attempts = 0, reason_code = NULL, reason = NULL, reason_values = '{}',
                retry_at = NULL, stale_since = NULL, losses = c.losses, names = to_tsvector('italian', read.names),
                changed_at = :as_of
            FROM read JOIN knowledge_content c ON c.generation_id = :generation AND c.key = read.key
            WHERE d.id = read.document"""),
        {"entries": _json(entries), "generation": generation, "as_of": as_of},
    )


def cite_as_before(connection: sa.Connection, generation: int, entries: list[dict[str, object]]) -> None:
    """Documents whose file could not be read cite in this generation what they cited in the one before; what is told of
    them stays."""
    connection.execute(
        sa.text("""
            INSERT INTO knowledge_entry (generation_id, document_id, key, fingerprint, sha256, scope)
            SELECT :generation, document, key, fingerprint, sha256, scope
            FROM jsonb_to_recordset(CAST(:entries AS jsonb))
                AS e (document bigint, key text, fingerprint text, sha256 text, scope text)"""),
        {"generation": generation, "entries": _json(entries)},
    )


def set_aside(connection: sa.Connection, troubles: list[dict[str, object]], as_of: datetime) -> None:
    """What could not be read is shown, and no more; what was indexed of it before goes on answering, and is told to be
    of an earlier version."""
    if not troubles:
        return
    connection.execute(
        sa.text("""
            UPDATE document d
            SET state = t.state, reason_code = t.code, reason = NULL, reason_values = t.values,
                fingerprint = t.fingerprint, reader = t.reader, attempts = t.attempts, retry_at = t.retry_at,
                size_bytes = t.size, sha256 = t.sha256, losses = '[]', changed_at = :as_of,
                stale_since = CASE WHEN EXISTS (SELECT FROM knowledge_entry e WHERE e.document_id = d.id
                                                AND e.sha256 IS DISTINCT FROM t.sha256)
                                   THEN coalesce(d.stale_since, :as_of) END
            FROM jsonb_to_recordset(CAST(:troubles AS jsonb))
                AS t (document bigint, state text, code text, values jsonb, fingerprint text, reader text,
                      attempts integer, retry_at timestamptz, size bigint, sha256 text)
            WHERE d.id = t.document"""),
        {"troubles": _json(troubles), "as_of": as_of},
    )


def let_go(engine: sa.Engine, generation: int, leaving: Sequence[Task], as_of: datetime) -> int:
    """Documents that are gone or retracted no longer cite anything; how many did."""
    with engine.begin() as connection:
        removed = connection.execute(
            sa.text("""
                DELETE FROM knowledge_entry
                WHERE generation_id = :generation AND document_id = ANY(:documents) RETURNING document_id"""),
            {"generation": generation, "documents": [task.document for task in leaving]},
        ).all()
        connection.execute(
            sa.text("""
                UPDATE document SET state = 'gone', reason_code = NULL, reason = NULL, retry_at = NULL,
                                    stale_since = NULL, changed_at = :as_of
                WHERE id = ANY(:documents) AND state <> 'gone'"""),
            {"documents": [task.document for task in leaving if task.change == "gone"], "as_of": as_of},
        )
        retire(connection, generation)
        moved(connection, generation)
    return len(removed)


def sweep(engine: sa.Engine, store: Store, generation: int) -> None:
    """Delete the passages that no longer count, and those that a killed run wrote in vain."""
    with engine.begin() as connection:
        left = unsettled(connection, generation)
    if not left:
        return
    if retired := left.get("retired"):
        counted = words(store.marked(generation, retired))
        with engine.begin() as connection:
            take_words(connection, generation, counted)
            connection.execute(
                sa.text("""
                    UPDATE knowledge_content SET state = 'dropping'
                    WHERE generation_id = :generation AND key = ANY(:keys)"""),
                {"generation": generation, "keys": retired},
            )
            connection.execute(
                sa.text("UPDATE knowledge_generation SET unmerged = true WHERE id = :id"), {"id": generation}
            )
    keys = [key for state in left.values() for key in state]
    store.delete(generation, keys)
    with engine.begin() as connection:
        connection.execute(
            sa.text("DELETE FROM knowledge_content WHERE generation_id = :generation AND key = ANY(:keys)"),
            {"generation": generation, "keys": keys},
        )
        moved(connection, generation)


def merge(engine: sa.Engine, store: Store, generation: int) -> None:
    """Bring LanceDB's indexes up to what was written and deleted."""
    with engine.begin() as connection:
        pending = connection.scalar(
            sa.text("SELECT unmerged FROM knowledge_generation WHERE id = :id"), {"id": generation}
        )
    if not pending:
        return
    store.merge(generation)
    with engine.begin() as connection:
        connection.execute(
            sa.text("UPDATE knowledge_generation SET unmerged = false WHERE id = :id"), {"id": generation}
        )
        moved(connection, generation)


def retire(connection: sa.Connection, generation: int) -> None:
    """Contents that no document cites any more stop being answers."""
    connection.execute(
        sa.text("""
            UPDATE knowledge_content c SET state = 'retired'
            WHERE c.generation_id = :generation AND c.state = 'ready' AND NOT EXISTS (
                SELECT FROM knowledge_entry e WHERE e.generation_id = c.generation_id AND e.key = c.key)"""),
        {"generation": generation},
    )


def moved(connection: sa.Connection, generation: int) -> None:
    """Readers of a generation must look again, and its totals are those of now."""
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


def words(texts: Iterable[str]) -> Counter[str]:
    """In how many of these marked texts each word stands."""
    counted: Counter[str] = Counter()
    for text in texts:
        counted.update(set(marked_words(text)))
    return counted


def add_words(connection: sa.Connection, generation: int, counted: Counter[str]) -> None:
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


def take_words(connection: sa.Connection, generation: int, counted: Counter[str]) -> None:
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


def _json(rows: list[dict[str, object]]) -> str:
    return json.dumps(rows, default=lambda value: value.isoformat())
