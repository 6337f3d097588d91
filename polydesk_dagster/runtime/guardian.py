"""What is left behind by a supervisor that was killed: find it by a mark in its environment, and end it.

Run as a script it waits for its standard input to close, which the kernel does for a process killed by SIGKILL too.
Only the standard library is imported, so that it starts at once and stays small.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from pathlib import Path

MARK = "POLYDESK_SUPERVISOR"
FAREWELL = b"bye"


def marked(token: str) -> list[int]:
    """The processes, however deep, that were started with this supervisor's mark; none where /proc is missing."""
    needle = f"{MARK}={token}".encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            environment = (entry / "environ").read_bytes().split(b"\0")
            state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if needle in environment and state != "Z" and int(entry.name) != os.getpid():
            found.append(int(entry.name))
    return found


def sweep(token: str, patience: float) -> int:
    """End every marked process: asked first, killed after ``patience`` seconds. Returns how many had to be killed."""
    deadline = time.monotonic() + patience
    asked: set[int] = set()
    while left := marked(token):
        late = time.monotonic() > deadline
        for pid in left:
            if late or pid not in asked:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL if late else signal.SIGTERM)
                asked.add(pid)
        if late:
            return len(left)
        time.sleep(0.1)
    return 0


def main(token: str, home: str) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if sys.stdin.buffer.read() == FAREWELL:
        return
    sweep(token, 6)
    if home:
        stop = "import sys, pathlib; from polydesk_dagster.database import embedded; "
        stop += "embedded.stop(pathlib.Path(sys.argv[1]), patience=10)"
        os.execv(sys.executable, [sys.executable, "-c", stop, home])  # noqa: S606


if __name__ == "__main__":
    main(*sys.argv[1:])
