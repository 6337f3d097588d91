"""The passages in LanceDB: a table a generation, with an Italian full-text index, one of n-grams, and vectors."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from polydesk_dagster.errors import PermanentError, TransientError
from polydesk_dagster.failure import failure
from polydesk_dagster.knowledge import lance
from polydesk_dagster.knowledge.splitting import Passage
from polydesk_dagster.knowledge.text import STOP_WORDS, gram_text, marked_sentences, marked_words

EXACT_UP_TO = 50_000
"""Rows up to which vectors are compared one by one; beyond, an approximate index pays."""

MERGE_FROM = 5_000
"""Passages of a generation up to which every change is merged into its indexes at once; in a larger one that rewrites
them all, and a few passages beside them are looked through as they are."""

UNMERGED_SHARE = 0.02
"""Of its passages, those that may stand beside the indexes."""

MOST_PARTS = 16
"""Parts of a table from which they are put together; files of earlier versions are none."""

KEEP_VERSIONS = timedelta(minutes=5)
"""How long LanceDB keeps what a reader of the moment before may still be reading."""


NOTE = ".files"
"""Ending of the file beside a generation's table that says which files held its passages."""


@dataclass(frozen=True, slots=True)
class Row:
    """A passage as it is stored; the scope of its documents is copied on it."""

    key: str
    ordinal: int
    passage: Passage
    clinic: int | None
    audience: int
    valid_from: date | None
    valid_to: date | None
    marked: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "marked", marked_sentences("\n\n".join((*self.passage.headings, self.passage.text))))

    @property
    def context(self) -> str:
        """The passage under its headings: what an embedder is given."""
        return "\n".join((" › ".join(self.passage.headings), self.passage.text)).strip()


def text_digest(context: str) -> str:
    """What a passage's vector is known by in every generation."""
    return hashlib.sha256(context.encode()).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class Hit:
    """A passage that a channel found."""

    key: str
    ordinal: int
    text: str
    headings: tuple[str, ...]
    page: int | None
    marked: str
    score: float
    """BM25 of a full-text channel, cosine similarity of the vectors."""
    place: tuple[int, int] | None
    """Where it begins and ends in its page; None in a generation from before that was kept."""


_FIELDS = ["key", "ordinal", "text", "headings", "page", "marked"]
_PLACE = ["start", "end"]


