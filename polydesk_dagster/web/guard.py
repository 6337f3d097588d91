"""What is refused before anybody asks who is there: other hosts, other origins, too much, too often.

It stands around everything that listens, Dagster's page included, and knows no path. A browser that shows another page
may send requests here with our cookie; whatever it sends, it cannot choose ``Host``, ``Origin`` and ``Sec-Fetch-*``.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from polydesk_dagster.errors import where
from polydesk_dagster.pace import Buckets
from polydesk_dagster.settings import Settings
from polydesk_dagster.web.language import bare

LARGEST = 1_000_000
"""Bytes of a request's body."""
BODY_SECONDS = 30.0
"""How long a request's body may take to arrive."""
PER_SECOND, AT_ONCE = 60.0, 600.0
"""Requests that one address may go on making, and make at once: Dagster's page loads hundreds of pieces."""
_SAFE = {"GET", "HEAD"}
_METHODS = _SAFE | {"POST"}
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
_PORTS = {"http": 80, "https": 443}

log = logging.getLogger("polydesk.door")

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
"""What our own pages may load and do: no inline script or style, nothing from elsewhere, in nobody's frame."""

_HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=(), payment=()",
}
_YEAR = "max-age=31536000"


@dataclass(frozen=True, slots=True)
class Address:
    """Where people reach this installation: ``scheme`` and the values of ``Host`` that name it."""

    scheme: Literal["http", "https"]
    public: str
    hosts: frozenset[str]

    @classmethod
    def of(cls, settings: Settings) -> Address:
        """The public address, and the loopback's names: there a health check and a developer sit."""
        parts = urlsplit(settings.address)
        scheme: Literal["http", "https"] = "https" if parts.scheme == "https" else "http"
        local = {f"{name}:{settings.web_port}" for name in _LOOPBACK}
        public = parts.netloc.lower().removesuffix(f":{_PORTS[scheme]}")
        return cls(scheme, f"{scheme}://{public}", frozenset({public, *local}))

    @property
    def secure(self) -> bool:
        return self.scheme == "https"

    def host(self, headers: Headers) -> str | None:
        """The one ``Host`` of a request, where it is one of ours."""
        given = headers.getlist("host")
        if len(given) != 1:
            return None
        host = given[0].lower().removesuffix(f":{_PORTS[self.scheme]}")
        return host if host in self.hosts else None


@dataclass(frozen=True, slots=True)
class Outside:
    """A path below which no cookie counts, so that a request may come from anywhere: what stands there is public, or
    asks for a signature or a token in the request itself. Its callers have a measure of their own."""

    path: str
    methods: frozenset[str] = frozenset(_METHODS)
    per_second: float = PER_SECOND
    at_once: float = AT_ONCE
    largest: int = LARGEST
    signature: str | None = None
    """The header with which a system outside signs what it says; then nothing that a browser would send gets here."""

    def holds(self, path: str) -> bool:
        return path.startswith(f"{self.path.rstrip('/')}/")


class Guard:
    """ASGI middleware around the whole application."""

    def __init__(
        self,
        app: ASGIApp,
        address: Address,
        outside: Iterable[Outside] = (),
        *,
        per_second: float = PER_SECOND,
        at_once: float = AT_ONCE,
    ) -> None:
        self._app = app
        self._address = address
        self._buckets = Buckets(per_second, at_once)
        self._outside = [(place, Buckets(place.per_second, place.at_once)) for place in outside]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        why = self._refusal(scope)
        if why is not None:
            await _refuse(why, scope, receive, send)
            return
        if scope["type"] == "websocket":
            await self._carefully(scope, receive, send)
            return
        outside, _ = self._place(scope)
        body = await _body(receive, outside.largest if outside else LARGEST)
        if isinstance(body, int):
            await _refuse(body, scope, receive, send)
            return
        await self._carefully(scope, _replay(body, receive), self._sealed(send))

    def _refusal(self, scope: Scope) -> int | None:
        """The HTTP status that a request is refused with, or None."""
        headers = Headers(scope=scope)
        client = scope.get("client")
        outside, buckets = self._place(scope)
        if not buckets.take(client[0] if client else ""):
            return 429
        host = self._address.host(headers)
        if host is None:
            return 421
        origins = headers.getlist("origin")
        ours = f"{self._address.scheme}://{host}"
        if scope["type"] == "websocket":
            return None if origins == [ours] else 403
        if scope["method"] not in (outside.methods if outside else _METHODS):
            return 405
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > (outside.largest if outside else LARGEST):
            return 413
        if outside is not None:
            return None if outside.signature is None or _signed(headers, outside.signature) else 403
        site = headers.get("sec-fetch-site", "none")
        if scope["method"] not in _SAFE:
            return None if origins == [ours] and site in {"same-origin", "none"} else 403
        if site not in {"same-origin", "none"}:
            # A link from elsewhere may open a page of ours, in a tab of its own; nothing else may be fetched.
            opens = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
            return None if opens else 403
        return None

    def _place(self, scope: Scope) -> tuple[Outside | None, Buckets]:
        for place, buckets in self._outside:
            if scope["type"] == "http" and place.holds(scope["path"]):
                return place, buckets
        return None, self._buckets

    async def _carefully(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Whatever goes wrong inside has been answered already; its message may quote a patient and is told nobody."""
        try:
            await self._app(scope, receive, send)
        except Exception as error:  # noqa: BLE001 - the server would print the message
            log.error("%s %s\n%s", scope["type"], scope["path"], where(error))  # noqa: TRY400

    def _sealed(self, send: Send) -> Send:
        async def sealed(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                # Files are asked for again, and answered in one line where they are the same; nothing else is kept.
                headers.setdefault("Cache-Control", "private, no-cache" if "etag" in headers else "no-store")
                if self._address.secure:
                    headers["Strict-Transport-Security"] = _YEAR
            await send(message)

        return sealed


def _signed(headers: Headers, signature: str) -> bool:
    """Whether a request may be of a system that signs what it says: a browser's brings cookies, or says where from."""
    plain = headers.get("content-type", "").partition(";")[0].strip() == "application/json"
    browser = any(name in headers for name in ("cookie", "origin", "sec-fetch-site"))
    return plain and not browser and len(headers.getlist(signature)) == 1


async def _body(receive: Receive, most: int) -> bytes | int:
    """The whole body, or the status to refuse it with."""
    held = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while True:
                message = await receive()
                if message["type"] != "http.request":
                    return 400
                held += message.get("body", b"")
                if len(held) > most:
                    return 413
                if not message.get("more_body", False):
                    return bytes(held)
    except TimeoutError:
        return 408


def _replay(body: bytes, receive: Receive) -> Receive:
    told = False

    async def replayed() -> Message:
        nonlocal told
        if told:
            return await receive()
        told = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed


async def _refuse(status: int, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    headers = {**_HEADERS, **({"Retry-After": "5"} if status == 429 else {}), "Connection": "close"}
    await bare(HTTPConnection(scope), status, f"door.refused.{status}", headers)(scope, receive, send)
