"""The link in a letter with which somebody says that nothing more is wanted: looking shows, pressing acts.

Mail programs press it themselves (RFC 8058), from nowhere and without a cookie: the signed address is the permission.
"""

from __future__ import annotations

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from polydesk_dagster.clinic.messages import links
from polydesk_dagster.web.door import Door
from polydesk_dagster.web.routes import ANYBODY, Pages

pages = Pages()


@pages.get(links.PATH + "{token}", ANYBODY)
def ask(request: Request) -> Response:
    door: Door = request.state.door
    with door.signed.connect() as connection:
        letter = links.look(connection, request.path_params["token"])
    return _page(request, letter, stopped=False)


@pages.post(links.PATH + "{token}", ANYBODY)
async def stop(request: Request) -> Response:
    return await run_in_threadpool(_stop, request)


def _stop(request: Request) -> Response:
    door: Door = request.state.door
    with door.engine.begin() as connection:
        letter = links.stop(connection, request.path_params["token"], door.now())
    return _page(request, letter, stopped=True)


def _page(request: Request, letter: links.Letter | None, *, stopped: bool) -> Response:
    door: Door = request.state.door
    given = {"letter": letter, "stopped": stopped, "token": request.path_params["token"]}
    return door.templates.TemplateResponse(request, "stopping.html", given, 404 if letter is None else 200)
