"""Whether a fork server is there and answers, and the words that start one."""

from __future__ import annotations

import contextlib
import fcntl
import select
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from polydesk_dagster import nearby
from polydesk_dagster.runtime import pythons
from polydesk_dagster.runtime.work import Effort

MUTE_SECONDS = 4.0
"""A server that has not answered for so long, and has not worked either, will not answer."""
_LONGEST_SECONDS = 60.0
"""Nor will one that has worked for so long."""
_CREDENTIALS = struct.Struct("3i")


def ask(path: Path, request: Mapping[str, object]) -> Mapping[str, Any]:
    """One request to a fork server and its answer.

    Raises:
        TimeoutError: it is mute.
        OSError: nobody listens, or it went before it had answered.
    """
    return nearby.ask(path, request, MUTE_SECONDS, wait=await_answer)


def await_answer(client: socket.socket) -> None:
    """Return once a fork server has something to say, for which it is given time while it works: one that is loading
    the code, or has been executed anew, uses the processor; one that hangs does not.

    Raises:
        TimeoutError: it is mute.
    """
    pid, _, _ = _CREDENTIALS.unpack(client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    deadline, effort = time.monotonic() + _LONGEST_SECONDS, Effort(pid)
    while not select.select([client], [], [], MUTE_SECONDS)[0]:
        if not effort.goes_on() or time.monotonic() > deadline:
            raise TimeoutError


def being_served(path: Path) -> bool:
    """Whether a fork server holds this socket's lock, be it still loading."""
    try:
        with path.with_suffix(".lock").open("rb") as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def holder(path: Path) -> int:
    """The process that holds this socket's lock, be it still loading; 0 where none does."""
    with contextlib.suppress(OSError, ValueError):
        return int(path.with_suffix(".lock").read_text()) if being_served(path) else 0
    return 0


def command(path: Path, location: str, pointer: str, output: Path, idle_seconds: float | None = None) -> list[str]:
    """The command line of a fork server; ``pointer`` is the serialized code pointer of the location."""
    words = pythons.module("polydesk_dagster.runtime.forks.server", "--socket", str(path))
    words += ["--location", location, "--pointer", pointer, "--output", str(output)]
    if idle_seconds is not None:
        words += ["--idle-seconds", str(idle_seconds)]
    return words
