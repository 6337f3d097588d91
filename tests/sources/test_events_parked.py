"""Events that cannot be taken in: parked with what they say, tried again, asked about, decided by a person."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from polydesk_dagster.changes.why import read
from polydesk_dagster.errors import PermanentError
from polydesk_dagster.outcome import Outcome
from polydesk_dagster.sources.events import inbox, staging, types
from polydesk_dagster.told import teller
from tests import world
from tests.sources.events_world import CODE, Lab, acceptance, booking, lab, person, report

MINUTE = timedelta(minutes=1)
HOURS = timedelta(hours=6)

POISON = (
    (booking("X2") | {"version": 2}, "versione 2 di appointment.created sconosciuta"),
    (booking("X3", starts_at="domani"), "starts_at non è un istante"),
    (booking("X4", starts_at="2026-03-12T09:00:00"), "senza fuso"),
    (booking("X5", ends_at="2026-03-11T09:00:00+01:00"), "dura meno"),
    (booking("X6", status="perhaps"), "status"),
    (booking("X7", patient_id=None), "patient_id"),
    (booking("X8", agenda_id="A99"), "agenda sconosciuta"),
    (booking("X9", service_id="S99"), "prestazione sconosciuta"),
    (booking("X10", collaborator_id="D99"), "collaboratore sconosciuto"),
    (booking("X11", patient_id="P99"), "paziente non ancora importato"),
    (booking("X12") | {"data": {}}, "agenda_id manca"),
    (booking("X13") | {"data": None}, "data"),
    (booking("X14") | {"entity": None}, "entity"),
    (booking("X15") | {"occurred_at": "ieri"}, "occurred_at"),
    (booking("X16") | {"id": "not-a-uuid"}, "id"),
    (booking("X17") | {"type": 7}, "type"),
    (report("X19", title="\0"), "title è vuoto"),
    (booking(world.NOISE), "entity.id ha più di 255"),
    (acceptance("X20"), "appuntamento sconosciuto"),
    (person("P2", birth_date="31/02/1980"), "birth_date"),
)


@pytest.fixture
def bo(engine: sa.Engine) -> Iterator[Lab]:
    with lab(engine) as made:
        yield made


def test_what_cannot_be_taken_is_parked_with_its_payload(bo: Lab) -> None:
    bo.publish(*(event for event, _ in POISON), person("P3", address="Via dopo"))
    came = bo.sync()
    assert (came.outcome, came.counts.waiting, came.counts.updated) == (Outcome.PARTIAL, len(POISON), 1)
    assert bo.rows("SELECT sequence FROM event_cursor") == [(len(POISON) + 1,)]
    listing = (
        "SELECT event_id, sequence, reason, payload, attempts FROM event_inbox WHERE state = 'parked' ORDER BY sequence"
    )
    parked = bo.rows(listing)
    for (_, reason), (_, sequence, why, payload, attempts) in zip(POISON, parked, strict=True):
        assert reason in teller().value(read(why)), sequence
        assert payload
        assert attempts == 1
    bo.sync(MINUTE)
    again = bo.rows(listing)
    assert [row[4] for row in again] == [2] * len(POISON)
    assert [row[:3] for row in again] == [row[:3] for row in parked]


def test_a_type_that_is_not_known_is_one_question_for_all_of_its_events(bo: Lab) -> None:
    """Two in a hundred events of one unknown type: they are asked about once, and hold nobody back."""
    strange = [booking(f"X{n}") | {"type": "invoice.created"} for n in range(20)]
    bo.publish(*strange, booking("X0", "11:00"), booking("Z") | {"type": "a\0\ud800"}, person("P3", address="Via dopo"))
    came = bo.sync()
    assert (came.outcome, came.counts.waiting, came.counts.updated) == (Outcome.PARTIAL, 2, 2)
    told = [(reason.values["type"], reason.count) for reason in came.reasons if reason.code == "event_type_open"]
    assert told == [("a?", 1), ("invoice.created", 20)]
    bo.publish(booking("Y1") | {"type": "invoice.created"}, person("P2", address="Via poi"))
    again = bo.sync(MINUTE)
    assert (again.outcome, again.counts.waiting, again.counts.updated) == (Outcome.OK, 2, 1)
    kept = "SELECT state, count(*), count(payload) FROM event_inbox WHERE type = 'invoice.created' GROUP BY state"
    assert bo.rows(kept) == [("unknown", 21, 21)]
    word = {"actor": "desk:anna", "reason": "le fatture non ci servono", "as_of": bo.as_of}
    with bo.engine.begin() as connection:
        assert types.ignore(connection, "invoice.created", **word) == 21
        with pytest.raises(PermanentError, match="event_type_not_asked"):
            types.ignore(connection, "invoice.created", **word)
    bo.publish(booking("Y2") | {"type": "invoice.created"})
    ignored = bo.sync(MINUTE)
    assert (ignored.outcome, ignored.counts.waiting, ignored.counts.skipped) == (Outcome.NOTHING_TO_DO, 1, 1)
    assert bo.rows(kept) == [("skipped", 22, 0)]
    with bo.engine.begin() as connection:
        types.ask_again(connection, "invoice.created", **word)
        assert [(each.type, each.events) for each in types.questions(connection)] == [("a?", 1), ("invoice.created", 0)]


def test_a_type_that_a_later_version_knows_is_taken_in(bo: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "TYPES", staging.TYPES - {"appointment.created"})
    bo.publish(booking("X"))
    assert bo.sync().counts.waiting == 1
    monkeypatch.undo()
    taken = bo.sync(MINUTE)
    assert (taken.counts.updated, taken.counts.waiting) == (1, 0)
    assert bo.appointment("X").status == "booked"


def test_a_parked_event_holds_back_its_entity_only(bo: Lab) -> None:
    bo.publish(
        booking("X"),
        booking("X", "10:00", "rescheduled", agenda_id="A9"),
        booking("X", "11:00", "rescheduled"),
        booking("Y", "12:00"),
    )
    bo.sync()
    assert bo.states() == {"applied": 2, "parked": 1, "waiting": 1}
    assert bo.appointment("X").start_version == 1
    bo.publish(booking("X", "11:00", kind="cancelled"))
    bo.sync()
    assert bo.states() == {"applied": 2, "parked": 1, "waiting": 2}
    with bo.engine.begin() as connection:
        connection.execute(sa.text("UPDATE agenda SET external_id = 'A9' WHERE external_id = 'A2'"))
    assert bo.sync(MINUTE).counts.updated == 3
    assert bo.appointment("X").status == "cancelled"
    assert bo.appointment("X").start_version == 3


def test_retries_come_at_1_5_30_minutes_and_6_hours_then_a_person_decides(bo: Lab) -> None:
    bo.publish(booking("X", agenda_id="A9"), booking("X", "10:00", "rescheduled"))
    bo.sync()
    for attempt, pause in enumerate((MINUTE, 5 * MINUTE, 30 * MINUTE), 2):
        assert bo.sync(pause - MINUTE / 2).outcome is Outcome.NOTHING_TO_DO
        bo.sync(MINUTE / 2)
        assert bo.rows("SELECT attempts FROM event_inbox WHERE state = 'parked'") == [(attempt,)]
    dead = bo.sync(HOURS)
    assert bo.states() == {"dead": 1, "waiting": 1}
    assert {reason.code for reason in dead.reasons} == {"event_dead", "dead_letters"}
    again = bo.sync(HOURS)
    assert (again.outcome, again.counts.waiting) == (Outcome.NOTHING_TO_DO, 2)


@pytest.mark.parametrize(
    ("event", "arrival"),
    [
        (booking("X", agenda_id="A9"), "UPDATE agenda SET external_id = 'A9' WHERE external_id = 'A1'"),
        (booking("X", service_id="S9"), "UPDATE service SET external_id = 'S9'"),
        (booking("X", collaborator_id="D9"), "UPDATE specialist SET external_id = 'D9'"),
        (booking("X", patient_id="P9"), "UPDATE patient_link SET external_id = 'P9' WHERE external_id = 'P1'"),
        (person("P9"), "UPDATE patient_link SET external_id = 'P9' WHERE external_id = 'P1'"),
    ],
    ids=["agenda", "service", "doctor", "patient", "herself"],
)
def test_what_was_given_up_for_a_missing_record_is_taken_up_when_it_has_come(
    bo: Lab, event: dict[str, Any], arrival: str
) -> None:
    bo.publish(event)
    bo.sync()
    with bo.engine.begin() as connection:
        connection.execute(sa.text("UPDATE event_inbox SET state = 'dead', attempts = 5, next_try_at = NULL"))
    bo.sync(HOURS)
    assert bo.states() == {"dead": 1}
    with bo.engine.begin() as connection:
        connection.execute(sa.text(arrival))
    bo.sync(MINUTE)
    assert bo.states() == {"applied": 1}


def test_a_person_retries_or_skips_a_dead_letter(bo: Lab) -> None:
    bo.publish(booking("X", agenda_id="A9"), booking("X", "10:00", "rescheduled"), booking("Y", agenda_id="A9"))
    bo.sync()
    for pause in (MINUTE, 5 * MINUTE, 30 * MINUTE, HOURS):
        bo.sync(pause)
    assert bo.states() == {"dead": 2, "waiting": 1}
    with bo.engine.begin() as connection:
        listed = inbox.unsettled(connection, CODE)
        assert [(e.state, e.entity) for e in listed] == [
            ("dead", "appointment:X"),
            ("waiting", "appointment:X"),
            ("dead", "appointment:Y"),
        ]
        inbox.skip(connection, CODE, listed[0].event_id, "agenda chiusa nel 2020", bo.as_of)
        inbox.retry(connection, CODE, listed[2].event_id, bo.as_of)
    bo.sync()
    assert bo.states() == {"skipped": 1, "applied": 1, "parked": 1}
    assert bo.appointment("X").seats == 1
    with bo.engine.begin() as connection, pytest.raises(PermanentError, match="event_not_waiting"):
        inbox.skip(connection, CODE, listed[0].event_id, "un'altra volta ancora", bo.as_of)
