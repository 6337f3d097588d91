"""How the identity provider is asked: Authlib's client, over connections to addresses that were looked at."""

from __future__ import annotations

from typing import Any

from authlib.integrations.httpx_client import AsyncOAuth2Client
from authlib.integrations.starlette_client import StarletteOAuth2App

from polydesk_dagster import network


class Client(AsyncOAuth2Client):  # type: ignore[misc]
    """One conversation; Authlib closes it, and the transport with it."""

    def __init__(self, *given: Any, **more: Any) -> None:
        pinned = network.async_transport(network.trust(environment=True))
        super().__init__(*given, transport=pinned, trust_env=False, **more)


class App(StarletteOAuth2App):  # type: ignore[misc]
    client_cls = Client
