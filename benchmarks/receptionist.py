"""The receptionist's set: how her and patients' questions are answered from real sheets of services, by words and by
words and meaning, beside plain Italian BM25 over the same passages.

Of the test half, which is no blind one: the lay words of migration 0055 were written by somebody who knew the
questions of both halves, and figures of this half were seen while the search was calibrated on the other.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import sqlalchemy as sa

from benchmarks.harness import Bench, Figure, peak_mb
from polydesk_dagster.knowledge import indexing, searching
from polydesk_dagster.knowledge.embedding import Packaged
from polydesk_dagster.knowledge.library import Library
from polydesk_dagster.knowledge.store import Store
from tests.knowledge.receptionist import DEPTH, absent, plain_bm25, questions, reciprocal_rank, sheets

AS_OF = datetime(2026, 3, 10, 9, 0, tzinfo=UTC)
DATA = Path(__file__).resolve().parents[1] / "tests" / "data"


def figures(bench: Bench) -> Iterator[Figure]:
    os.environ.setdefault("LANCE_LOG", "error")
    asked = questions(DATA)[1][: bench.size(len(questions(DATA)[1]))]
    with TemporaryDirectory() as folder:
        plain = plain_bm25(str(Path(folder) / "plain"), DATA, asked)
        (Path(folder) / "documents").mkdir()
        for code, text in sheets(DATA):
            (Path(folder) / "documents" / f"{code}.md").write_text(text)
        for name, embedder in (("by words", None), ("by words and meaning", Packaged())):
            with bench.engine() as engine:
                library = Library(Path(folder) / "documents", str(Path(folder) / name.replace(" ", "_")), embedder)
                indexing.refresh(engine, AS_OF, library)
                began = time.process_time()
                ranks = [reciprocal_rank(_found(engine, library, question), right) for question, right in asked]
                cost = (time.process_time() - began) / len(asked)
                yield _figure(f"MRR@10 {name}", statistics.mean(ranks), statistics.mean(plain), 1.2)
                recall = statistics.mean(rank >= 1 / 5 for rank in ranks)
                plain_recall = statistics.mean(rank >= 1 / 5 for rank in plain)
                yield _figure(f"recall@5 {name}", recall, plain_recall, 0.92 / plain_recall)
                silent = [not _found(engine, library, question) for question in absent(DATA)]
                yield _figure(f"silent of 20 that no sheet treats {name}", sum(silent), len(silent), 0.6)
                bare = _bare(engine, library, [question for question, _ in asked])
                yield Figure(
                    "receptionist", f"a question {name}", 1000 * cost, 1000 * bare, "ms CPU", 3, False, peak_mb()
                )


def _figure(figure: str, ours: float, plain: float, target: float) -> Figure:
    return Figure("receptionist", figure, ours, plain, "share", target, at_least=True, peak_mb=peak_mb())


def _found(engine: sa.Engine, library: Library, question: str) -> list[str]:
    answer = searching.ask(engine, AS_OF, library, question, limit=DEPTH)
    return [found.sources[0].path.removesuffix(".md") for found in answer.passages]


def _bare(engine: sa.Engine, library: Library, asked: list[str]) -> float:
    """CPU seconds of one LanceDB query of words, and of one of the vector where there are some."""
    with engine.connect() as connection:
        generation, revision = connection.execute(
            sa.text("SELECT id, revision FROM knowledge_generation WHERE state = 'current'")
        ).one()
    table = Store(library.uri).table(generation, revision)
    began = time.process_time()
    for question in asked:
        table.search(question, query_type="fts", fts_columns="marked").limit(DEPTH).to_list()
        if library.embedder is not None:
            vector = library.embedder.ask(question)
            table.search(vector, vector_column_name="vector").distance_type("cosine").limit(DEPTH).to_list()
    return (time.process_time() - began) / len(asked)
