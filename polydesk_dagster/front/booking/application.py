"""The API as one application, mounted where the front stands."""

from __future__ import annotations

from fastapi import FastAPI

from polydesk_dagster.front import api
from polydesk_dagster.front.booking import finding, holding, keeping
from polydesk_dagster.front.booking.access import Front


def application(front: Front) -> FastAPI:
    """The API over the front's database. Handlers run in threads; nothing lives longer than a request."""
    app = api.made("Polydesk booking", "Find, hold and book times of a chain of clinics, for visitors of a front end.")
    app.state.front = front
    for router in (finding.router, holding.router, keeping.router):
        app.include_router(router)
    return app
