"""Whom a closure touches and what each will read, told once somebody has looked."""

from __future__ import annotations

import hmac

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from polydesk_dagster.clinic.messages import closed
from polydesk_dagster.errors import PolydeskError
from polydesk_dagster.web import looks
from polydesk_dagster.web.door import Door
from polydesk_dagster.web.language import teller_of
from polydesk_dagster.web.roles import May, Person
from polydesk_dagster.web.routes import Pages, clinic_asked, clinic_of

pages = Pages()

HERE = "/messaggi/chiusure"


@pages.get(HERE, May.PATIENTS)
def notices(request: Request) -> Response:
    """Who of ``?clinica=`` (empty: of every clinic, for who acts for the chain) has lost the booking and was not
    told."""
    door: Door = request.state.door
    person: Person = request.state.person
    clinic, now = clinic_asked(request), door.now()
    with door.reader.connect() as connection:
        found = closed.untold(connection, now, clinic)
        patients = looks.patients_of(connection, [each.appointment_id for each in found])
        clinics = looks.clinics(connection, person)
    if patients:
        looks.logged(request, "chiusure", patients=patients)
    told = request.query_params.get("avvisati", "")
    return door.page(
        request,
        "notices.html",
        found=found,
        seal=closed.seal(found),
        clinic=clinic,
        clinics=clinics,
        told=int(told) if told.isdecimal() and len(told) < 7 else None,
    )


@pages.post(HERE, May.PATIENTS)
def tell(request: Request) -> Response:
    """Tell exactly those whom she saw what she saw of them: ``seal`` stands for it."""
    door: Door = request.state.door
    form = request.state.form
    clinic, now = clinic_of(request, form.get("clinica") or None), door.now()
    try:
        with door.engine.begin() as connection:
            found = closed.untold(connection, now, clinic)
            if not hmac.compare_digest(closed.seal(found), form.get("seal", "")):
                raise HTTPException(409, door.say(request, "web.notices_changed"))
            count = closed.tell(connection, found, now, clinic)
    except PolydeskError as error:
        raise HTTPException(409, teller_of(request).reason(error.reason)) from None
    return RedirectResponse(f"{HERE}?clinica={clinic or ''}&avvisati={count}", 303)
