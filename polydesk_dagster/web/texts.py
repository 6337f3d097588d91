"""The texts of messages: which are in force, a draft tried on real appointments, versions; each change is a plan."""

from __future__ import annotations

from urllib.parse import urlencode

import sqlalchemy as sa
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from polydesk_dagster.changes.plans import Plan
from polydesk_dagster.clinic.messages import custom, drafts
from polydesk_dagster.clinic.messages.drafts import Draft, InForce
from polydesk_dagster.clinic.messages.sandbox import LONGEST_SOURCE
from polydesk_dagster.clinic.messages.templates import Text, usable
from polydesk_dagster.errors import PolydeskError
from polydesk_dagster.web import looks
from polydesk_dagster.web.door import Door
from polydesk_dagster.web.language import teller_of
from polydesk_dagster.web.plans import opened
from polydesk_dagster.web.roles import May
from polydesk_dagster.web.routes import Pages, clinic_asked, clinic_of

pages = Pages()

ONE = "/messaggi/testi/{kind}/{variant}/{channel}/{language}"
PART = "x-part"
"""A header of the page's script: it asks for the part that it shows anew, not for the whole page."""


@pages.get("/messaggi/testi", May.SEE)
def texts(request: Request) -> Response:
    """Every text as ``?clinica=`` sends it (empty: the chain), and whose words it is."""
    door: Door = request.state.door
    clinic = clinic_asked(request)
    with door.reader.connect() as connection:
        clinics = looks.clinics(connection, request.state.person)
        found = drafts.in_force(connection, clinic)
    return door.page(request, "texts.html", texts=found, clinic=clinic, clinics=clinics)


@pages.get(ONE, May.SEE)
def text(request: Request) -> Response:
    """One text, with what it would be for the next three patients."""
    door: Door = request.state.door
    clinic = clinic_asked(request)
    with door.reader.connect() as connection:
        current = _current(request, connection, clinic)
    return _shown(request, clinic, current, current.text)


@pages.post(ONE + "/prova", May.APPLY)
def tried(request: Request) -> Response:
    """What a draft would be; nothing is kept."""
    door: Door = request.state.door
    clinic = clinic_of(request, request.state.form.get("clinica") or None)
    with door.engine.connect() as connection:
        current = _current(request, connection, clinic)
        draft = _written(request, current)
        if request.headers.get(PART):
            looked, problem = _look(request, connection, clinic, current, draft)
            return door.page(request, "draft.html", draft=looked, problem=problem)
    return _shown(request, clinic, current, draft)


@pages.post(ONE + "/salva", May.APPLY)
def saved(request: Request) -> Response:
    """The plan that makes a draft the text in force; it is applied, and taken back, on its own page."""
    clinic = clinic_of(request, request.state.form.get("clinica") or None)

    def planned(connection: sa.Connection) -> Plan:
        current = _current(request, connection, clinic)
        which = current.which
        plan, _ = custom.propose(
            connection,
            clinic,
            which.kind,
            which.variant,
            which.channel,
            which.language,
            _written(request, current),
            as_of=request.state.door.now(),
        )
        return plan

    return opened(request, planned, "web.text_same")


@pages.post(ONE + "/togli", May.APPLY)
def withdrawn(request: Request) -> Response:
    """The plan that takes a customised text away: the chain's, or the factory's, shows through."""
    clinic = clinic_of(request, request.state.form.get("clinica") or None)

    def planned(connection: sa.Connection) -> Plan:
        which = _current(request, connection, clinic).which
        return custom.withdraw(connection, clinic, which, as_of=request.state.door.now())

    return opened(request, planned, "web.text_same")


@pages.post("/messaggi/testi/versioni/{number:int}", May.APPLY)
def restored(request: Request) -> Response:
    """The plan that brings an earlier version back into force."""

    def planned(connection: sa.Connection) -> Plan:
        plan, _ = custom.restore(connection, request.path_params["number"], as_of=request.state.door.now())
        clinic_of(request, plan.clinic)
        return plan

    return opened(request, planned, "web.text_same")


def _current(request: Request, connection: sa.Connection, clinic: str | None) -> InForce:
    wanted = tuple(request.path_params[name] for name in ("kind", "variant", "channel", "language"))
    for each in drafts.in_force(connection, clinic):
        which = each.which
        if (which.kind, which.variant, which.channel, which.language) == wanted:
            return each
    raise HTTPException(404)


def _written(request: Request, current: InForce) -> Text:
    """The draft of the form, its lines as every system ends them."""
    body = request.state.form.get("body", "").replace("\r\n", "\n").rstrip("\n")
    subject = request.state.form.get("subject", "").strip() if current.which.channel == "email" else None
    return Text(subject, body)


def _look(
    request: Request, connection: sa.Connection, clinic: str | None, current: InForce, draft: Text
) -> tuple[Draft, str | None]:
    """What a draft would be, or why it cannot be tried: of a clinic that is closed nobody is written."""
    try:
        return drafts.look(connection, clinic, current.which, draft, request.state.door.now()), None
    except PolydeskError as error:
        return Draft((), ()), teller_of(request).reason(error.reason)


def _shown(request: Request, clinic: str | None, current: InForce, draft: Text) -> Response:
    door: Door = request.state.door
    which = current.which
    with door.engine.connect() as connection:
        looked, problem = _look(request, connection, clinic, current, draft)
        past = drafts.versions(connection, clinic, which)
    here = f"/messaggi/testi/{which.kind}/{which.variant}/{which.channel}/{which.language}"
    return door.page(
        request,
        "text.html",
        current=current,
        text=draft,
        draft=looked,
        problem=problem,
        past=past,
        clinic=clinic,
        variables=usable(which.kind, which.variant),
        longest=LONGEST_SOURCE,
        address=here,
        back="/messaggi/testi" + (f"?{urlencode({'clinica': clinic})}" if clinic else ""),
    )
