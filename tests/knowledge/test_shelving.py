"""Whose documents are, and that it stays so when their files are renamed, moved or copied."""

from __future__ import annotations

import shutil
import unicodedata
from pathlib import Path

import pytest
import sqlalchemy as sa

from polydesk_dagster.knowledge import indexing, intake, searching, store
from polydesk_dagster.knowledge import shelf as decided
from polydesk_dagster.knowledge.store import NOTE, Store
from polydesk_dagster.outcome import Outcome
from polydesk_dagster.values import Count
from tests import world
from tests.knowledge.world import AS_OF, Shelf

SALARIES = "# Compensi\n\nI compensi degli specialisti per ciascuna seduta ambulatoriale."
QUESTION = "compensi degli specialisti per seduta"


@pytest.fixture
def shelf(engine: sa.Engine, tmp_path: Path) -> Shelf:
    shelf = Shelf(engine, tmp_path)
    shelf.topics()
    return shelf


def _rename(shelf: Shelf, before: str, now: str) -> None:
    target = shelf.library.folder / now
    target.parent.mkdir(exist_ok=True)
    (shelf.library.folder / before).rename(target)


@pytest.mark.parametrize("now", ["altro nome.md", unicodedata.normalize("NFD", "compensì.md"), "compensì.txt"])
def test_a_managers_document_stays_hers_under_another_name(shelf: Shelf, now: str) -> None:
    shelf.write("compensì.md", SALARIES)
    shelf.blue()
    shelf.sql("UPDATE document SET audience = 'manager' WHERE path = 'compensì.md'")
    shelf.blue()
    _rename(shelf, "compensì.md", now)
    shelf.blue()
    assert shelf.ask(QUESTION, role="desk") == []
    assert shelf.ask(QUESTION, role="manager") == [unicodedata.normalize("NFC", now)]
    assert shelf.blue().outcome is Outcome.NOTHING_TO_DO
    shelf.whole()


def test_a_copy_is_no_wider_than_what_it_is_a_copy_of(shelf: Shelf) -> None:
    shelf.write("compensi.md", SALARIES)
    shelf.blue()
    shelf.sql("UPDATE document SET audience = 'manager', valid_to = '2027-01-01' WHERE path = 'compensi.md'")
    shutil.copy(shelf.library.folder / "compensi.md", shelf.library.folder / "copia.md")
    shelf.blue()
    assert shelf.ask(QUESTION, role="desk") == []
    ((audience, until),) = shelf.sql("SELECT audience, valid_to FROM document WHERE path = 'copia.md'")
    assert (audience, str(until)) == ("manager", "2027-01-01")


def test_a_narrowed_scope_narrows_the_copies_that_are_there(shelf: Shelf) -> None:
    with shelf.engine.begin() as connection:
        for code in ("MI01", "RM01", "NA01"):
            world.clinic(connection, code)
    for path in ("compensi.md", "copia.md", "MI01/compensi.md", "RM01/compensi.md"):
        shelf.write(path, SALARIES)
    shelf.blue()
    assert shelf.ask(QUESTION, role="desk", clinic="MI01") != []
    asked = {"valid_from": None, "valid_to": None, "actor": "prova", "reason": "solo per chi dirige", "as_of": AS_OF}
    with shelf.engine.begin() as connection:
        changed = decided.scope(connection, "compensi.md", clinic="MI01", audience="manager", **asked)
    assert changed == 3, "another clinic's copy is its own"
    shelf.blue()
    for clinic, role, paths in (
        ("MI01", "desk", []),
        ("MI01", "manager", ["MI01/compensi.md", "compensi.md", "copia.md"]),
        ("RM01", "desk", ["RM01/compensi.md"]),
        ("NA01", "manager", []),
    ):
        assert sorted(shelf.ask(QUESTION, clinic=clinic, role=role)) == paths
    with shelf.engine.begin() as connection:
        changed = decided.scope(connection, "compensi.md", clinic=None, audience="desk", **asked)
    assert changed == 1, "what is opened again opens no copy"


