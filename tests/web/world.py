"""What the tests of the door share: a door that listens, people, and requests as a browser sends them, or anybody."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import sqlalchemy as sa
import uvicorn
from starlette.applications import Starlette

from polydesk_dagster.settings import Settings
from polydesk_dagster.web import sessions, tokens, users
from polydesk_dagster.web.application import application
from polydesk_dagster.web.door import Door
from tests import world
from tests.waiting import PATIENCE

PASSWORD = "quattro parole messe in fila"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def person(
    connection: sa.Connection, role: str, *, clinic: int | None = None, password: bool = False, **more: Any
) -> int:
    """Somebody active of a role; a manager without a clinic acts for the whole chain."""
    home = clinic or connection.scalar(sa.text("SELECT min(id) FROM clinic")) or world.clinic(connection)
    chain = clinic is None and role in {"manager", "superuser"}
    given = {"role": role, "state": "active", "activated_at": world.AS_OF, "whole_chain": chain, **more}
    user = world.user(connection, home, **given)
    if password:
        users.set_password(connection, user, PASSWORD, world.AS_OF)
    return user


def session(connection: sa.Connection, user: int) -> str:
    """The token of a new session of a user."""
    return sessions.begin(connection, user, "password", datetime.now(UTC))


@dataclass
class Served:
    """A door that listens on the loopback."""

    door: Door
    origin: str

    def client(self, token: str | None = None, **headers: str) -> httpx.Client:
        """A browser on our own page, with a session or without."""
        cookies = {self.door.cookie: token} if token else {}
        given = {"origin": self.origin, **headers}
        return httpx.Client(base_url=self.origin, cookies=cookies, headers=given, timeout=PATIENCE)

    def signed_in(self, role: str, **more: Any) -> httpx.Client:
        """The browser of somebody of a role."""
        with self.door.engine.begin() as connection:
            token = session(connection, person(connection, role, **more))
        return self.client(token)

    def form(self, client: httpx.Client, **fields: str) -> Mapping[str, str]:
        """The fields of a form of the session that a browser has."""
        return {"form_token": tokens.of_form(client.cookies[self.door.cookie]), **fields}


@contextmanager
def listening(app: Any, port: int) -> Iterator[str]:
    """An ASGI application on a port of the loopback; its origin."""
    server = uvicorn.Server(
        uvicorn.Config(
            *(app, "127.0.0.1", port),
            log_level="warning",
            access_log=False,
            timeout_keep_alive=int(PATIENCE),
            timeout_graceful_shutdown=2,
        )
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            thread.join(0.002)  # a wait that turns would take from the thread what it needs to start
            assert thread.is_alive()
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(PATIENCE)


@contextmanager
def served(engine: sa.Engine, home: Path, front: Starlette | None = None, **settings: Any) -> Iterator[Served]:
    """The door of an installation over ``engine``'s database, without Dagster behind it."""
    port = free_port()
    url = engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
    door = Door(Settings(home=home, database_url=url, web_port=port, **settings), engine)
    with listening(application(door, front=front), port) as origin:
        yield Served(door, origin)
    door.close()
