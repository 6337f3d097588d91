"""The manager's report in the page: figures and pictures of a clinic and a period, and the same as a spreadsheet."""

from __future__ import annotations

import tempfile
from datetime import date, timedelta
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from polydesk_dagster.catalog import ROME
from polydesk_dagster.clinic.clinics import clinic_id
from polydesk_dagster.clinic.statistics.reading import Period
from polydesk_dagster.errors import PolydeskError
from polydesk_dagster.web import looks
from polydesk_dagster.web.door import Door
from polydesk_dagster.web.language import teller_of
from polydesk_dagster.web.roles import May, Person
from polydesk_dagster.web.routes import Pages, clinic_of

pages = Pages()

MONTH = timedelta(days=30)
LONGEST = timedelta(days=731)


@pages.get("/statistiche", May.SEE)
def statistics(request: Request) -> Response:
    """The report of ``?clinica=&dal=&al=``; the last thirty days where no period is asked for."""
    from polydesk_dagster.clinic.statistics import manager
    from polydesk_dagster.told import pictures
    from polydesk_dagster.told import report as shown

    door: Door = request.state.door
    person: Person = request.state.person
    first, last = _period(request)
    sections, note, problem = [], "", None
    t = teller_of(request)
    with door.reader.connect() as connection:
        clinics = looks.clinics(connection, person)
        code = request.query_params.get("clinica") or (
            None if person.clinics is None else min(person.clinics, default=None)
        )
        clinic = clinic_of(request, code)
        try:
            report = manager.gather(connection, Period(first, last, clinic_id(connection, clinic)))
        except PolydeskError as error:
            problem = t.reason(error.reason)
        else:
            _, _, note = shown.head(report, t)
            sections = [(each, pictures.data_uri(pictures.png(each.drawing, t))) for each in report.sections]
    return door.page(
        request,
        "statistics.html",
        sections=sections,
        note=note,
        problem=problem,
        first=first,
        last=last,
        clinic=clinic,
        clinics=clinics,
    )


@pages.get("/statistiche/file", May.SEE)
def spreadsheet(request: Request) -> Response:
    from polydesk_dagster.clinic.statistics import manager
    from polydesk_dagster.told import report as shown

    door: Door = request.state.door
    first, last = _period(request)
    clinic = clinic_of(request, request.query_params.get("clinica") or None)
    with door.reader.connect() as connection:
        try:
            report = manager.gather(connection, Period(first, last, clinic_id(connection, clinic)))
        except PolydeskError as error:
            raise HTTPException(400, teller_of(request).reason(error.reason)) from None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "report.xlsx"
        shown.write_xlsx(report, path, teller_of(request))
        content = path.read_bytes()
    name = f"statistiche-{clinic or 'tutte'}-{first}-{last}.xlsx"
    kind = "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"
    return Response(content, media_type=kind, headers={"Content-Disposition": f'attachment; filename="{name}"'})


def _period(request: Request) -> tuple[date, date]:
    door: Door = request.state.door
    today = door.now().astimezone(ROME).date()
    try:
        last = date.fromisoformat(request.query_params.get("al") or today.isoformat())
        first = date.fromisoformat(request.query_params.get("dal") or (last - MONTH).isoformat())
    except ValueError:
        raise HTTPException(400, door.say(request, "web.bad_period")) from None
    if not timedelta(0) <= last - first <= LONGEST:
        raise HTTPException(400, door.say(request, "web.bad_period"))
    return first, last
