"""The practice's workbook as it leaves: it is the template, holds what we hold, and comes back edited."""

from __future__ import annotations

import io
from datetime import time

import pytest
import sqlalchemy as sa

from polydesk_dagster.outcome import Outcome
from polydesk_dagster.sources.practice import exporting, importing, reading, undoing
from polydesk_dagster.sources.practice.sheets import SHEETS
from polydesk_dagster.told import teller, workbook
from polydesk_dagster.told.catalogue import LANGUAGES
from polydesk_dagster.values import Count
from tests.sources.test_practice_workbook import all_of, applied, planned, said, spreadsheets
from tests.world import AS_OF


@pytest.mark.slow
@pytest.mark.parametrize("language", LANGUAGES)
def test_what_is_exported_is_nothing_to_do(small_chain: sa.Engine, language: str) -> None:
    held = io.BytesIO()
    with small_chain.connect() as connection:
        rows = exporting.export(connection, held, teller(language))
    assert rows > 100
    found = planned(small_chain, held.getvalue())
    assert (said(found), [(plan.kind, plan.tally) for plan in found.plans], found.passed) == ([], [], ())
    with small_chain.connect() as connection:
        (same,) = importing.shown(connection, found).reasons
    assert (same.code, same.values["rows"]) == ("workbook_same", Count("rows", rows))


@pytest.mark.slow
def test_an_edited_row_shows_before_and_after_and_can_be_taken_back(small_chain: sa.Engine) -> None:
    held = io.BytesIO()
    with small_chain.connect() as connection:
        exporting.export(connection, held, teller("it"))
    edited = spreadsheets().load_workbook(io.BytesIO(held.getvalue()))
    page = edited["Turni"]
    titles = [cell.value for cell in page[1]]
    number = page.cell(2, titles.index("Numero") + 1).value
    ends = page.cell(2, titles.index("Alle *") + 1)
    before = ends.value
    ends.value = time(19, 40)
    agenda = edited["Agende"]
    listed = agenda.cell(2, [cell.value for cell in agenda[1]].index("Prestazioni") + 1)
    kept, _, dropped = listed.value.rpartition("; ")
    listed.value = kept
    held = io.BytesIO()
    edited.save(held)
    was = all_of(small_chain, "SELECT * FROM agenda_service ORDER BY 1, 2, 3")
    with small_chain.begin() as connection:  # as somebody who has looked at it applies it by its number
        found = importing.load(connection, planned(small_chain, held.getvalue()).number or 0)
        report = importing.apply(connection, found, as_of=AS_OF, actor="desk:test")
    assert report.counts.updated == 1
    assert report.counts.retired == 1
    assert dropped
    assert all_of(small_chain, f"SELECT ends_at FROM agenda_rule WHERE id = {number}") == [(time(19, 40),)]
    with small_chain.begin() as connection:
        back = undoing.undo(connection, found, as_of=AS_OF, actor="desk:test", reason="era una prova soltanto")
    assert (back.outcome, {reason.code for reason in back.reasons}) == (Outcome.OK, {"other_plans"})
    assert all_of(small_chain, f"SELECT ends_at FROM agenda_rule WHERE id = {number}") == [(before,)]
    assert all_of(small_chain, "SELECT * FROM agenda_service ORDER BY 1, 2, 3") == was
    again, report = applied(small_chain, held.getvalue())  # taken back and handed over again: that is no doubt
    assert (again.does, said(again)) == (True, [])
    assert (report.counts.updated, report.counts.retired) == (1, 1)


@pytest.mark.slow
def test_the_template_is_read_and_holds_nothing(engine: sa.Engine) -> None:
    held = io.BytesIO()
    exporting.template(held, teller("it"))
    read = reading.read(held.getvalue(), workbook.words())
    assert [each.sheet.key for each in read.sheets] == [sheet.key for sheet in SHEETS]
    assert read.passed == ()
    assert planned(engine, held.getvalue()).plans == ()


@pytest.mark.parametrize(
    "name", ['=HYPERLINK("http://x.example")', "+39 051", "-1+2", "@SUM(A1)", "<b>x</b>", "[a](b)"]
)
def test_what_begins_like_a_formula_leaves_as_text(small_chain: sa.Engine, name: str) -> None:
    held = io.BytesIO()
    with small_chain.connect() as connection:
        connection.execute(
            sa.text("UPDATE clinic SET name = :name WHERE id = (SELECT min(id) FROM clinic)"), {"name": name}
        )
        exporting.export(connection, held, teller("it"))
        connection.rollback()
    cells = [
        cell
        for page in spreadsheets().load_workbook(held)
        for row in page.iter_rows()
        for cell in row
        if cell.value is not None
    ]
    assert {cell.data_type for cell in cells if cell.value == name} == {"s"}
    assert "f" not in {cell.data_type for cell in cells if cell.row > 1}
