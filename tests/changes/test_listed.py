"""The list of plans shows what wants somebody, and the rest where it is asked for."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from psycopg.types.json import Json

from polydesk_dagster.changes import listed
from tests import world

NOW = datetime.now(UTC)


def _plan(connection: sa.Connection, **fields: Any) -> int:
    row = {
        "service": "sync_prices",
        "kind": "price",
        "fingerprint": "f",
        "tally": Json({"create": 2}),
        "guards": Json([]),
        "state": "ready",
        "as_of": NOW,
        "expires_at": NOW + timedelta(days=1),
        "applied_at": None,
        "applied_by": None,
        **fields,
    }
    return world.insert(connection, "plan", [row])[0]


FAILED = Json([{"name": "source_short", "passed": False, "message": "", "value": 1, "limit": 2}])
PASSED = Json([{"name": "source_short", "passed": True, "message": "", "value": 1, "limit": 2}])


@pytest.mark.parametrize(
    ("fields", "shown"),
    [
        ({}, True),
        ({"tally": Json({"conflict": 3})}, True),
        ({"tally": Json({"unchanged": 9}), "guards": FAILED}, True),
        ({"tally": Json({"unchanged": 9}), "guards": PASSED}, False),
        ({"tally": Json({"seen": 9, "unchanged": 9, "rejected": 0, "set_aside": 0}), "guards": PASSED}, False),
        ({"tally": Json({"seen": 9, "unchanged": 8, "rejected": 1}), "guards": PASSED}, True),
        ({"expires_at": NOW - timedelta(hours=1)}, False),
        ({"expires_at": NOW - timedelta(hours=1), "guards": FAILED}, False),
        ({"state": "applied", "applied_at": NOW, "applied_by": "desk:anna"}, True),
        ({"state": "applied", "applied_at": NOW, "applied_by": "dagster"}, False),
        ({"state": "undone", "applied_at": NOW, "applied_by": "dagster"}, True),
    ],
)
def test_what_wants_nobody_is_shown_only_when_asked_for(
    connection: sa.Connection, fields: dict[str, Any], shown: bool
) -> None:
    number = _plan(connection, **fields)
    assert [plan.id for plan in listed.latest(connection, routine=False)] == ([number] if shown else [])
    assert [plan.id for plan in listed.latest(connection)] == [number]


READ = Json({"seen": 3, "create": 2})
MEMBERS = {"tally": Json({"create": 2}), "scope": Json({"sheet": "practice_agenda_service"})}
"""What a cell of a workbook's row lists: a plan of its own, whose rows are not counted as read."""


@pytest.mark.parametrize(
    ("first", "second", "standing"),
    [
        ({}, {}, "superseded"),
        ({}, {"state": "applied", "applied_at": NOW, "applied_by": "dagster"}, "superseded"),
        ({"expires_at": NOW - timedelta(hours=1)}, {}, "expired"),
        ({"state": "applied", "applied_at": NOW, "applied_by": "dagster"}, {}, "applied"),
        ({}, {"kind": "agreement"}, "ready"),
        ({}, {"service": "import_practice"}, "ready"),
        ({}, {"scope": Json({"sheet": "turns"})}, "ready"),
        ({"tally": Json({"create": 2})}, {"tally": Json({"create": 1})}, "ready"),
        (MEMBERS, MEMBERS, "superseded"),
    ],
    ids=["again", "done", "over", "applied", "kind", "service", "scope", "not a list", "a list within a sheet"],
)
def test_a_plan_of_a_list_that_was_compared_again_is_called_superseded(
    connection: sa.Connection, first: dict[str, Any], second: dict[str, Any], standing: str
) -> None:
    old, new = _plan(connection, **{"tally": READ, **first}), _plan(connection, **{"tally": READ, **second})
    found = {plan.id: plan.standing for plan in listed.latest(connection)}
    assert (found[old], found[new]) == (standing, second.get("state", "ready"))


def test_a_page_of_plans_is_hers_alone_however_many_others_there_are_and_says_where_the_next_begins(
    connection: sa.Connection,
) -> None:
    hers, other, code = world.clinic(connection, code="BO07"), world.clinic(connection, code="BO08"), "BO07"
    chain = _plan(connection)
    mine = [_plan(connection, clinic_id=hers) for _ in range(3)]
    silent = _plan(connection, clinic_id=hers, tally=Json({"seen": 9, "unchanged": 9}))
    for _ in range(5):
        _plan(connection, clinic_id=other)
    first = listed.page(connection, clinics=[code], limit=2)
    assert ([plan.id for plan in first.plans], first.before) == ([mine[2], mine[1]], mine[0])
    second = listed.page(connection, clinics=[code], limit=2, last=first.before)
    assert ([plan.id for plan in second.plans], second.before) == ([mine[0], chain], None)
    span = listed.page(connection, clinics=None, limit=9, first=mine[1], last=silent, silent=True)
    assert [plan.id for plan in span.plans] == [silent, mine[2], mine[1]]
    assert len(listed.page(connection, clinics=None, limit=20).plans) == 9
    assert listed.page(connection, clinics=[], limit=20).plans[0].id == chain


TOUCHED = sa.text("""
    SELECT seq_tup_read + coalesce(idx_tup_fetch, 0) FROM pg_stat_xact_user_tables WHERE relname = 'plan'""")
OF_MANY = sa.text("""
    INSERT INTO plan (service, kind, clinic_id, fingerprint, tally, guards, state, as_of, expires_at, applied_at,
                      applied_by)
    SELECT 'sync_prices', 'price', c.id, 'f', '{"unchanged": 9}', '[]', 'applied', now(), now(), now(), 'dagster'
    FROM generate_series(1, 30), clinic c""")


def test_whoever_works_for_one_of_many_clinics_waits_for_no_plan_of_the_others(connection: sa.Connection) -> None:
    world.clinic(connection)
    connection.execute(
        sa.text("""INSERT INTO clinic (code, name, municipality_code, region)
                                  SELECT 'ZZ' || n, name, municipality_code, region FROM clinic
                                  CROSS JOIN generate_series(1, 200) n""")
    )
    connection.execute(OF_MANY)
    hers = connection.scalar(sa.text("SELECT id FROM clinic WHERE code = 'ZZ7'"))
    number = _plan(connection, clinic_id=hers)
    whole = _plan(connection)
    connection.execute(sa.text("ANALYZE plan"))
    before = connection.scalar(TOUCHED)
    shown = listed.page(connection, clinics=["ZZ7"], limit=100)
    assert [plan.id for plan in shown.plans] == [whole, number]
    assert connection.scalar(TOUCHED) - before <= 50
    assert listed.page(connection, clinics=[], limit=100).plans == [plan for plan in shown.plans if plan.id == whole]
