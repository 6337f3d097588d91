"""Each check of the calendar is green after generation and turns red when its invariant is broken behind its back."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import sqlalchemy as sa

from polydesk_dagster.clinic.calendar import checks as calendar_checks
from polydesk_dagster.clinic.calendar import slots
from polydesk_dagster.clinic.calendar.checks import Finding
from tests import world
from tests.world import AS_OF

BREAK = {
    "free_on_closure": (
        calendar_checks.free_on_closure,
        "INSERT INTO closure (layer, name, date_from, date_to) VALUES ('national', 'x', '2026-03-12', '2026-03-12')",
        8,
    ),
    "overlapping": (
        calendar_checks.overlapping,
        """ALTER TABLE slot DISABLE TRIGGER USER;
           UPDATE slot SET ends_at = ends_at + interval '5 minutes' WHERE id = (SELECT id FROM slot
               WHERE local_date = '2026-03-12' ORDER BY starts_at LIMIT 1);
           ALTER TABLE slot ENABLE TRIGGER USER""",
        1,
    ),
    "bookings_without_slot": (calendar_checks.bookings_without_slot, "DELETE FROM seat", 1),
    "bookings_without_a_part_of_their_seats": (
        calendar_checks.bookings_without_slot,
        "UPDATE appointment SET ends_at = ends_at + interval '30 minutes'",
        1,
    ),
    "open_orphans": (
        calendar_checks.open_orphans,
        """INSERT INTO orphan (slot_id, cause, detected_at) SELECT slot_id, 'closure', now() FROM seat;
           UPDATE slot SET state = 'orphan' WHERE id IN (SELECT slot_id FROM seat)""",
        1,
    ),
    "agendas_behind": (calendar_checks.agendas_behind, "UPDATE agenda_state SET outcome = 'failed'", 1),
}


@pytest.mark.parametrize("name", BREAK)
def test_a_check_sees_what_it_is_for(engine: sa.Engine, name: str) -> None:
    check: Callable[[sa.Connection, object], Finding]
    check, sabotage, count = BREAK[name]
    with engine.begin() as connection:
        practice = world.practice(connection)
    slots.generate(engine, AS_OF)
    with engine.begin() as connection:
        slot = connection.scalar(sa.text("SELECT id FROM slot WHERE local_date = '2026-03-13' LIMIT 1"))
        world.appointment(connection, slot, service_id=practice.service, patient_id=practice.patient)
    with engine.begin() as connection:
        assert check(connection, AS_OF) == Finding(0, "")
        for statement in sabotage.split(";"):
            connection.execute(sa.text(statement))
        broken = check(connection, AS_OF)
    assert broken.count == count
    assert broken.examples.startswith("BO01 ")
