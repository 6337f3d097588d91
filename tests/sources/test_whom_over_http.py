"""Whom a record of studiolab's means, over HTTP from its list and its feed to what is ours."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from polydesk_dagster.changes.plans import Scope
from polydesk_dagster.clinic.patients import reviews
from polydesk_dagster.outcome import Outcome, Report
from polydesk_dagster.sources import lists
from tests.patients.world import MARIO, person
from tests.sources.events_world import CODE, Lab, booking, lab, report

MAN = person("P2", birth_date="1952-03-04", fiscal_code=None)
WOMAN = MAN | {"last_name": "Verdi", "first_name": "Anna", "sex": "F", "birth_date": "1999-05-02"}
UNCODED = person("M1", fiscal_code=None)
OTHERS = [person(f"Q{n}", last_name=f"Neri{'o' * n}", fiscal_code=None) for n in range(1, 12)]


@pytest.fixture
def bo(engine: sa.Engine) -> Any:
    with lab(engine, patients=1) as made:
        made.simulator.hold(CODE, {"patients": [person("P1", first_name="Mario 1", fiscal_code=None)]})
        yield made


def imported(bo: Lab, *records: dict[str, Any]) -> Report:
    bo.simulator.hold(CODE, {"patients": list(records)})
    bo.as_of += timedelta(hours=1)
    scope = Scope("import_patients", CODE, bo.clinic)
    return lists.synchronise(bo.engine, bo.client, "patients", scope, as_of=bo.as_of)


def suspended(bo: Lab) -> list[str]:
    return [key for (key,) in bo.rows("SELECT external_id FROM patient_link WHERE suspended_at IS NOT NULL")]


def whose(bo: Lab, table: str) -> list[Any]:
    return bo.rows(f"SELECT p.last_name FROM {table} x JOIN patient p ON p.id = x.patient_id")


def test_a_man_who_becomes_a_woman_holds_her_events_until_a_person_has_said_who_she_is(bo: Lab) -> None:
    assert imported(bo, MAN, *OTHERS).counts.created == 12
    found = imported(bo, WOMAN, *OTHERS)
    assert (found.outcome, suspended(bo)) == (Outcome.PARTIAL, ["P2"])
    assert "links_suspended" in {reason.code for reason in found.reasons}
    bo.publish(booking("X", patient_id="P2"), report("X", patient_id="P2"))
    assert (bo.sync().counts.waiting, bo.states()) == (2, {"parked": 2})
    assert [bo.rows(f"SELECT count(*) FROM {table}") for table in ("appointment", "report", "message")] == [[(0,)]] * 3
    imported(bo, MAN, *OTHERS)
    assert suspended(bo) == ["P2"], "a person decides, not the next list"
    imported(bo, WOMAN, *OTHERS)

    ((review,),) = bo.rows("SELECT id FROM patient_review WHERE state = 'open'")
    with bo.engine.begin() as connection:
        assert reviews.create(connection, review, as_of=bo.as_of, actor="desk:anna").counts.created == 1
    assert bo.sync(timedelta(minutes=30)).counts.updated == 2
    assert (whose(bo, "appointment"), whose(bo, "report")) == ([("Verdi",)], [("Verdi",)])


@pytest.mark.parametrize("more", [(), (person("N1", last_name="Bruni", fiscal_code=None),)], ids=["same", "more"])
def test_a_list_is_not_done_with_before_it_is_noted_whom_it_no_longer_means(bo: Lab, more: tuple[Any, ...]) -> None:
    """Killed between the two, nobody but the next change of the list would have brought it up again."""
    imported(bo, MAN, *OTHERS)
    barred = "ALTER TABLE patient_link {} CONSTRAINT killed"
    with bo.engine.begin() as connection:
        connection.execute(sa.text(barred.format("ADD") + " CHECK (suspended_at IS NULL)"))
    with pytest.raises(sa.exc.IntegrityError):
        imported(bo, WOMAN, *OTHERS, *more)
    with bo.engine.begin() as connection:
        connection.execute(sa.text(barred.format("DROP")))
    assert (imported(bo, WOMAN, *OTHERS, *more).outcome, suspended(bo)) == (Outcome.PARTIAL, ["P2"])
    imported(bo, WOMAN, *OTHERS, *more)
    kept = bo.rows("SELECT count(*) FROM source_state WHERE service LIKE 'import_patients%' AND etag IS NOT NULL")
    assert kept == [(1,)], "what is done wholly is not read again"


def test_a_record_that_is_merged_away_suspends_and_one_that_is_gone_is_named(bo: Lab) -> None:
    imported(bo, UNCODED, *OTHERS)
    merged = OTHERS[0] | {"merged_into": "Q2"}
    found = imported(bo, UNCODED | {"fiscal_code": MARIO["fiscal_code"]}, merged, *OTHERS[1:])
    assert bo.rows(
        "SELECT p.fiscal_code FROM patient p JOIN patient_link l ON l.patient_id = p.id WHERE l.external_id = 'M1'"
    ) == [(MARIO["fiscal_code"],)], "a code that comes later is filled in"
    assert (found.outcome, suspended(bo)) == (Outcome.PARTIAL, ["Q1"])
    assert "links_merged" in {reason.code for reason in found.reasons}
    found = imported(bo, *OTHERS[1:])
    found = imported(bo, *OTHERS[1:], person("N1", last_name="Bruni", fiscal_code=None))
    (gone,) = (reason for reason in found.reasons if reason.code == "patients_gone_at_source")
    assert gone.count >= 1
