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
    found = (int(entry.name) for entry in Path("/proc").glob("[0-9]*"))
    return [pid for pid in found if pid != os.getpid() and _bears(pid, token)]


def _bears(pid: int, token: str) -> bool:
    """Whether a process that lives bears the mark."""
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return f"{MARK}={token}".encode() in environment and state != "Z"


def _signal(pid: int, token: str, number: signal.Signals) -> None:
    """Signal a process of the mark, and no other that has its number by now: what is held is looked at once more."""
    try:
        held = os.pidfd_open(pid)
    except OSError:
        return
    try:
        if _bears(pid, token):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(held, number)
    finally:
        os.close(held)


def sweep(token: str, patience: float) -> int:
    """End every marked process: asked first, killed after ``patience`` seconds. Returns how many had to be killed."""
    deadline = time.monotonic() + patience
    asked: set[int] = set()
    while left := marked(token):
        late = time.monotonic() > deadline
        for pid in left:
            if late or pid not in asked:
                _signal(pid, token, signal.SIGKILL if late else signal.SIGTERM)
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
        os.execv(sys.executable, [sys.executable, "-P", "-c", stop, home])  # noqa: S606


if __name__ == "__main__":
    main(*sys.argv[1:])
