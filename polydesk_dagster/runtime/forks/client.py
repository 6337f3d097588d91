"""Whether a fork server is there, and the words that start one."""

from __future__ import annotations

import fcntl
import sys
from pathlib import Path


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
