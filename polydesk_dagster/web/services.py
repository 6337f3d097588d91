"""*Impostazioni → Servizi*: every service as it is, and its buttons: run, preview, pause, resume, let go live."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import TypedDict

import sqlalchemy as sa
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response, StreamingResponse

from polydesk_dagster.catalog import BY_KEY, Place, Service
from polydesk_dagster.errors import PolydeskError
from polydesk_dagster.runtime.pressing import press
from polydesk_dagster.runtime.state import activity
from polydesk_dagster.runtime.state.model import ServiceState, full_queue
from polydesk_dagster.web import looks, presses
from polydesk_dagster.web.door import Door, known
from polydesk_dagster.web.language import teller_of
from polydesk_dagster.web.presses import Pressed
from polydesk_dagster.web.roles import May, Person
from polydesk_dagster.web.routes import Pages, clinic_of

pages = Pages()

GROUPS: Mapping[str, tuple[str, ...]] = {
    "calendar": ("calendar",),
    "notifications": ("notifications",),
    "maintenance": ("statistics", "caches", "maintenance", "knowledge"),
    "studiolab": ("studiolab",),
}
"""The page's groups, each with the catalogue's that stand in it; the emergency ones have a zone of their own."""

PAUSES = {"hour": timedelta(hours=1), "day": timedelta(days=1), "week": timedelta(days=7), "month": timedelta(days=30)}
"""For how long a service can be paused by one choice."""

_RUN = """
    SELECT r.id, r.started_at, r.outcome FROM service_run r
    WHERE r.service = w.service AND (NOT r.preview OR w.service = ANY(:only_look)) AND {whose}
    ORDER BY r.started_at DESC, r.id DESC LIMIT 30"""
# Clinic by clinic for whoever acts for some: each is read from its own end of the index, however many others there are.
HISTORY = sa.text(f"""
    SELECT w.service, array_agg(r.outcome ORDER BY r.started_at, r.id)
    FROM unnest(CAST(:services AS text[])) w(service)
    CROSS JOIN LATERAL (
        SELECT * FROM (
            ({_RUN.format(whose="CAST(:clinics AS text[]) IS NULL")})
            UNION ALL
            ({_RUN.format(whose="CAST(:clinics AS text[]) IS NOT NULL AND r.clinic_id IS NULL")})
            UNION ALL
            SELECT own.* FROM clinic c CROSS JOIN LATERAL ({_RUN.format(whose="r.clinic_id = c.id")}) own
            WHERE c.code = ANY(:clinics)) seen
        ORDER BY started_at DESC, id DESC LIMIT 30) r
    GROUP BY w.service""")
"""The outcomes of each service's last thirty runs that a person sees, oldest first; ``clinics`` null: of all."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the page."""

    state: ServiceState
    outcomes: Sequence[str]
    """Of the last thirty runs that the person sees, oldest first."""
    pressed: Pressed | None
    """A press from this page that goes on."""

    @property
    def service(self) -> Service:
        return self.state.service

    @property
    def behind(self) -> list[str]:
        """Codes of the clinics whose last run somebody must look at."""
        return [run.clinic for run in self.state.runs if run.bad and run.clinic is not None]

    @property
    def waiting(self) -> int:
        """Records that wait for a person."""
        return sum(each.count for each in self.state.waiting)


@pages.get("/", May.SEE)
def services(request: Request) -> Response:
    door: Door = request.state.door
    with door.reader.connect() as connection:
        rows = list(_rows(door, connection, request.state.person))
        clinics = looks.clinics(connection, request.state.person)
    groups = {
        name: [row for row in rows if row.service.group in within and row.service.place is Place.ORDINARY]
        for name, within in GROUPS.items()
    }
    red = [row for row in rows if row.service.place is Place.EMERGENCY]
    standing = sum(row.state.activity.mode == "not_live" for row in rows)
    queue = full_queue((row.state for row in rows), door.now())
    return door.page(request, "services.html", groups=groups, red=red, clinics=clinics, standing=standing, queue=queue)


def _rows(door: Door, connection: sa.Connection, person: Person) -> Iterator[Row]:
    states = looks.states(door, connection, person)
    only_look = [state.service.key for state in states if state.service.only_looks]
    hers = None if person.clinics is None else sorted(person.clinics)
    values = {"services": [state.service.key for state in states], "only_look": only_look, "clinics": hers}
    history = {row[0]: row[1] for row in connection.execute(HISTORY, values)}
    for state in states:
        key = state.service.key
        yield Row(state, history.get(key, ()), door.presses.running(key, None))


