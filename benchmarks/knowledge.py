"""The knowledge base: answers to real questions beside plain Italian BM25, what blue costs beside yellow and beside
LangChain's indexing API, and a question at 100,000 passages beside one bare LanceDB query."""

from __future__ import annotations

import gzip
import json
import os
import random
import re
import statistics
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import sqlalchemy as sa

from benchmarks.harness import Bench, Figure, peak_mb, seconds
from polydesk_dagster.knowledge import indexing, searching
from polydesk_dagster.knowledge.library import Library
from polydesk_dagster.knowledge.splitting import Page, Passage, split
from polydesk_dagster.knowledge.store import Row, Store

AS_OF = datetime(2026, 3, 10, 9, 0, tzinfo=UTC)
QUESTIONS = Path(__file__).resolve().parents[1] / "tests" / "data" / "qa"
SECTIONS = 10
"""Passages of a generated document."""

LETTERS = "abcdefghilmnopqrstuvz"


def misspell(question: str, rng: random.Random) -> str:
    """One slip in one word of four letters or more: a letter left out, put in, changed, or two swapped."""
    found = list(re.finditer(r"[^\W\d_]{4,}", question))
    if not found:
        return question
    while True:
        word = rng.choice(found)
        at = rng.randrange(word.start(), word.end() - 1)
        left, letter, following, right = question[:at], question[at], question[at + 1], question[at + 2 :]
        other = rng.choice(LETTERS)
        slip = rng.choice((following, letter + other + following, other + following, following + letter))
        if left + slip + right != question:
            return left + slip + right


def reciprocal_rank(
    engine: sa.Engine, as_of: datetime, library: Library, question: str, path: str, depth: int = 10
) -> float:
    """1 ÷ the place, among the first ``depth`` documents, of the one that answers; 0 if it is not there."""
    answer = searching.ask(engine, as_of, library, question, limit=depth)
    documents = list(dict.fromkeys(source.path for found in answer.passages for source in found.sources))
    return 1 / (documents.index(path) + 1) if path in documents else 0.0


def figures(bench: Bench) -> Iterator[Figure]:
    os.environ.setdefault("LANCE_LOG", "error")
    paragraphs = _read("squad_it_paragraphs.jsonl.gz")
    with bench.engine() as engine, TemporaryDirectory() as folder:
        yield from _retrieval(bench, engine, Path(folder), paragraphs)
    with bench.engine() as engine, TemporaryDirectory() as folder:
        yield from _upkeep(bench, engine, Path(folder), paragraphs)


