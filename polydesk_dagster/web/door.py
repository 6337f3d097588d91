"""The door of one installation: what every request needs, and who each request comes from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from starlette.concurrency import run_in_threadpool
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.templating import Jinja2Templates
from starlette.types import ASGIApp, Receive, Scope, Send

from polydesk_dagster.database.engine import Role, business_url, create_engine, dagster_url
from polydesk_dagster.database.migrate import serving
from polydesk_dagster.settings import Settings
from polydesk_dagster.values import Value
from polydesk_dagster.web import sessions, tokens, words
from polydesk_dagster.web.guard import Address
from polydesk_dagster.web.language import bare, teller_of
from polydesk_dagster.web.presses import Presses
from polydesk_dagster.web.roles import Person

HERE = Path(__file__).parent


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True)
class Door:
    """One installation, as the pages see it: ``request.state.door``."""

    settings: Settings
    engine: sa.Engine
    now: Callable[[], datetime] = _now
    address: Address = field(init=False)
    kept: dict[str, Any] = field(default_factory=dict)
    """What modules of views make once and keep."""
    presses: Presses = field(init=False, default_factory=Presses)

    def __post_init__(self) -> None:
        object.__setattr__(self, "address", Address.of(self.settings))

    @property
    def templates(self) -> Jinja2Templates:
        return _templates()

    @cached_property
    def reader(self) -> sa.Engine:
        """The same database for who only looks: what a page shows comes from here, and can write nothing. (The samples
        of texts do not: they are planned for real, and rolled back.)"""
        return serving(business_url(self.settings, Role.READER), reads=True)

    @cached_property
    def signed(self) -> sa.Engine:
        """The same database for pages behind a signed link: the secret is read, which the reader's role may not, and
        nothing can be written."""
        return self.engine.execution_options(postgresql_readonly=True)

    @cached_property
    def dagster(self) -> sa.Engine:
        """Dagster's own database, to look at."""
        url = dagster_url(self.settings, Role.READER)
        return create_engine(url.set(drivername="postgresql+psycopg"), reads=True)

    def close(self) -> None:
        """Let go of the connections that were opened here."""
        for name in ("reader", "dagster"):
            if name in self.__dict__:
                getattr(self, name).dispose()

    def page(self, request: Request, template: str, /, **values: object) -> Response:
        """A page in the reader's language."""
        return self.templates.TemplateResponse(request, template, values)

    def say(self, request: Request, name: str, /, **values: Value) -> str:
        """A sentence of the catalogues in the reader's language."""
        return teller_of(request).text(name, **values)

    @property
    def cookie(self) -> str:
        """The session cookie's name. Cookies know no ports, so two installations of one machine need two names; behind
        TLS the prefix makes sure that only this host, over TLS, can have set it."""
        return "__Host-polydesk" if self.address.secure else f"polydesk-{self.settings.web_port}"

    def token(self, connection: HTTPConnection) -> str | None:
        """The session's token that a request brings, good or not."""
        return connection.cookies.get(self.cookie)

    def let_in(self, response: Response, token: str) -> None:
        """Give the browser its session."""
        self.remember(response, self.cookie, token, int(sessions.ABSOLUTE.total_seconds()))

    def remember(self, response: Response, name: str, value: str, seconds: int) -> None:
        """Set a cookie that scripts cannot read and other pages cannot send with what changes something."""
        response.set_cookie(
            name, value, max_age=seconds, path="/", secure=self.address.secure, httponly=True, samesite="lax"
        )

    def forget(self, response: Response, name: str) -> None:
        response.delete_cookie(name, path="/", secure=self.address.secure, httponly=True, samesite="lax")

    def look(self, token: str | None, *, touch: bool = True) -> Person | None:
        """Whose session it is; blocking."""
        if not token:
            return None
        with self.engine.begin() as connection:
            return sessions.look(connection, token, self.now(), touch=touch)

    async def still_here(self, connection: HTTPConnection) -> bool:
        """Whether the session behind a connection still holds; not while the database cannot say so."""
        try:
            return await run_in_threadpool(self.look, self.token(connection), touch=False) is not None
        except (sa.exc.OperationalError, sa.exc.TimeoutError):
            return False


def person_of(connection: HTTPConnection) -> Person | None:
    """Who a request comes from; None: nobody known."""
    person: Person | None = connection.scope.get("state", {}).get("person")
    return person


def known(connection: HTTPConnection) -> dict[str, object]:
    """What every template knows: who speaks its language (``t``), ``person``, ``may(May.RUN)`` and a form's
    ``form_token``."""
    door: Door = connection.state.door
    person = person_of(connection)
    token = door.token(connection)
    return {
        "person": person,
        "may": person.may if person else lambda _permission: False,
        "t": teller_of(connection),
        "now": door.now(),
        "here": connection.url.path,
        "form_token": tokens.of_form(token) if token and person else "",
    }


@cache
def _templates() -> Jinja2Templates:
    """Compiled once a process, however many doors it opens."""
    templates = Jinja2Templates(HERE / "templates", context_processors=[known])
    templates.env.trim_blocks = templates.env.lstrip_blocks = True
    templates.env.globals |= words.GLOBALS  # pyrefly: ignore[unsupported-operation] - inferred from Jinja's own
    return templates


FOR_ALL = ("/health", "/metrics", "/static")
"""What answers nobody known as well, so it does where the database cannot say who asks."""


class Recognise:
    """ASGI middleware: puts the door and the person, where one is known, into the request's state."""

    def __init__(self, app: ASGIApp, door: Door) -> None:
        self._app = app
        self._door = door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in {"http", "websocket"}:
            token = self._door.token(HTTPConnection(scope))
            try:
                person = await run_in_threadpool(self._door.look, token) if token else None
            except (sa.exc.OperationalError, sa.exc.TimeoutError):
                if not any(f"{scope['path']}/".startswith(f"{each}/") for each in FOR_ALL):
                    await _away(scope, receive, send)
                    return
                person = None
            scope["state"] = {**scope.get("state", {}), "door": self._door, "person": person}
        await self._app(scope, receive, send)


async def _away(scope: Scope, receive: Receive, send: Send) -> None:
    """The database does not say who this is, so it is nobody, for now."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1013})
        return
    await bare(HTTPConnection(scope), 503, "door.database_away", {"Retry-After": "5"})(scope, receive, send)
