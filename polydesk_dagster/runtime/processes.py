"""The processes of `polydesk up`, as the supervisor's children: code servers, fork server, web UI, daemon and who
watches them."""

from __future__ import annotations

import contextlib
import json
import secrets
import socket
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from polydesk_dagster.runtime import instance, pythons
from polydesk_dagster.runtime.child import Child
from polydesk_dagster.runtime.forks import client as forks
from polydesk_dagster.settings import Settings


def answers(*paths: Path) -> Callable[[], bool]:
    """Whether somebody accepts connections on each of these unix sockets."""

    def probe() -> bool:
        for path in paths:
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(1)
                client.connect(str(path))
        return True

    return probe


def listening(port: int) -> Callable[[], bool]:
    """Whether somebody accepts connections on this machine's ``port``."""

    def probe() -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
        return False

    return probe


SIGN = "X-Polydesk-Up"
"""The header by which an answer of this start of ours is known: another program may have come to have the address."""


def serves(url: str, sign: str) -> Callable[[], bool]:
    """Whether an HTTP address answers with success, and it is ours that does."""

    def probe() -> bool:
        with urllib.request.urlopen(url, timeout=2) as response:  # noqa: S310 - the address is our own
            return bool(response.status == 200 and response.headers.get(SIGN) == sign)

    return probe


_ARENAS = "2"
"""Of a process with many threads the C library keeps memory for each eight times as many as there are processors; of
ours one works at a time."""


def dagster_children(
    settings: Settings,
    environment: Mapping[str, str],
    locations: Sequence[instance.Location] = instance.LOCATIONS,
) -> list[Child]:
    """Dagster's processes; the instance must be prepared and ``environment`` be that of ``instance.environment``.

    The first location's fork server is among them, and the first of them, because the others are forked from it;
    another location's is started with its first run.
    """
    environment = {"MALLOC_ARENA_MAX": _ARENAS, **environment}
    home, main = settings.home, locations[0]
    logs = "json" if settings.log_format == "json" else "colored"
    runs = instance.runs_socket(instance.dagster_home(home), main.name)
    children = [
        Child(
            "launcher",
            forks.command(runs, main.name, main.pointer, home / "logs" / "runs.log"),
            environment,
            ready=answers(runs),
            stop_seconds=15,
        )
    ]
    served = {location: instance.code_socket(home, location.name) for location in locations}
    code = [json.dumps([location.name, location.module, str(path)]) for location, path in served.items()]
    children.append(
        Child(
            "code",
            pythons.module("polydesk_dagster.runtime.dagster_inside.code", logs, *code),
            environment,
            ready=answers(*served.values()),
            after=("launcher",),
            sockets=tuple(served.values()),
            fork_of=runs,
        )
    )
    host, port = settings.web_host, settings.web_port
    sign = secrets.token_hex(8)
    reached = "127.0.0.1" if host in {"0.0.0.0", "::"} else host  # noqa: S104 - asked of ourselves
    children += [
        Child(
            "web",
            pythons.module("polydesk_dagster.web", sign),
            {**environment, "POLYDESK_WEB_HOST": host, "POLYDESK_WEB_PORT": str(port)},
            ready=serves(f"http://{f'[{reached}]' if ':' in reached else reached}:{port}/health/live", sign),
            after=("code",),
            listens=(host, port),
            fork_of=runs,
        ),
        Child(
            "daemon",
            pythons.module("polydesk_dagster.runtime.dagster_inside.daemon", str(instance.workspace_file(home)), logs),
            environment,
            after=("code",),
            fork_of=runs,
            by_the_clock=True,
        ),
    ]
    if any(way is not None for way in (settings.alert_url, settings.alert_apprise, settings.ping_url)):
        children.append(Child("watcher", pythons.module("polydesk_dagster.runtime.watching"), environment))
    return children
