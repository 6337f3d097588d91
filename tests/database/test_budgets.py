"""Paths that go through many rows at once cost so many blocks and so much log a row, at any size and in any company.

Each is tried at five sizes, so that one whose plan turns quadratic shows: every doubling costs a row no more than the
others. Several share a world, one after the other. What a row takes of the processor is compared too, in units of work
that is the same for ever and is done meanwhile: roughly, for who else is at work can make a row three times as dear and
the unit not.

``budgets.json`` is the history: a path that costs more than its last entry fails here. Who makes one dearer on purpose
adds an entry, and says why in the commit; who makes one cheaper adds one so that it stays so.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from polydesk_dagster.clinic.messages import hours, planning
from polydesk_dagster.database.engine import create_engine
from tests import postgres
from tests.budgets import Spent, spent
from tests.database.paths import MORNING, PATHS, VISITS, WORLDS, World, day

FILE = Path(__file__).with_name("budgets.json")
HISTORY: dict[str, list[dict[str, Any]]] = json.loads(FILE.read_text())
SIZES = (300, 500, 900, 1600, 3200)
ROOM = 1.25
LITTLE = {"blocks": 1.0, "log": 10.0}
"""How much more than the budget is still the same: where rows lie on their blocks is not the same twice."""
GROWTH = 2.0
"""How much more a row may cost in the last doubling than on the way there; of what is quadratic, 2.6 times as much."""

ROUGHLY = 10.0
"""How many times as much of the processor a row may take as it did; blind plans took 17 and 66 times as much."""
MOMENTS = 50_000
"""Microseconds that any piece of work may take besides: the system counts a process's time in hundredths of a second,
and whoever is interrupted pays for it."""
UNIT = "SELECT sum(hashint8(n)), count(DISTINCT n % 1000) FROM generate_series(1, 200000) n"


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS)
def test_a_row_costs_no_more_than_it_did(server: sa.URL, path: str) -> None:
    """Too dear is what is so twice: others' work on the server can only add. Where they define so much meanwhile that a
    session must read its whole catalogue anew, that alone is a thousand blocks."""
    made = next(made for made, paths in WORLDS.items() if path in paths)
    dear = too_dear(server, path, tried(server, made)[path])
    again = too_dear(server, path, tried(server, made, again=True)[path]) if dear else []
    assert not (dear and again), (dear, again)


def too_dear(server: sa.URL, path: str, found: dict[int, Spent]) -> list[str]:
    """What of a path costs more than its budget allows, in words."""
    budget, dear = HISTORY[path][-1], []
    whole, last = between(path, found, SIZES[0], SIZES[-1]), between(path, found, SIZES[-2], SIZES[-1])
    before = between(path, found, SIZES[0], SIZES[-2])
    for what, little in LITTLE.items():
        if whole[what] > ROOM * budget[what] + little:
            dear.append(f"{path}: {whole[what]:.2f} {what} a row, {budget[what]} before")
        if last[what] > GROWTH * max(before[what], budget[what]) + little:
            dear.append(f"{path}: {last[what]:.2f} {what} a row at {SIZES[-1]}, {before[what]:.2f} below")
    measure = unit(server)
    now, then = a_row(path, found) / measure, budget["cpu"] / budget["unit"]
    if now > ROUGHLY * then + MOMENTS / measure / SIZES[-1] / PATHS[path]:
        dear.append(f"{path}: a row takes {now:.6f} units of the processor, {then:.6f} before")
    return dear


@pytest.mark.slow
@pytest.mark.parametrize("wrong", ["blocks", "log", "cpu", "growth"])
def test_what_costs_more_is_found(server: sa.URL, wrong: str) -> None:
    """Of a path that costs what its budget says, and of one of which one thing costs more."""
    path = "patients imported"
    budget = HISTORY[path][-1]
    seconds = {size: size * PATHS[path] * budget["cpu"] / budget["unit"] * unit(server) / 1e6 for size in SIZES}
    rows = {size: size * PATHS[path] for size in SIZES}
    well = {n: Spent(int(rows[n] * budget["blocks"]), int(rows[n] * budget["log"]), seconds[n]) for n in SIZES}
    assert too_dear(server, path, well) == []
    ill = {
        "blocks": {n: replace(each, blocks=2 * each.blocks) for n, each in well.items()},
        "log": {n: replace(each, log=2 * each.log) for n, each in well.items()},
        "cpu": {n: replace(each, cpu=17 * each.cpu) for n, each in well.items()},
        "growth": well | {SIZES[-1]: replace(well[SIZES[-1]], blocks=3 * well[SIZES[-1]].blocks)},
    }
    assert too_dear(server, path, ill[wrong])


@cache
def tried(
    server: sa.URL, made: Callable[[sa.Engine, int], World], *, again: bool = False
) -> dict[str, dict[int, Spent]]:
    """What each path of a world costs at each size, in a database of its own; ``again`` is kept beside the first."""
    costs: dict[str, dict[int, Spent]] = {}
    for rows in SIZES:
        with postgres.copied(server, postgres.EMPTY) as url:
            engine = create_engine(url)
            for path, work in made(engine, rows):
                costs.setdefault(path, {})[rows] = spent(url, work)
            engine.dispose()
    return costs


@pytest.mark.slow
def test_no_reminder_is_compared_with_all_others(server: sa.URL) -> None:
    said: list[tuple[str, Any]] = []
    with postgres.copied(server, postgres.EMPTY) as url:
        engine = create_engine(url)
        for path, work in day(engine, 800):
            if path == "reminders planned":
                break
            work(engine)
        with engine.connect() as connection:
            found = hours.load(connection, MORNING)
            sa.event.listen(connection, "before_cursor_execute", lambda *given: said.append((given[2], given[3])))
            planned = planning.plan(connection, "reminder", MORNING, found)
            connection.rollback()
            for statement, values in [each for each in said if "wanted" in each[0]]:
                explain = "EXPLAIN (ANALYZE, FORMAT JSON, TIMING OFF) " if statement.lstrip().startswith("WITH") else ""
                told = connection.exec_driver_sql(explain + statement, values)
            compared = _thrown_away(told.scalar_one()[0]["Plan"])
        engine.dispose()
    assert planned.messages == 800 * VISITS
    assert compared <= 5 * planned.messages


def _thrown_away(node: dict[str, Any]) -> int:
    """Rows, or pairs of them, that a plan looked at for nothing."""
    removed = node.get("Rows Removed by Filter", 0) + node.get("Rows Removed by Join Filter", 0)
    return int(removed * node["Actual Loops"]) + sum(map(_thrown_away, node.get("Plans", ())))


def between(path: str, costs: dict[int, Spent], small: int, large: int) -> dict[str, float]:
    """Blocks and bytes of log for each row more: what a path costs without any is no row's."""
    less, more, rows = costs[small], costs[large], (large - small) * PATHS[path]
    return {"blocks": (more.blocks - less.blocks) / rows, "log": (more.log - less.log) / rows}


