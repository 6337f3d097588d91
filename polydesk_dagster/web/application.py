"""The one application that listens: guard, people, our pages, health, Dagster's page behind them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from polydesk_dagster.clinic.messages import links
from polydesk_dagster.database import refusals
from polydesk_dagster.errors import PolydeskError, TransientError
from polydesk_dagster.front.addresses import FRONT
from polydesk_dagster.runtime import health
from polydesk_dagster.told import Teller
from polydesk_dagster.web import (
    addresses,
    alignment,
    clinics,
    closures,
    drawn,
    gateway,
    knowledge,
    login,
    messages,
    notices,
    oidc,
    patients,
    plans,
    quarantine,
    reader,
    red,
    reminders,
    services,
    statistics,
    stopping,
    texts,
    todo,
    visit,
    wellness,
)
from polydesk_dagster.web.door import HERE, Door, Recognise, person_of
from polydesk_dagster.web.figures import figures
from polydesk_dagster.web.guard import Guard, Outside
from polydesk_dagster.web.language import reads_pages, teller_of
from polydesk_dagster.web.routes import LOGIN, Pages

PAGES: tuple[Pages, ...] = (
    gateway.pages,  # first: all the others are tried before the last, and nobody asks as often
    login.pages,
    oidc.pages,
    reader.pages,
    alignment.pages,
    services.pages,
    red.pages,
    plans.pages,
    todo.pages,
    quarantine.pages,
    patients.pages,
    clinics.pages,
    closures.pages,
    texts.pages,
    reminders.pages,
    notices.pages,
    messages.pages,
    knowledge.pages,
    statistics.pages,
    drawn.pages,
    wellness.pages,
    stopping.pages,
    visit.pages,
)
"""Every module of views; a new one is named here."""
DAGSTER = "/dagster"

Lifespan = Callable[[Starlette], AbstractAsyncContextManager[None]]


def application(
    door: Door,
    dagster: ASGIApp | None = None,
    more: Iterable[BaseRoute] = (),
    lifespan: Lifespan | None = None,
    front: Starlette | None = None,
) -> ASGIApp:
    """The whole, for one installation; ``dagster`` is its page, ``more`` are routes that have their own access, and
    ``front`` is what programs outside ask, who have no session."""
    routes: list[BaseRoute] = [
        *(route for pages in PAGES for route in pages.routes),
        *more,
        Route("/health", _health),
        Route("/health/live", _live),
        Route("/metrics", figures),
        Mount("/static", StaticFiles(directory=HERE / "static")),
    ]
    if dagster is not None:
        routes.append(Mount(DAGSTER, _OnlyKnown(dagster)))
    app = Starlette(
        routes=routes,
        middleware=[Middleware(Recognise, door=door)],
        exception_handlers={HTTPException: _said, 404: _said, PolydeskError: _refused, Exception: _broken},
        lifespan=lifespan,
    )
    if front is not None:
        app = Starlette(routes=[Mount(FRONT, front), Mount("", app)], lifespan=_lives(app, front))
    return Guard(app, door.address, OUTSIDE)


OUTSIDE = (
    Outside(links.PATH),
    Outside(addresses.SMS, frozenset({"POST"}), 600.0, 6_000.0, largest=16_384, signature="x-signature"),
    Outside(FRONT, methods=frozenset({"GET", "HEAD", "POST", "PUT", "DELETE"}), per_second=500.0, at_once=2_000.0),
)
"""Mail programs that stop a patient's messages with one click; and the booking front end, all of whose visitors come
from the address of its server."""


def _lives(*apps: Starlette) -> Lifespan:
    """The lives of several applications as one."""

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with AsyncExitStack() as lives:
            for app in apps:
                await lives.enter_async_context(app.router.lifespan_context(app))
            yield

    return lifespan


class _OnlyKnown:
    """ASGI: nobody unknown gets to what is mounted here, whatever the path."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if person_of(HTTPConnection(scope)) is not None:
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        elif scope["method"] == "GET" and reads_pages(HTTPConnection(scope)):
            await RedirectResponse(f"{LOGIN}?da={DAGSTER}", 303)(scope, receive, send)
        else:
            said = teller_of(HTTPConnection(scope)).text("door.session_over")
            await JSONResponse({"errors": [{"message": said}]}, 401)(scope, receive, send)


async def _live(_request: Request) -> Response:
    return PlainTextResponse("ok")


async def _health(request: Request) -> Response:
    """Whether all is well, for whoever asks; what is wrong, for who is logged in."""
    door: Door = request.state.door
    answer = await run_in_threadpool(_examined, door, teller_of(request))
    shown = answer if person_of(request) is not None else {"ok": answer["ok"], "at": answer["at"]}
    return JSONResponse(shown, 200 if answer["ok"] else 503)


def _examined(door: Door, t: Teller) -> dict[str, Any]:
    now = datetime.now(UTC)
    return health.as_object(health.examine(door.settings, now), now, t)


async def _said(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _page(request, error.status_code, error.detail)


async def _refused(request: Request, error: Exception) -> Response:
    """What a rule would not take, of a form that nobody has filled in on a page of ours or whose page is old."""
    assert isinstance(error, PolydeskError)
    return _page(request, 503 if isinstance(error, TransientError) else 409, teller_of(request).reason(error.reason))


async def _broken(request: Request, error: Exception) -> Response:
    if not refusals.away(error):
        return _page(request, 500, "door.broken")
    only_looked = request.method in {"GET", "HEAD"}
    return _page(request, 503, "door.database_away" if only_looked else "door.database_lost")


def _page(request: Request, status: int, message: str) -> Response:
    """The refusal in the reader's language; ``message`` is a sentence, or its name in the catalogues."""
    door: Door | None = getattr(request.state, "door", None)
    if door is None:
        return PlainTextResponse(message, status)
    name = "door.missing_why" if status == 404 else message
    said = door.say(request, name) if name.startswith("door.") else name
    if not reads_pages(request):
        return PlainTextResponse(said, status)
    return door.templates.TemplateResponse(request, "refused.html", {"status": status, "message": said}, status)
