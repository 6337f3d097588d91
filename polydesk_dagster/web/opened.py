"""An application that is made for who first asks for it: until then it costs neither memory nor processor."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack

from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp, Receive, Scope, Send


class Opened:
    """ASGI. Open from the first request on until it is closed (``with``); where it could not be opened whoever asked
    gets the error, and the next request tries again."""

    def __init__(self, made: Callable[[], AbstractContextManager[ASGIApp]]) -> None:
        self._made = made
        self._held = ExitStack()
        self._app: ASGIApp | None = None
        self._opening = asyncio.Lock()

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app or await self._open()
        await app(scope, receive, send)

    async def _open(self) -> ASGIApp:
        async with self._opening:
            if self._app is None:
                self._app = await run_in_threadpool(self._held.enter_context, self._made())
        return self._app
