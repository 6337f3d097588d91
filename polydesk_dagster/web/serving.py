"""How the door is served."""

from __future__ import annotations

import asyncio
import contextlib
from types import FrameType

import uvicorn

_LOOK = 1.0
"""Seconds between two looks; the date that answers bear is of the last one."""


class Server(uvicorn.Server):
    """Uvicorn, woken by the signal that ends it: its own looks ten times a second whether one has come."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._ended = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._ended.set)

    async def main_loop(self) -> None:
        self._loop = asyncio.get_running_loop()
        while not await self.on_tick(0):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ended.wait(), _LOOK)
