"""A record that got a new name at its source is one row for a person, and a person may say which of ours a row is."""

from __future__ import annotations

from typing import Any

import pytest

from polydesk_dagster import changes
from polydesk_dagster.changes import audit
from polydesk_dagster.changes.assign import assign
from polydesk_dagster.changes.hold import only
from polydesk_dagster.outcome import Outcome, Report
from tests import world
from tests.changes.test_held import ANNA, applied, let_go, looked, rows
from tests.sources.lab import AGREEMENTS, COLLABORATORS, SERVICES, Lab, lab, synced

__all__ = ["lab", "synced"]  # fixtures

WHY = "ho chiesto alla segreteria"


def assigned(lab: Lab, plan: int, row: int, record: str, reason: str = WHY) -> Report:
    with lab.engine.begin() as connection:
        return assign(connection, plan, row, record, as_of=world.AS_OF, actor=ANNA, reason=reason)


@pytest.mark.parametrize(
    ("feed", "records", "table"),
    [("services", SERVICES, "service"), ("collaborators", COLLABORATORS, "specialist"),
     ("agreements", AGREEMENTS, "agreement")],
)  # fmt: skip
def test_a_new_id_is_one_row_for_a_person_and_nothing_is_closed(
    synced: Lab, feed: str, records: list[dict[str, Any]], table: str
) -> None:
    before = synced.rows(f"SELECT id, external_id FROM {table} ORDER BY id")
    synced.hold(**{feed: [records[0] | {"id": "NEW"}, *records[1:]]})
    report = synced.sync(feed)
    assert (report.counts.changed, report.counts.waiting) == (0, 1), report
    assert synced.rows(f"SELECT id, external_id FROM {table} ORDER BY id") == before
    plan = looked(synced, feed)
    (row,) = rows(synced, plan).values()
    assert (row.held, row.before, row.after["external_id"]) == (True, {"external_id": records[0]["id"]}, "NEW")
    let = applied(synced, plan, past_guards=["renumbered"], reason=WHY)
    assert (let.outcome, let.counts.updated) == (Outcome.OK, 1)
    now = [(id_, "NEW" if name == records[0]["id"] else name) for id_, name in before]
    assert synced.rows(f"SELECT id, external_id FROM {table} ORDER BY id") == now
    assert synced.sync(feed).counts.changed == 0
    with synced.engine.begin() as connection:
        assert changes.undo(connection, plan, as_of=world.AS_OF, actor=ANNA).outcome is Outcome.OK
    assert synced.rows(f"SELECT id, external_id FROM {table} ORDER BY id") == before


@pytest.mark.parametrize("changed", [{"name": "Un'altra cosa"}, {"code": "99.99"}], ids=["name", "code"])
def test_code_and_name_are_both_needed(synced: Lab, changed: dict[str, str]) -> None:
    synced.hold(services=[SERVICES[0] | {"id": "NEW"} | changed, *SERVICES[1:]])
    report = synced.sync("services", preview=True)
    tally = synced.plan(report).tally
    assert (tally.get("retire", 0), tally.get("create", 0) + tally.get("conflict", 0)) == (1, 1)


def test_two_doctors_of_one_name_and_two_codes_are_two(synced: Lab) -> None:
    synced.write("UPDATE specialist SET fiscal_code = 'NREGUO70A01A944X' WHERE external_id = 'D1'")
    synced.hold(collaborators=[COLLABORATORS[0] | {"id": "NEW", "fiscal_code": "NREGUO80A01A944Y"}, *COLLABORATORS[1:]])
    report = synced.sync("collaborators", preview=True)
    assert (report.counts.created, report.counts.retired) == (1, 1)


def test_a_row_is_given_to_a_record_of_ours_by_a_person(synced: Lab) -> None:
    known = synced.rows("SELECT id FROM service WHERE external_id = 'S0'")
    synced.hold(services=[SERVICES[0] | {"id": "NEW", "code": "99.99", "name": "Visita rivista"}, *SERVICES[1:]])
    plan = looked(synced, "services")
    number = rows(synced, plan)["99.99 Visita rivista"].ordinal
    for given, code in (("89.00", None), ("nessuna", "no_such_record"), ("89.01", "record_at_source")):
        if code is not None:
            assert assigned(synced, plan, number, given).reasons[0].code == code
    assert assigned(synced, plan, number, "89.00", "boh").reasons[0].code == "reason_missing"
    assert assigned(synced, plan, 999, "89.00").reasons[0].code == "row_not_assignable"
    assert assigned(synced, plan, number, "89.00").outcome is Outcome.OK
    (row,) = rows(synced, plan).values()
    assert (row.action, row.after["code"], row.before["external_id"]) == ("update", "99.99", "S0")
    # It is another name for ours, and so passes by name only.
    assert applied(synced, plan).outcome is Outcome.REFUSED
    done = applied(synced, plan, past_guards=["renumbered"], reason=WHY)
    assert (done.outcome, done.counts.updated, done.counts.created, done.counts.retired) == (Outcome.OK, 1, 0, 0)
    assert synced.rows("SELECT id FROM service WHERE external_id = 'NEW' AND code = '99.99'") == known
    with synced.engine.begin() as connection:
        assert changes.undo(connection, plan, as_of=world.AS_OF, actor=ANNA).outcome is Outcome.OK
        assert not audit.verify(connection)
    assert synced.rows("SELECT id FROM service WHERE external_id = 'S0' AND code = '89.00'") == known


def test_one_of_several_for_one_of_ours_is_given_to_it(lab: Lab) -> None:
    with lab.engine.begin() as connection:
        ours = world.specialist(connection, lab.clinic, last_name="Neri", first_name="Ugo", external_id=None)
    lab.hold(collaborators=[COLLABORATORS[0], COLLABORATORS[0] | {"id": "D9"}, *COLLABORATORS[1:]])
    plan = looked(lab, "collaborators")
    ((number,),) = lab.rows(f"SELECT ordinal FROM plan_rows.p{plan} WHERE external_id = 'D9'")
    assert assigned(lab, plan, number, "Neri Ugo").outcome is Outcome.OK
    applied(lab, plan)
    assert lab.rows("SELECT external_id FROM specialist WHERE id = " + str(ours)) == [("D9",)]


def test_only_the_rows_that_a_person_names_are_applied(synced: Lab) -> None:
    renamed = [each | {"name": f"{each['name']} bis"} for each in SERVICES[:3]]
    synced.hold(services=[*renamed, *SERVICES[3:]])
    plan = looked(synced, "services")
    number = rows(synced, plan)["89.01 Visita 1 bis"].ordinal
    with synced.engine.begin() as connection:
        left = only(connection, plan, [number], as_of=world.AS_OF, actor=ANNA, reason=None)
    assert left.counts.waiting == 2
    assert applied(synced, plan).counts.updated == 1
    assert synced.rows("SELECT name FROM service WHERE name LIKE '%bis'") == [("Visita 1 bis",)]
    # The others were left, not held: the next run writes them.
    assert synced.sync("services").counts.updated == 2
    assert let_go(synced, plan, [number]).outcome is Outcome.REFUSED
