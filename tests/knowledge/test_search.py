"""Questions on real paragraphs: found, found with a slip of the pen, and told when there is nothing."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa

from benchmarks.knowledge import misspell, reciprocal_rank
from polydesk_dagster.errors import ConfigurationError
from polydesk_dagster.knowledge import searching
from polydesk_dagster.knowledge.question import understand
from polydesk_dagster.knowledge.ranking import RELEVANT, Candidate, rank, relevant
from polydesk_dagster.knowledge.reranking import GROUP, Reranker, reranker
from polydesk_dagster.knowledge.store import Hit
from polydesk_dagster.knowledge.text import fold, grams, marked_sentences, one_edit_away, words
from tests.knowledge import receptionist
from tests.knowledge.world import AS_OF, Shelf


def test_text() -> None:
    assert words("L'età È già: 54.00 perché_no?") == ["l", "eta", "e", "gia", "54", "00", "perche", "no"]
    assert fold("ﬁne ÀÈ") == "fine ae"
    assert grams("via") == ("_via", "via_")
    assert grams("e") == ("_e_",)
    assert marked_sentences("Uno due. Tre!\n\nQuattro") == "_uno_due_\n_tre_\n_quattro_"
    assert marked_sentences("una riga\nche continua\n- voce\n| a | b |") == "_una_riga_che_continua_\n_voce_\n_a_b_"
    near = one_edit_away("cane")
    assert {"cnae", "can", "canne", "cave"} <= set(near)
    assert "cane" not in near


def test_misspelling_changes_one_word_the_same_way_for_the_same_seed() -> None:
    question = "Quando si ritira il referto?"
    first = misspell(question, random.Random(3))
    assert first == misspell(question, random.Random(3)) != question
    assert sum(a != b for a, b in zip(first.split(), question.split(), strict=True)) == 1


@pytest.mark.slow
def test_real_questions(engine: sa.Engine, tmp_path: Path, shared_data: Path) -> None:
    """A sample of what the benchmark measures whole; its bounds leave room for the sample's chance."""

    def read(name: str) -> list[dict[str, str]]:
        with gzip.open(shared_data / "qa" / name, "rt") as lines:
            return [json.loads(line) for line in lines]

    shelf = Shelf(engine, tmp_path)
    paragraphs = read("squad_it_paragraphs.jsonl.gz")[:600]
    for paragraph in paragraphs:
        shelf.write(f"{paragraph['pid']}.txt", paragraph["text"])
    assert shelf.blue().counts.created >= 598, "a paragraph on computers may speak like an order"
    known = {paragraph["pid"] for paragraph in paragraphs}
    questions = [q for q in read("squad_it_questions_dev.jsonl.gz") if q["pid"] in known]
    sample = random.Random(1).sample(questions, 150)
    slip = random.Random(2)

    def mean(asked: list[tuple[str, str]]) -> float:
        ranks = [reciprocal_rank(engine, AS_OF, shelf.library, question, f"{pid}.txt") for question, pid in asked]
        return sum(ranks) / len(ranks)

    assert mean([(q["question"], q["pid"]) for q in sample]) > 0.8
    assert mean([(misspell(q["question"], slip), q["pid"]) for q in sample]) > 0.77
    for stranger in ("ricetta della carbonara con guanciale", "prezzo degli pneumatici invernali", "xyzzy qwerty"):
        answer = searching.ask(engine, AS_OF, shelf.library, stranger)
        assert answer.passages == ()
        assert answer.notes[0].code == "nothing_relevant"


@pytest.mark.parametrize(
    "question", ["", "   ", "?!", "di che", "'; DROP TABLE document; --", "x" * 100_000, "\x00", "🙂"]
)
def test_odd_questions_get_an_honest_nothing(engine: sa.Engine, tmp_path: Path, question: str) -> None:
    shelf = Shelf(engine, tmp_path)
    assert searching.ask(engine, AS_OF, shelf.library, question).passages == ()
    shelf.write("bar.md", "# Bar\n\nColazioni senza glutine.")
    shelf.blue()
    assert shelf.ask(question) == []


EXAMS = ["trigliceridi", "colesterolo", "transaminasi", "ferritina", "glicemia", "creatinina", "potassio", "magnesio"]


def _sheets(shelf: Shelf) -> None:
    """Sheets of a laboratory with one letterhead and one title, told apart by their file's name alone."""
    for number, exam in enumerate(EXAMS * 6):
        shelf.write(
            f"{exam.upper()}_{number}.html",
            "<html><head><title>Scheda Esame</title></head><body><h1>Scheda Esame</h1>"
            "<p>Laboratorio di analisi. Il campione si preleva al mattino, a digiuno.</p>"
            f"<p>Provetta tappo {'giallo' if number % 2 else 'rosso'}, modello {number // 4}.</p></body></html>",
        )


def test_sheets_that_are_alike_are_found_by_their_files_names(engine: sa.Engine, tmp_path: Path) -> None:
    shelf = Shelf(engine, tmp_path)
    _sheets(shelf)
    assert shelf.blue().counts.created == len(EXAMS) * 6  # documents that are alike are no reason to refuse
    assert len(shelf.sql("SELECT FROM knowledge_generation WHERE state = 'current'")) == 1
    for question, exam in (("trigliceridi", "TRIGLICERIDI"), ("che provetta serve per la ferritina?", "FERRITINA")):
        assert any(path.startswith(exam) for path in shelf.ask(question)[:3]), shelf.ask(question)
    (found, *_) = searching.ask(engine, AS_OF, shelf.library, "trigliceridi").passages
    assert found.why["names"] > 0


