"""Whom a closure touches is told once, after somebody has looked, with the new place that is proposed."""

from __future__ import annotations

from datetime import timedelta

import pytest
import sqlalchemy as sa

from polydesk_dagster.clinic.messages import calls, closed, service
from polydesk_dagster.errors import PermanentError
from tests import world
from tests.messages.world import AS_OF, booked, gateway, move

DAY = "2026-03-18"


def closes(engine: sa.Engine) -> tuple[world.Practice, list[int]]:
    """Two bookings of a day that a closure takes away; the day after has one place."""
    with engine.begin() as connection:
        practice = world.practice(connection)
        patients = [world.patient(connection, first_name=name, email=None) for name in ("Anna", "Zeno")]
        numbers = [
            booked(connection, practice, at, DAY, patient_id=patient)
            for at, patient in zip(("10:00", "11:00"), patients, strict=True)
        ]
        connection.execute(
            sa.text("""
                WITH lost AS (UPDATE slot SET state = 'orphan' WHERE id IN (SELECT slot_id FROM seat) RETURNING id)
                INSERT INTO orphan (slot_id, cause, detected_at) SELECT id, 'closure', :at FROM lost"""),
            {"at": AS_OF},
        )
        world.slot(connection, practice.agenda, world.rome("2026-03-19", "10:30"))
    return practice, numbers


def test_each_is_told_once_with_the_place_that_is_proposed(engine: sa.Engine) -> None:
    _, numbers = closes(engine)
    with engine.begin() as connection:
        first, second = closed.untold(connection, AS_OF)
        assert [first.appointment_id, second.appointment_id] == numbers
        assert first.notice.endswith("saremo chiusi. Le proponiamo giovedì 19 marzo alle 10:30.")
        assert second.notice.endswith("saremo chiusi.")
        assert "ardiolog" not in first.notice
        with pytest.raises(PermanentError):
            closed.tell(connection, [first], AS_OF)
        assert closed.tell(connection, [first, second], AS_OF) == 2
        assert closed.untold(connection, AS_OF) == []
    with gateway() as (simulator, providers):
        for minutes in (0, 20):
            service.send(engine, AS_OF + timedelta(minutes=minutes), "reminder", providers)
        texts = sorted(message.text for message in simulator.sent)
    assert len(texts) == 2
    assert "il suo appuntamento di mercoledì 18 marzo alle 10:00 non può tenersi" in texts[0]
    with engine.connect() as connection:
        assert calls.to_make(connection, AS_OF) == []


def test_who_was_moved_meanwhile_is_not_told(engine: sa.Engine) -> None:
    _, numbers = closes(engine)
    with engine.begin() as connection:
        closed.tell(connection, closed.untold(connection, AS_OF), AS_OF)
        move(connection, numbers[0], world.rome("2026-03-19", "10:30"))
        connection.execute(
            sa.text("UPDATE appointment SET status = 'cancelled', cancelled_at = :at WHERE id = :id"),
            {"at": AS_OF, "id": numbers[1]},
        )
    with gateway() as (simulator, providers):
        service.send(engine, AS_OF, "reminder", providers, clinic="BO01")
        assert simulator.sent == []
