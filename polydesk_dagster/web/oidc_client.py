"""How the identity provider is asked: Authlib's client, over connections to addresses that were looked at."""

from __future__ import annotations

from typing import Any

import httpx
from authlib.integrations.httpx_client import AsyncOAuth2Client
from authlib.integrations.httpx_client._compat import httpx2
from authlib.integrations.starlette_client import StarletteOAuth2App

from polydesk_dagster import network


class Pinned(httpx2.AsyncBaseTransport):  # pyrefly: ignore[invalid-inheritance]
    """Our connections for the client that Authlib chooses, which is httpx's successor wherever that is installed."""

    def __init__(self) -> None:
        self._ours = network.async_transport(network.trust(environment=True))

    async def handle_async_request(self, request: Any) -> Any:
        asked = httpx.Request(
            request.method,
            str(request.url),
            headers=request.headers.raw,
            content=await request.aread(),
            extensions=request.extensions,
        )
        answer = await self._ours.handle_async_request(asked)
        try:
            content = b"".join([part async for part in answer.aiter_raw()])
        finally:
            await answer.aclose()
        stream: Any = httpx2.ByteStream(content)
        return httpx2.Response(answer.status_code, headers=answer.headers.raw, stream=stream)

    async def aclose(self) -> None:
        await self._ours.aclose()


class Client(AsyncOAuth2Client):
    """One conversation; Authlib closes it, and the transport with it."""

    def __init__(self, *given: Any, **more: Any) -> None:
        super().__init__(*given, transport=Pinned(), trust_env=False, **more)


class App(StarletteOAuth2App):
    client_cls = Client
