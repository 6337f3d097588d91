"""How long ahead people are reminded: by chain, clinic and service; each change is a plan."""

from __future__ import annotations

import sqlalchemy as sa
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from polydesk_dagster.changes.plans import Plan
from polydesk_dagster.clinic.messages import plans as reminding
from polydesk_dagster.web import looks
from polydesk_dagster.web.door import Door
from polydesk_dagster.web.plans import opened
from polydesk_dagster.web.roles import May, Person
from polydesk_dagster.web.routes import Pages, clinic_asked, clinic_of

pages = Pages()

UNITS = ("d", "h", "m")
"""As :func:`reminding.read` reads them."""


@pages.get("/messaggi/promemoria", May.SEE)
def reminders(request: Request) -> Response:
    """The plans that hold where she acts, and the form for one of ``?clinica=`` (empty: the chain)."""
    door: Door = request.state.door
    person: Person = request.state.person
    clinic = clinic_asked(request)
    with door.reader.connect() as connection:
        clinics = looks.clinics(connection, person)
        found = [each for each in reminding.listed(connection) if each.clinic is None or person.acts_for(each.clinic)]
        services = reminding.services(connection, clinic) if clinic else []
    return door.page(
        request,
        "reminders.html",
        found=found,
        clinic=clinic,
        clinics=clinics,
        services=services,
        units=UNITS,
        most=reminding.MOST,
    )


@pages.post("/messaggi/promemoria", May.APPLY)
def proposed(request: Request) -> Response:
    """The plan that makes the steps of the form hold: ``number`` and ``unit``, as often as there are steps."""
    form = request.state.form
    clinic, service = _whose(request)
    if any(unit not in UNITS for unit in form.getlist("unit")):
        raise HTTPException(400, request.state.door.say(request, "web.choose_one"))
    steps = [
        f"{number.strip()}{unit}"
        for number, unit in zip(form.getlist("number"), form.getlist("unit"), strict=False)
        if number.strip()
    ]

    def planned(connection: sa.Connection) -> Plan:
        wanted = reminding.read(" ".join(steps))
        now, who = request.state.door.now(), request.state.person.signature
        return reminding.propose(connection, clinic, service, wanted, who=who, at=now)

    return opened(request, planned, "web.reminders_same")


@pages.post("/messaggi/promemoria/togli", May.APPLY)
def withdrawn(request: Request) -> Response:
    """The plan that takes one away: the wider one holds again."""
    clinic, service = _whose(request)
    now = request.state.door.now()
    return opened(
        request, lambda connection: reminding.withdraw(connection, clinic, service, at=now), "web.reminders_same"
    )


def _whose(request: Request) -> tuple[str | None, str | None]:
    form = request.state.form
    return clinic_of(request, form.get("clinica") or None), form.get("prestazione") or None
