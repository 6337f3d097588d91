"""A clinic beside the simulator of its studiolab, and the lists that it holds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pytest
import sqlalchemy as sa

from polydesk_dagster.changes import plans
from polydesk_dagster.changes.plans import Scope
from polydesk_dagster.demo.simulators.server import DEMO_TOKEN, in_thread
from polydesk_dagster.demo.simulators.studiolab import StudiolabSimulator
from polydesk_dagster.outcome import Outcome, Report
from polydesk_dagster.sources import lists
from polydesk_dagster.sources.studiolab.client import Studiolab
from tests import world
from tests.lent import FILLS
from tests.sources.test_remote_policy import FAST

SERVICES = [
    {"id": f"S{n}", "code": f"89.{n:02d}", "name": f"Visita {n}", "duration_minutes": 20, "active": True}
    for n in range(20)
]


AGREEMENTS = [{"id": "C1", "name": "Fondo Sanità", "kind": "fund", "valid_from": "2024-01-01"}]


PRICES = [
    {"service_id": f"S{n}", "amount": f"{50 + n}.00", "currency": "EUR", "valid_from": "2024-01-01"} for n in range(20)
] + [
    {"service_id": "S1", "agreement_id": "C1", "amount": "40.00", "patient_share": "10.00", "currency": "EUR",
     "valid_from": "2024-01-01"}
]  # fmt: skip


COLLABORATORS = [
    {"id": "D1", "title": "Dott.", "last_name": "Neri", "first_name": "Ugo", "active": True, "specialties": ["ORL"]},
    *(
        {"id": f"D{n}", "title": "Prof.", "last_name": f"Verdi{'o' * n}", "first_name": "Eva", "active": True}
        for n in range(2, 8)
    ),
]


class Statements:
    """Whoever has a database, and asks and writes it by hand."""

    engine: sa.Engine

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        with self.engine.connect() as connection:
            return [tuple(row) for row in connection.execute(sa.text(query))]

    def write(self, statement: str) -> None:
        with self.engine.begin() as connection:
            connection.execute(sa.text(statement))


@dataclass
class Lab(Statements):
    """A clinic and its studiolab."""

    engine: sa.Engine
    simulator: StudiolabSimulator
    url: str
    clinic: int

    def hold(self, **lists: list[dict[str, Any]]) -> None:
        self.simulator.hold("BO01", lists)

    def sync(self, feed: str, *, preview: bool = False, as_of: datetime = world.AS_OF) -> Report:
        scope = Scope(f"sync_{feed}", "BO01", self.clinic)
        with Studiolab("BO01", self.url, DEMO_TOKEN, FAST) as client:
            return lists.synchronise(self.engine, client, feed, scope, as_of=as_of, preview=preview)

    def plan(self, report: Report) -> plans.Plan:
        assert report.plan_id is not None
        with self.engine.connect() as connection:
            return plans.load(connection, report.plan_id)


@contextmanager
def _beside(engine: sa.Engine, clinic: int) -> Iterator[Lab]:
    simulator = StudiolabSimulator()
    with in_thread(simulator) as url:
        lab = Lab(engine, simulator, url.replace("/api/v1", "/BO01/api/v1"), clinic)
        lab.hold(services=SERVICES, agreements=AGREEMENTS, prices=PRICES, collaborators=COLLABORATORS)
        yield lab


def _clinic(engine: sa.Engine) -> int:
    with engine.begin() as connection:
        return world.clinic(connection)


def _in_step(engine: sa.Engine) -> int:
    clinic = _clinic(engine)
    with _beside(engine, clinic) as lab:
        for feed in ("services", "collaborators", "agreements", "prices"):
            assert lab.sync(feed).outcome is Outcome.OK
    return clinic


FILLS["synced"] = _in_step


@pytest.fixture
def lab(engine: sa.Engine) -> Iterator[Lab]:
    with _beside(engine, _clinic(engine)) as lab:
        yield lab


@pytest.fixture
def synced(_lent: tuple[sa.Engine, int]) -> Iterator[Lab]:
    """What is held is in step with what is ours, by one run of each list."""
    with _beside(*_lent) as lab:
        yield lab
