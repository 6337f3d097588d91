"""``polydesk practice``: what a workbook gave is bookable at once, and one command takes it back with its slots."""

from __future__ import annotations

from pathlib import Path

import pytest

from polydesk_dagster.commands.installation import opened
from tests.commands.test_cli import Installation, fresh
from tests.sources.test_practice_workbook import TURNS, WHOLE, all_of, book

__all__ = ["fresh"]  # a fixture
pytestmark = pytest.mark.slow

WHY = "era soltanto una prova"
SLOTS = "SELECT agenda_id, starts_at, ends_at FROM slot WHERE state = 'free' ORDER BY 1, 2"
DAYS = "SELECT DISTINCT CAST(extract(isodow FROM local_date) AS integer) FROM slot WHERE state = 'free' ORDER BY 1"
CHANGED = [*TURNS, ["BO01", "Cardiologia", "venerdì", "8", "10"]]


def test_what_is_imported_is_bookable_and_is_taken_back_with_its_slots(
    fresh: Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, turns = tmp_path / "whole.xlsx", tmp_path / "turns.xlsx"
    whole.write_bytes(book(WHOLE))
    turns.write_bytes(book({"Turni": CHANGED}))
    for name, value in fresh.environment.items():
        monkeypatch.setenv(name, value)
    with opened(create=True) as here:
        _, first = fresh.json("practice", "import", str(whole))
        before = all_of(here.engine, SLOTS)
        assert all_of(here.engine, DAYS) == [(1,), (4,)]
        _, second = fresh.json("practice", "import", str(turns))
        assert all_of(here.engine, DAYS) == [(1,), (4,), (5,)]
        given = second["slots"]["counts"]["created"]
        assert given > 0.2 * len(before), "so many that generation alone would leave them for a person"

        status, back = fresh.json("practice", "undo", str(second["plan_id"]), "--reason", WHY)
        assert (status, back["outcome"], back["counts"]["retired"]) == (0, "ok", 1)
        assert (back["slots"]["outcome"], back["slots"]["counts"]["retired"]) == ("ok", given)
        assert (back["slots"]["counts"]["waiting"], back["slots"]["reasons"]) == (0, [])
        assert all_of(here.engine, SLOTS) == before

        status, back = fresh.json("practice", "undo", str(first["plan_id"]), "--reason", WHY)
        assert back["reasons"], "the clinic stays, and is named"
        for table in ("location", "specialist", "service", "agenda", "agenda_rule", "slot"):
            assert all_of(here.engine, f"SELECT count(*) FROM {table}") == [(0,)], table


def test_the_plan_of_one_sheet_is_applied_with_its_whole_file(
    fresh: Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tmp_path / "whole.xlsx"
    whole.write_bytes(book(WHOLE))
    for name, value in fresh.environment.items():
        monkeypatch.setenv(name, value)
    with opened(create=True) as here:
        _, seen = fresh.json("practice", "import", str(whole), "--preview")
        assert fresh.json("practice", "problems", str(seen["plan_id"])) == (0, [])
        status, done = fresh.json("plan", "apply", str(seen["plans"][0]))
        assert (status, done["outcome"], done["plan_id"]) == (0, "ok", seen["plan_id"])
        assert [each["code"] for each in done["reasons"]] == ["slots_wait"]
        assert all_of(here.engine, "SELECT count(*) FROM agenda_rule") == [(len(TURNS) - 1,)]
        whole.write_bytes(book({"Turni": [*TURNS, ["BO01", "Cardiologia", "mai", "8", "10"]]}))
        _, seen = fresh.json("practice", "import", str(whole), "--preview")
        assert fresh.json("practice", "problems", str(seen["plan_id"])) == (0, seen["problems"])
        (wrong,) = seen["problems"]
        assert (wrong["sheet"], wrong["row"]) == ("turns", 4)
