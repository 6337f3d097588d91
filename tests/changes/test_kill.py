"""Killed at any moment, nothing is half done and the next run completes; of two that apply one plan, one wins."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa

from polydesk_dagster.changes import audit, plans
from polydesk_dagster.changes.plans import Scope
from polydesk_dagster.changes.synchronise import synchronise
from polydesk_dagster.outcome import Outcome
from polydesk_dagster.sources.kinds.prices import PRICE
from tests import world
from tests.changes import world as w
from tests.changes.worker import COUNT, prices
from tests.warm import Program

pytestmark = pytest.mark.slow


@pytest.fixture
def clinic(engine: sa.Engine) -> int:
    with engine.begin() as connection:
        clinic = world.clinic(connection)
        world.insert(
            connection,
            "service",
            [
                {"clinic_id": clinic, "external_id": f"S{n}", "code": f"C{n}", "name": "Visita", "duration_minutes": 9}
                for n in range(COUNT)
            ],
        )
    report = synchronise(engine, PRICE, Scope("sync_prices", "BO01", clinic), w.pages(prices(50)), as_of=world.AS_OF)
    assert report.counts.created == COUNT
    return clinic


WORK = """
import sys
from tests.changes.worker import main
main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
"""


def start(engine: sa.Engine, job: str, moment: int, argument: int, clinic: int) -> Program:
    url = engine.url.render_as_string(hide_password=False)
    return Program(WORK, url, job, str(moment), str(argument), str(clinic))


def state(engine: sa.Engine) -> dict[str, Any]:
    with engine.connect() as connection:
        amounts = connection.execute(sa.text("SELECT count(*) FILTER (WHERE amount >= 60), count(*) FROM price")).one()
        applied = connection.scalar(sa.text("SELECT count(*) FROM plan WHERE state = 'applied'"))
        lines = connection.scalar(sa.text("SELECT count(*) FROM audit"))
        assert audit.verify(connection) == []
        tables = set(connection.scalars(sa.text("SELECT tablename FROM pg_tables WHERE schemaname = 'plan_rows'")))
        kept = set(connection.scalars(sa.text("SELECT 'p' || id FROM plan WHERE rows_kept")))
        assert tables == kept, "every table of rows has its plan, and the other way round"
    return {"changed": amounts[0], "prices": amounts[1], "applied": applied, "lines": lines}


def killed(process: Program) -> bool:
    return process.read()[0] == -9


@pytest.mark.parametrize(("job", "moments"), [("read", (1, 4)), ("sync", (5, 15, 25))])
def test_killed_while_reading_planning_or_applying(
    engine: sa.Engine, clinic: int, job: str, moments: tuple[int, ...]
) -> None:
    before = state(engine)
    for moment in moments:
        assert killed(start(engine, job, moment, 51, clinic)), moment
        now = state(engine)
        assert (now["changed"], now["lines"]) == (before["changed"], before["lines"])
    changed = w.pages([*prices(50)[: COUNT - 20], *prices(53)[COUNT - 20 :]])
    report = synchronise(engine, PRICE, Scope("sync_prices", "BO01", clinic), changed, as_of=world.AS_OF)
    assert (report.outcome, report.counts.updated) == (Outcome.OK, 20)


def _few(engine: sa.Engine, clinic: int) -> int:
    """The plan of a change of twenty prices, not applied."""
    changed = w.pages([*prices(50)[: COUNT - 20], *prices(60)[COUNT - 20 :]])
    report = synchronise(engine, PRICE, Scope("sync_prices", "BO01", clinic), changed, as_of=world.AS_OF, preview=True)
    assert report.plan_id is not None
    return report.plan_id


def test_killed_while_applying_and_undoing(engine: sa.Engine, clinic: int) -> None:
    plan = _few(engine, clinic)
    before = state(engine)
    for moment in (3, 9):
        assert killed(start(engine, "apply", moment, plan, clinic)), moment
        assert state(engine) == before
    _, done = start(engine, "apply", 0, plan, clinic).read()
    assert done == "ok"
    applied = state(engine)
    assert (applied["changed"], applied["lines"]) == (20, before["lines"] + 1)
    for moment in (6, 13):
        assert killed(start(engine, "undo", moment, plan, clinic)), moment
        assert state(engine) == applied
    _, done = start(engine, "undo", 0, plan, clinic).read()
    assert done == "ok"
    assert state(engine)["changed"] == 0


def test_of_two_that_apply_one_plan_one_wins(engine: sa.Engine, clinic: int) -> None:
    plan = _few(engine, clinic)
    lines = state(engine)["lines"]
    both = [start(engine, "apply", 0, plan, clinic) for _ in range(2)]
    said = sorted(process.read()[1] for process in both)
    assert said == ["ok", "refused"]
    assert state(engine)["lines"] == lines + 1
    with engine.connect() as connection:
        assert plans.load(connection, plan).state == "applied"
