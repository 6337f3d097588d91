"""A list that a guard stops is one plan however often it is tried, until anything about it is another."""

from __future__ import annotations

from datetime import timedelta

import pytest

from polydesk_dagster.changes.synchronise import settle
from polydesk_dagster.outcome import Outcome, Report
from polydesk_dagster.sources import lists
from polydesk_dagster.told import teller
from tests import world
from tests.sources.lab import PRICES, Lab, synced

__all__ = ["synced"]  # a fixture

NEW = {"service_id": "S9", "agreement_id": "C1", "amount": "44.00", "currency": "EUR", "valid_from": "2024-01-01"}
CUT = [*PRICES[:8], NEW]
"""Far shorter than it was, and with something new: a row that is given another id at each try."""
LATER = world.AS_OF + timedelta(minutes=10)


@pytest.fixture
def cut(synced: Lab) -> Lab:
    synced.hold(prices=CUT)
    return synced


def _tries(lab: Lab) -> list[int | None]:
    """The plans that a look and two runs come to."""
    reports = [lab.sync("prices", preview=True), lab.sync("prices"), lab.sync("prices", as_of=LATER)]
    assert [report.outcome for report in reports[1:]] == [Outcome.REFUSED] * 2
    return [report.plan_id for report in reports]


def _past(lab: Lab, report: Report) -> Report:
    plan = lab.plan(report)
    return settle(
        lab.engine,
        lists.KINDS["prices"],
        plan.within,
        plan,
        as_of=LATER,
        actor="desk:anna",
        reason="listino ridotto dalla direzione",
        past_guards=[guard.name for guard in plan.failed_guards],
    )


def test_the_same_refusal_is_the_same_plan_which_stands_anew(cut: Lab) -> None:
    (plan,) = set(_tries(cut))
    assert cut.rows("SELECT count(*) FROM plan WHERE state = 'ready'") == [(1,)]
    cut.write("UPDATE plan SET expires_at = now() + interval '1 minute' WHERE state = 'ready'")
    again = cut.sync("prices", as_of=LATER)
    assert again.plan_id == plan
    assert (cut.plan(again).as_of, cut.plan(again).standing) == (LATER, "ready")
    assert cut.rows(f"SELECT expires_at > now() + interval '20 minutes' FROM plan WHERE id = {plan}") == [(True,)]
    applied = _past(cut, again)
    assert (applied.outcome, applied.counts.created) == (Outcome.OK, 1)


@pytest.mark.parametrize(
    "meanwhile",
    [
        "UPDATE plan SET expires_at = now() - interval '1 second' WHERE state = 'ready'",
        "UPDATE price SET amount = 51.50 WHERE amount = 50.00",
        "UPDATE plan SET tally = tally || '{\"set_aside\": 1}' WHERE state = 'ready'",
        "UPDATE plan SET undoes = (SELECT min(id) FROM plan) WHERE state = 'ready'",
    ],
    ids=["expired", "ours was written", "a person has decided about rows", "an undo"],
)
def test_where_anything_is_another_it_is_a_new_plan(cut: Lab, meanwhile: str) -> None:
    before = cut.sync("prices").plan_id
    cut.write(meanwhile)
    assert cut.sync("prices").plan_id != before


def test_another_list_is_another_plan_and_the_one_before_does_not_come_back(cut: Lab) -> None:
    first = cut.sync("prices").plan_id
    cut.hold(prices=CUT[:-1])
    second = cut.sync("prices").plan_id
    cut.hold(prices=CUT)
    third = cut.sync("prices").plan_id
    assert len({first, second, third}) == 3


def test_a_source_that_fell_silent_without_anything_to_write_is_confirmed_past_its_guard_by_name(synced: Lab) -> None:
    """What was retired by hand already: the shorter list changes nothing, and is not what a person confirmed."""
    synced.write("UPDATE price SET valid_to = '2024-06-01' WHERE amount > 57 OR amount = 40")
    synced.hold(prices=PRICES[:8])
    report = synced.sync("prices")
    plan = synced.plan(report)
    assert (report.outcome, plan.writes) == (Outcome.REFUSED, 0)
    told = [teller().reason(reason) for reason in report.reasons]
    assert f"polydesk plan apply {plan.id} --past-guard source_short" in told[1]
    assert _past(synced, report).outcome is Outcome.NOTHING_TO_DO
    assert synced.sync("prices").outcome is Outcome.NOTHING_TO_DO