@contextmanager
def _disk() -> Iterator[None]:
    """LanceDB's failures to write, told as what they are to an operator."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        raise TransientError("index_unwritable", error=failure(error, "unknown")) from error


@contextmanager
def _found() -> Iterator[None]:
    """An index whose files are gone or damaged, told as that."""
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:
        raise PermanentError("index_unreadable") from error


class Store:
    """The tables of one LanceDB; opened when first needed, so that a run with nothing new never loads it."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._database: Any = None
        self._tables: dict[int, tuple[int, Any]] = {}

    def _open(self) -> Any:
        if self._database is None:
            self._database = lance.lancedb().connect(self.uri)
        return self._database

    def table(self, generation: int, revision: int | None = None) -> Any:
        """A generation's table, read anew if ``revision`` is another than the last time."""
        known = self._tables.get(generation)
        if known is None:
            with _found():
                table = self._open().open_table(_name(generation))
        else:
            table = known[1]
            if revision is not None and revision != known[0]:
                table.checkout_latest()
        self._tables[generation] = (known[0] if known and revision is None else revision or 0, table)
        return table

    def there(self, generation: int, passages: int | None = None) -> bool:
        """Whether a generation's files are where they should be, with ``passages`` also its indexes and those that hold
        so many; looked at on this machine's disk only, where it costs nothing. Only where a file of passages is missing
        that was there at the end of the last change are they read, to see whether it still counts."""
        if "://" in self.uri:
            return True
        parts = ["_versions", *([] if passages is None else ["_indices"]), *(["data"] if passages else [])]
        table = self._folder(generation)
        if not all(any((table / part).glob("*")) for part in parts):
            return False
        if passages is None or self._noted(generation) <= self._parts(generation):
            return True
        try:
            whole = self.passages_by_key(generation)
        except PermanentError:
            return False
        self._note(generation)
        return bool(whole)

    def _folder(self, generation: int) -> Path:
        return Path(self.uri) / f"{_name(generation)}.lance"

    def _parts(self, generation: int) -> set[str]:
        """The files of a generation's passages; none are known elsewhere than on this machine's disk."""
        return {part.name for part in (self._folder(generation) / "data").glob("*")}

    def _note(self, generation: int) -> None:
        """Remember which files hold a generation's passages."""
        if "://" not in self.uri:
            with _disk():
                self._folder(generation).with_suffix(NOTE).write_text("\n".join(sorted(self._parts(generation))))

    def _noted(self, generation: int) -> set[str]:
        try:
            return set(self._folder(generation).with_suffix(NOTE).read_text().split())
        except OSError:
            return set()

    def create(self, generation: int, dimension: int | None) -> None:
        import pyarrow as pa

        columns = [
            pa.field("key", pa.string(), nullable=False),
            pa.field("ordinal", pa.int32(), nullable=False),
            pa.field("text", pa.string(), nullable=False),
            pa.field("digest", pa.string()),
            pa.field("headings", pa.list_(pa.string())),
            pa.field("page", pa.int32()),
            pa.field("start", pa.int32()),
            pa.field("end", pa.int32()),
            pa.field("clinic", pa.int64()),
            pa.field("audience", pa.int8(), nullable=False),
            pa.field("valid_from", pa.date32()),
            pa.field("valid_to", pa.date32()),
            pa.field("marked", pa.string(), nullable=False),
            pa.field("grams", pa.string(), nullable=False),
        ]
        if dimension is not None:
            columns.append(pa.field("vector", pa.list_(pa.float32(), dimension), nullable=False))
        with _disk():
            self._open().create_table(_name(generation), schema=pa.schema(columns), mode="overwrite")

    def add(self, generation: int, rows: Sequence[Row], vectors: Sequence[list[float]] | None) -> None:
        import pyarrow as pa

        table = self.table(generation)
        columns: dict[str, Any] = {
            "key": [row.key for row in rows],
            "ordinal": [row.ordinal for row in rows],
            "text": [row.passage.text for row in rows],
            "digest": [text_digest(row.context) for row in rows],
            "headings": [list(row.passage.headings) for row in rows],
            "page": [row.passage.page for row in rows],
            "start": [row.passage.place and row.passage.place[0] for row in rows],
            "end": [row.passage.place and row.passage.place[1] for row in rows],
            "clinic": [row.clinic for row in rows],
            "audience": [row.audience for row in rows],
            "valid_from": [row.valid_from for row in rows],
            "valid_to": [row.valid_to for row in rows],
            "marked": [row.marked for row in rows],
            "grams": [gram_text(w for w in marked_words(row.marked) if w not in STOP_WORDS) for row in rows],
        }
        if vectors is not None:
            columns["vector"] = vectors
        with _disk():
            table.add(pa.table(columns, schema=table.schema))

    def index(self, generation: int) -> None:
        """Build what searches need, once a new generation's passages are all there."""
        table = self.table(generation)
        from lancedb.index import FTS, Bitmap

        with _disk():
            table.optimize()  # put the batches together first: done later it would be every index's work again
            table.create_index(
                "marked",
                config=FTS(language="Italian", custom_stop_words=sorted(STOP_WORDS), ascii_folding=False),
            )
            table.create_index(
                "grams",
                config=FTS(
                    base_tokenizer="whitespace",
                    stem=False,
                    remove_stop_words=False,
                    ascii_folding=False,
                    lower_case=False,
                ),
            )
            table.create_index("clinic", config=Bitmap())
            table.create_index("audience", config=Bitmap())
            if "vector" in table.schema.names and table.count_rows() > EXACT_UP_TO:
                from lancedb.index import IvfHnswSq

                table.create_index("vector", config=IvfHnswSq(distance_type="cosine"))
        self._note(generation)

    def merge(self, generation: int) -> None:
        """Bring the indexes up to what was added and deleted since, once that is worth it, and let old versions go."""
        table = self.table(generation)
        with _disk():
            kept, beside = table.stats(), table.index_stats("marked_idx")
            few = beside is not None and beside.num_unindexed_rows <= UNMERGED_SHARE * kept["num_rows"]
            parts = kept["fragment_stats"]["num_fragments"]
            if kept["num_rows"] < MERGE_FROM or not few or parts > MOST_PARTS:
                table.optimize(cleanup_older_than=KEEP_VERSIONS)
        self._note(generation)

    def delete(self, generation: int, keys: Sequence[str]) -> None:
        table = self.table(generation)
        with _disk():
            for start in range(0, len(keys), 500):
                table.delete(_among(keys[start : start + 500]))

    def marked(self, generation: int, keys: Sequence[str]) -> Iterator[str]:
        """The marked text of the passages of some contents."""
        table = self.table(generation)
        for start in range(0, len(keys), 500):
            wanted = table.search().where(_among(keys[start : start + 500]))
            with _found():
                found = wanted.select(["marked"]).limit(10**9).to_arrow()
            yield from found["marked"].to_pylist()

    def passages_by_key(self, generation: int) -> dict[str, int]:
        from collections import Counter

        with _found():
            found = self.table(generation).search().select(["key"]).limit(10**9).to_arrow()
        return Counter(found["key"].to_pylist())

    def drop(self, generations_kept: Sequence[int]) -> None:
        """Drop every table of ours but those of these generations."""
        kept = {_name(generation) for generation in generations_kept}
        database = self._open()
        with _disk():
            for name in database.list_tables(limit=10_000).tables:
                if name.startswith(_name("")) and name not in kept:
                    database.drop_table(name, ignore_missing=True)
                    (Path(self.uri) / name).with_suffix(NOTE).unlink(missing_ok=True)

    def match(
        self, generation: int, revision: int, column: str, query: str, *, where: str | None, limit: int
    ) -> list[Hit]:
        """The best passages of one full-text channel, ``marked`` or ``grams``."""
        with _found():
            table = self.table(generation, revision)
            from lancedb.query import MatchQuery

            match = MatchQuery(query, column)  # its defaults are pydantic's
            return _hits(table, table.search(match, query_type="fts"), where, limit, "_score")

    def near(self, generation: int, revision: int, vector: list[float], *, where: str | None, limit: int) -> list[Hit]:
        """The passages whose vectors are nearest."""
        with _found():
            table = self.table(generation, revision)
            search = table.search(vector, vector_column_name="vector").distance_type("cosine")
            return _hits(table, search, where, limit, "_distance")

    def vectors(self, generation: int, digests: Sequence[str]) -> Iterator[tuple[str, list[float]]]:
        """The vectors of passages whose ``text_digest`` is among these."""
        table = self.table(generation)
        if "digest" not in table.schema.names or "vector" not in table.schema.names:
            return
        for start in range(0, len(digests), 500):
            wanted = ", ".join(repr(digest) for digest in digests[start : start + 500])
            search = table.search().where(f"digest IN ({wanted})").select(["digest", "vector"])
            with _found():
                found = search.limit(10**6).to_arrow()
            yield from zip(found["digest"].to_pylist(), found["vector"].to_pylist(), strict=True)

    def of_content(self, generation: int, revision: int, key: str) -> list[Hit]:
        """All passages of a content, in reading order."""
        with _found():
            table = self.table(generation, revision)
            found = table.search().where(_among([key])).select(_fields(table)).limit(10**6).to_arrow()
        return sorted(_as_hits(found.to_pydict(), [0.0] * found.num_rows), key=lambda hit: hit.ordinal)

    def openings(self, generation: int, revision: int, keys: Sequence[str], *, where: str | None) -> list[Hit]:
        """The first passage of each of these contents that may be shown."""
        within = " AND ".join(filter(None, (_among(keys), "ordinal = 0", where)))
        with _found():
            table = self.table(generation, revision)
            found = table.search().where(within).select(_fields(table)).limit(len(keys)).to_arrow()
        return _as_hits(found.to_pydict(), [0.0] * found.num_rows)


