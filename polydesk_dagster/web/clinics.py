"""Clinics, and how the studiolab of each is: what it was asked last, and the switch."""

from __future__ import annotations

from urllib.parse import urlencode

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
from polydesk_dagster.web.routes import Pages, clinic_of, number_in

pages = Pages()

SHOWN = 25
"""Clinics on one page."""


@pages.get("/cliniche", May.SEE)
def clinics(request: Request) -> Response:
    """Those first at which somebody must look; of more than a page shows, one is found by its code or name."""
    door: Door = request.state.door
    person: Person = request.state.person
    with door.reader.connect() as connection:
        states = integration_states(connection, lambda name: secret(name) is not None)
    hers = [state for state in states if person.clinics is None or state.clinic in person.clinics]
    said = request.query_params.get("cerca", "").strip()
    found = [state for state in hers if said.casefold() in f"{state.clinic} {state.name}".casefold()]
    found.sort(key=lambda state: state.link not in BROKEN)
    last = max(1, -(-len(found) // SHOWN))
    page = min(max(1, number_in(request.query_params.get("pagina")) or 1), last)
    shown = found[(page - 1) * SHOWN : page * SHOWN]
    now = door.now()
    return door.page(
        request,
        "clinics.html",
        clinics=shown,
        troubled=sum(state.link in BROKEN for state in found),
        broken=BROKEN,
        every={state.clinic: asked_every(state, now) or 1 for state in shown},
        searched=said or len(hers) > SHOWN,
        said=said,
        page=page,
        last=last,
    )


def _back(request: Request) -> Response:
    """To where in the list the button was."""
    place = {name: str(request.state.form.get(name, "")) for name in ("cerca", "pagina")}
    return RedirectResponse("/cliniche?" + urlencode(place), 303)


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
    return _back(request)


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
    return _back(request)
