"""The caches over HTTP, from memory.

``GET /clinics/{code}/specialists`` and ``…/locations`` answer the current document with its ETag, or 304 to whoever
has it. A task listens to the database for switched versions; while the database is away it serves what it has.
"""

from __future__ import annotations

import asyncio
import logging
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import psycopg
from sqlalchemy.engine import URL
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from polydesk_dagster.clinic.caches.documents import CACHES, CHANNEL
from polydesk_dagster.database import patience
from polydesk_dagster.database.engine import plain_url

MAX_AGE = 60
"""Seconds for which a browser asks nobody; give or take a tenth, so that not all come back at once."""
STALE = 540
"""Further seconds for which it may show what it has while it asks."""
LOOK_AGAIN = 60.0
"""Seconds after which the database is asked even if it announced nothing."""

log = logging.getLogger(__name__)

Headers = list[tuple[bytes, bytes]]

CURRENT = """
    SELECT c.code, kind, v.etag FROM cache_current JOIN cache_version v USING (clinic_id, kind, version)
    JOIN clinic c ON c.id = v.clinic_id"""

BODIES = """
    SELECT c.code, kind, v.etag, v.body, v.zipped FROM cache_current
    JOIN cache_version v USING (clinic_id, kind, version) JOIN clinic c ON c.id = v.clinic_id
    WHERE v.etag = ANY(%s)"""


@dataclass(frozen=True, slots=True)
class Document:
    """One document, its answers made ready."""

    etag: bytes
    body: bytes
    zipped: bytes
    headers: Headers
    plain_headers: Headers
    zipped_headers: Headers


def document(code: str, kind: str, etag: str, body: bytes, zipped: bytes) -> Document:
    """The answers for one stored version. The ETag is weak: it names the content, whichever way it is packed."""
    tag = f'W/"{etag}"'.encode()
    age = MAX_AGE + (zlib.crc32(f"{code}/{kind}".encode()) % (MAX_AGE // 5 + 1)) - MAX_AGE // 10
    common = [
        (b"etag", tag),
        (b"cache-control", f"public, max-age={age}, stale-while-revalidate={STALE}".encode()),
        (b"vary", b"accept-encoding"),
    ]
    typed = [*common, (b"content-type", b"application/json")]
    return Document(
        tag,
        body,
        zipped,
        common,
        [*typed, (b"content-length", str(len(body)).encode())],
        [*typed, (b"content-encoding", b"gzip"), (b"content-length", str(len(zipped)).encode())],
    )


async def _told(connection: psycopg.AsyncConnection[Any]) -> bool:
    """Whether the database has said something; what has come is taken."""
    return bool([said async for said in connection.notifies(timeout=0)])


async def _something_comes(connection: psycopg.AsyncConnection[Any]) -> None:
    """Until there is something to read from the database, or it is time to look again. psycopg would look ten times a
    second."""
    loop, ready, descriptor = asyncio.get_running_loop(), asyncio.Event(), connection.fileno()
    loop.add_reader(descriptor, ready.set)
    try:
        with suppress(TimeoutError):
            await asyncio.wait_for(ready.wait(), LOOK_AGAIN)
    finally:
        loop.remove_reader(descriptor)


class Store:
    """The documents in memory, kept up with the database."""

    def __init__(self, url: URL) -> None:
        self._url = plain_url(url)
        self.documents: dict[tuple[str, str], Document] = {}
        self.synchronised_at: datetime | None = None

    @asynccontextmanager
    async def following(self) -> AsyncIterator[None]:
        """Kept up while it is held."""
        task = asyncio.create_task(self.follow())
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def follow(self) -> None:
        """Load, then load again whenever the database says so; never ends."""
        wait = 0.5
        while True:
            try:
                async with await patience.AsyncConnection.connect(
                    self._url,
                    autocommit=True,
                    connect_timeout=10,
                    application_name="polydesk cache",
                    **patience.NETWORK,
                ) as connection:
                    await connection.execute(f"LISTEN {CHANNEL}")
                    while True:
                        await self._load(connection)
                        wait = 0.5
                        if not await _told(connection):
                            await _something_comes(connection)
                            await _told(connection)
            except (psycopg.Error, OSError) as error:
                log.warning("Database non raggiungibile, servo quello che ho: %s", type(error).__name__)
                await asyncio.sleep(wait)
                wait = min(wait * 2, 30.0)

    async def _load(self, connection: psycopg.AsyncConnection[tuple[Any, ...]]) -> None:
        """Fetch what is new, forget what is gone."""
        listed = await (await connection.execute(CURRENT)).fetchall()
        known = {key: held.etag for key, held in self.documents.items()}
        missing = [etag for code, kind, etag in listed if known.get((code, kind)) != f'W/"{etag}"'.encode()]
        if missing:
            for code, kind, etag, body, zipped in await (await connection.execute(BODIES, (missing,))).fetchall():
                self.documents[code, kind] = document(code, kind, etag, bytes(body), bytes(zipped))
        for gone in self.documents.keys() - {(code, kind) for code, kind, _ in listed}:
            del self.documents[gone]
        self.synchronised_at = datetime.now(UTC)


class Documents:
    """The route of the documents, as plain ASGI: a 304 is one look-up and one message."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def __call__(self, scope: Scope, _receive: Receive, send: Send) -> None:
        method = scope["method"]
        if method not in {"GET", "HEAD"}:
            await _problem(405, [(b"allow", b"GET, HEAD")], send)
            return
        where = scope["path_params"]
        found = self._store.documents.get((where["clinic"], where["kind"]))
        if found is None:
            loading = self._store.synchronised_at is None and where["kind"] in CACHES
            await _problem(503 if loading else 404, [(b"retry-after", b"1")] if loading else [], send)
            return
        held = encoding = b""
        for name, value in scope["headers"]:
            if name == b"if-none-match":
                held = value
            elif name == b"accept-encoding":
                encoding = value
        if held and (held == found.etag or _matches(held, found.etag)):
            await send({"type": "http.response.start", "status": 304, "headers": found.headers})
            await send({"type": "http.response.body", "body": b""})
            return
        packed = b"gzip" in encoding and b"gzip;q=0" not in encoding.replace(b" ", b"")
        headers = found.zipped_headers if packed else found.plain_headers
        body = b"" if method == "HEAD" else found.zipped if packed else found.body
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def _matches(held: bytes, etag: bytes) -> bool:
    opaque = etag.removeprefix(b"W/")
    tags = [tag.strip().removeprefix(b"W/") for tag in held.split(b",")]
    return opaque in tags or tags == [b"*"]


async def _problem(status: int, headers: Headers, send: Send) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [*headers, (b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


def routes(store: Store) -> list[BaseRoute]:
    """What is answered from ``store``."""

    async def health(_: Request) -> JSONResponse:
        at = store.synchronised_at
        return JSONResponse(
            {"documents": len(store.documents), "synchronised_at": at and at.isoformat()}, 200 if at else 503
        )

    return [Route("/clinics/{clinic}/{kind}", endpoint=Documents(store)), Route("/health", endpoint=health)]
