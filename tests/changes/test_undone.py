"""What a person took back stays so: the next sync sets it aside, row by row, until somebody has looked."""

from __future__ import annotations

from datetime import timedelta

import pytest
import sqlalchemy as sa

from polydesk_dagster import changes
from polydesk_dagster.changes import registry, show
from polydesk_dagster.changes.plans import Scope
from polydesk_dagster.changes.synchronise import settle
from polydesk_dagster.outcome import Outcome, Reason, Report
from polydesk_dagster.sources import lists
from polydesk_dagster.told import teller
from tests import world
from tests.patients.world import MARIO, Import, person
from tests.sources.lab import COLLABORATORS, PRICES, SERVICES, Lab, lab, synced

__all__ = ["lab", "synced"]  # fixtures

CHEAPER = [PRICES[0] | {"amount": "50.50"}, *PRICES[1:]]


def undo(lab: Lab | Import, report: Report, actor: str = "desk:anna") -> Report:
    with lab.engine.begin() as connection:
        return changes.undo(connection, report.plan_id or 0, as_of=world.AS_OF, actor=actor)


def past(lab: Lab, feed: str, report: Report, *guards: str) -> Report:
    """Apply the plan that was stopped, past its guard."""
    plan = lab.plan(report)
    scope = Scope(plan.service, plan.clinic, plan.clinic_id)
    reason = "deciso con la direzione"
    kind = lists.KINDS[feed]
    given = guards or ("undone_before",)
    return settle(lab.engine, kind, scope, plan, as_of=world.AS_OF, actor="desk:anna", reason=reason, past_guards=given)


def stopped(lab: Lab, report: Report) -> bool:
    """Whether it is this guard, and only this, that set aside all that the sync would have written."""
    if report.counts.changed or not report.counts.waiting:
        return False
    assert [guard.name for guard in lab.plan(report).holding_guards] == ["undone_before"]
    return True


def amounts(lab: Lab) -> set[str]:
    return {str(amount) for (amount,) in lab.rows("SELECT amount FROM price")}


def test_a_change_that_was_taken_back_waits_for_a_person_and_then_no_more(synced: Lab) -> None:
    synced.hold(prices=CHEAPER)
    assert undo(synced, synced.sync("prices")).outcome is Outcome.OK
    again = synced.sync("prices")
    assert stopped(synced, again)
    assert again.outcome is Outcome.PARTIAL
    assert "ciò che una persona ha annullato" in " ".join(map(teller().reason, again.reasons))
    assert "50.50" not in amounts(synced)
    assert stopped(synced, synced.sync("prices"))
    assert past(synced, "prices", synced.sync("prices")).outcome is Outcome.OK
    assert "50.50" in amounts(synced)
    # Somebody's slip of the pen afterwards is put right as ever.
    synced.write("UPDATE price SET amount = 50 WHERE amount = 50.5")
    assert synced.sync("prices").outcome is Outcome.OK
    assert "50.50" in amounts(synced)


def test_the_same_decision_taken_twice_holds_twice(synced: Lab) -> None:
    synced.hold(prices=CHEAPER)
    undo(synced, synced.sync("prices"))
    undo(synced, past(synced, "prices", synced.sync("prices")))
    assert stopped(synced, synced.sync("prices"))


def test_the_rows_of_what_takes_back_say_what_they_take_back(synced: Lab) -> None:
    synced.hold(prices=CHEAPER)
    done = synced.sync("prices")
    back = synced.plan(undo(synced, done))
    with synced.engine.connect() as connection:
        rows = list(show.rows(connection, back, registry.kind(back.kind)))
    assert {show.because(row) for row in rows} == {Reason("back_before_plan", {"plan": done.plan_id}, back.clinic)}


def test_another_value_is_another_matter(synced: Lab) -> None:
    synced.hold(prices=CHEAPER)
    undo(synced, synced.sync("prices"))
    synced.hold(prices=[PRICES[0] | {"amount": "52.50"}, *PRICES[1:]])
    assert synced.sync("prices").outcome is Outcome.OK
    assert "52.50" in amounts(synced)


