"""*Salute*: what is well and what is not, for whoever is on call."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from polydesk_dagster.runtime import health
from polydesk_dagster.web.door import Door
from polydesk_dagster.web.roles import May
from polydesk_dagster.web.routes import Pages

pages = Pages()

SHOWN = 200
"""Things that are not well, one a line; all of them are in the endpoint's answer."""


@pages.get("/salute", May.SEE)
def wellness(request: Request) -> Response:
    door: Door = request.state.door
    findings = health.examine(door.settings, door.now())
    bad, well = [f for f in findings if not f.ok], [f for f in findings if f.ok]
    return door.page(request, "wellness.html", bad=bad[:SHOWN], more=max(len(bad) - SHOWN, 0), well=well)
