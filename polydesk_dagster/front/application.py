"""The application of the front, mounted in the door's process: every room of the front is named here.

Who calls it is a program, so no session counts and no origin is asked for; what is not public asks for a token of its
own. The guard's other limits stand around it: host, size, time and rate.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from sqlalchemy.engine import URL
from starlette.applications import Starlette
from starlette.routing import Mount

from polydesk_dagster.database.migrate import serving
from polydesk_dagster.front import caches
from polydesk_dagster.front.addresses import ASSISTANT, BOOKING
from polydesk_dagster.front.assistant import application as assistant
from polydesk_dagster.front.assistant.access import Shelf
from polydesk_dagster.front.booking import application as booking
from polydesk_dagster.front.booking.access import Front
from polydesk_dagster.knowledge.library import Library

CONNECTIONS = 8
"""That bookings and the assistant keep open; as many again while there is much to do."""


def application(shown: URL, records: URL, library: Callable[[], Library], address: str) -> Starlette:
    """The front over one database: its caches are read by ``shown``, whose account may read no more than what everybody
    is shown; bookings and questions by ``records``. Links lead to ``address``.

    What it follows lives as long as its lifespan, which whoever mounts it must enter: a mounted application is not
    asked for its own."""
    store = caches.Store(shown)
    engine = serving(records, pool_size=CONNECTIONS)
    asked = assistant.application(Shelf(engine, library, address))

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with store.following(), asked.router.lifespan_context(asked):
            yield
        engine.dispose()

    routes = [
        *caches.routes(store),
        Mount(BOOKING, booking.application(Front(engine))),
        Mount(ASSISTANT, asked),
    ]
    return Starlette(routes=routes, lifespan=lifespan)
