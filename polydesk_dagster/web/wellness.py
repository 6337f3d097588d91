"""*Salute*: what is well and what is not, for whoever is on call."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from polydesk_dagster.runtime import health
from polydesk_dagster.web.door import Door
from polydesk_dagster.web.roles import May
from polydesk_dagster.web.routes import Pages

pages = Pages()


@pages.get("/salute", May.SEE)
def wellness(request: Request) -> Response:
    door: Door = request.state.door
    findings = health.examine(door.settings, door.now())
    return door.page(
        request, "wellness.html", bad=[f for f in findings if not f.ok], well=[f for f in findings if f.ok]
    )
