"""Closing from the desk: whom it touches and where they could go, seen before anything is done; the plan is applied on
its own page. Likewise turns that were edited, and the places that are kept for whoever has lost hers."""

from __future__ import annotations

from datetime import date, time
from typing import TypeVar

import sqlalchemy as sa
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from polydesk_dagster.clinic.bookings import offers
from polydesk_dagster.clinic.calendar import agendas, desk_closures, rule_edits
from polydesk_dagster.clinic.calendar.desk_closures import Closure, Proposal
from polydesk_dagster.clinic.patients import seen
from polydesk_dagster.web import looks
from polydesk_dagster.web.door import Door
from polydesk_dagster.web.roles import May, Person
from polydesk_dagster.web.routes import Pages, clinic_of, number_given

pages = Pages()

T = TypeVar("T", date, time)


@pages.get("/chiusure", May.PATIENTS)
def closures(request: Request) -> Response:
    return _page(request, None)


@pages.post("/chiusure/chiudi", May.PATIENTS)
def close(request: Request) -> Response:
    """Whom a closure would touch."""
    door: Door = request.state.door
    form = request.state.form
    agenda = number_given(request, "agenda")
    with door.engine.connect() as connection:
        clinic = _clinic_of_agenda(connection, agenda) if agenda is not None else form.get("clinic") or None
    clinic_of(request, clinic)
    first = _read(request, date, "from")
    last = _read(request, date, "to") or first
    if first is None or last is None:
        raise HTTPException(400, door.say(request, "web.which_days"))
    hours = _read(request, time, "from_time"), _read(request, time, "to_time")
    closure = Closure(form.get("name", ""), first, last, *hours, clinic, agenda)
    return _page(request, desk_closures.propose(door.engine, closure, as_of=door.now()))


@pages.post("/chiusure/turni", May.PATIENTS)
def turns(request: Request) -> Response:
    """Whom the edited turns of a clinic would touch."""
    door: Door = request.state.door
    clinic = clinic_of(request, request.state.form.get("clinic") or None)
    if clinic is None:
        raise HTTPException(400, door.say(request, "web.choose_one"))
    return _page(request, rule_edits.propose(door.engine, clinic, as_of=door.now()))


@pages.post("/chiusure/posti", May.PATIENTS)
def places(request: Request) -> Response:
    """The places that would be kept for whoever has lost hers."""
    door: Door = request.state.door
    clinic = clinic_of(request, request.state.form.get("clinic") or None)
    with door.engine.begin() as connection:
        report, touched = offers.propose(connection, door.now(), clinic=clinic)
    return _page(request, Proposal(report, tuple(touched)))


def _page(request: Request, proposal: Proposal | None) -> Response:
    door: Door = request.state.door
    person: Person = request.state.person
    with door.engine.begin() as connection:
        clinics = looks.clinics(connection, person)
        listed = agendas.active(connection, [clinic.code for clinic in clinics])
        if proposal is not None and proposal.touched:
            patients = looks.patients_of(connection, [each.appointment_id for each in proposal.touched])
            seen.log(connection, person.signature, "chiusure", door.now(), patients=patients)
    return door.page(
        request,
        "closures.html",
        clinics=clinics,
        agendas=listed,
        proposal=proposal,
        form=getattr(request.state, "form", {}),
    )


def _read(request: Request, kind: type[T], field: str) -> T | None:
    text = request.state.form.get(field, "")
    try:
        return kind.fromisoformat(text) if text else None
    except ValueError:
        raise HTTPException(400, request.state.door.say(request, "web.which_days")) from None


def _clinic_of_agenda(connection: sa.Connection, agenda: int) -> str:
    found = connection.scalar(
        sa.text("SELECT c.code FROM agenda a JOIN clinic c ON c.id = a.clinic_id WHERE a.id = :agenda"),
        {"agenda": agenda},
    )
    if found is None:
        raise HTTPException(404)
    return str(found)
