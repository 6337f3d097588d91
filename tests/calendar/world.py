"""What the tests of slots share: a practice, its slots as they are read, and a booking."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa

from tests import world


def slots(engine: sa.Engine, where: str = "state = 'free'") -> list[tuple[str, str]]:
    """Local starts and ends of slots."""
    with engine.connect() as connection:
        rows = connection.execute(
            sa.text(f"""
            SELECT to_char(s.starts_at AT TIME ZONE c.time_zone, 'YYYY-MM-DD HH24:MI'),
                   to_char(s.ends_at AT TIME ZONE c.time_zone, 'HH24:MI')
            FROM slot s JOIN agenda a ON a.id = s.agenda_id JOIN clinic c ON c.id = a.clinic_id
            WHERE {where} ORDER BY s.agenda_id, s.starts_at""")
        )
        return [(start, end) for start, end in rows]


def practice(engine: sa.Engine, **agenda: Any) -> world.Practice:
    with engine.begin() as connection:
        return world.practice(connection, **agenda)


def run(engine: sa.Engine, statement: str, **values: Any) -> None:
    with engine.begin() as connection:
        connection.execute(sa.text(statement), values)


def booked(engine: sa.Engine, practice: world.Practice, start: datetime) -> int:
    with engine.begin() as connection:
        slot = connection.scalar(
            sa.text("SELECT id FROM slot WHERE agenda_id = :agenda AND starts_at = :start"),
            {"agenda": practice.agenda, "start": start},
        )
        assert slot is not None
        world.appointment(connection, slot, service_id=practice.service, patient_id=practice.patient)
        return int(slot)
