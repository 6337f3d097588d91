"""Telling systemd how we are, where it started us (``Type=notify``): a datagram to the socket that it names."""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress


class Watchdog:
    """``alive`` may be called as often as one likes: it speaks four times in the interval that systemd allows."""

    def __init__(self) -> None:
        self._address = os.environ.get("NOTIFY_SOCKET", "")
        microseconds = os.environ.get("WATCHDOG_USEC", "")
        self._every = int(microseconds) / 4e6 if microseconds.isdigit() else None
        self._spoken = 0.0

    def say(self, state: str) -> None:
        """``READY=1``, ``STOPPING=1``, ``STATUS=…``; nothing where nobody listens."""
        if not self._address:
            return
        abstract = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out, suppress(OSError):
            out.sendto(state.encode(), abstract)

    def alive(self) -> None:
        now = time.monotonic()
        if self._every is not None and now - self._spoken >= self._every:
            self._spoken = now
            self.say("WATCHDOG=1")
