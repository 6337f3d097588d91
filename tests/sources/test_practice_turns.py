"""Turns in a workbook's plan, as whoever looks at it reads them."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from polydesk_dagster.changes import registry, show
from polydesk_dagster.sources.practice import importing
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
