"""What the tests of unverified bookings share: such a booking, and what has become of it."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from polydesk_dagster.clinic.bookings import holds
from tests import world
from tests.world import AS_OF, rome

HOUR = timedelta(hours=1)


START = rome("2026-03-12", "09:00")


def unverified(connection: sa.Connection, practice: world.Practice, number: int = 0, **fields: Any) -> int:
    """A stranger's booking whose window closed an hour ago, each on a slot of its own."""
    start = START + number * timedelta(minutes=30)
    slot = world.slot(connection, practice.agenda, start)
    given = {
        "status": "unverified",
        "channel": "online",
        "verification_expires_at": AS_OF - HOUR,
        "contact_email": "chi@example.org",
        **fields,
    }
    patient = given.pop("patient_id", None)
    return world.appointment(connection, slot, service_id=practice.service, patient_id=patient, **given)


def count(engine: sa.Engine, query: sa.TextClause) -> int:
    with engine.connect() as connection:
        return int(connection.scalar(query) or 0)


def status(engine: sa.Engine, booking: int) -> tuple[str, bool]:
    """Its status and whether it has a seat."""
    with engine.connect() as connection:
        row = connection.execute(
            sa.text("""SELECT status, EXISTS (SELECT FROM seat WHERE appointment_id = a.id) AS seated
                       FROM appointment a WHERE id = :id"""),
            {"id": booking},
        ).one()
    return row.status, row.seated


def held_by_another(connection: sa.Connection, slot: int | None, as_of: datetime) -> None:
    """Somebody else has the slot, with what its agenda offers."""
    assert slot is not None
    service = world.offered(connection, slot)
    assert holds.place(connection, slot_id=slot, service_id=service, token="t", visitor="v", as_of=as_of).done
