"""The rows of a workbook that are to be corrected: named as long as its plans are, by sheet, row and column."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from polydesk_dagster.changes import registry
from polydesk_dagster.sources.practice import importing, problems
from polydesk_dagster.sources.practice.importing import Import
from polydesk_dagster.told import teller
from tests.sources.test_practice_workbook import SERVICES, TURNS, WHOLE, applied, book, planned, said
from tests.world import AS_OF

WRONG = [["BO01", "Cardiologia", "lunedì", "di mattina", "12"], ["BO01", "Nessuna", "lunedì", "9", "12"]]
BOTH = {"Turni": [*TURNS, *WRONG], "Prestazioni": [*SERVICES, ["BO01", "ECO", "Ecografia", "lunga", 80]]}


def _stored(engine: sa.Engine, found: Import) -> Import:
    with engine.connect() as connection:
        return importing.load(connection, found.number or 0)


def _cells(found: Import) -> list[tuple[object, ...]]:
    table, t = problems.table(found.problems), teller()
    assert table is not None
    return [tuple("" if cell is None else t.value(cell) for cell in row) for row in table.rows]


def test_what_could_not_be_read_is_named_by_each_of_its_plans_too(engine: sa.Engine) -> None:
    applied(engine, book(WHOLE))
    found = planned(engine, book(BOTH | {"Sedi": [["Clinica", "Nome"], ["BO01", "Nuova"]]}))
    assert len(said(found)) == 3
    assert said(_stored(engine, found)) == said(found)
    service, turn, unknown = _cells(_stored(engine, found))
    assert (service[:3], "lunga" in str(service[3])) == (("Prestazioni", "4", "Durata (minuti)"), True)
    assert (turn[:3], turn[3]) == (("Turni", "4", "Dalle"), "«di mattina» non è un'ora: scriverla come 09:30")
    assert (unknown[:2], "«Nessuna» non è in Polydesk" in str(unknown[3])) == (("Turni", "5"), True)
    with engine.begin() as connection:
        report = importing.apply(connection, found, as_of=AS_OF, actor="desk:test")
    assert [table.total for table in report.tables] == [3]
    assert said(_stored(engine, found)) == said(found), "they wait on when the rest is in"


def test_each_file_keeps_its_own_whatever_comes_after_it(engine: sa.Engine) -> None:
    applied(engine, book(WHOLE))
    more = {"Sedi": [["Clinica", "Nome"], ["BO01", "Nuova"]]}
    others = [WRONG[0], [*WRONG[0][:3], "x", "y"]]
    files = [book({"Turni": [*TURNS, *rows]} | more) for rows in (WRONG, WRONG[:1], others, [])]
    made = [planned(engine, each) for each in files]
    assert [len(said(each)) for each in made] == [2, 1, 2, 0]
    assert [said(_stored(engine, each)) for each in made] == [said(each) for each in made]


def test_only_the_first_are_shown_and_all_are_counted(engine: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    applied(engine, book(WHOLE))
    found = planned(engine, book({"Turni": [*TURNS, *WRONG[:1] * 4]}))
    monkeypatch.setattr(problems, "SHOWN_ROWS", 2)
    table = problems.table(found.problems)
    assert table is not None
    assert (len(table.rows), table.total) == (2, 4)
    assert problems.table([]) is None


def test_no_sheet_is_about_patients() -> None:
    """What is wrong in a row quotes it, and everybody may read that."""
    kinds = [name for name in registry.WHERE if name.startswith("practice_")]
    assert kinds
    assert not any(registry.kind(name).private for name in kinds)