def test_ordinary_words_are_no_slips(engine: sa.Engine, tmp_path: Path) -> None:
    shelf = Shelf(engine, tmp_path)
    shelf.write("uno.md", "# Orari\n\nTappo rosso, sabato mattina, prelievo a digiuno.")
    shelf.blue()

    def corrected(question: str) -> dict[str, str]:
        return dict(searching.ask(engine, AS_OF, shelf.library, question).corrected)

    assert corrected("posso mangiare salato prima?") == {}
    assert corrected("a che ora il prelieo di sabto?") == {"prelieo": "prelievo", "sabto": "sabato"}


@pytest.mark.slow
def test_a_receptionists_questions_find_the_sheet_of_the_service(
    engine: sa.Engine, tmp_path: Path, shared_data: Path
) -> None:
    """The test half by words alone, which is what the benchmark measures with vectors too."""
    shelf = Shelf(engine, tmp_path)
    for code, text in receptionist.sheets(shared_data):
        shelf.write(f"{code}.md", text)
    assert shelf.blue().counts.created > 900
    asked = receptionist.questions(shared_data)[1]

    def found(question: str) -> list[str]:
        return [path.removesuffix(".md") for path in shelf.ask(question, limit=10)]

    ours = [receptionist.reciprocal_rank(found(question), right) for question, right in asked]
    plain = receptionist.plain_bm25(str(tmp_path / "plain"), shared_data, asked)
    assert sum(ours) >= 1.2 * sum(plain)
    assert sum(rank >= 1 / 5 for rank in ours) >= 0.9 * len(asked)


def test_the_part_of_the_body_alone_does_not_answer_for_what_no_document_holds() -> None:
    asked = ["fate", "la", "pulizia", "al", "ginocchio"]
    understood = understand(None, 1, 938, asked, {"ginocchio": 10}, {})  # type: ignore[arg-type]  # nothing is misspelt
    knee = Hit("k", 0, "RX DEL GINOCCHIO", (), None, marked_sentences("RX DEL GINOCCHIO"), 1.0, None)
    (best,) = rank([Candidate(knee, {"words": 1.0})], understood)
    assert not relevant(best, RELEVANT, None)
    assert understood.weights["pulizia"] < understood.weights["ginocchio"], "in the order it tells as little as before"


def test_words_of_number_and_time_do_not_decide_whether_anything_answers() -> None:
    asked = ["diabete", "degli", "ultimi", "tre", "mesi"]
    understood = understand(
        None,  # type: ignore[arg-type]  # nothing is misspelt
        1,
        938,
        asked,
        {"ultimi": 4, "tre": 9, "mesi": 6},
        {"diabete": ["emoglobina glicata"]},
    )
    sheet = "HB EMOGLOBINA GLICATA"
    hit = Hit("k", 0, sheet, (), None, marked_sentences(sheet), 1.0, None)
    (best,) = rank([Candidate(hit, {"words": 1.0})], understood)
    assert relevant(best, RELEVANT, None)
    assert understood.weights["mesi"] > understood.needed["mesi"]


def test_words_that_people_ask_with_do_not_hide_what_they_ask_for(engine: sa.Engine, tmp_path: Path) -> None:
    shelf = Shelf(engine, tmp_path)
    for part in ("GINOCCHIO", "CAVIGLIA", "SPALLA", "GOMITO"):
        shelf.write(f"{part}.md", f"# Scheda\n\nRM DI {part}, Incluso: parti molli e vasi\n")
    shelf.write("costa.md", "# Scheda\n\nRX DELLA PRIMA COSTA\n")
    shelf.blue()
    best, *_ = shelf.ask("buongiorno dottoressa, quanto costa fare la risonanza al ginocchio?")
    assert best == "GINOCCHIO.md"


class Shortest:
    """A reranker as a package of its own would bring it."""

    def scores(self, question: str, passages: Sequence[str]) -> list[float]:
        assert question
        return [-len(passage) for passage in passages]


class Broken:
    """One that fails, or answers what is no order."""

    def __init__(self, given: list[float] | None) -> None:
        self.given = given

    def scores(self, question: str, passages: Sequence[str]) -> list[float]:
        if self.given is None:
            raise RuntimeError(question, passages)
        return self.given


def test_a_reranker_puts_the_best_in_order_and_may_fail(
    engine: sa.Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = Shelf(engine, tmp_path)
    shelf.write(
        "lungo.md", "# Colonscopia\n\nLa colonscopia si prepara con la dieta: colonscopia, dieta, colonscopia.\n"
    )
    shelf.write("corto.md", "# Dieta\n\nColonscopia.\n")
    shelf.blue()
    assert shelf.ask("dieta per la colonscopia")[0] == "lungo.md"

    def asked(by: Reranker) -> searching.Answer:
        library = replace(shelf.library, reranker=by)
        return searching.ask(engine, AS_OF, library, "dieta per la colonscopia", limit=1)

    assert asked(Shortest()).passages[0].sources[0].path == "corto.md"
    assert asked(Shortest()).notes == ()
    for given in (None, [], [float("nan")] * 2):
        answer = asked(Broken(given))
        assert answer.passages[0].sources[0].path == "lungo.md"
        assert [note.code for note in answer.notes] == ["reranker_silent"]
    (tmp_path / "nostro.py").write_text("from tests.knowledge.test_search import Shortest\n")
    about = tmp_path / "nostro-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: nostro\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[{GROUP}]\nnostro = nostro:Shortest\nrotto = nostro:Nothing\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert asked(reranker("nostro")).passages[0].sources[0].path == "corto.md"
    for name in ("di nessuno", "rotto"):
        with pytest.raises(ConfigurationError):
            reranker(name)
