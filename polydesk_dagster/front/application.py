"""The application of the front, mounted in the door's process: every room of the front is named here.

Who calls it is a program, so no session counts and no origin is asked for; what is not public asks for a token of its
own. The guard's other limits stand around it: host, size, time and rate.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sqlalchemy.engine import URL
from starlette.applications import Starlette
from starlette.routing import Mount

from polydesk_dagster.database.migrate import serving
from polydesk_dagster.front import caches
from polydesk_dagster.front.booking import application as booking
from polydesk_dagster.front.booking.access import Front

PATH = "/api"
"""Where it stands at the door."""
BOOKING_CONNECTIONS = 8
"""That bookings keep open; as many again while there is much to do."""


def application(url: URL) -> Starlette:
    """The front over the database at ``url``. What it follows lives as long as its lifespan, which whoever mounts it
    must enter: a mounted application is not asked for its own."""
    store = caches.Store(url)
    engine = serving(url, pool_size=BOOKING_CONNECTIONS)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with store.following():
            yield
        engine.dispose()

    routes = [*caches.routes(store), Mount(booking.PATH, booking.application(Front(engine)))]
    return Starlette(routes=routes, lifespan=lifespan)