def a_row(path: str, costs: dict[int, Spent]) -> float:
    """Microseconds of the processor for each row of the largest size, all that it took divided by them."""
    return 1e6 * costs[SIZES[-1]].cpu / SIZES[-1] / PATHS[path]


@cache
def unit(server: sa.URL) -> float:
    """Microseconds of the processor, of server and client, for what measures the machine: the least of three."""

    def work(engine: sa.Engine) -> None:
        with engine.connect() as connection:
            connection.execute(sa.text(UNIT))
        rows = [{"number": n, "amount": f"{n % 90}.00"} for n in range(40_000)]
        assert len(json.loads(json.dumps(rows))) == len(rows)

    with postgres.copied(server, postgres.EMPTY) as url:
        return 1e6 * min(spent(url, work).cpu for _ in range(3))


def write() -> None:
    """Add what is measured now to the history: ``python -m tests.database.test_budgets``."""
    today = datetime.now(UTC).date().isoformat()
    with postgres.started() as server:
        measure = unit(server)
        for path, costs in ((path, costs) for made in WORLDS for path, costs in tried(server, made).items()):
            found = between(path, costs, SIZES[0], SIZES[-1])
            found |= {"cpu": a_row(path, costs), "unit": measure}
            found = {what: round(value, 1) for what, value in found.items()}
            HISTORY.setdefault(path, []).append({"on": today, **found})
    FILE.write_text(json.dumps(HISTORY, indent=1) + "\n")


if __name__ == "__main__":
    write()
