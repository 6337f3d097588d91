"""Blue and yellow on a folder that changes: what is indexed, what is kept, what is refused."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from polydesk_dagster.database.locks import exclusive
from polydesk_dagster.errors import PolydeskError
from polydesk_dagster.knowledge import generations, indexing, intake, searching, store, work
from polydesk_dagster.knowledge.library import Library, listing
from polydesk_dagster.knowledge.splitting import Passage
from polydesk_dagster.outcome import Outcome
from polydesk_dagster.told import teller
from polydesk_dagster.values import Reason
from tests import world
from tests.knowledge.paper import SCANNED, pdf
from tests.knowledge.world import AS_OF, Shelf, older
from tests.waiting import PATIENCE
from tests.warm import Program


@pytest.fixture
def shelf(engine: sa.Engine, tmp_path: Path) -> Shelf:
    return Shelf(engine, tmp_path)


def test_blue_takes_new_changed_and_gone_and_then_nothing(shelf: Shelf) -> None:
    shelf.topics()
    first = shelf.blue()
    assert (first.outcome, first.counts.created) == (Outcome.OK, 10)
    assert shelf.ask("a digiuno per il prelievo?")[0] == "prelievo.md"
    again = shelf.blue()
    assert (again.outcome, again.counts.unchanged, again.counts.changed) == (Outcome.NOTHING_TO_DO, 10, 0)

    shelf.write("nuovo.txt", "Il bar al piano terra serve colazioni senza glutine dalle sette.")
    shelf.write("prelievo.md", "# Prelievo\n\nIl prelievo ora si esegue anche di sabato mattina, su appuntamento.")
    (shelf.library.folder / "parcheggio.md").unlink()
    seen = shelf.blue(preview=True)
    assert (seen.counts.created, seen.counts.updated, seen.counts.retired) == (1, 1, 1)
    assert shelf.ask("colazioni senza glutine") == []
    done = shelf.blue()
    assert (done.counts.created, done.counts.updated, done.counts.retired, done.counts.unchanged) == (1, 1, 1, 8)
    assert shelf.ask("colazioni senza glutine")[0] == "nuovo.txt"
    assert "prelievo.md" in shelf.ask("prelievo di sabato mattina")
    assert "parcheggio.md" not in shelf.ask("parcheggio sotterraneo gratuito")
    assert shelf.blue().outcome is Outcome.NOTHING_TO_DO
    shelf.whole()


def test_a_touched_file_with_the_same_content_is_not_written_again(shelf: Shelf) -> None:
    shelf.topics()
    shelf.blue()
    ((before,),) = shelf.sql("SELECT unmerged FROM knowledge_generation WHERE state = 'current'")
    older(shelf.library.folder / "prelievo.md")
    text = (shelf.library.folder / "rimborso.md").read_bytes()
    shelf.write("rimborso.md", b"\xef\xbb\xbf" + text.replace(b"\n", b"\r\n"))
    keys = {row.key for row in shelf.sql("SELECT key FROM knowledge_content")}
    shelf.blue()
    assert {row.key for row in shelf.sql("SELECT key FROM knowledge_content")} == keys
    assert before is False
    shelf.whole()


@pytest.mark.slow
def test_a_blue_run_with_nothing_new_never_loads_lancedb(shelf: Shelf) -> None:
    """And a process that needs it loads no client of catalogues with it."""
    shelf.topics()
    shelf.blue()
    script = (
        "import sys; from pathlib import Path; from datetime import datetime, UTC\n"
        "from polydesk_dagster.database.engine import create_engine; from sqlalchemy.engine import make_url\n"
        "from polydesk_dagster.knowledge import indexing; from polydesk_dagster.knowledge.library import Library\n"
        "report = indexing.refresh(create_engine(make_url(sys.argv[1])), datetime(2026, 3, 10, 9, tzinfo=UTC),"
        " Library(Path(sys.argv[2]), sys.argv[3]))\n"
        "assert report.outcome == 'nothing_to_do', report\n"
        "assert not {'lancedb', 'pyarrow', 'kreuzberg', 'httpx', 'pandas'} & set(sys.modules)\n"
        "from polydesk_dagster.knowledge.store import Store\n"
        "assert Store(sys.argv[3]).match(1, 1, 'marked', 'digiuno', where=None, limit=1)\n"
        "assert 'lancedb' in sys.modules\n"
        "assert not [name for name in sys.modules if name.startswith('lance_namespace_urllib3_client.api')]\n"
    )
    url = shelf.engine.url.render_as_string(hide_password=False)
    subprocess.run(
        [sys.executable, "-c", script, url, str(shelf.library.folder), shelf.library.uri], check=True, timeout=PATIENCE
    )


@pytest.mark.slow
def test_yellow_builds_beside_swaps_and_can_be_rolled_back_one_step(shelf: Shelf) -> None:
    shelf.topics()
    shelf.blue()
    assert indexing.roll_back(shelf.engine).outcome is Outcome.REFUSED
    shelf.write("prelievo.md", "# Prelievo\n\nIl prelievo si esegue solo di sabato mattina.")
    report = shelf.yellow()
    assert (report.outcome, report.counts.updated, report.counts.unchanged) == (Outcome.OK, 1, 9)
    assert [row.state for row in shelf.sql("SELECT state FROM knowledge_generation ORDER BY id")] == [
        "previous",
        "current",
    ]
    assert shelf.ask("prelievo di sabato mattina")[0] == "prelievo.md"
    assert indexing.roll_back(shelf.engine, preview=True).preview
    assert shelf.ask("prelievo di sabato mattina")[0] == "prelievo.md"
    assert indexing.roll_back(shelf.engine).outcome is Outcome.OK
    assert shelf.ask("prelievo otto ore acqua")[0] == "prelievo.md"
    assert shelf.blue().counts.updated == 1  # the older generation catches up with the file
    shelf.whole()
    shelf.yellow()
    shelf.yellow()
    from polydesk_dagster.knowledge.store import Store

    states = shelf.sql("SELECT id FROM knowledge_generation WHERE state IN ('current', 'previous')")
    tables = Store(shelf.library.uri)._open().list_tables().tables
    assert sorted(tables) == sorted(f"passages_{row.id}" for row in states)


@pytest.mark.slow
def test_another_pipeline_rebuilds_unless_a_person_went_back(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    assert shelf.blue().outcome is Outcome.NOTHING_TO_DO
    assert shelf.ask("a digiuno per il prelievo?") == []
    shelf.topics()
    shelf.blue()
    monkeypatch.setattr(generations, "LANGUAGE", "it-0")
    rebuilt = shelf.blue()
    assert (rebuilt.reasons[0].code, rebuilt.counts.updated) == ("pipeline_changed", 10)
    indexing.roll_back(shelf.engine)
    assert shelf.blue().outcome is Outcome.REFUSED
    with shelf.engine.connect() as connection:
        assert not indexing.anything_due(connection, shelf.library, AS_OF)
    assert shelf.ask("a digiuno per il prelievo?")[0] == "prelievo.md"
    shelf.yellow()
    assert shelf.blue().outcome is Outcome.NOTHING_TO_DO


def test_many_documents_missing_stop_everything_until_a_person_says_so(shelf: Shelf) -> None:
    shelf.topics()
    shelf.blue()
    for name in ("prelievo", "rimborso", "referto"):
        (shelf.library.folder / f"{name}.md").unlink()
    shelf.write("nuovo.txt", "Il bar al piano terra serve colazioni.")
    for run in (shelf.blue, shelf.yellow):
        refused = run()
        assert (refused.outcome, refused.reasons[0].code) == (Outcome.REFUSED, indexing.GUARD)
        assert shelf.ask("a digiuno per il prelievo?")[0] == "prelievo.md"
        assert run(past_guard="to_many_removals").reasons[0].code == "guard_unknown"
    report = shelf.blue(past_guard=indexing.GUARD)
    assert (report.counts.retired, report.counts.created) == (3, 1)
    assert report.reasons[0].code == "past_removals"
    shelf.whole()


def test_an_empty_or_missing_folder_never_empties_the_index(shelf: Shelf) -> None:
    assert (
        indexing.refresh(shelf.engine, AS_OF, Library(shelf.home / "mai", shelf.library.uri)).outcome is Outcome.SKIPPED
    )
    shelf.write("uno.md", "# Bar\n\nIl bar serve colazioni senza glutine.")
    shelf.blue()
    shelf.library.folder.rename(shelf.home / "spostata")
    for run in (shelf.blue, shelf.yellow):
        assert (run().outcome, run().reasons[0].code) == (Outcome.REFUSED, "folder_missing")
    shelf.library.folder.mkdir()
    assert shelf.blue().outcome is Outcome.REFUSED
    assert shelf.ask("colazioni senza glutine") == ["uno.md"]


@pytest.mark.slow
def test_retraction_validity_clinic_and_role_hold_at_once(shelf: Shelf) -> None:
    with shelf.engine.begin() as connection:
        for code in ("RM1", "MI1"):
            world.clinic(connection, code)
    shelf.topics()
    shelf.write("RM1/bar.md", "# Bar\n\nIl bar di Roma serve colazioni senza glutine.")
    shelf.write("MI1/bar.md", "# Bar\n\nIl bar di Milano serve colazioni senza glutine.")
    shelf.blue()
    question = "colazioni senza glutine al bar"
    assert set(shelf.ask(question)) >= {"RM1/bar.md", "MI1/bar.md"}
    assert shelf.ask(question, clinic="RM1")[0] == "RM1/bar.md"
    assert "MI1/bar.md" not in shelf.ask(question, clinic="RM1", limit=50)
    assert shelf.ask(question, clinic="IGNOTA") == []
    assert shelf.ask(question, role="patient") == []
    shelf.sql("UPDATE document SET audience = 'patient' WHERE path = 'RM1/bar.md'")
    shelf.blue()
    assert shelf.ask(question, role="patient") == ["RM1/bar.md"]
    shelf.sql("UPDATE document SET valid_to = '2026-03-10' WHERE path = 'RM1/bar.md'")
    assert "RM1/bar.md" not in shelf.ask(question, limit=50)
    shelf.sql("UPDATE document SET retracted_at = :now WHERE path = 'MI1/bar.md'", now=AS_OF)
    assert "MI1/bar.md" not in shelf.ask(question, limit=50)
    report = shelf.blue()
    assert report.counts.retired == 1
    shelf.sql("UPDATE document SET retracted_at = NULL WHERE path = 'MI1/bar.md'")
    shelf.blue()
    assert shelf.ask(question)[0] == "MI1/bar.md"
    shelf.whole()


def test_copies_are_read_once_and_cited_each(shelf: Shelf) -> None:
    shelf.said("copie")
    for number in range(1_000):
        shelf.write(f"copie/guida {number}.md", "# Bar\n\nIl bar serve colazioni senza glutine.")
    report = shelf.blue()
    assert report.counts.created == 1_000
    assert report.figures["index_passages"] == 1
    (found,) = searching.ask(shelf.engine, AS_OF, shelf.library, "colazioni senza glutine").passages
    assert found.copies == 1_000
    (shelf.library.folder / "copie" / "guida 0.md").unlink()
    assert shelf.blue().counts.retired == 1
    (found,) = searching.ask(shelf.engine, AS_OF, shelf.library, "colazioni senza glutine").passages
    assert found.copies == 999


def test_strange_names_and_what_is_no_document(shelf: Shelf) -> None:
    names = ["con spazi.md", "perché è così.md", "a capo\nqui.md", "apice ' e \" e %.md"]
    for name in names:
        shelf.write(name, f"# Bar\n\nColazioni numero {names.index(name)} senza glutine.")
    (shelf.library.folder / os.fsdecode(b"latin\xe0.md")).write_text("# Latino\n\nAmbulatorio di oculistica.")
    for name in (".nascosto.md", "~$aperto.docx"):
        shelf.write(name, "niente")
    (shelf.library.folder / "legame.md").symlink_to("/etc/hostname")
    os.mkfifo(shelf.library.folder / "coda.md")
    report = shelf.blue()
    assert report.counts.created == 5
    assert [(reason.code, reason.values["path"]) for reason in report.reasons] == [("passed_over", "legame.md")]
    assert shelf.ask("ambulatorio di oculistica") == ["latin\\xe0.md"]
    assert set(shelf.ask("colazioni senza glutine")) == set(names)
    for number in range(work.SHOWN):
        (shelf.library.folder / f"legame {number}.md").symlink_to("/etc/hostname")
    report = shelf.blue()
    assert report.outcome is Outcome.NOTHING_TO_DO
    last = report.reasons[-1]
    assert (len(report.reasons), last.code, last.count) == (work.SHOWN + 1, "reasons_more", 1)


@pytest.mark.slow
def test_what_cannot_be_read_is_shown_and_in_nobodys_way(shelf: Shelf) -> None:
    shelf.topics()
    shelf.write("vecchio.doc", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1")
    shelf.write("vuoto.md", "")
    shelf.write("persona.md", "# Elenco\n\nIl paziente BNCLRA85B41F205K ha chiamato.")
    report = shelf.blue()
    assert (report.outcome, report.counts.created, report.counts.waiting) == (Outcome.PARTIAL, 10, 3)
    assert report.counts.failed == 0
    causes = [reason.values["why"] for reason in report.reasons]
    assert {why.code for why in causes if isinstance(why, Reason)} == {"legacy_format", "empty", "personal_data"}
    assert not any("BNCLRA" in teller().reason(reason) for reason in report.reasons)
    (table,) = [table for table in report.tables if table.key == "quarantine"]
    assert table.total == 3
    for known in (shelf.blue(), shelf.yellow()):
        assert (known.outcome, known.counts.waiting, known.reasons) == (Outcome.NOTHING_TO_DO, 3, ())
    shelf.sql("UPDATE document SET cleared_sha256 = sha256 WHERE path = 'persona.md'")
    assert shelf.blue().counts.created == 1
    shelf.write("persona.md", "# Elenco\n\nAnche VRDGPP80A01F205X adesso.")
    assert shelf.blue().outcome in {Outcome.PARTIAL, Outcome.OK}
    shelf.write("vuoto.md", "# Riempito\n\nOrario della guardia medica notturna.")
    shelf.blue()
    assert shelf.ask("orario della guardia medica notturna") == ["vuoto.md"]
    assert shelf.blue().outcome is Outcome.NOTHING_TO_DO


@pytest.mark.slow
def test_a_document_that_kills_its_reader_gets_three_tries(shelf: Shelf, shared_data: Path) -> None:
    shelf.topics()
    shelf.blue()
    shutil.copy(shared_data / "kb" / "mobilita_sanitaria_2012.pdf", shelf.library.folder)
    as_of = AS_OF

    def blue() -> list[str]:
        indexing.refresh(shelf.engine, as_of, shelf.library, patience=0.05)
        return [row.state for row in shelf.sql("SELECT state FROM document WHERE path LIKE 'mobilita%'")]

    assert blue() == ["retrying"]
    assert blue() == ["retrying"]
    assert shelf.sql("SELECT attempts FROM document WHERE path LIKE 'mobilita%'")[0].attempts == 1
    as_of += timedelta(hours=1)
    assert blue() == ["retrying"]
    as_of += timedelta(hours=1)
    assert blue() == ["quarantined"]
    assert shelf.ask("a digiuno per il prelievo?")[0] == "prelievo.md"
    shelf.yellow()
    assert shelf.sql("SELECT state FROM document WHERE path LIKE 'mobilita%'")[0].state == "indexed"


def test_a_document_replaced_while_it_is_read_is_read_again(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    path = shelf.write("guida.md", "# Bar\n\nColazioni senza glutine.")
    whole = intake.digest

    def replaced(data: bytes, suffix: str) -> str:
        shelf.write("guida.md", "# Bar\n\nMerende vegane al chiosco.")
        return whole(data, suffix)

    monkeypatch.setattr(intake, "digest", replaced)
    shelf.blue()
    monkeypatch.undo()
    assert shelf.ask("colazioni senza glutine") == ["guida.md"]
    assert listing(shelf.library.folder).files["guida.md"].size == path.stat().st_size
    shelf.blue()
    assert shelf.ask("merende vegane al chiosco") == ["guida.md"]
    shelf.whole()


def test_the_second_of_two_runs_leaves(shelf: Shelf) -> None:
    shelf.topics()
    with exclusive(shelf.engine, "knowledge index") as taken:
        assert taken
        assert shelf.blue().outcome is Outcome.SKIPPED
        assert shelf.yellow().outcome is Outcome.SKIPPED
    reports = []
    threads = [threading.Thread(target=lambda: reports.append(shelf.blue())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(report.counts.created for report in reports) == 10
    shelf.whole()


@pytest.mark.slow
def test_a_generation_that_answers_worse_is_refused(shelf: Shelf) -> None:
    shelf.topics()
    shelf.blue()
    shelf.sql(
        "INSERT INTO knowledge_probe (question, document_id) "
        "SELECT 'entro quanti giorni allegare la fattura quietanzata', id FROM document WHERE path = 'rimborso.md'"
    )
    assert shelf.yellow().outcome in {Outcome.OK, Outcome.NOTHING_TO_DO}
    shelf.write("rimborso.md", "# Avviso\n\nNotizie in arrivo.")
    refused = shelf.yellow()
    assert (refused.outcome, refused.reasons[0].code) == (Outcome.REFUSED, "probes_clinic")
    assert "quietanzata" in str(shelf.sql("SELECT term FROM knowledge_term WHERE term = 'quietanzata'"))
    assert shelf.ask("entro quanti giorni allegare la fattura quietanzata")[0] == "rimborso.md"
    assert shelf.sql("SELECT count(*) FROM knowledge_generation WHERE state = 'dropped'")[0][0] == 1
    passed = shelf.yellow(past_guard=indexing.PROBES)
    assert (passed.outcome, passed.reasons[0].code) == (Outcome.OK, "past_probes")


@pytest.mark.slow
def test_a_disk_that_is_full_leaves_the_index_as_it_was(shelf: Shelf) -> None:
    shelf.topics()
    shelf.blue()
    script = (
        "import resource, signal, sys; from pathlib import Path; from datetime import datetime, UTC\n"
        "from polydesk_dagster.database.engine import create_engine; from sqlalchemy.engine import make_url\n"
        "from polydesk_dagster.errors import TransientError\n"
        "from polydesk_dagster.knowledge import indexing; from polydesk_dagster.knowledge.library import Library\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))\n"
        "try: getattr(indexing, sys.argv[4])(create_engine(make_url(sys.argv[1])),"
        " datetime(2026, 3, 10, 9, tzinfo=UTC), Library(Path(sys.argv[2]), sys.argv[3]))\n"
        "except TransientError as error: print(error); sys.exit(7)\n"
    )
    shelf.write("nuovo.txt", " ".join(f"parola{n} lunga{n * 7919}" for n in range(4_000)))
    url = shelf.engine.url.render_as_string(hide_password=False)
    for action in ("refresh", "rebuild"):
        ended = Program(script, url, str(shelf.library.folder), shelf.library.uri, action)
        assert ended.wait() == 7
        assert shelf.ask("a digiuno per il prelievo?")[0] == "prelievo.md"
        assert shelf.ask("parola5 lunga39595") == []
    assert shelf.blue().counts.created == 1
    assert shelf.ask("parola5 lunga39595") == ["nuovo.txt"]
    shelf.whole()


def test_an_unreadable_subfolder_is_not_an_empty_one(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf.topics()
    shelf.write("dentro/uno.md", "# Uno\n\nTesto.")
    shelf.blue()
    real = os.scandir

    def denied(path: Path) -> object:
        if Path(path).name == "dentro":
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(PolydeskError):
        listing(shelf.library.folder)
    assert shelf.blue().outcome is Outcome.REFUSED


@pytest.mark.slow
def test_an_update_that_waits_leaves_the_old_answer_and_says_that_it_is_old(shelf: Shelf) -> None:
    shelf.topics()
    shelf.write("prezzi.md", "# Prezzi\n\nLa visita cardiologica costa 100 euro.")
    shelf.blue()
    (found, *_) = searching.ask(shelf.engine, AS_OF, shelf.library, "quanto costa la visita cardiologica").passages
    assert found.sources[0].stale_since is None
    shelf.write("prezzi.md", "# Prezzi\n\nLa visita cardiologica di BNCLRA85B41F205K costa 130 euro.")
    report = shelf.blue()
    assert (report.outcome, report.figures["index_stale"]) == (Outcome.PARTIAL, 1)
    (found, *_) = searching.ask(shelf.engine, AS_OF, shelf.library, "quanto costa la visita cardiologica").passages
    assert "100 euro" in found.text
    assert found.sources[0].stale_since == AS_OF
    assert indexing.refresh(shelf.engine, AS_OF + timedelta(days=1), shelf.library).figures["index_stale"] == 1
    (found, *_) = searching.ask(shelf.engine, AS_OF, shelf.library, "quanto costa la visita cardiologica").passages
    assert found.sources[0].stale_since == AS_OF
    assert shelf.yellow().figures["index_stale"] == 1
    (found, *_) = searching.ask(shelf.engine, AS_OF, shelf.library, "quanto costa la visita cardiologica").passages
    assert ("100 euro" in found.text, found.sources[0].stale_since) == (True, AS_OF)
    shelf.whole()
    assert shelf.blue().outcome is Outcome.NOTHING_TO_DO
    shelf.write("prezzi.md", "# Prezzi\n\nLa visita cardiologica costa 130 euro.")
    shelf.blue()
    (found, *_) = searching.ask(shelf.engine, AS_OF, shelf.library, "quanto costa la visita cardiologica").passages
    assert ("130 euro" in found.text, found.sources[0].stale_since) == (True, None)


def test_an_index_that_changes_all_day_does_not_grow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "KEEP_VERSIONS", timedelta(milliseconds=1))
    index = store.Store(str(tmp_path))
    index.create(1, None)

    def written(price: int) -> str:
        passage = Passage(f"La visita cardiologica costa {price} euro.", (), None)
        index.add(1, [store.Row(f"{price:032x}", 0, passage, None, 0, None, None)], None)
        return f"{price:032x}"

    def files(price: int) -> int:
        index.delete(1, [f"{price - 1:032x}"])
        written(price)
        index.merge(1)
        return sum(path.is_file() for path in tmp_path.rglob("*"))

    written(99)
    index.index(1)
    counted = [files(price) for price in range(100, 106)]
    assert counted[-1] <= counted[2], counted


@pytest.mark.slow
def test_half_read_waits_for_a_person_until_she_has_looked(shelf: Shelf) -> None:
    shelf.topics()
    shelf.write("metà.pdf", pdf([["Preparazione alla scintigrafia ossea."], SCANNED, SCANNED]))
    report = shelf.blue()
    assert (report.outcome, report.counts.created, report.counts.waiting) == (Outcome.PARTIAL, 11, 1)
    assert "2 pagine senza testo (pagine 2 e 3)" in teller().reason(report.reasons[0])
    assert shelf.sql("SELECT state FROM document WHERE path = 'metà.pdf'")[0].state == "partial"
    assert shelf.ask("preparazione alla scintigrafia") == ["metà.pdf"]
    assert shelf.blue().outcome is Outcome.NOTHING_TO_DO
    again = shelf.yellow()
    assert (again.outcome, again.counts.waiting) == (Outcome.NOTHING_TO_DO, 1)
    shelf.sql("UPDATE document SET cleared_sha256 = sha256 WHERE path = 'metà.pdf'")
    assert shelf.blue().counts.waiting == 0
    assert shelf.blue().outcome is Outcome.NOTHING_TO_DO
    shelf.whole()
