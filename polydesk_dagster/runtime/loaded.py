"""Whether what runs are forked from could load the code of the services."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from polydesk_dagster import nearby
from polydesk_dagster.runtime import instance
from polydesk_dagster.runtime.state.model import Finding

_SOON = 2.0
"""Seconds within which a process of this home answers that has nothing else to do."""


def code_loads(home: Path) -> Iterator[Finding]:
    """Whether the code of the services could be loaded, where this home has a server that runs are forked from."""
    theirs = instance.dagster_home(home)
    if not theirs.is_dir():
        return
    with suppress(OSError):  # nobody is up here, or just loads it
        said = nearby.ask(instance.runs_socket(theirs, instance.LOCATIONS[0].name), {"do": "status"}, _SOON)
        why = said["unloadable"]
        yield Finding("code", ok=why is None, values={"why": why, "log": str(home / "logs" / "launcher.log")})
