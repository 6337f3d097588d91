"""Below HTTP: answers that announce more than they send, and answers that are written twice."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

ANNOUNCED = "x-announced-length"
"""A header of an answer, for ``Announced``: how many bytes it says that it has."""
TWICE = "x-answer-twice"
"""A header of an answer, for ``Twice``."""
_SCOPE = "polydesk.wire"


class Announced:
    """Lets an answer announce more bytes than it sends: the server then drops the connection."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def announce(message: Any) -> None:
            if message["type"] == "http.response.start":
                headers = dict(message["headers"])
                length = headers.pop(ANNOUNCED.encode(), None)
                if length is not None:
                    headers[b"content-length"] = length
                    message["headers"] = list(headers.items())
            await send(message)

        await self.app(scope, receive, announce)


class Wire:
    """A connection that can hold back what is written, to write it twice in one piece."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._held: bytes | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def hold(self) -> None:
        self._held = b""

    def write(self, data: bytes) -> None:
        if self._held is None:
            self._transport.write(data)
        else:
            self._held += data

    def repeat(self) -> None:
        held, self._held = self._held, None
        self._transport.write((held or b"") * 2)

    def close(self) -> None:
        self.repeat()
        self._transport.close()


class Protocol(HttpToolsProtocol):
    """Lets the application at the connection."""

    def connection_made(self, transport: asyncio.Transport) -> None:
        wire, app = Wire(transport), self.app

        async def with_wire(scope: Any, receive: Any, send: Any) -> None:
            await app(scope | {_SCOPE: wire}, receive, send)

        self.app = with_wire
        super().connection_made(wire)  # pyrefly: ignore[bad-argument-type]


class Twice:
    """Writes an answer twice where asked to: a caller that keeps the connection may take the second for the answer
    to what it asks next."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        wire: Wire = scope[_SCOPE]
        twice = False

        async def repeat(message: Any) -> None:
            nonlocal twice
            if message["type"] == "http.response.start":
                headers = dict(message["headers"])
                twice = headers.pop(TWICE.encode(), None) is not None
                if twice:
                    message["headers"] = list(headers.items())
                    wire.hold()
            await send(message)
            if twice and message["type"] == "http.response.body" and not message.get("more_body"):
                wire.repeat()

        await self.app(scope, receive, repeat)
