"""Coming in and going out: password, links that work once, and the way out."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from polydesk_dagster.web import sessions, throttle, users
from polydesk_dagster.web.door import Door, person_of
from polydesk_dagster.web.language import teller_of
from polydesk_dagster.web.roles import May
from polydesk_dagster.web.routes import ANYBODY, LOGIN, Pages

pages = Pages()

WRONG, TOO_MANY, USED_UP = "door.wrong", "door.too_many", "door.used_up"

_hashing = asyncio.Semaphore(2)
"""A hash takes 64 MB and a core: never many at once, however many knock."""


def local(path: object) -> str:
    """Where to go after the login: a path of ours, or the first page."""
    if not isinstance(path, str) or not path.startswith("/") or path[1:2] in {"/", "\\"} or not path.isprintable():
        return "/"
    return path


def login_page(request: Request, status: int = 200, **more: object) -> Response:
    """The form to come in; ``problem`` is the sentence of the catalogues that says why the last try did not."""
    door: Door = request.state.door
    given = {"next": local(request.query_params.get("da")), "oidc": door.settings.oidc_issuer is not None, **more}
    return door.templates.TemplateResponse(request, "login.html", given, status)


@pages.get(LOGIN, ANYBODY)
def login(request: Request) -> Response:
    return RedirectResponse("/", 303) if person_of(request) else login_page(request)


@pages.post(LOGIN, ANYBODY)
async def enter(request: Request) -> Response:
    door: Door = request.state.door
    form = request.state.form
    email, password = str(form.get("email", ""))[:320], str(form.get("password", ""))
    where, address = local(form.get("next")), request.client.host if request.client else ""
    number = await run_in_threadpool(throttle.attempt, door.engine, email, address, door.now())
    if number is None:
        return login_page(request, 429, problem=TOO_MANY, next=where, email=email)
    async with _hashing:
        token = await run_in_threadpool(_proved, door, number, email, password)
    if token is None:
        return login_page(request, 401, problem=WRONG, next=where, email=email)
    return inside(request, token, where)


def _proved(door: Door, number: int, email: str, password: str) -> str | None:
    with door.engine.begin() as connection:
        user = users.proved(connection, email, password, door.now())
        if user is None:
            return None
        throttle.succeeded(connection, number)
        sessions.tidy(connection, door.now())
        return sessions.begin(connection, user, "password", door.now())


def inside(request: Request, token: str, where: str) -> Response:
    """To ``where``, with a new session; the one that the browser had is over."""
    door: Door = request.state.door
    before = door.token(request)
    if before:
        with door.engine.begin() as connection:
            sessions.end(connection, before, door.now())
    response = RedirectResponse(where, 303)
    door.let_in(response, token)
    return response


@pages.get("/ingresso", ANYBODY)
def enter_by_link(request: Request) -> Response:
    """The link that ``polydesk up`` prints for the demo's owner, and ``polydesk users`` for whoever is locked out."""
    door: Door = request.state.door
    with door.engine.begin() as connection:
        user = users.use_link(connection, request.query_params.get("gettone", ""), "enter", door.now())
        token = sessions.begin(connection, user, "link", door.now()) if user is not None else None
    return login_page(request, 403, problem=USED_UP) if token is None else inside(request, token, "/")


@pages.get("/attiva", ANYBODY)
def activate(request: Request) -> Response:
    """The link of an activation e-mail, or of ``polydesk users reset``. Looking uses nothing up: mail scanners look."""
    return _choose(request, request.query_params.get("codice", ""))


def _choose(request: Request, code: str, status: int = 200, **more: Any) -> Response:
    door: Door = request.state.door
    given = {"code": code, "shortest": users.SHORTEST, **more}
    return door.templates.TemplateResponse(request, "password.html", given, status)


@pages.post("/attiva", ANYBODY)
async def choose(request: Request) -> Response:
    door: Door = request.state.door
    form = request.state.form
    code, password, again = (str(form.get(name, "")) for name in ("codice", "password", "again"))
    weak = users.weak(password)
    if weak is not None or password != again:
        t = teller_of(request)
        return _choose(request, code, 400, problem=t.reason(weak) if weak is not None else t.text("door.unequal"))
    async with _hashing:
        token = await run_in_threadpool(_chosen, door, code, password)
    if token is None:
        return login_page(request, 403, problem=USED_UP)
    return await run_in_threadpool(inside, request, token, "/")


def _chosen(door: Door, code: str, password: str) -> str | None:
    with door.engine.begin() as connection:
        user = users.choose_password(connection, code, password, door.now())
        return None if user is None else sessions.begin(connection, user, "activation", door.now())


@pages.post("/esci", May.SEE)
def leave(request: Request) -> Response:
    door: Door = request.state.door
    with door.engine.begin() as connection:
        sessions.end(connection, door.token(request) or "", door.now())
    response = RedirectResponse(LOGIN, 303)
    door.forget(response, door.cookie)
    return response
