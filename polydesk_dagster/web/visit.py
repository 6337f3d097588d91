"""The link in a text or a letter that shows an appointment: looking shows, pressing acts; the signed address is the
permission."""

from __future__ import annotations

from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from polydesk_dagster.clinic.messages import links, visits
from polydesk_dagster.web import gateway
from polydesk_dagster.web.door import Door
from polydesk_dagster.web.routes import ANYBODY, Pages

pages = Pages()


@pages.get(links.VISIT + "{token}", ANYBODY)
def visit(request: Request) -> Response:
    door: Door = request.state.door
    with door.signed.connect() as connection:
        told = visits.look(connection, request.path_params["token"], door.now())
    return _page(request, told)


@pages.post(links.VISIT + "{token}", ANYBODY)
async def say(request: Request) -> Response:
    door: Door = request.state.door
    verb = request.state.form.get("verb")
    if verb not in visits.VERBS:
        raise HTTPException(400, "web.choose_one")

    def act() -> visits.Told | None:
        with door.engine.begin() as connection:
            return visits.act(connection, request.path_params["token"], verb, door.now())

    answer = _page(request, await run_in_threadpool(act))
    if verb == "cancel" and answer.status_code == 200:
        answer.background = BackgroundTask(gateway.send, door)
    return answer


def _page(request: Request, told: visits.Told | None) -> Response:
    door: Door = request.state.door
    return door.templates.TemplateResponse(request, "visit.html", {"told": told}, 404 if told is None else 200)