def test_a_managers_document_stays_hers_under_the_name_of_one_for_all(shelf: Shelf) -> None:
    compensi, parking = shelf.write("compensi.md", SALARIES), shelf.library.folder / "parcheggio.md"
    shelf.blue()
    shelf.sql("UPDATE document SET audience = 'manager' WHERE path = 'compensi.md'")
    shelf.blue()
    shutil.copy(compensi, shelf.library.folder / "prelievo.md")
    for before, now in ((compensi, "tra"), (parking, compensi.name), (shelf.library.folder / "tra", parking.name)):
        before.rename(shelf.library.folder / now)
    shelf.blue()
    assert shelf.ask(QUESTION, role="desk") == []
    assert shelf.ask(QUESTION, role="manager")[:2] == ["parcheggio.md", "prelievo.md"]
    shelf.whole()


def test_what_was_retracted_does_not_answer_under_another_name(shelf: Shelf) -> None:
    shelf.write("compensi.md", SALARIES)
    shelf.blue()
    shelf.sql("UPDATE document SET retracted_at = :now WHERE path = 'compensi.md'", now=AS_OF)
    shelf.blue()
    _rename(shelf, "compensi.md", "compensi 2026.md")
    shelf.blue()
    shelf.yellow()
    assert shelf.ask(QUESTION) == []


def test_files_moved_into_a_folder_are_no_losses(shelf: Shelf) -> None:
    shelf.blue()
    shelf.said("preparazioni")
    for name in ("colonscopia", "prelievo", "risonanza", "ecografia"):
        _rename(shelf, f"{name}.md", f"preparazioni/{name}.md")
    shelf.write("nuovo.md", "# Bar\n\nColazioni senza glutine.")
    seen = shelf.blue(preview=True)
    assert (seen.counts.created, seen.counts.retired) == (1, 0)
    report = shelf.blue()
    assert (report.outcome, report.counts.created, report.counts.retired) == (Outcome.OK, 1, 0)
    assert shelf.ask("a digiuno per il prelievo")[0] == "preparazioni/prelievo.md"
    assert shelf.sql("SELECT count(*) FROM document")[0][0] == 11
    assert shelf.blue().outcome is Outcome.NOTHING_TO_DO


def test_a_folder_is_a_clinics_however_its_code_is_written_and_nobodys_otherwise(shelf: Shelf) -> None:
    with shelf.engine.begin() as connection:
        world.clinic(connection, "RM01")
    shelf.write("mi01 /prezzi.md", "# Prezzi\n\nLa visita agopunturale costa 70 euro.")
    shelf.write("mi01 /bar.md", "# Bar\n\nColazioni al piano terra.")
    shelf.write("rm01/orari.md", "# Orari\n\nAgopuntura il lunedì.")
    report = shelf.blue()
    assert (report.outcome, report.counts.waiting) == (Outcome.PARTIAL, 2)
    assert [reason.code for reason in report.reasons] == ["document_nobodys"], "what answers nobody is no probe"
    assert report.reasons[0].values == {"folder": "mi01 ", "documents": Count("document", 2)}
    assert "mi01 /prezzi.md" not in shelf.ask("quanto costa la visita agopunturale")
    assert shelf.ask("agopuntura il lunedì", clinic="RM01") == ["rm01/orari.md"]
    again = shelf.blue()
    assert (again.outcome, again.counts.waiting) == (Outcome.NOTHING_TO_DO, 2)
    with shelf.engine.begin() as connection:
        assert not indexing.anything_due(connection, shelf.library, AS_OF)
        world.clinic(connection, "MI01")
        assert indexing.anything_due(connection, shelf.library, AS_OF)
    assert shelf.blue().counts.waiting == 0
    assert "mi01 /prezzi.md" in shelf.ask("quanto costa la visita agopunturale", clinic="MI01")
    assert "mi01 /prezzi.md" not in shelf.ask("quanto costa la visita agopunturale", clinic="RM01")


def test_moving_out_of_a_clinics_folder_does_not_give_a_document_to_the_chain(shelf: Shelf) -> None:
    with shelf.engine.begin() as connection:
        for code in ("MI01", "RM01"):
            world.clinic(connection, code)
    shelf.write("MI01/prezzi.md", "# Prezzi\n\nLa visita agopunturale costa 70 euro.")
    shelf.blue()
    _rename(shelf, "MI01/prezzi.md", "prezzi di Milano.md")
    shelf.blue()
    assert "prezzi di Milano.md" not in shelf.ask("visita agopunturale", clinic="RM01")
    assert shelf.ask("visita agopunturale", clinic="MI01")[0] == "prezzi di Milano.md"


