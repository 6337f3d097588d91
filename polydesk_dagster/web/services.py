"""*Impostazioni → Servizi*: every service of the catalogue."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from polydesk_dagster.catalog import ROME, SERVICES, next_run
from polydesk_dagster.web.door import Door
from polydesk_dagster.web.roles import May
from polydesk_dagster.web.routes import Pages

pages = Pages()


@pages.get("/", May.SEE)
def services(request: Request) -> Response:
    door: Door = request.state.door
    now = door.now()
    rows = []
    for service in SERVICES:
        coming = next_run(service, now)
        rows.append((service, coming.astimezone(ROME).strftime("%d/%m %H:%M") if coming else "—"))
    return door.templates.TemplateResponse(request, "services.html", {"rows": rows})