def test_one_field_taken_back_is_not_carried_in_by_another(synced: Lab) -> None:
    renamed = SERVICES[3] | {"name": "Nome sbagliato"}
    synced.hold(services=[*SERVICES[:3], renamed, *SERVICES[4:]])
    undo(synced, synced.sync("services"))
    synced.hold(services=[*SERVICES[:3], renamed | {"duration_minutes": 45}, *SERVICES[4:]])
    assert stopped(synced, synced.sync("services"))
    synced.hold(services=[*SERVICES[:3], SERVICES[3] | {"duration_minutes": 45}, *SERVICES[4:]])
    assert synced.sync("services").counts.updated == 1


def test_a_closure_repeats_whatever_its_date(synced: Lab) -> None:
    synced.hold(collaborators=COLLABORATORS[1:])
    undo(synced, synced.sync("collaborators"))
    later = synced.sync("collaborators", as_of=world.AS_OF + timedelta(days=9))
    assert stopped(synced, later)
    assert synced.rows("SELECT count(*) FROM specialist WHERE deleted_at IS NOT NULL") == [(0,)]


def test_what_was_created_and_taken_back_is_not_created_again(synced: Lab) -> None:
    more = {"id": "S77", "code": "89.77", "name": "Visita nuova", "duration_minutes": 20, "active": True}
    synced.hold(services=[*SERVICES, more])
    undo(synced, synced.sync("services"))
    report = synced.sync("services")
    assert stopped(synced, report)
    assert past(synced, "services", report).counts.created == 1
    assert synced.sync("services").outcome is Outcome.NOTHING_TO_DO


def test_only_what_was_let_through_is_forgiven(synced: Lab) -> None:
    dearer = [CHEAPER[0], PRICES[1] | {"amount": "52.00"}, *PRICES[2:]]
    synced.hold(prices=dearer)
    undo(synced, synced.sync("prices"))
    synced.hold(prices=CHEAPER)
    assert past(synced, "prices", synced.sync("prices")).counts.updated == 1
    synced.hold(prices=dearer)
    assert stopped(synced, synced.sync("prices"))


def test_it_is_remembered_for_thirty_days_and_of_people_only(synced: Lab) -> None:
    synced.hold(prices=CHEAPER)
    undo(synced, synced.sync("prices"))
    synced.write("UPDATE plan SET applied_at = applied_at - interval '29 days' WHERE state <> 'ready'")
    assert stopped(synced, synced.sync("prices"))
    synced.write("UPDATE plan SET applied_at = applied_at - interval '29 hours' WHERE state <> 'ready'")
    report = synced.sync("prices")
    assert report.outcome is Outcome.OK
    undo(synced, report, actor="dagster")
    assert synced.sync("prices").outcome is Outcome.OK


def test_the_rows_of_a_plan_that_was_undone_late_outlive_its_application(synced: Lab) -> None:
    synced.hold(prices=CHEAPER)
    report = synced.sync("prices")
    synced.write(
        f"UPDATE plan SET applied_at = now() - interval '30 days', expires_at = now() - interval '30 days' "
        f"WHERE id = {report.plan_id}"
    )
    undo(synced, report)
    synced.write(f"UPDATE plan SET applied_at = now() - interval '50 days' WHERE id = {report.plan_id}")
    assert stopped(synced, synced.sync("prices"))
    assert stopped(synced, synced.sync("prices"))


def test_a_clinics_decision_is_its_own(synced: Lab) -> None:
    synced.hold(prices=CHEAPER)
    undo(synced, synced.sync("prices"))
    synced.write("UPDATE plan SET service = 'another' WHERE service = 'sync_prices'")
    assert synced.sync("prices").outcome is Outcome.OK


@pytest.mark.parametrize("linking", [False, True], ids=["created", "linked"])
def test_patients_that_were_taken_back_stay_out(engine: sa.Engine, linking: bool) -> None:
    if linking:
        Import(engine, "MI01")(MARIO)
    run = Import(engine)
    undo(run, run(MARIO))
    again = run(MARIO, person("P2", fiscal_code=None, last_name="Verdi"))
    assert (again.outcome, again.counts.created, again.counts.waiting) == (Outcome.PARTIAL, 1, 1)
    assert "Rossi" not in str(again)
    links = "SELECT count(*) FROM patient_link l JOIN clinic c ON c.id = l.clinic_id AND c.code = 'BO01'"
    assert run.rows(links) == [(1,)]
    # Whether he is somebody after all is asked where people are asked about.
    ((asked, cause),) = run.reviews()
    assert (asked, "una persona ha annullato" in cause) == ("P1", True)
    assert run(MARIO, person("P2", fiscal_code=None, last_name="Verdi")).counts.changed == 0
