from __future__ import annotations

import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL
from typer.testing import CliRunner

from polydesk_dagster.cli import app
from polydesk_dagster.clinic.statistics.refresh import refresh
from polydesk_dagster.commands import show
from polydesk_dagster.database.engine import plain_url
from tests.statistics import world

AS_OF = datetime(2026, 3, 30, 10, 0, tzinfo=UTC)
MARCH = ("--from", "2026-03-01", "--to", "2026-03-31")


@pytest.fixture
def installation(engine: sa.Engine, database: URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("POLYDESK_HOME", str(tmp_path))
    monkeypatch.setenv("POLYDESK_DATABASE_URL", plain_url(database))
    with engine.begin() as connection:
        world.chain(connection)
        connection.execute(sa.text("UPDATE service SET name = '=1+1 <b>ECG</b>' WHERE id = 1"))
        for day in range(1, 21):
            world.appointment(connection, f"2026-03-{day:02} 08:00Z", status="completed", price="33.60")
        world.appointment(connection, "2026-03-02 09:00Z", clinic=2)
    refresh(engine, AS_OF)
    return tmp_path


@pytest.mark.slow
def test_a_page_that_needs_nothing_else(installation: Path) -> None:
    target = installation / "marzo.html"
    done = CliRunner().invoke(app, ["report", *MARCH, "--clinic", "BO01", "-o", str(target)])
    assert done.exit_code == 0, done.output
    page = target.read_text(encoding="utf-8")
    assert "Attività di Bologna" in page
    assert "672,00\xa0€" in page
    assert "=1+1 &lt;b&gt;ECG" in page
    assert page.count("data:image/png;base64,") == 8
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    assert "Prova" not in page  # the patient's name
    whole = installation / "catena.html"
    assert CliRunner().invoke(app, ["report", *MARCH, "-o", str(whole)]).exit_code == 0
    assert "&lt;5" in whole.read_text(encoding="utf-8")


def test_the_page_speaks_the_language_that_was_chosen(installation: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = installation / "maerz.html"
    monkeypatch.setattr(show, "_language", "de")
    chosen = ("report", *MARCH, "--clinic", "BO01", "-o", str(target))
    assert CliRunner().invoke(app, chosen).exit_code == 0
    page = target.read_text(encoding="utf-8")
    assert '<html lang="de">' in page
    assert "Tätigkeit von Bologna" in page
    assert "Auslastung nach Kalender" in page


def test_a_spreadsheet_with_numbers_as_numbers(installation: Path) -> None:
    target = installation / "marzo.xlsx"
    assert CliRunner().invoke(app, ["report", *MARCH, "--clinic", "BO01", "-o", str(target)]).exit_code == 0
    from openpyxl import load_workbook

    book = load_workbook(target)
    services = book["Per prestazione"]
    assert (services["A2"].value, services["A2"].data_type, services["B2"].value) == ("'=1+1 <b>ECG</b>", "s", 20)
    assert float(book["Per convenzione"]["C2"].value) == 672.0
    assert len(book["Riepilogo"]._images) == 8
    weeks = [[cell.value for cell in row] for row in book["Per settimana"].iter_rows()]
    assert weeks[0] == ["Settimana dal", "Eseguiti", "Totale"]
    assert (weeks[1], weeks[-1]) == (["23/02/2026", 1, 1], ["Totale", 20, 20])


@pytest.mark.slow
def test_a_period_without_data_is_a_report_all_the_same(installation: Path) -> None:
    target = installation / "vuoto.xlsx"
    quiet = ("--from", "2025-03-01", "--to", "2025-03-31", "-o")
    assert CliRunner().invoke(app, ["report", *quiet, str(target)]).exit_code == 0
    assert CliRunner().invoke(app, ["report", *quiet, str(target.with_suffix(".html"))]).exit_code == 0


@pytest.mark.slow
def test_nothing_of_the_report_s_libraries_is_loaded_before_it_is_asked_for() -> None:
    heavy = "print(sorted({'pandas', 'matplotlib', 'openpyxl', 'numpy'} & set(sys.modules)))"
    rooms = "polydesk_dagster.commands.report, polydesk_dagster.told.report, polydesk_dagster.definitions"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys, {rooms}; {heavy}"], check=False, capture_output=True, text=True
    )
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("--from", "2026-03-31", "--to", "2026-03-01", "-o", "x.html"),
        (*MARCH, "-o", "x.pdf"),
        (*MARCH, "-o", "manca/x.html"),
        ("--from", "31/03/2026", "--to", "2026-03-31", "-o", "x.html"),
    ],
)
def test_wrong_usage_is_named(arguments: tuple[str, ...]) -> None:
    assert CliRunner().invoke(app, ["report", *arguments]).exit_code == 2
