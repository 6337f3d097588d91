"""The shelf on its pages: a document beside its text, what was not read of it and why, and only for whom it is."""

from __future__ import annotations

from collections.abc import Iterator
from html import unescape
from pathlib import Path

import pytest
import sqlalchemy as sa

from polydesk_dagster.knowledge import unanswered
from polydesk_dagster.resources import meaning
from tests import world
from tests.knowledge.paper import SCANNED, pdf
from tests.knowledge.world import Shelf
from tests.web.world import Served, served


@pytest.fixture
def library(engine: sa.Engine, tmp_path: Path) -> Iterator[tuple[Served, dict[str, int]]]:
    shelf = Shelf(engine, tmp_path)
    with engine.begin() as connection:
        world.clinic(connection, "MI01")
        world.clinic(connection, "NA01")
    shelf.said("direzione")
    shelf.write("MI01/parcheggio.md", "# Parcheggio\n\nIl parcheggio <b>sotterraneo</b> è gratuito per due ore.")
    shelf.write("direzione/scintigrafia.pdf", pdf([["Preparazione alla scintigrafia ossea."], SCANNED]))
    shelf.blue()
    settings = {"documents": shelf.library.folder, "knowledge_uri": shelf.library.uri}
    with engine.connect() as connection:
        numbers = {row.path: row.id for row in connection.execute(sa.text("SELECT id, path FROM document"))}
    with served(engine, tmp_path / "home", **settings) as door:
        yield door, numbers


