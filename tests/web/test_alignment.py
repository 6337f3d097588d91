"""«Sincronizza tutto»: each list is seen before it is applied, then the next is looked at; a refusal stops."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa

from polydesk_dagster import changes
from polydesk_dagster.changes import plans, registry
from polydesk_dagster.changes.plans import Plan, Scope
from polydesk_dagster.changes.synchronise import settle
from polydesk_dagster.outcome import Report
from polydesk_dagster.web.alignment import Course, Stage, State, go_on
from tests import world
from tests.sources.lab import AGREEMENTS, COLLABORATORS, PRICES, SERVICES, Lab, lab
from tests.web.world import Served

__all__ = ["lab"]  # a fixture

FEEDS = {"collaborator": "collaborators", "service": "services", "agreement": "agreements", "price": "prices"}


class Walk:
    """A course over a studiolab that answers; what a run of Dagster does between is not part of it."""

    def __init__(self, lab: Lab) -> None:
        self.lab, self.course = lab, Course("BO01")
        self.applied: list[int] = []

    def look(self, stage: Stage) -> tuple[Plan | None, Report]:
        report = self.lab.sync(FEEDS[stage.kind], preview=True)
        with self.lab.engine.connect() as connection:
            plan = None if report.plan_id is None else plans.load(connection, report.plan_id)
        return plan, report

    def apply(self, plan_id: int) -> Report:
        self.applied.append(plan_id)
        with self.lab.engine.connect() as connection:
            plan = plans.load(connection, plan_id)
        scope = Scope(plan.service, plan.clinic, plan.clinic_id, plan.scope)
        return settle(
            self.lab.engine, registry.kind(plan.kind), scope, plan, as_of=world.AS_OF, actor="manager:anna@example.org"
        )

    def on(self) -> list[State]:
        go_on(self.course, self.look, self.apply)
        return [stage.state for stage in self.course.stages]


def test_each_list_waits_for_a_word_and_the_next_is_compared_with_what_it_brought(lab: Lab) -> None:
    walk = Walk(lab)
    seen, ahead, applied = State.SEEN, State.AHEAD, State.APPLIED
    assert walk.on() == [seen, ahead, ahead, ahead]
    assert lab.rows("SELECT count(*) FROM specialist") == [(0,)]
    assert walk.on() == [applied, seen, ahead, ahead]
    assert walk.on() == [applied, applied, seen, ahead]
    assert walk.on() == [applied, applied, applied, seen]
    assert walk.course.seen is not None
    assert walk.on() == [applied] * 4
    assert walk.course.ended
    assert lab.rows("SELECT count(*) FROM price") == [(len(PRICES),)]
    again = Walk(lab)
    assert again.on() == [State.IN_STEP] * 4
    assert not again.applied


def test_a_check_that_stops_a_list_stops_what_comes_after_it(lab: Lab) -> None:
    walk = Walk(lab)
    for _ in range(5):
        walk.on()
    lab.hold(collaborators=COLLABORATORS, services=SERVICES[:3], agreements=AGREEMENTS, prices=PRICES)
    walk = Walk(lab)
    assert walk.on() == [State.IN_STEP, State.STOPPED, State.AHEAD, State.AHEAD]
    assert walk.course.stopped
    assert walk.on() == [State.IN_STEP, State.STOPPED, State.AHEAD, State.AHEAD]
    assert not walk.applied


def test_a_plan_that_no_longer_fits_is_refused_and_stops_the_rest(lab: Lab) -> None:
    walk = Walk(lab)
    walk.on()
    stage = walk.course.seen
    assert stage is not None
    with lab.engine.begin() as connection:
        assert changes.apply(connection, stage.plan or 0, as_of=world.AS_OF, actor="dagster").counts.created
    assert walk.on()[:2] == [State.STOPPED, State.AHEAD]


@pytest.mark.parametrize(("clinic", "status"), [("", 400), ("NA01", 403), ("MI01", 303)])
def test_it_begins_for_one_clinic_by_who_acts_for_it(
    door: Served, monkeypatch: pytest.MonkeyPatch, clinic: str, status: int
) -> None:
    from polydesk_dagster.web import alignment

    def look(*_: Any) -> tuple[Plan | None, Report]:
        return None, Report.skipped("integration_off", clinic="MI01")

    monkeypatch.setattr(alignment, "_look", look)
    with door.door.engine.begin() as connection:
        hers = world.clinic(connection, code="MI01")
        world.clinic(connection, code="NA01")
        role = {"clinic": hers} if clinic else {}
    with door.signed_in("manager", **role) as browser:
        answer = browser.post("/servizi/allinea", data=door.form(browser, clinic=clinic))
        assert answer.status_code == status
        if status == 303:
            address = answer.headers["location"]
            with browser.stream("GET", f"{address}/stato") as events:
                told = "".join(events.iter_text())
            assert "Ricomincia" in told
            wrong = browser.post(f"{address}/avanti", data=door.form(browser, plan="1"))
            assert wrong.status_code == 409
            assert browser.post("/premute/nobody/avanti", data=door.form(browser)).status_code == 404
    with door.door.engine.connect() as connection:
        assert not connection.scalar(sa.text("SELECT count(*) FROM plan"))