@pages.get("/servizi/{key}", May.SEE)
def service(request: Request) -> Response:
    """One service: its last runs in words, what waits, and its history."""
    door: Door = request.state.door
    key = _service(request).key
    with door.reader.connect() as connection:
        (row,) = (row for row in _rows(door, connection, request.state.person) if row.service.key == key)
        clinics = looks.clinics(connection, request.state.person)
        said = activity.history(connection, key, 20, clinics=request.state.person.clinics)
        runs = looks.past(connection, key, request.state.person)
    return door.page(request, "service.html", row=row, clinics=clinics, said=said, runs=runs, pauses=list(PAUSES))


@pages.post("/servizi/{key}/esegui", May.RUN)
def run(request: Request) -> Response:
    return _press(request, preview=False)


@pages.post("/servizi/{key}/anteprima", May.RUN)
def preview(request: Request) -> Response:
    return _press(request, preview=True)


def _press(request: Request, *, preview: bool) -> Response:
    door: Door = request.state.door
    person: Person = request.state.person
    service = _service(request)
    if service.place is Place.EMERGENCY:
        raise HTTPException(403, door.say(request, "web.red_only"))
    clinic = clinic_of(request, request.state.form.get("clinic") or None)
    config = {"preview": True} if preview and not service.only_looks else {}
    work = partial(press, door.settings, door.engine, service, clinic, config, person=person.signature)
    return presses.pressed(request, service.key, clinic, work, preview=preview)


@pages.get("/premute/{press}", May.SEE)
def pressed(request: Request) -> Response:
    """A press, while it goes on and when it has ended."""
    door: Door = request.state.door
    again = request.query_params.get("gia") == "1"
    return door.page(request, "pressed.html", press=_pressed(request), again=again)


@pages.get("/premute/{press}/stato", May.SEE)
async def press_events(request: Request) -> Response:
    """Server-sent events: the press as the page shows it, whenever it changes, until it ends."""
    door: Door = request.state.door
    press = _pressed(request)
    template = door.templates.get_template("pressed_part.html")

    def next_part() -> str:
        with press.changed:
            if not press.ended:
                press.changed.wait(timeout=10)
        return template.render(known(request), press=press)

    async def parts() -> AsyncIterator[str]:
        while await door.still_here(request):
            ended = press.ended
            lines = (await run_in_threadpool(next_part)).splitlines()
            yield "".join(f"data: {line}\n" for line in lines) + "\n"
            if ended:
                yield "event: end\ndata:\n\n"
                return

    return StreamingResponse(parts(), media_type="text/event-stream")


@pages.post("/servizi/{key}/sospendi", May.RUN)
def pause(request: Request) -> Response:
    form = request.state.form
    span = PAUSES.get(form.get("for", ""))
    if span is None:
        raise HTTPException(400, request.state.door.say(request, "web.choose_until"))

    def said(connection: sa.Connection, key: str, now: datetime, given: Given) -> None:
        activity.pause(connection, key, until=now + span, as_of=now, **given)  # pyrefly: ignore[open-unpacking]

    return _say(request, said, clinic_of(request, form.get("clinic") or None))


@pages.post("/servizi/{key}/riprendi", May.RUN)
def resume(request: Request) -> Response:
    def said(connection: sa.Connection, key: str, now: datetime, given: Given) -> None:
        activity.resume(connection, key, as_of=now, **given)  # pyrefly: ignore[open-unpacking]

    return _say(request, said, clinic_of(request, request.state.form.get("clinic") or None))


@pages.post("/servizi/{key}/avvia", May.RUN)
def go_live(request: Request) -> Response:
    clinic_of(request, None)

    def said(connection: sa.Connection, key: str, now: datetime, given: Given) -> None:
        activity.go_live(connection, [key], actor=given["actor"], reason=given["reason"], as_of=now)

    return _say(request, said, None)


class Given(TypedDict):
    """Who says it, why, and of which clinic (None: the whole chain)."""

    actor: str
    reason: str
    clinic: str | None


Said = Callable[[sa.Connection, str, datetime, Given], None]


def _say(request: Request, said: Said, clinic: str | None) -> Response:
    """Change whether a service starts by itself."""
    door: Door = request.state.door
    person: Person = request.state.person
    reason = request.state.form.get("reason", "").strip()
    key = _service(request).key
    try:
        with door.engine.begin() as connection:
            said(connection, key, door.now(), {"actor": person.signature, "reason": reason, "clinic": clinic})
    except PolydeskError as error:
        raise HTTPException(400, teller_of(request).reason(error.reason)) from None
    return RedirectResponse(f"/servizi/{key}", 303)


def _service(request: Request) -> Service:
    found = BY_KEY.get(request.path_params["key"])
    if found is None:
        raise HTTPException(404)
    return found


def _pressed(request: Request) -> Pressed:
    door: Door = request.state.door
    person: Person = request.state.person
    found = door.presses.find(request.path_params["press"])
    if found is None or not (person.clinics is None or found.clinic is None or found.clinic in person.clinics):
        raise HTTPException(404)
    return found
