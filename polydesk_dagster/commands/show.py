"""How the command speaks: Italian for people (another language with ``--lang``), one JSON object for programs."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from polydesk_dagster.inert import as_json as written
from polydesk_dagster.inert import plain
from polydesk_dagster.told import Teller, teller
from polydesk_dagster.values import Reason, Value

_language = "it"


def speak(language: str) -> None:
    """Choose the language of everything that is printed from now on: ``it``, ``en`` or ``de``."""
    global _language  # noqa: PLW0603 - one process serves one person
    _language = language


def say(name: str, /, **values: Value) -> str:
    """The sentence ``name`` of the catalogues in the chosen language."""
    return told().text(name, **values)


def told() -> Teller:
    """Who speaks the chosen language."""
    return teller(_language)


def why(reason: Reason) -> str:
    """A reason in words, after the clinic that it is about, where there is one."""
    return (f"{reason.clinic}: " if reason.clinic else "") + told().reason(reason)


def columns(*keys: str) -> tuple[str, ...]:
    """The titles of a table's columns."""
    return tuple(told().label("column", key) for key in keys)


def out() -> Console:
    """Standard output; wide enough for a table when nobody's terminal says otherwise."""
    console = _console()
    return console if console.is_terminal else _console(width=160)


def err() -> Console:
    return _console(stderr=True)


class _Inert(Console):
    """Prints text from anywhere without what would steer the terminal: its own colours come as styles."""

    def print(self, *objects: Any, **options: Any) -> None:
        super().print(*map(_inert, objects), **options)


def _inert(printed: Any) -> Any:
    if isinstance(printed, str):
        return plain(printed)
    if isinstance(printed, Text) and (clean := plain(printed.plain)) != printed.plain:
        return Text(clean, printed.style)
    return printed


def _console(**options: Any) -> Console:
    """What is printed is data, whose brackets and colons mean nothing; colours come as styles and as ``Text``."""
    return _Inert(highlight=False, markup=False, emoji=False, **options)


def as_json(value: object) -> None:
    sys.stdout.write(written(value) + "\n")


NARROW = 80
"""Columns of a terminal below which a row is told line by line: a key that is folded cannot be copied."""


def table(title: str | None, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    console = out()
    told_rows = [
        [_inert(cell if isinstance(cell, Text) else "" if cell is None else str(cell)) for cell in row] for row in rows
    ]
    if not told_rows:
        console.print(": ".join(filter(None, (title, say("command.nothing")))))
        return
    if console.width < NARROW:
        _line_by_line(console, title, columns, told_rows)
        return
    shown = Table(title=_inert(title), title_justify="left")
    for column in columns:
        shown.add_column(_inert(column), overflow="fold")  # a key that is cut cannot be typed
    for cells in told_rows:
        shown.add_row(*cells)
    console.print(shown)


def _cell(cell: Any) -> str | Text:
    return cell if isinstance(cell, Text) else "" if cell is None else str(cell)


def _line_by_line(
    console: Console, title: str | None, columns: Sequence[str], rows: Sequence[Sequence[str | Text]]
) -> None:
    if title:
        console.print(title, style="italic")
    for cells in rows:
        console.rule(style="dim")
        for column, cell in zip(columns, cells, strict=True):
            if str(cell):
                console.print(Text.assemble((f"{column}: " if column else "", "bold"), cell))


COLOURS = {
    "ok": "green",
    "nothing_to_do": "green",
    "skipped": "yellow",
    "partial": "yellow",
    "refused": "red",
    "failed": "red",
}


def outcome(key: str) -> Text:
    """The outcome in words, coloured for a terminal."""
    return Text(told().outcome(key), COLOURS[key])


def counts(values: dict[str, int]) -> str:
    return told().counts(values)
