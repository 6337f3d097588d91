"""How often Dagster's loops look when nothing has happened, where its configuration has no word for it.

Its own numbers are those of a large deployment that may be changed under it at any second: each watcher asks its code
server every second over a new connection, and the daemon loads every location anew every minute. Ours are started and
watched by one supervisor, and a code server that was restarted is seen by its identity.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dagster import DagsterInstance
    from dagster._daemon.daemon import DagsterDaemon

WATCH = 15.0
"""Seconds between two questions to a code server whether it is still the same."""
RELOAD = 3600.0
"""Seconds after which the daemon loads every location anew though none has changed."""
TOLERANCE = RELOAD + 300.0
"""Seconds since it last could, after which it gives up."""
SENSORS = 10.0
"""Seconds between two looks for sensors that are due; the shortest interval of ours is a minute."""
ORPHANS = 30.0
"""Seconds between two looks of a code server for runs of its own that died; ours are the fork server's."""
FRESHNESS = 600.0
"""Seconds between two looks at what is fresh; the shortest policy of ours is a day."""


def watchers() -> None:
    """For whoever has a workspace open: the page and the daemon."""
    from dagster._grpc import server_watcher

    server_watcher.WATCH_INTERVAL = WATCH  # pyrefly: ignore[bad-assignment]


def code_server() -> None:
    """For a process that serves code locations."""
    from dagster._grpc import server

    server.CLEANUP_TICK = ORPHANS


def daemon() -> None:
    """For the daemon's process, besides :func:`daemons`."""
    from dagster._daemon import controller, sensor

    watchers()
    controller.RELOAD_WORKSPACE_INTERVAL = RELOAD  # pyrefly: ignore[bad-assignment]
    controller.DEFAULT_WORKSPACE_FRESHNESS_TOLERANCE = TOLERANCE  # pyrefly: ignore[bad-assignment]
    sensor.MIN_INTERVAL_LOOP_TIME = SENSORS  # pyrefly: ignore[bad-assignment]


def daemons(instance: DagsterInstance) -> Iterator[DagsterDaemon[Any]]:
    """The daemons that the instance asks for."""
    from dagster._daemon.controller import create_daemon_of_type
    from dagster._daemon.freshness import FreshnessDaemon

    for kind in instance.get_required_daemon_types():
        daemon = create_daemon_of_type(kind, instance)
        if isinstance(daemon, FreshnessDaemon):
            daemon.interval_seconds = FRESHNESS
        yield daemon
