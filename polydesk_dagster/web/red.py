"""The red zone: dangerous services, each looked at first, then applied with a reason and the phrase of that look."""

from __future__ import annotations

from functools import partial

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from polydesk_dagster.catalog import BY_KEY, Place, Service
from polydesk_dagster.runtime.pressing import press
from polydesk_dagster.web import looks, presses
from polydesk_dagster.web.door import Door
from polydesk_dagster.web.roles import May, Person
from polydesk_dagster.web.routes import Pages, clinic_of, number_in

pages = Pages()


@pages.get("/rossa/{key}", May.EMERGENCY)
def danger(request: Request) -> Response:
    """A dangerous service: what it did last, and the first step, which only looks."""
    door: Door = request.state.door
    service = _dangerous(request)
    with door.reader.connect() as connection:
        clinics = looks.clinics(connection, request.state.person)
        runs = looks.past(connection, service.key, request.state.person, limit=10)
    return door.page(request, "danger.html", service=service, clinics=clinics, runs=runs)


@pages.post("/rossa/{key}/guarda", May.EMERGENCY)
def look(request: Request) -> Response:
    return _press(request, {"preview": True}, preview=True)


@pages.post("/rossa/{key}/premi", May.EMERGENCY)
def apply(request: Request) -> Response:
    """The second step. Reason, phrase and plan are judged by the gate that the command goes through too."""
    form = request.state.form
    plan = number_in(form.get("plan"))
    if plan is None:
        raise HTTPException(400, request.state.door.say(request, "web.look_before"))
    reason, phrase = form.get("reason", "").strip(), form.get("phrase", "").strip()
    if not (reason and phrase):
        raise HTTPException(400, request.state.door.say(request, "web.reason_and_phrase"))
    return _press(request, {"reason": reason, "confirm": phrase, "plan": plan}, preview=False)


def _press(request: Request, config: dict[str, object], *, preview: bool) -> Response:
    door: Door = request.state.door
    person: Person = request.state.person
    service = _dangerous(request)
    clinic = clinic_of(request, request.state.form.get("clinic") or None)
    work = partial(press, door.settings, door.engine, service, clinic, config, person=person.signature)
    return presses.pressed(request, service.key, clinic, work, preview=preview)


def _dangerous(request: Request) -> Service:
    found = BY_KEY.get(request.path_params["key"])
    if found is None or found.place is not Place.EMERGENCY:
        raise HTTPException(404)
    return found
