"""A clinic whose records studiolab knows, and its feed played by the simulator."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from polydesk_dagster.demo.simulators.server import DEMO_TOKEN, in_thread
from polydesk_dagster.demo.simulators.studiolab import StudiolabSimulator
from polydesk_dagster.outcome import Report
from polydesk_dagster.sources.events import intake
from polydesk_dagster.sources.events.numbering import Counted
from polydesk_dagster.sources.studiolab.client import Studiolab
from tests import world
from tests.sources.test_remote_policy import FAST

NOW = world.AS_OF
CODE = "BO01"


@dataclass
class Lab:
    """The clinic, its simulator and its client."""

    engine: sa.Engine
    clinic: int
    simulator: StudiolabSimulator
    client: Studiolab
    as_of: datetime = NOW

    def publish(self, *publications: dict[str, Any]) -> list[dict[str, Any]]:
        return self.simulator.publish(CODE, *publications)

    def sync(self, later: timedelta = timedelta(), **options: Any) -> Report:
        """Run ``later`` than the last time."""
        self.as_of += later or timedelta(milliseconds=1)
        return intake.sync(self.engine, self.as_of, CODE, Counted(self.client), **options)

    def rows(self, statement: str, **parameters: Any) -> list[Any]:
        with self.engine.connect() as connection:
            return [tuple(row) for row in connection.execute(sa.text(statement), parameters)]

    def states(self) -> dict[str, int]:
        return dict(self.rows("SELECT state, count(*) FROM event_inbox GROUP BY state"))

    def appointment(self, key: str) -> Any:
        with self.engine.connect() as connection:
            return connection.execute(
                sa.text("""
                SELECT a.*, (SELECT count(*) FROM seat WHERE appointment_id = a.id) AS seats,
                       (SELECT starts_at FROM slot WHERE slot.id = a.slot_id AND state <> 'retired') AS slot_start
                FROM appointment a WHERE external_id = :key"""),
                {"key": key},
            ).one_or_none()


def records(engine: sa.Engine, agendas: int = 2, patients: int = 3, **agenda: Any) -> int:
    """Clinic BO01 with agendas A1…, service S1, collaborator D1 and patients P1…, all known to studiolab."""
    with engine.begin() as connection:
        clinic = world.clinic(connection, CODE)
        location = world.location(connection, clinic)
        doctor = world.specialist(connection, clinic, external_id="D1")
        service = world.service(connection, clinic, external_id="S1")
        common = {"clinic_id": clinic, "location_id": location, "specialist_id": doctor, "slot_minutes": 30}
        rows = [common | {"external_id": f"A{n}", "name": f"Agenda {n}", **agenda} for n in range(1, agendas + 1)]
        ids = world.insert(connection, "agenda", rows)
        offered = [{"clinic_id": clinic, "agenda_id": id_, "service_id": service} for id_ in ids]
        world.insert(connection, "agenda_service", offered)
        connection.execute(
            sa.text("""
            WITH people AS (
                INSERT INTO patient (last_name, first_name, email, mobile, address)
                SELECT 'Rossi', 'Mario ' || n, 'p' || n || '@example.org', '+39347000' || lpad(n::text, 4, '0'), 'Via 1'
                FROM generate_series(1, :patients) n ORDER BY n RETURNING id)
            INSERT INTO patient_link (clinic_id, external_id, patient_id, made_by, made_at)
            SELECT :clinic, 'P' || row_number() OVER (ORDER BY id), id, 'created', now() FROM people"""),
            {"clinic": clinic, "patients": patients},
        )
    return clinic


@contextmanager
def lab(engine: sa.Engine, **options: Any) -> Iterator[Lab]:
    clinic = records(engine, **options)
    simulator = StudiolabSimulator()
    with in_thread(simulator) as url:
        address = url.replace("/api/v1", f"/{CODE}/api/v1")
        with engine.begin() as connection:
            world.integration(connection, clinic, address)
        with Studiolab(CODE, address, DEMO_TOKEN, FAST) as client:
            yield Lab(engine, clinic, simulator, client)


def booking(key: str, at: str = "09:00", kind: str = "created", **change: Any) -> dict[str, Any]:
    """An appointment event on 12 March 2026 for half an hour."""
    starts = world.rome("2026-03-12", at)
    data = {
        "patient_id": "P1",
        "collaborator_id": "D1",
        "service_id": "S1",
        "agenda_id": "A1",
        "starts_at": starts.isoformat(),
        "ends_at": (starts + timedelta(minutes=30)).isoformat(),
        "status": "cancelled" if kind == "cancelled" else "booked",
    }
    return {"type": f"appointment.{kind}", "entity": {"type": "appointment", "id": key}, "data": data | change}


def acceptance(key: str, kind: str = "created", **change: Any) -> dict[str, Any]:
    data = {
        "appointment_id": key,
        "patient_id": "P1",
        "accepted_at": "2026-03-12T08:55:00+01:00",
        "desk": "Sportello 2",
    }
    return {"type": f"acceptance.{kind}", "entity": {"type": "acceptance", "id": f"C{key}"}, "data": data | change}


def report(key: str, kind: str = "published", **change: Any) -> dict[str, Any]:
    data = {
        "appointment_id": key,
        "patient_id": "P1",
        "title": "Referto",
        "published_at": "2026-03-12T12:00:00+01:00",
        "url": "https://referti.example/1",
    }
    return {"type": f"report.{kind}", "entity": {"type": "report", "id": f"R{key}"}, "data": data | change}


def person(key: str = "P1", **change: Any) -> dict[str, Any]:
    data = {
        "id": key,
        "last_name": "Rossi",
        "first_name": f"Mario {key[1:]}",
        "updated_at": "2026-03-10T10:00:00+01:00",
    }
    return {"type": "patient.updated", "entity": {"type": "patient", "id": key}, "data": data | change}