def test_what_two_clinics_hold_does_not_become_the_chains_by_moving_one_of_them(shelf: Shelf) -> None:
    with shelf.engine.begin() as connection:
        for code in ("MI01", "NA01", "RM01"):
            world.clinic(connection, code)
    for code in ("MI01", "RM01"):
        shelf.write(f"{code}/prezzi.md", "# Prezzi\n\nLa visita agopunturale costa 70 euro.")
    shelf.blue()
    _rename(shelf, "RM01/prezzi.md", "prezzi di Roma.md")
    shelf.blue()
    assert shelf.ask("visita agopunturale", clinic="NA01") == []
    assert shelf.ask("visita agopunturale", clinic="RM01")[0] == "prezzi di Roma.md"
    assert shelf.ask("visita agopunturale", clinic="MI01")[0] == "MI01/prezzi.md"


@pytest.mark.slow
@pytest.mark.parametrize("lost", ["", "_versions", "_indices", "data"])
def test_an_index_whose_files_are_lost_is_told_and_made_anew(shelf: Shelf, lost: str) -> None:
    shelf.blue()
    assert shelf.ask("a digiuno per il prelievo")[0] == "prelievo.md"
    (table,) = Path(shelf.library.uri).glob("*.lance")
    shutil.rmtree(table / lost)
    searching._store.cache_clear()
    answer = searching.ask(shelf.engine, AS_OF, shelf.library, "a digiuno per il prelievo")
    assert (answer.passages, answer.notes[0].code) == ((), "index_unreadable")
    with shelf.engine.connect() as connection:
        assert indexing.anything_due(connection, shelf.library, AS_OF)
    report = shelf.blue()
    assert (report.outcome, report.reasons[0].code) == (Outcome.OK, "index_lost")
    assert (report.counts.created, report.counts.updated) == (0, len(shelf.sql("SELECT FROM document")))
    assert shelf.ask("a digiuno per il prelievo")[0] == "prelievo.md"
    shelf.whole()


def test_one_lost_file_of_passages_is_noticed_before_anybody_asks(shelf: Shelf) -> None:
    shelf.blue()
    shelf.write("nuovo.md", "# Bar\n\nColazioni senza glutine.")
    shelf.blue()
    index = Store(shelf.library.uri)
    ((current, passages),) = shelf.sql("SELECT id, passages FROM knowledge_generation WHERE state = 'current'")
    index._folder(current).with_suffix(NOTE).write_text("tidied-away.lance")
    assert index.there(current, passages), "what no longer counted may be gone"
    assert index._noted(current) == index._parts(current)
    next((index._folder(current) / "data").iterdir()).unlink()
    assert shelf.blue().reasons[0].code == "index_lost"
    assert shelf.ask("a digiuno per il prelievo")[0] == "prelievo.md"
    shelf.whole()


def test_few_passages_stand_beside_the_indexes_of_many_and_are_found(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "FLUSH_DOCUMENTS", 2)
    shelf.blue()
    monkeypatch.setattr(store, "MERGE_FROM", 0)
    monkeypatch.setattr(store, "MOST_PARTS", 4)
    monkeypatch.setattr(store, "UNMERGED_SHARE", 0.2)
    ((current,),) = shelf.sql("SELECT id FROM knowledge_generation WHERE state = 'current'")
    beside = []
    for number, word in enumerate(("ambulatorio", "farmacia", "palestra")):
        shelf.write(f"{number}.md", f"# Bar\n\nColazioni senza glutine in {word}.")
        shelf.blue()
        assert shelf.ask(f"colazioni senza glutine in {word}")[0] == f"{number}.md"
        table = Store(shelf.library.uri).table(current)
        beside.append(table.index_stats("marked_idx").num_unindexed_rows)
    assert beside == [1, 2, 0]
    shelf.whole()
    assert shelf.blue().outcome is Outcome.NOTHING_TO_DO


@pytest.mark.slow
def test_an_index_that_cannot_be_opened_to_be_written_is_made_anew(shelf: Shelf) -> None:
    shelf.blue()
    for manifest in Path(shelf.library.uri).glob("*.lance/_versions/*.manifest"):
        manifest.write_bytes(b"")
    shelf.write("nuovo.md", "# Bar\n\nColazioni senza glutine.")
    report = shelf.blue()
    assert (report.outcome, report.reasons[0].code, report.counts.created) == (Outcome.OK, "index_lost", 1)
    assert shelf.ask("colazioni senza glutine")[0] == "nuovo.md"
    shelf.whole()
