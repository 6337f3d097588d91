"""What belongs to whoever reads: the language of the pages, and the accessibility statement."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from polydesk_dagster.told import LANGUAGES
from polydesk_dagster.web.door import Door
from polydesk_dagster.web.language import LANGUAGE_COOKIE
from polydesk_dagster.web.login import local
from polydesk_dagster.web.routes import ANYBODY, Pages

pages = Pages()

YEAR = 365 * 24 * 3600


@pages.post("/lingua", ANYBODY)
def language(request: Request) -> Response:
    """Remember the language and go back to the page that it was chosen on."""
    door: Door = request.state.door
    form = request.state.form
    answer = RedirectResponse(local(form.get("da")), 303)
    if form.get("lingua") in LANGUAGES:
        door.remember(answer, LANGUAGE_COOKIE, form["lingua"], YEAR)
    return answer


@pages.get("/accessibilita", ANYBODY)
def accessibility(request: Request) -> Response:
    """The statement that the Italian law asks for (l. 4/2004, decree 106/2018)."""
    door: Door = request.state.door
    return door.page(request, "accessibility.html")
