"""``polydesk closures``: what is typed becomes a closure, or is refused by what was typed."""

from __future__ import annotations

from datetime import date, time

import pytest
import typer

from polydesk_dagster.clinic.calendar.desk_closures import Closure
from polydesk_dagster.commands import closures


def test_what_is_typed_becomes_a_closure() -> None:
    read = closures._closure("Fiera", "2026-12-10", None, "09:00", "13:00", "BO01", None)
    day = date(2026, 12, 10)
    assert read == Closure("Fiera", day, day, time(9), time(13), "BO01")


@pytest.mark.parametrize(("first", "hour"), [("10/12/2026", None), ("2026-12-10", "le nove")])
def test_what_is_no_day_and_no_hour_is_named(first: str, hour: str | None) -> None:
    with pytest.raises(typer.BadParameter, match=first if hour is None else hour):
        closures._closure("Fiera", first, None, hour, hour, None, None)
