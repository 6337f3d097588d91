"""What the tests of the booking API share: a door with the API in it over a small practice, and a front end."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL
from starlette.applications import Starlette
from starlette.routing import Mount

from polydesk_dagster.clinic.calendar import slots
from polydesk_dagster.database.engine import create_engine
from polydesk_dagster.front import tokens
from polydesk_dagster.front.addresses import BOOKING, FRONT
from polydesk_dagster.front.application import application
from polydesk_dagster.front.booking import application as booking
from polydesk_dagster.front.booking.access import Front
from polydesk_dagster.front.tokens import Scope
from polydesk_dagster.knowledge.library import Library
from tests import postgres, world
from tests.waiting import PATIENCE
from tests.web.world import Served, served
from tests.world import AS_OF

CODE = "89.7A.3"
EVERY = tuple(scope for scope in Scope if scope is not Scope.ASK)
"""All that concerns bookings; who asks the documents is no front end."""
ORDINARY = (Scope.FIND, Scope.HOLD, Scope.BOOK, Scope.CHANGE)
MARIA = {"family": "Verdi", "given": "Maria", "birthDate": "1980-05-05"}

_serial = itertools.count(1)


@dataclass
class Clock:
    """The API's clock in a test."""

    at: datetime = AS_OF

    def __call__(self) -> datetime:
        return self.at

    def wait(self, **span: float) -> None:
        self.at += timedelta(**span)


@dataclass
class Desk:
    """The API as it listens."""

    engine: sa.Engine
    front: Front
    clock: Clock
    door: Served
    practice: world.Practice
    other: world.Practice
    """Of another clinic, with the same service."""

    def token(self, scopes: Collection[Scope] = ORDINARY, clinics: Collection[str] = (), name: str = "sito") -> str:
        given = {"who": "desk:anna", "why": "prova di integrazione", "as_of": AS_OF}
        with self.engine.begin() as connection:
            return tokens.issue(connection, name=name, scopes=scopes, clinics=list(clinics), **given)  # type: ignore[arg-type]

    def caller(self, token: str | None = None, **more: str) -> Program:
        return Program(self, token or self.token(), **more)

    def free(self, program: Program, **narrower: object) -> list[dict[str, Any]]:
        """Times that the API offers from tomorrow on."""
        answer = program.find(**narrower)
        assert answer.status_code == 200, answer.text
        return [entry["resource"] for entry in answer.json()["entry"]]

    def scalar(self, query: str, **values: object) -> Any:
        with self.engine.connect() as connection:
            return connection.scalar(sa.text(query), values)


@dataclass
class Program:
    """A front end, for one visitor."""

    desk: Desk
    token: str
    visitor: str = field(default_factory=lambda: f"visitatrice-{next(_serial)}")
    language: str = "it"

    def headers(self, **more: str) -> dict[str, str]:
        given = {"Authorization": f"Bearer {self.token}", "Polydesk-Visitor": self.visitor}
        return {**given, "Accept-Language": self.language, **more}

    @property
    def base(self) -> str:
        return f"{self.desk.door.origin}{FRONT}{BOOKING}"

    def find(self, **narrower: object) -> httpx.Response:
        query = {
            "service-type": CODE,
            "start": (AS_OF + timedelta(days=1)).isoformat(),
            "end": (AS_OF + timedelta(days=15)).isoformat(),
            **narrower,
        }
        return httpx.get(f"{self.base}/Appointment/$find", params=query, headers=self.headers(), timeout=PATIENCE)

    def do(self, deed: str, body: object, key: str | None = None) -> httpx.Response:
        headers = self.headers(**{"Idempotency-Key": key or f"richiesta-{next(_serial)}"})
        return httpx.post(f"{self.base}/Appointment/${deed}", json=body, headers=headers, timeout=PATIENCE)

    def hold(self, time: dict[str, Any], key: str | None = None) -> httpx.Response:
        return self.do("hold", wanted(time), key)


def wanted(time: dict[str, Any]) -> dict[str, Any]:
    """The body of ``$hold`` for a time that ``$find`` answered."""
    return {"slot": time["slot"], "service": time["participant"][0]["actor"]}


@contextmanager
def open_desk(engine: sa.Engine, home: Path, **front: Any) -> Iterator[Desk]:
    """The API over two clinics with the slots of four weeks."""
    with engine.begin() as connection:
        here = world.practice(connection, horizon_days=28)
        there = world.practice(connection, "RE01", horizon_days=28)
        connection.execute(sa.text("UPDATE service SET code = :code"), {"code": CODE})
        connection.execute(
            sa.text("UPDATE location SET municipality_code = 'H223' WHERE id = :id"), {"id": there.location}
        )
    slots.generate(engine, AS_OF)
    clock = Clock()
    own = create_engine(engine.url, pool_size=8)
    with serving(engine, home, Front(own, clock, **front)) as door:
        yield Desk(engine, door[1], clock, door[0], here, there)
    own.dispose()


@pytest.fixture(scope="module")
def desk(server: sa.URL, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """One for a module: every test has its own visitors and times."""
    with postgres.copied(server, postgres.EMPTY) as url:
        engine = create_engine(url)
        with open_desk(engine, tmp_path_factory.mktemp("home")) as opened:
            yield opened
        engine.dispose()


@pytest.fixture(autouse=True)
def at_its_hour(request: pytest.FixtureRequest) -> None:
    if "desk" in request.fixturenames:
        request.getfixturevalue("desk").clock.at = AS_OF


def programs(url: URL, home: Path = Path(), address: str = "http://127.0.0.1") -> Starlette:
    """The whole front over a database, with documents and index under ``home``."""
    shelf = Library(home / "documents", str(home / "index"))
    return application(url, url, lambda: shelf, address)


@contextmanager
def serving(engine: sa.Engine, home: Path, front: Front) -> Iterator[tuple[Served, Front]]:
    """A door with the API in it, and the front that it answers from."""

    @asynccontextmanager
    async def lifespan(_: Starlette) -> Any:
        yield

    mounted = Starlette(routes=[Mount(BOOKING, booking.application(front))], lifespan=lifespan)
    with served(engine, home, front=mounted) as door:
        yield door, front
