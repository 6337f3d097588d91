"""Clinics, and how the studiolab of each is: what it was asked last, and the switch."""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from polydesk_dagster.changes.audit import is_reason
from polydesk_dagster.errors import ConfigurationError
from polydesk_dagster.runtime.state.integrations import asked_every, integration_states
from polydesk_dagster.runtime.state.model import BROKEN
from polydesk_dagster.settings import secret
from polydesk_dagster.sources import epochs, integrations, vendors
from polydesk_dagster.web.door import Door
from polydesk_dagster.web.roles import May, Person
from polydesk_dagster.web.routes import Pages, clinic_of

pages = Pages()


@pages.get("/cliniche", May.SEE)
def clinics(request: Request) -> Response:
    door: Door = request.state.door
    person: Person = request.state.person
    with door.reader.connect() as connection:
        states = integration_states(connection, lambda name: secret(name) is not None)
    hers = [state for state in states if person.clinics is None or state.clinic in person.clinics]
    now = door.now()
    every = {state.clinic: asked_every(state, now) or 1 for state in hers}
    return door.page(request, "clinics.html", clinics=hers, broken=BROKEN, every=every)


@pages.post("/cliniche/{clinic}/studiolab", May.APPLY)
def switch(request: Request) -> Response:
    """Switch the studiolab of one clinic on or off."""
    door: Door = request.state.door
    person: Person = request.state.person
    clinic = clinic_of(request, request.path_params["clinic"])
    assert clinic is not None
    on = request.state.form.get("on") == "1"
    with door.engine.begin() as connection:
        if not integrations.switch(connection, clinic, on=on, actor=person.signature, as_of=door.now()):
            raise HTTPException(404)
    return RedirectResponse("/cliniche", 303)


@pages.post("/cliniche/{clinic}/fonte", May.APPLY)
def source(request: Request) -> Response:
    """Say whether a clinic's source, which leads elsewhere than before, is the same system."""
    door: Door = request.state.door
    person: Person = request.state.person
    clinic = clinic_of(request, request.path_params["clinic"])
    assert clinic is not None
    reason = str(request.state.form.get("reason", "")).strip()
    answer = request.state.form.get("same")
    if answer not in {"0", "1"} or not is_reason(reason):
        raise HTTPException(422, door.say(request, "web.why_hint"))
    with door.engine.begin() as connection:
        try:
            epoch = vendors.epoch(integrations.configured(connection, clinic))
        except ConfigurationError as error:
            raise HTTPException(404) from error
        epochs.decide(
            connection, clinic, epoch, same=answer == "1", actor=person.signature, reason=reason, as_of=door.now()
        )
    return RedirectResponse("/cliniche", 303)