def test_a_document_stands_beside_its_text_with_what_was_not_read(
    library: tuple[Served, dict[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    door, numbers = library
    number = numbers["direzione/scintigrafia.pdf"]
    with door.signed_in("superuser") as browser:
        assert f'href="/conoscenza/{number}"' in browser.get("/conoscenza").text
        for installed in (True, False):
            monkeypatch.setattr(meaning, "packaged_runs_here", lambda installed=installed: installed)
            assert ("si cercano solo per parole" in browser.get("/conoscenza").text) is not installed
        answer = browser.get(f"/conoscenza/{number}")
        assert "frame-src 'self'" in answer.headers["content-security-policy"]
        page = unescape(answer.text)
        assert "Preparazione alla scintigrafia ossea." in page
        assert "Che cosa non si è letto" in page
        assert f'<iframe src="/conoscenza/{number}/file"' in page
        shown = browser.get(f"/conoscenza/{number}/file")
        assert (shown.headers["content-type"], shown.headers["x-frame-options"]) == ("application/pdf", "SAMEORIGIN")
        assert "frame-ancestors 'self'" in shown.headers["content-security-policy"]
        assert shown.content.startswith(b"%PDF-")


def test_what_is_no_pdf_is_handed_out_and_never_shown(library: tuple[Served, dict[str, int]]) -> None:
    door, numbers = library
    number = numbers["MI01/parcheggio.md"]
    with door.signed_in("superuser") as browser:
        page = browser.get(f"/conoscenza/{number}").text
        assert "<b>sotterraneo" not in page
        assert "<iframe" not in page
        answer = browser.get(f"/conoscenza/{number}/file")
        assert answer.headers["content-disposition"].startswith("attachment")
        assert answer.headers["content-type"] == "application/octet-stream"
        assert browser.get("/conoscenza/999999").status_code == 404


def test_who_may_not_read_a_document_is_not_shown_it(library: tuple[Served, dict[str, int]]) -> None:
    door, numbers = library
    with door.door.engine.begin() as connection:
        elsewhere = connection.scalar(sa.text("SELECT id FROM clinic WHERE code = 'NA01'"))
        connection.execute(sa.text("UPDATE document SET audience = 'manager' WHERE path LIKE 'direzione/%'"))
    with door.signed_in("desk", clinic=elsewhere) as browser:
        for number in numbers.values():
            assert browser.get(f"/conoscenza/{number}").status_code == 404
            assert browser.get(f"/conoscenza/{number}/file").status_code == 404
        with door.door.engine.begin() as connection:
            nobodys = "UPDATE document SET audience = 'desk', scoped_by = 'nobody' WHERE path LIKE 'direzione/%'"
            connection.execute(sa.text(nobodys))
        assert browser.get(f"/conoscenza/{numbers['direzione/scintigrafia.pdf']}").status_code == 404
    with door.signed_in("superuser") as browser:
        assert "di nessuno" in browser.get("/conoscenza").text


def test_what_a_person_decides_about_a_document_is_decided_here(library: tuple[Served, dict[str, int]]) -> None:
    door, numbers = library
    lost, parking = numbers["direzione/scintigrafia.pdf"], numbers["MI01/parcheggio.md"]
    with door.door.engine.begin() as connection:
        mine = connection.scalar(sa.text("SELECT id FROM clinic WHERE code = 'MI01'"))
    with door.signed_in("manager", clinic=mine) as manager:

        def decide(number: int, verdict: str, reason: str = "guardato con il dottore", **more: str) -> int:
            given = door.form(manager, verdict=verdict, reason=reason, back="documents", **more)
            return manager.post(f"/conoscenza/{number}", data=given).status_code

        assert 'value="retract"' in manager.get(f"/conoscenza/{parking}").text
        assert decide(parking, "retract", "no") == 409
        assert decide(parking, "delete") == 400
        assert decide(parking, "retract") == 303
        assert 'value="restore"' in manager.get(f"/conoscenza/{parking}").text
        assert decide(parking, "restore") == 303
        assert decide(parking, "scope", whose="", audience="desk") == 403
        assert decide(parking, "scope", whose="NA01", audience="desk") == 403
        assert decide(parking, "scope", whose="MI01", audience="everybody") == 400
        assert decide(parking, "scope", whose="MI01", audience="patient") == 303
        assert 'value="retract"' not in manager.get(f"/conoscenza/{lost}").text
        assert decide(lost, "retract") == 403
        with door.door.engine.begin() as connection:
            connection.execute(
                sa.text("UPDATE document SET sha256 = (SELECT sha256 FROM document WHERE id = :mine) WHERE id = :its"),
                {"mine": parking, "its": lost},
            )
        assert decide(parking, "retract") == 403
    with door.signed_in("superuser") as chain:
        assert "scintigrafia" in chain.get("/da-fare").text
        form = door.form(chain, verdict="clear", reason="guardato con il dottore")
        assert chain.post(f"/conoscenza/{lost}", data=form).status_code == 303
        assert "scintigrafia" not in chain.get("/da-fare").text
    with door.door.engine.connect() as connection:
        said = connection.scalars(sa.text("SELECT action FROM audit WHERE action LIKE 'knowledge%' ORDER BY id")).all()
    assert said == ["knowledge_retract", "knowledge_retract_undo", "knowledge_scope", "knowledge_clear"]


def test_open_questions_are_settled_by_who_may_and_of_ones_own_clinic(library: tuple[Served, dict[str, int]]) -> None:
    door, _ = library
    with door.door.engine.begin() as connection:
        for clinic in ("MI01", "NA01"):
            question = f"fate la mineralometria a {clinic}?"
            unanswered.keep(connection, question, "unanswered", clinic=clinic, role="desk", as_of=world.AS_OF)
        numbers = {each.clinic: each.id for each in unanswered.listed(connection)}
        here = connection.scalar(sa.text("SELECT id FROM clinic WHERE code = 'MI01'"))
    with door.signed_in("desk", clinic=here) as browser:
        page = unescape(browser.get("/conoscenza").text)
        assert "fate la mineralometria a MI01?" in page
        assert "fate la mineralometria a NA01?" not in page
        address = f"/conoscenza/domande/{numbers['MI01']}"
        assert address not in page
        assert browser.post(address, data=door.form(browser)).status_code == 403
    with door.signed_in("manager", clinic=here) as browser:
        other = browser.post(f"/conoscenza/domande/{numbers['NA01']}", data=door.form(browser))
        assert other.status_code == 404
        wrong = browser.post(address, data=door.form(browser, documento="mai visto.md"))
        assert wrong.status_code == 409
        answered = door.form(browser, documento="MI01/parcheggio.md")
        assert browser.post(address, data=answered).status_code == 303
    with door.door.engine.connect() as connection:
        assert [each.clinic for each in unanswered.listed(connection)] == ["NA01"]
        assert connection.scalar(sa.text("SELECT count(*) FROM knowledge_probe")) == 1
