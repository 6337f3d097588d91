"""Messages: why a patient was written or not, and how the texts look before they leave."""

from __future__ import annotations

import sqlalchemy as sa
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from polydesk_dagster.clinic.messages import samples, story
from polydesk_dagster.clinic.patients import seen
from polydesk_dagster.errors import PolydeskError
from polydesk_dagster.web import looks
from polydesk_dagster.web.door import Door
from polydesk_dagster.web.language import teller_of
from polydesk_dagster.web.roles import May, Person
from polydesk_dagster.web.routes import Pages, clinic_of, number_in

pages = Pages()

KINDS = ("reminder", "preparation")
"""Kinds of message whose next texts can be shown."""

_OF = {
    "appointment": """
        SELECT c.code, a.patient_id FROM appointment a JOIN clinic c ON c.id = a.clinic_id WHERE a.id = :id""",
    "patient": """
        SELECT DISTINCT c.code, a.patient_id FROM appointment a JOIN clinic c ON c.id = a.clinic_id
        WHERE a.patient_id = :id""",
}


@pages.get("/messaggi", May.SEE)
def messages(request: Request) -> Response:
    """The next texts of ``?tipo=`` and ``?clinica=`` as masked patients would get them, with their size."""
    door: Door = request.state.door
    person: Person = request.state.person
    kind = request.query_params.get("tipo", KINDS[0])
    if kind not in KINDS:
        raise HTTPException(404)
    with door.engine.connect() as connection:
        clinics = looks.clinics(connection, person)
        code = request.query_params.get("clinica") or (clinics[0].code if clinics else None)
        found, problem = [], None
        if code is not None:
            try:
                found = samples.samples(connection, kind, door.now(), clinic_of(request, code))
            except PolydeskError as error:
                problem = teller_of(request).reason(error.reason)
    return door.page(
        request, "messages.html", kinds=KINDS, kind=kind, clinic=code, clinics=clinics, samples=found, problem=problem
    )


@pages.get("/messaggi/perche", May.PATIENTS)
def why(request: Request) -> Response:
    """The story of an appointment or of a patient: what was planned, sent or not, when and why."""
    door: Door = request.state.door
    person: Person = request.state.person
    about, number = request.query_params.get("di", "appointment"), number_in(request.query_params.get("numero"))
    if about not in _OF or number is None:
        raise HTTPException(400, door.say(request, "web.which_number"))
    with door.engine.begin() as connection:
        whose = connection.execute(sa.text(_OF[about]), {"id": number}).all()
        if not any(person.clinics is None or code in person.clinics for code, _ in whose):
            raise HTTPException(404, door.say(request, "web.nobody_of_yours"))
        steps = story.of(connection, about, number)
        patients = {patient for _, patient in whose if patient is not None}
        seen.log(connection, person.signature, "messaggi", door.now(), patients=patients)
    return door.page(request, "why.html", about=about, number=number, steps=steps)
