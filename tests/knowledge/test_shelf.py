"""What a person sees of the documents and decides about them, by the command and with an audit line each."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.engine import URL
from typer.testing import CliRunner

from polydesk_dagster.cli import app
from polydesk_dagster.knowledge import intake, unanswered
from polydesk_dagster.knowledge.library import File
from polydesk_dagster.knowledge.nameless import may_stay, nameless
from polydesk_dagster.knowledge.text import words
from polydesk_dagster.told import teller
from tests import world
from tests.knowledge.paper import SCANNED, pdf
from tests.knowledge.world import AS_OF, Shelf

WHY = ["--reason", "guardato insieme alla direzione"]
QUESTION = "compensi degli specialisti per seduta"


@pytest.fixture
def shelf(engine: sa.Engine, database: URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shelf:
    shelf = Shelf(engine, tmp_path)
    with engine.begin() as connection:
        world.clinic(connection, "MI01")
        world.clinic(connection, "RM01")
    shelf.topics()
    shelf.write(
        "direzione/compensi.md", "# Compensi\n\nI compensi degli specialisti per ciascuna seduta ambulatoriale."
    )
    shelf.write("scintigrafia.pdf", pdf([["Preparazione alla scintigrafia ossea."], SCANNED]))
    shelf.blue()
    monkeypatch.setenv("POLYDESK_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("POLYDESK_DATABASE_URL", database.render_as_string(hide_password=False))
    monkeypatch.setenv("POLYDESK_DOCUMENTS", str(shelf.library.folder))
    monkeypatch.setenv("POLYDESK_KNOWLEDGE_URI", shelf.library.uri)
    return shelf


def _command(*arguments: str, status: int = 0) -> Any:
    ended = CliRunner().invoke(app, ["knowledge", *arguments, "--json"])
    assert ended.exit_code == status, ended.output
    return json.loads(ended.stdout) if status == 0 else ended.output


@pytest.mark.slow
def test_what_waits_is_listed_shown_and_decided(shelf: Shelf) -> None:
    waiting = {document["path"]: document for document in _command("list", "--waiting")}
    assert waiting.keys() == {"direzione/compensi.md", "scintigrafia.pdf"}
    assert waiting["direzione/compensi.md"]["scoped_by"] == "nobody"
    assert "nessuno lo riceve" in CliRunner().invoke(app, ["knowledge", "show", "direzione/compensi.md"]).output
    assert waiting["scintigrafia.pdf"]["why"]["code"] == "losses"
    shown = _command("show", "scintigrafia.pdf")
    assert [(passage["page"], passage["text"]) for passage in shown["text"]] == [
        (1, "Preparazione alla scintigrafia ossea.")
    ]
    _command("clear", "scintigrafia.pdf", *WHY)
    shelf.blue()
    assert [document["path"] for document in _command("list", "--waiting")] == ["direzione/compensi.md"]
    assert shelf.ask(QUESTION) == []
    assert _command("scope", "direzione", "--clinic", "mi01", *WHY)["documents"] == 1
    assert shelf.ask(QUESTION, clinic="MI01") == ["direzione/compensi.md"]
    _command("scope", "direzione/compensi.md", "--clinic", "RM01", "--role", "manager", *WHY)
    shelf.blue()
    assert shelf.ask(QUESTION, clinic="MI01") == []
    assert shelf.ask(QUESTION, clinic="RM01", role="desk") == []
    assert shelf.ask(QUESTION, clinic="RM01", role="manager") == ["direzione/compensi.md"]
    _command("retract", "direzione/compensi.md", *WHY)
    assert "ritirato" in CliRunner().invoke(app, ["knowledge", "list"]).output
    asked = CliRunner().invoke(app, ["ask", QUESTION, "--json"])
    assert not json.loads(asked.stdout)["relevant"]
    _command("retract", "direzione/compensi.md", "--undo", *WHY)
    shelf.blue()
    assert shelf.ask(QUESTION) == ["direzione/compensi.md"]
    actions = [row.action for row in shelf.sql("SELECT action FROM audit WHERE action LIKE 'knowledge_%' ORDER BY id")]
    assert actions == [
        "knowledge_clear",
        "knowledge_scope_folder",
        "knowledge_scope",
        "knowledge_retract",
        "knowledge_retract_undo",
    ]


def test_probes_are_added_listed_and_taken_away(shelf: Shelf) -> None:
    _command("probes", "--add", "quante ore di digiuno", "--document", "prelievo.md")
    ((probe),) = _command("probes")
    assert (probe["question"], probe["document"]) == ("quante ore di digiuno", "prelievo.md")
    assert _command("probes", "--remove", str(probe["id"])) == []


def test_lay_words_find_what_documents_call_otherwise(shelf: Shelf) -> None:
    shelf.write("g6pd.md", "# G6PD\n\nProvetta con tappo viola per il dosaggio della G6PD.")
    shelf.blue()
    assert shelf.ask("che cosa serve per il favismo?") == ["g6pd.md"]
    assert shelf.ask("che cosa serve per il morbo delle fave?") == []
    _command("words", "Morbo delle fave", "--means", "G6PD")
    assert shelf.ask("che cosa serve per il morbo delle fave?") == ["g6pd.md"]
    _command("words", "morbo delle fave", "--means", "g6pd", "--remove")
    assert shelf.ask("che cosa serve per il morbo delle fave?") == []


def test_open_questions_are_listed_and_settled(shelf: Shelf) -> None:
    with shelf.engine.begin() as connection:
        for question in ("fate la mineralometria?", "posso venire col cane?"):
            for _ in range(2 if "cane" in question else 1):
                unanswered.keep(connection, question, "unanswered", clinic="MI01", role="desk", as_of=AS_OF)
    first, second = _command("questions")
    assert (first["question"], first["times"], first["clinic"]) == ("posso venire col cane?", 2, "MI01")
    assert [each["id"] for each in _command("questions", str(first["id"]), "--dismiss")] == [second["id"]]
    assert _command("questions", str(second["id"]), "--document", "prelievo.md") == []
    assert [probe["question"] for probe in _command("probes")] == ["fate la mineralometria?"]
    _command("questions", str(second["id"]), "--dismiss", status=1)
    _command("questions", str(second["id"]), status=2)
    _command("questions", "--dismiss", status=2)


@pytest.mark.parametrize(
    ("asked", "kept"),
    [
        ("Mi chiamo Gennaro Esposito, posso disdire?", "Mi chiamo …, posso disdire?"),
        ("mio padre rossi mario ha i globuli rossi bassi", "mio padre … ha i globuli rossi bassi"),
        ("la signora de luca chiede se serve il digiuno", "la signora … chiede se serve il digiuno"),
        ("sono nata il 12/05/1980 e il mio codice è RSSMRA80A01H501U", "sono nata il … e il mio codice è …"),
        ("scrivetemi a anna.b@posta.it o al 333 123 4567", "… a … o al …"),
        ("il digiuno per la B12 è di 12 ore?", "il digiuno per la B12 è di 12 ore?"),
        ("Quando viene Caterina a fare il TSH?", "Quando viene … a fare il TSH?"),
        ("ludovica brambilla vuole disdire", "… vuole disdire"),
        ("Brambilla chiede se serve il digiuno", "… chiede se serve il digiuno"),
        ("ESPOSITO GENNARO deve fare l'esame", "… deve fare l'esame"),
        ("Sono Gennaro Esposito, fate agopuntura e mesoterapia?", "Sono …, fate agopuntura e mesoterapia?"),
        ("anna può venire sabato per i globuli?", "… può venire sabato per i globuli?"),
    ],
)
def test_a_question_is_kept_without_who_asks(engine: sa.Engine, asked: str, kept: str) -> None:
    with engine.connect() as connection:
        world.patient(connection, last_name="Rossi", first_name="Mario")
        world.patient(connection, last_name="De Luca", first_name="Pina")
        assert nameless(connection, asked, {"globuli", "rossi", "digiuno", "tsh"}) == kept


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.one_of(st.sampled_from(["globuli", "posso", "il", "dell'esame"]), st.text("abeilmorsàA'Z12 ", max_size=12))
    ),
    st.sampled_from([str.lower, str.upper, str.title]),
)
def test_no_word_stays_that_nobody_knows(
    engine: sa.Engine, written: list[str], as_written: Callable[[str], str]
) -> None:
    with engine.connect() as connection:
        kept = nameless(connection, as_written(" ".join(written)), {"globuli"})
    assert [word for word in words(kept) if word != "globuli" and not may_stay(word)] == []


def test_what_cannot_be_is_said_in_one_sentence(shelf: Shelf) -> None:
    for arguments in (
        ("show", "mai visto.md"),
        ("scope", "prelievo.md", "--clinic", "XX99", *WHY),
        ("retract", "prelievo.md", "--reason", "no"),
    ):
        ended = CliRunner().invoke(app, ["knowledge", *arguments])
        assert ended.exit_code != 0
    ended = CliRunner().invoke(app, ["knowledge", "scope", "prelievo.md", *WHY])
    assert ended.exit_code == 2
    assert shelf.sql("SELECT FROM audit WHERE action LIKE 'knowledge_%'") == []


@pytest.mark.slow
def test_a_file_that_does_not_open_is_told_without_a_word_of_the_system(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = intake._bytes

    def denied(file: File) -> tuple[bytes, str | None]:
        if file.location.name == "chiuso.md":
            raise PermissionError(13, "Permission denied")
        return real(file)

    monkeypatch.setattr(intake, "_bytes", denied)
    shelf.write("chiuso.md", "# Chiuso\n\nNessuno lo apre.")
    said = [teller().reason(reason) for reason in shelf.blue().reasons]
    assert [each for each in said if "chiuso.md" in each] == [
        "«chiuso.md» verrà riprovato: il file non si apre (il permesso manca)."
    ]
    shown = CliRunner().invoke(app, ["knowledge", "show", "chiuso.md"]).output
    assert ("il permesso manca" in shown, "Permission" in shown) == (True, False)
    assert _command("show", "chiuso.md")["why"]["values"] == {"error": {"term": "EACCES", "domain": "errno"}}