def _read(name: str) -> list[dict[str, Any]]:
    with gzip.open(QUESTIONS / name, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def _library(folder: Path) -> Library:
    (folder / "documents").mkdir()
    return Library(folder / "documents", str(folder / "index"))


def _retrieval(bench: Bench, engine: sa.Engine, folder: Path, paragraphs: Sequence[dict[str, Any]]) -> Iterator[Figure]:
    library = _library(folder)
    for paragraph in paragraphs:
        (library.folder / f"{paragraph['pid']}.txt").write_text(paragraph["text"])
    indexing.refresh(engine, AS_OF, library)
    every = _read("squad_it_questions_dev.jsonl.gz")
    asked = random.Random(1).sample(every, bench.size(len(every)))
    rng = random.Random(7)
    clean = [(question["question"], question["pid"]) for question in asked]
    slips = [(misspell(question, rng), pid) for question, pid in clean]
    plain = _plain(str(folder / "plain"), paragraphs)
    for name, questions in (("", clean), (", one slip a question", slips)):
        ours = [reciprocal_rank(engine, AS_OF, library, question, f"{pid}.txt") for question, pid in questions]
        theirs = [_plain_rank(plain, question, pid) for question, pid in questions]
        target = 0.785 if name else 0.81
        yield _quality(f"MRR@10{name}", statistics.mean(ours), statistics.mean(theirs), target)
        if not name:
            yield _quality("recall@5", _recall(ours), _recall(theirs), 0.905)


def _quality(figure: str, ours: float, plain: float, wanted: float) -> Figure:
    """Beside plain Italian BM25 of the same run; the bound is the absolute one that is wanted."""
    return Figure("knowledge", figure, ours, plain, "share", wanted / plain, at_least=True, peak_mb=peak_mb())


def _recall(ranks: Sequence[float]) -> float:
    return statistics.mean(rank >= 1 / 5 for rank in ranks)


def _plain(uri: str, paragraphs: Sequence[dict[str, Any]]) -> Any:
    import lancedb
    import pyarrow as pa
    from lancedb.index import FTS

    rows = {"pid": [p["pid"] for p in paragraphs], "text": [p["text"] for p in paragraphs]}
    table = lancedb.connect(uri).create_table("plain", pa.table(rows))
    table.create_index("text", config=FTS(language="Italian"))
    return table


def _plain_rank(table: Any, question: str, pid: str) -> float:
    found = table.search(question, query_type="fts").select(["pid", "_score"]).limit(10).to_arrow()["pid"].to_pylist()
    return 1 / (found.index(pid) + 1) if pid in found else 0.0


def _upkeep(bench: Bench, engine: sa.Engine, folder: Path, paragraphs: Sequence[dict[str, Any]]) -> Iterator[Figure]:
    library = _library(folder)
    rng = random.Random(5)
    sentences = [part for p in paragraphs for part in re.split(r"(?<=[.!?])\s+", p["text"]) if len(part) > 20]
    documents, added = bench.size(10_000), bench.size(100)
    for number in range(documents):
        _write(library.folder, number, sentences, rng)
    indexing.refresh(engine, AS_OF, library)
    yellow = seconds(lambda: indexing.rebuild(engine, AS_OF, library))
    nothing = seconds(lambda: indexing.refresh(engine, AS_OF, library))
    yield Figure("knowledge", f"blue, nothing new of {documents}", nothing, yellow, "s", 0.02, peak_mb=peak_mb())
    yield from _questions(engine, library)
    for number in range(documents, documents + added):
        _write(library.folder, number, sentences, rng)
    few = seconds(lambda: indexing.refresh(engine, AS_OF, library))
    yield Figure("knowledge", f"blue, {added} new of {documents}", few, yellow, "s", 0.05, peak_mb=peak_mb())
    yield from _langchain(library, folder, yellow, nothing, few, added)


def _write(folder: Path, number: int, sentences: Sequence[str], rng: random.Random) -> None:
    parts = [
        f"## Parte {section}\n\n" + " ".join(rng.choices(sentences, k=rng.randint(3, 6))) for section in range(SECTIONS)
    ]
    (folder / f"documento {number:05}.md").write_text("\n\n".join([f"# Documento {number}", *parts]))


def _questions(engine: sa.Engine, library: Library) -> Iterator[Figure]:
    with engine.connect() as connection:
        generation, revision, passages = connection.execute(
            sa.text("SELECT id, revision, passages FROM knowledge_generation WHERE state = 'current'")
        ).one()
    table = Store(library.uri).table(generation, revision)
    asked = [q["question"] for q in random.Random(2).sample(_read("squad_it_questions_dev.jsonl.gz"), 220)]
    ours: list[float] = []
    bare: list[float] = []
    for question in asked:  # turn by turn, so that whatever else the machine does weighs on both
        ours.append(seconds(lambda q=question: searching.ask(engine, AS_OF, library, q)))
        bare.append(
            seconds(lambda q=question: table.search(q, query_type="fts", fts_columns="marked").limit(10).to_list())
        )
    yield Figure(
        "knowledge",
        f"question, p50 at {passages} passages",
        1000 * statistics.median(ours[20:]),
        1000 * statistics.median(bare[20:]),
        "ms",
        2.0,
        peak_mb=peak_mb(),
    )


def _langchain(
    library: Library, folder: Path, yellow: float, nothing: float, few: float, added: int
) -> Iterator[Figure]:
    """LangChain's indexing API over the same passages into a LanceDB table with the same indexes; needs the dependency
    group ``bench``, without it these figures are left out."""
    try:
        from langchain_core.documents import Document
        from langchain_core.indexing import InMemoryRecordManager, index
        from langchain_core.vectorstores import VectorStore
    except ImportError:
        return
    target = Store(str(folder / "langchain"))
    target.create(1, None)

    class LanceStore(VectorStore):  # untyped where it is not installed
        """What ``index`` needs of a store, over the very tables that we write."""

        def add_documents(self, documents: list[Document], **named: Any) -> list[str]:
            passages = [Passage(d.page_content, (), None) for d in documents]
            rows = [Row(key, 0, p, None, 1, None, None) for key, p in zip(named["ids"], passages, strict=True)]
            target.add(1, rows, None)
            return list(named["ids"])

        def delete(self, ids: list[str] | None = None, **_: Any) -> bool | None:
            target.delete(1, ids or [])
            return True

        def similarity_search(self, query: str, k: int = 4, **_: Any) -> list[Document]:
            raise NotImplementedError

        @classmethod
        def from_texts(cls, *_: Any, **__: Any) -> LanceStore:
            raise NotImplementedError

    store = LanceStore()
    built = False
    records = InMemoryRecordManager("knowledge")
    records.create_schema()

    def run(files: Sequence[Path]) -> None:
        nonlocal built
        passages = [
            Document(page_content=passage.text, metadata={"source": file.name, "place": place})
            for file in files
            for place, passage in enumerate(split([Page(file.read_text())]))
        ]
        index(
            passages,
            records,
            store,
            cleanup="incremental",
            source_id_key="source",
            batch_size=2_000,
            cleanup_batch_size=100_000,
            key_encoder="sha256",
        )
        if built:
            target.merge(1)
        else:
            target.index(1)
        built = True

    files = sorted(library.folder.iterdir())
    first = seconds(lambda: run(files[:-added]))
    again = seconds(lambda: run(files[:-added]))
    then = seconds(lambda: run(files))
    for figure, ours, theirs, bound in (
        ("everything, beside LangChain", yellow, first, 2.0),  # it opens no file in a process and proves nothing
        ("nothing new, beside LangChain", nothing, again, 1.0),
        (f"{added} new, beside LangChain", few, then, 1.0),
    ):
        yield Figure("knowledge", figure, ours, theirs, "s", bound, peak_mb=peak_mb())
