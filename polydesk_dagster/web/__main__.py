"""Serve the door: ``python -P -m polydesk_dagster.web``. The home's Dagster instance must be prepared."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial

import uvicorn
from starlette.applications import Starlette
from starlette.types import ASGIApp

from polydesk_dagster import settings as configuration
from polydesk_dagster.database.engine import Role, business_url
from polydesk_dagster.database.migrate import serving
from polydesk_dagster.front import application as front
from polydesk_dagster.front.assistant import owner
from polydesk_dagster.home import keep_to_ourselves
from polydesk_dagster.nearby import sockets
from polydesk_dagster.resources.knowledge import library
from polydesk_dagster.resources.meaning import search
from polydesk_dagster.runtime import instance
from polydesk_dagster.runtime.processes import SIGN
from polydesk_dagster.settings import Settings
from polydesk_dagster.web.application import DAGSTER, application
from polydesk_dagster.web.door import Door
from polydesk_dagster.web.opened import Opened
from polydesk_dagster.web.serving import Server

_LARGEST_FRAME = 1_000_000
_IDLE = 75
"""Seconds that an idle connection is kept, longer than a proxy in front keeps it: who ends first must be who asks."""
_PATIENCE = 3
"""Seconds that open requests and websockets have to end when the process is asked to."""


def main(arguments: Sequence[str] = ()) -> None:
    """Serve until SIGTERM; the first of ``arguments`` is the sign by which its starter knows its answers."""
    keep_to_ourselves()
    settings = configuration.load()
    serve(settings, [(SIGN, sign) for sign in arguments[:1]])


def serve(settings: Settings, headers: Sequence[tuple[str, str]] = ()) -> None:
    """Listen; Dagster's page is opened for who first asks for it."""
    door = Door(settings, serving(business_url(settings)))
    with (
        Opened(partial(_dagster, settings, door)) as page,
        owner.answering(sockets(settings.home) / owner.NAME, door.engine, lambda: library(settings), search(settings)),
    ):
        config = uvicorn.Config(
            application(door, page, front=programs(settings, door.address.public)),
            host=settings.web_host,
            port=settings.web_port,
            log_level="warning",
            access_log=False,
            server_header=False,
            headers=list(headers),
            proxy_headers=door.address.secure,  # only whoever ends TLS before us says where a request comes from
            ws_max_size=_LARGEST_FRAME,
            timeout_keep_alive=_IDLE,
            timeout_graceful_shutdown=_PATIENCE,
        )
        with suppress(KeyboardInterrupt):
            Server(config).run()
    door.close()


@contextmanager
def _dagster(settings: Settings, door: Door) -> Iterator[ASGIApp]:
    """Dagster's own page, over its instance and its code locations."""
    from polydesk_dagster.runtime.dagster_inside import web
    from polydesk_dagster.web.dagster import presser_of

    workspace = str(instance.workspace_of(settings))
    with (
        instance.open_instance(settings) as dagster,
        web.opened(dagster, workspace, DAGSTER, presser_of, door.still_here) as page,
    ):
        yield page


def programs(settings: Settings, address: str) -> Starlette:
    """What programs outside ask, with no more rights to the database than each part needs."""
    return front.application(
        business_url(settings, Role.FRONT), business_url(settings), lambda: library(settings), address
    )


if __name__ == "__main__":
    main(sys.argv[1:])
