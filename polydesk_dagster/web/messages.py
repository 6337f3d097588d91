"""Messages: why a patient was written or not, how the texts look before they leave, what a person decides of one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from polydesk_dagster.clinic.messages import again, blocks, samples, story, volume
from polydesk_dagster.clinic.messages.planning import PLANNED
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
        SELECT c.code, a.patient_id, c.time_zone FROM appointment a JOIN clinic c ON c.id = a.clinic_id
        WHERE a.id = :id""",
    "patient": """
        SELECT DISTINCT c.code, a.patient_id, c.time_zone FROM appointment a JOIN clinic c ON c.id = a.clinic_id
        WHERE a.patient_id = :id""",
}


@pages.get("/messaggi", May.SEE)
def messages(request: Request) -> Response:
    """The next texts of ``?tipo=`` and ``?clinica=`` as masked patients would get them, with their size; and what is
    stopped today because it is far more than usual."""
    door: Door = request.state.door
    person: Person = request.state.person
    kind = request.query_params.get("tipo", KINDS[0])
    if kind not in KINDS:
        raise HTTPException(404)
    now = door.now()
    with door.reader.connect() as connection:
        clinics = looks.clinics(connection, person)
        stopped = {each: many for each in PLANNED if (many := volume.stopped(connection, each, now)) is not None}
    code = request.query_params.get("clinica") or (clinics[0].code if clinics else None)
    found, problem = [], None
    if code is not None:
        try:
            with door.engine.connect() as connection:
                found = samples.samples(connection, kind, now, clinic_of(request, code))
        except PolydeskError as error:
            problem = teller_of(request).reason(error.reason)
    return door.page(
        request,
        "messages.html",
        kinds=KINDS,
        kind=kind,
        clinic=code,
        clinics=clinics,
        samples=found,
        problem=problem,
        stopped=stopped,
    )


@pages.post("/messaggi/fermi/{kind}", May.APPLY)
def allow(request: Request) -> Response:
    """Let today's messages of a kind go, exactly as many as she saw, with her reason; it is the whole chain's."""
    kind, count = request.path_params["kind"], number_in(request.state.form.get("seen"))
    if kind not in PLANNED or count is None:
        raise HTTPException(404)
    clinic_of(request, None)
    _decided(
        request,
        lambda connection, given: volume.allow(connection, kind, count, as_of=request.state.door.now(), **given),
    )
    return RedirectResponse("/messaggi", 303)


@pages.get("/messaggi/perche", May.PATIENTS)
def why(request: Request) -> Response:
    """The story of an appointment or of a patient: what was planned, sent or not, when and why; what can go again, and
    which addresses are blocked."""
    door: Door = request.state.door
    about, number = request.query_params.get("di", "appointment"), number_in(request.query_params.get("numero"))
    if about not in _OF or number is None:
        raise HTTPException(400, door.say(request, "web.which_number"))
    now = door.now()
    with door.reader.connect() as connection:
        whose = _whose(request, connection, about, number)
        steps = story.of(connection, about, number)
        patients = {each.patient_id for each in whose if each.patient_id is not None}
        resendable = again.can_go(connection, [step.message for step in steps if step.message is not None], now)
        blocked = blocks.of_patients(connection, patients, now, whose[0].time_zone)
    looks.logged(request, "messaggi", patients=patients)
    return door.page(
        request, "why.html", about=about, number=number, steps=steps, resendable=resendable, blocked=blocked
    )


@pages.post("/messaggi/{number:int}/ancora", May.PATIENTS)
def resend(request: Request) -> Response:
    """Send one message again because somebody wants it, with a reason."""
    number, now = request.path_params["number"], request.state.door.now()
    with request.state.door.engine.connect() as connection:
        looks.belongs(request, connection, "message", number)
    _decided(request, lambda connection, given: again.resend(connection, number, at=now, **given))
    return _back(request)


@pages.post("/messaggi/perche/sblocca", May.PATIENTS)
def lift(request: Request) -> Response:
    """Write again to an address of the story she has before her, with a reason."""
    form, now = request.state.form, request.state.door.now()
    about, number = form.get("di", ""), number_in(form.get("numero"))
    if about not in _OF or number is None:
        raise HTTPException(400, request.state.door.say(request, "web.which_number"))

    def lifted(connection: sa.Connection, given: dict[str, str]) -> None:
        whose = _whose(request, connection, about, number)
        patients = {each.patient_id for each in whose if each.patient_id is not None}
        known = blocks.of_patients(connection, patients, now, whose[0].time_zone)
        block = next((each for each in known if (each.channel, each.address) == wanted), None)
        if block is None or not blocks.lift(connection, block.channel, [block.address], as_of=now, **given):
            raise HTTPException(409, request.state.door.say(request, "web.done_by_another"))

    wanted = (form.get("channel", ""), form.get("address", ""))
    _decided(request, lifted)
    return _back(request)


def _whose(request: Request, connection: sa.Connection, about: str, number: int) -> list[sa.Row[Any]]:
    """Clinic, patient and time zone of each appointment that a story is about; 404 where none is of her clinics."""
    person: Person = request.state.person
    whose = list(connection.execute(sa.text(_OF[about]), {"id": number}))
    if not any(person.acts_for(each.code) for each in whose):
        raise HTTPException(404, request.state.door.say(request, "web.nobody_of_yours"))
    return whose


def _decided(request: Request, rule: Callable[[sa.Connection, dict[str, str]], object]) -> None:
    """Do what she decides, signed and with the reason of the form; a refusal is told with its reason."""
    door: Door = request.state.door
    given = {"who": request.state.person.signature, "why": request.state.form.get("reason", "").strip()}
    try:
        with door.engine.begin() as connection:
            rule(connection, given)
    except PolydeskError as error:
        raise HTTPException(409, teller_of(request).reason(error.reason)) from None


def _back(request: Request) -> Response:
    form = request.state.form
    about, number = form.get("di", ""), number_in(form.get("numero"))
    return RedirectResponse(
        f"/messaggi/perche?di={about}&numero={number}" if about in _OF and number else "/messaggi", 303
    )
