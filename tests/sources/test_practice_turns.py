"""Turns in a workbook's plan, as whoever looks at it reads them."""

from __future__ import annotations

import io
from datetime import date, time

import pytest
import sqlalchemy as sa

from polydesk_dagster.changes import registry, show
from polydesk_dagster.sources.practice import cells, importing, reading
from polydesk_dagster.told import teller, workbook
from tests.sources.test_practice_workbook import TURNS, WHOLE, book, planned, spreadsheets

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
        ("Ore 14,30", time(14, 30)),
        ("7/12/26", date(2026, 12, 7)),
        ("7/12/126", None),
    ],
)
def test_days_and_hours_as_people_write_them(said: str, meant: date | time | None) -> None:
    read = cells._clock if said.lower().startswith("ore") else cells._day
    if meant is None:
        with pytest.raises(cells.UnfitError):
            read(said, {})
    else:
        assert read(said, {}) == meant


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("lunedì", "mon"),
        ("lun-ven", "mon tue wed thu fri"),
        ("Da Lunedì a mercoledi", "mon tue wed"),
        ("mar e gio", "tue thu"),
        ("lun/mer, ven. – sab", "mon wed fri sat"),
        ("Mon to Wed and Fri", "mon tue wed fri"),
        ("Montag bis Mittwoch", "mon tue wed"),
        ("ven-lun", None),
        ("lun-mar-mer", None),
        ("lunedì mattina", None),
        ("-", None),
    ],
)
def test_several_days_in_a_cell(said: str, meant: str | None) -> None:
    if meant is None:
        with pytest.raises(cells.UnfitError):
            cells._days(said, workbook.words().terms)
    else:
        assert cells._days(said, workbook.words().terms) == tuple(meant.split())


def test_an_hour_typed_as_a_number_into_a_cell_of_hours_is_that_hour() -> None:
    """8.30 there is kept as eight days, seven hours and twelve minutes."""
    made = spreadsheets().load_workbook(
        io.BytesIO(book({"Turni": [*TURNS[:1], ["BO01", "Cardiologia", "lun", 8.3, 9]]}))
    )
    for place in (4, 5):
        made["Turni"].cell(2, place).number_format = "HH:MM"
    held = io.BytesIO()
    made.save(held)
    ((turn,),) = (each.records for each in reading.read(held.getvalue(), workbook.words()).sheets)
    assert (turn.values["starts_at"], turn.values["ends_at"]) == (time(8, 30), time(9))


def test_a_row_for_several_days_is_a_turn_each_and_has_no_number() -> None:
    turns = [
        ["Numero", *TURNS[0], "Minuti per appuntamento"],
        [None, "BO01", "Cardiologia", "lun-mer", 8.30, "12,30", "20 min"],
        [7, "BO01", "Cardiologia", "lun-mer", "9", "12", None],
        [None, "BO01", "Cardiologia", "lun", 8.50, "12", None],
    ]
    (found,) = reading.read(book({"Turni": turns}), workbook.words()).sheets
    said = ("weekday", "starts_at", "ends_at", "slot_minutes")
    assert [(each.line, *(each.values[key] for key in said)) for each in found.records] == [
        (2, day, time(8, 30), time(12, 30), 20) for day in ("mon", "tue", "wed")
    ]
    several, unclear = (teller("it").reason(wrong.why) for wrong in found.unreadable)
    assert "riga 3, «Giorno»: la riga ha un numero e vale per un giorno solo" in several
    assert "riga 4, «Dalle»: «8.5» non è un'ora" in unclear