def _fields(table: Any) -> list[str]:
    """What is read of a passage; a generation that a person went back to may know less of it."""
    return [*_FIELDS, *_PLACE] if "start" in table.schema.names else _FIELDS


def _hits(table: Any, search: Any, where: str | None, limit: int, score: str) -> list[Hit]:
    if where is not None:
        search = search.where(where, prefilter=True)
    columns = search.select([*_fields(table), score]).limit(limit).to_arrow().to_pydict()
    return _as_hits(columns, columns[score] if score == "_score" else [1 - distance for distance in columns[score]])


def _as_hits(columns: dict[str, list[Any]], scores: Sequence[float]) -> list[Hit]:
    nowhere = [None] * len(scores)
    places = zip(*(columns.get(name, nowhere) for name in _PLACE), strict=True)
    return [
        Hit(key, ordinal, text, tuple(headings or ()), page, marked, value, None if place[0] is None else place)
        for key, ordinal, text, headings, page, marked, value, place in zip(
            *(columns[name] for name in _FIELDS), scores, places, strict=True
        )
    ]


def _name(generation: int | str) -> str:
    return f"passages_{generation}"


def _among(keys: Sequence[str]) -> str:
    """Keys are hexadecimal, ours: nothing to escape."""
    return f"key IN ({', '.join(repr(key) for key in keys)})"
