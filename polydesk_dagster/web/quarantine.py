"""A record that could not be read: its fields for whom it concerns, another look at its source, its being left out."""

from __future__ import annotations

import sqlalchemy as sa
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from polydesk_dagster.catalog import BY_KEY
from polydesk_dagster.changes import quarantine
from polydesk_dagster.changes.quarantine import SetAside
from polydesk_dagster.errors import PolydeskError
from polydesk_dagster.told.records import fields
from polydesk_dagster.web import looks
from polydesk_dagster.web.door import Door
from polydesk_dagster.web.language import teller_of
from polydesk_dagster.web.roles import May, Person
from polydesk_dagster.web.routes import Pages, clinic_of

pages = Pages()

VERDICTS = ("settle", "reopen")


@pages.get("/da-fare/scarti/{number:int}", May.PATIENTS)
def record(request: Request) -> Response:
    """What the source wrote, field by field; a look at what may be a patient's is logged."""
    door: Door = request.state.door
    number = request.path_params["number"]
    with door.reader.connect() as connection:
        found = _hers(request, connection, number)
        told = fields(teller_of(request), quarantine.record(connection, number))
        known = quarantine.patients(connection, number)
    if found.private:
        looks.logged(request, "quarantine", patients=known, record=number)
    service = BY_KEY.get(found.service)
    return door.page(request, "quarantined.html", each=found, fields=told, service=service)


@pages.post("/da-fare/scarti/{number:int}", May.APPLY)
def decide(request: Request) -> Response:
    """Leave the record out until the source sends it otherwise, or let it wait again."""
    door: Door = request.state.door
    person: Person = request.state.person
    form, number = request.state.form, request.path_params["number"]
    verdict = form.get("verdict")
    if verdict not in VERDICTS:
        raise HTTPException(400, door.say(request, "web.choose_one"))
    reason = form.get("reason", "").strip()
    with door.engine.connect() as connection:
        _hers(request, connection, number)
    try:
        with door.engine.begin() as connection:
            quarantine.settle(
                connection,
                number,
                actor=person.signature,
                reason=reason,
                as_of=door.now(),
                undo=verdict == "reopen",
            )
    except PolydeskError as error:
        raise HTTPException(409, teller_of(request).reason(error.reason)) from None
    return RedirectResponse("/da-fare#quarantine" if verdict == "settle" else f"/da-fare/scarti/{number}", 303)


def _hers(request: Request, connection: sa.Connection, number: int) -> SetAside:
    """The record, if it is of a clinic of hers; what is the whole chain's is for who acts for the whole chain."""
    try:
        found = quarantine.find(connection, number)
    except PolydeskError:
        raise HTTPException(404) from None
    clinic_of(request, found.clinic)
    return found
