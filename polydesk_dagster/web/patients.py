"""What a patient may ask of the clinic by law: all that is kept of her, and that it be erased."""

from __future__ import annotations

import json

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from polydesk_dagster.clinic.patients import erasing, exporting
from polydesk_dagster.told.records import exported
from polydesk_dagster.web import looks
from polydesk_dagster.web.door import Door
from polydesk_dagster.web.language import teller_of
from polydesk_dagster.web.roles import May
from polydesk_dagster.web.routes import Pages, clinic_of

pages = Pages()


@pages.post("/pazienti/{patient:int}/dati", May.APPLY)
def export(request: Request) -> Response:
    """Everything that is kept of a patient, whom every clinic shares, as one file for her."""
    door: Door = request.state.door
    patient = _of_the_chain(request)
    with door.engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection:
        try:
            found = exporting.everything(connection, patient)
        except LookupError:
            raise HTTPException(404) from None
    looks.logged(request, "export", patients=[patient])
    data = {"patient": patient, "made_at": door.now().isoformat(), "data": exported(teller_of(request), found)}
    content = json.dumps(data, ensure_ascii=False, indent=1, default=str)
    headers = {"Content-Disposition": f'attachment; filename="paziente-{patient}.json"'}
    return Response(content, media_type="application/json", headers=headers)


@pages.post("/pazienti/{patient:int}/cancella", May.APPLY)
def erase(request: Request) -> Response:
    """The plan that erases a patient; it is looked at, and applied, on its own page."""
    door: Door = request.state.door
    patient = _of_the_chain(request)
    with door.engine.begin() as connection:
        try:
            report = erasing.plan_erasure(connection, patient, door.now())
        except LookupError:
            raise HTTPException(404) from None
    if report.plan_id is None:
        raise HTTPException(409, teller_of(request).summary(report))
    return RedirectResponse(f"/piani/{report.plan_id}", 303)


def _of_the_chain(request: Request) -> int:
    clinic_of(request, None)
    patient: int = request.path_params["patient"]
    return patient
