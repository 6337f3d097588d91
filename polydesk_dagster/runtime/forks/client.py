"""How a fork server is asked, and the words that start one."""

from __future__ import annotations

import fcntl
import json
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_ANSWER_SECONDS = 60.0


def ask(path: Path, request: Mapping[str, object], timeout: float = _ANSWER_SECONDS) -> Mapping[str, Any]:
    """One request to a fork server and its answer.

    Raises:
        TimeoutError: no answer in time.
        OSError: nobody listens, or it went before it had answered.
    """
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(timeout)
        client.connect(str(path))
        client.sendall(json.dumps(request).encode() + b"\n")
        with client.makefile("rb") as stream:
            line = stream.readline()
    if not line:
        raise ConnectionResetError
    answer: Mapping[str, Any] = json.loads(line)
    return answer


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


def command(path: Path, location: str, pointer: str, output: Path, idle_seconds: float | None = None) -> list[str]:
    """The command line of a fork server; ``pointer`` is the serialized code pointer of the location."""
    words = [sys.executable, "-m", "polydesk_dagster.runtime.forks.server", "--socket", str(path)]
    words += ["--location", location, "--pointer", pointer, "--output", str(output)]
    if idle_seconds is not None:
        words += ["--idle-seconds", str(idle_seconds)]
    return words
