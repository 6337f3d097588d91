"""Turns in a workbook's plan, as whoever looks at it reads them."""

from __future__ import annotations

from datetime import date, time

import pytest
import sqlalchemy as sa

from polydesk_dagster.changes import registry, show
from polydesk_dagster.sources.practice import cells, importing
from polydesk_dagster.told import teller
from tests.sources.test_practice_workbook import TURNS, WHOLE, book, planned

AT_NINE = [*TURNS[:1], *(["BO01", "Cardiologia", day, "9:00", "12:00"] for day in ("lunedì", "giovedì", "ven"))]


@pytest.mark.parametrize(
    ("language", "days"),
    [
        ("it", ("lunedì", "giovedì", "venerdì")),
        ("en", ("Monday", "Thursday", "Friday")),
        ("de", ("Montag", "Donnerstag", "Freitag")),
    ],
)
def test_turns_at_the_same_hour_are_called_by_their_days(
    engine: sa.Engine, language: str, days: tuple[str, ...]
) -> None:
    found = planned(engine, book(WHOLE | {"Turni": AT_NINE}))
    t = teller(language)
    expected = {f"BO01 · Cardiologia · {day} 09:00" for day in days}
    (turns,) = (each for each in found.plans if each.kind == "practice_turn")
    with engine.connect() as connection:
        assert {t.value(row.key) for row in show.rows(connection, turns, registry.kind(turns.kind))} == expected
        shown = importing.shown(connection, found)
    cells = {t.value(cell) for table in shown.tables for row in table.rows for cell in row}
    assert expected <= cells


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("4 ottobre 2027", date(2027, 10, 4)),
        ("1° gennaio 2027", date(2027, 1, 1)),
        ("24 dic. 2026", date(2026, 12, 24)),
        ("3. März 2027", date(2027, 3, 3)),
        ("31 febbraio 2027", None),
        ("4 brumaio 2027", None),
        ("ore 14", time(14)),
        ("Ore 9.30", time(9, 30)),
        ("ore", None),
    ],
)
def test_days_and_hours_as_people_write_them(said: str, meant: date | time | None) -> None:
    read = cells._clock if said.lower().startswith("ore") else cells._day
    if meant is None:
        with pytest.raises(cells.UnfitError):
            read(said, {})
    else:
        assert read(said, {}) == meant
