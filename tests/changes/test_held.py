"""Rows held back one by one: the rest is applied, they wait by name, and what goes together stays whole."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import pytest
import sqlalchemy as sa

from polydesk_dagster import changes
from polydesk_dagster.changes import audit, plans, registry, show
from polydesk_dagster.changes.hold import hold, release
from polydesk_dagster.changes.plans import Scope
from polydesk_dagster.changes.synchronise import settle
from polydesk_dagster.outcome import Outcome, Report
from tests import world
from tests.sources.lab import PRICES, SERVICES, Lab, lab, synced

__all__ = ["lab", "synced"]  # fixtures

ANNA = "manager:anna@example.org"
RENAMED = [each | {"name": f"{each['name']} bis"} if each["id"] in {"S0", "S1", "S2"} else each for each in SERVICES]
NAMES = "SELECT external_id, name FROM service WHERE external_id IN ('S0', 'S1', 'S2') ORDER BY 1"


def rows(lab: Lab, plan_id: int) -> dict[str, show.Row]:
    plan = plans.load
    with lab.engine.connect() as connection:
        found = plan(connection, plan_id)
        return {row.key: row for row in show.rows(connection, found, registry.kind(found.kind))}


def looked(lab: Lab, feed: str) -> int:
    report = lab.sync(feed, preview=True)
    assert report.plan_id is not None
    return report.plan_id


def held(lab: Lab, plan_id: int, numbers: Collection[int]) -> Report:
    with lab.engine.begin() as connection:
        return hold(connection, plan_id, numbers, as_of=world.AS_OF, actor=ANNA, reason="Ne parlo con la dottoressa")


def let_go(lab: Lab, plan_id: int, numbers: Collection[int]) -> Report:
    with lab.engine.begin() as connection:
        return release(connection, plan_id, numbers, as_of=world.AS_OF, actor=ANNA)


def applied(lab: Lab, plan_id: int, **more: Any) -> Report:
    with lab.engine.connect() as connection:
        plan = plans.load(connection, plan_id)
    scope = Scope(plan.service, plan.clinic, plan.clinic_id, plan.scope)
    return settle(lab.engine, registry.kind(plan.kind), scope, plan, as_of=world.AS_OF, actor=ANNA, **more)


@pytest.fixture
def renamed(synced: Lab) -> Lab:
    synced.hold(services=RENAMED)
    return synced


def test_a_held_row_waits_the_rest_is_applied_and_the_next_plan_names_it_again(renamed: Lab) -> None:
    plan = looked(renamed, "services")
    number = rows(renamed, plan)["89.01 Visita 1 bis"].ordinal
    said = held(renamed, plan, [number])
    assert (said.outcome, said.counts.waiting) == (Outcome.OK, 1), said
    row = rows(renamed, plan)["89.01 Visita 1 bis"]
    assert row.held
    assert row.reason is not None
    assert (row.reason.code, row.reason.values["who"]) == ("held_back", ANNA)
    report = applied(renamed, plan)
    assert (report.outcome, report.counts.updated, report.counts.waiting) == (Outcome.PARTIAL, 2, 1)
    as_held = [("S0", "Visita 0 bis"), ("S1", "Visita 1"), ("S2", "Visita 2 bis")]
    assert renamed.rows(NAMES) == as_held
    # What waited before does not colour the next run, and it is not written by it.
    again = renamed.sync("services")
    assert (again.outcome, again.counts.waiting, again.counts.changed) == (Outcome.NOTHING_TO_DO, 1, 0)
    assert rows(renamed, again.plan_id or 0)["89.01 Visita 1 bis"].held
    assert renamed.rows(NAMES) == as_held
    with renamed.engine.begin() as connection:
        back = changes.undo(connection, plan, as_of=world.AS_OF, actor=ANNA)
    assert (back.outcome, back.counts.updated) == (Outcome.OK, 2)
    assert renamed.rows(NAMES) == [("S0", "Visita 0"), ("S1", "Visita 1"), ("S2", "Visita 2")]


def test_what_is_let_go_is_written_by_the_plan_that_it_stands_in(renamed: Lab) -> None:
    first = looked(renamed, "services")
    number = rows(renamed, first)["89.01 Visita 1 bis"].ordinal
    before = rows(renamed, first)
    held(renamed, first, [number])
    assert let_go(renamed, first, [number]).outcome is Outcome.OK
    assert rows(renamed, first) == before
    held(renamed, first, [number])
    later = looked(renamed, "services")
    number = rows(renamed, later)["89.01 Visita 1 bis"].ordinal
    assert let_go(renamed, later, [number]).outcome is Outcome.OK
    report = applied(renamed, later)
    assert (report.outcome, report.counts.updated, report.counts.waiting) == (Outcome.OK, 3, 0)


def test_an_older_plan_does_not_write_what_was_held_back_since(renamed: Lab) -> None:
    older, newer = looked(renamed, "services"), looked(renamed, "services")
    held(renamed, newer, [rows(renamed, newer)["89.01 Visita 1 bis"].ordinal])
    report = applied(renamed, older)
    assert [reason.code for reason in report.reasons] == ["held_meanwhile"]
    assert renamed.rows(NAMES)[0] == ("S0", "Visita 0")


def test_what_goes_together_is_held_together_and_its_guard_is_asked_again(synced: Lab) -> None:
    jump = {"valid_from": "2026-02-01"}
    dearer = [PRICES[2] | jump | {"amount": "99.00"}, PRICES[3] | jump | {"amount": "54.00"}]
    synced.hold(prices=[*PRICES[:2], *dearer, *PRICES[4:]])
    plan = looked(synced, "prices")
    pair = {"89.02 Visita 2 · 2024-01-01", "89.02 Visita 2 · 2026-02-01"}
    assert {key for key, row in rows(synced, plan).items() if row.held} == pair
    assert [each.name for each in _load(synced, plan).holding_guards] == ["price_jump"]
    # Let go by number it needs a word past its guard; held by a person it waits without one.
    number = next(row.ordinal for key, row in rows(synced, plan).items() if key.startswith("89.02"))
    assert let_go(synced, plan, [number]).outcome is Outcome.OK
    assert [each.name for each in _load(synced, plan).failed_guards] == ["price_jump"]
    assert applied(synced, plan).outcome is Outcome.REFUSED
    assert held(synced, plan, [number]).counts.waiting == 2
    assert {key for key, row in rows(synced, plan).items() if row.held} == pair
    assert not _load(synced, plan).failed_guards
    assert applied(synced, plan).outcome is Outcome.PARTIAL
    price = "SELECT amount FROM price p JOIN service s ON s.id = p.service_id WHERE s.external_id = '{}' ORDER BY 1"
    assert len(synced.rows(price.format("S2"))) == 1
    assert len(synced.rows(price.format("S3"))) == 2
    # Once the source says again what we hold, nothing waits any more, and the mark is forgotten.
    synced.hold(prices=[*PRICES[:2], PRICES[2], dearer[1], *PRICES[4:]])
    assert synced.sync("prices").counts.waiting == 0
    assert synced.rows("SELECT count(*) FROM held_row") == [(0,)]


def test_everything_held_is_a_refusal_and_only_rows_that_would_be_written_are_held(renamed: Lab) -> None:
    plan = looked(renamed, "services")
    numbers = [row.ordinal for row in rows(renamed, plan).values()]
    for wrong in ([], [999_999], [*numbers, 999_999]):
        assert held(renamed, plan, wrong).reasons[0].code == "no_such_rows"
    held(renamed, plan, numbers)
    assert held(renamed, plan, numbers).reasons[0].code == "no_such_rows"
    assert let_go(renamed, plan, [999_999]).reasons[0].code == "no_held_rows"
    report = applied(renamed, plan)
    assert (report.counts.changed, report.counts.waiting) == (0, 3)
    assert report.outcome is not Outcome.OK
    assert held(renamed, plan, numbers).reasons[0].code == "not_holdable"
    assert held(renamed, 999_999, numbers).reasons[0].code == "unknown_plan"


def test_the_audit_trail_says_who_held_what_and_why(renamed: Lab) -> None:
    plan = looked(renamed, "services")
    number = rows(renamed, plan)["89.01 Visita 1 bis"].ordinal
    held(renamed, plan, [number])
    let_go(renamed, plan, [number])
    with renamed.engine.connect() as connection:
        lines = connection.execute(
            sa.text("SELECT actor, action, detail FROM audit WHERE plan_id = :plan ORDER BY id"), {"plan": plan}
        ).all()
        assert not audit.verify(connection)
    assert [(line.actor, line.action) for line in lines] == [(ANNA, "hold"), (ANNA, "release")]
    assert lines[0].detail["rows"] == [number]
    assert lines[0].detail["reason"] == "Ne parlo con la dottoressa"


def _load(lab: Lab, plan_id: int) -> plans.Plan:
    with lab.engine.connect() as connection:
        return plans.load(connection, plan_id)
