"""Studiolabs, as many as there are clinics, which cost next to nothing: one answer, written by hand.

``studiolab`` plays one that has a mind of its own; this plays a thousand beside which only who asks is measured.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

BODY = b'{"items": [], "last_sequence": 0}'
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
BACKLOG = 1024


class Fleet:
    """Answers each question after ``latency`` seconds, except those of which ``hangs`` (which question it is, from 1)
    says that they get none before ``release``, and then a closed connection. ``tells`` gives the body by the path that
    is asked."""

    def __init__(
        self,
        latency: float = 0.0,
        hangs: Callable[[int], bool] = lambda _: False,
        tells: Callable[[str], bytes] = lambda _: BODY,
    ) -> None:
        self.latency, self.hangs, self.tells = latency, hangs, tells
        self.asked: list[str] = []
        """Paths, as they came."""
        self.answered = 0
        self._released, self._over = asyncio.Event(), asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    def release(self) -> None:
        """Let go of who hangs; from any thread."""
        self._set(self._released)

    def stop(self) -> None:
        """End ``serve``; from any thread."""
        self._set(self._released)
        self._set(self._over)

    def _set(self, event: asyncio.Event) -> None:
        if self._loop is not None:
            self._loop.call_soon_threadsafe(event.set)

    async def serve(self, ready: Callable[[int], object]) -> None:
        """Serve on every address of this machine, until ``stop``; ``ready`` is told the port."""
        self._loop = asyncio.get_running_loop()
        server = await asyncio.start_server(self._one, "0.0.0.0", 0, backlog=BACKLOG)  # noqa: S104
        async with server:
            ready(server.sockets[0].getsockname()[1])
            await self._over.wait()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            self.asked.append(path := head.split(b" ", 2)[1].decode())
            if self.hangs(len(self.asked)):
                await self._released.wait()
                return
            await asyncio.sleep(self.latency)
            body = self.tells(path)
            writer.write(HEAD % len(body) + body)
            await writer.drain()
            self.answered += 1
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # who asked has gone
        finally:
            writer.close()


def address(port: int, number: int) -> str:
    """Where clinic ``number``'s studiolab is: each at an address of its own, as far as there are some."""
    return f"http://127.0.{number // 250 % 250}.{number % 250 + 1}:{port}/C{number:04}/api/v1"


@contextmanager
def in_thread(fleet: Fleet) -> Iterator[int]:
    """Serve in a thread of this process; yields the port."""
    ports: queue.Queue[int] = queue.Queue()
    thread = threading.Thread(target=lambda: asyncio.run(fleet.serve(ports.put)), daemon=True)
    thread.start()
    try:
        yield ports.get(timeout=60)
    finally:
        fleet.stop()
        thread.join(60)
