"""What the simulators share: a server, the bearer token, faults on request, and a record of what was asked.

A simulator speaks its contract under ``/api/v1`` and listens to its operator under ``/admin``:

- ``POST /admin/faults``  one fault or a list of them (``Fault``); ``DELETE`` takes all away, ``GET`` shows them;
- ``GET /admin/requests``  what was asked so far, oldest first; ``DELETE`` forgets it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gzip
import hashlib
import json
import logging
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any, Literal

import uvicorn
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from polydesk_dagster.home import keep_to_ourselves

DEMO_TOKEN = "demo-token"  # noqa: S105
API = "/api/v1"
_PAGE = b"<!doctype html><html><head><title>502</title></head><body><h1>Servizio non disponibile</h1></body></html>"


class Fault(BaseModel):
    """One way of misbehaving, for the requests whose path ends in ``path``.

    ``status``         answers ``status``, with ``retry_after`` seconds if given, as a date if ``retry_date``;
                       a proxy's page if ``html``
    ``html``           a proxy's page with status 200
    ``timeout``        does what was asked, then says nothing for ``seconds``
    ``deaf``           says nothing for ``seconds`` and does nothing
    ``slow``           answers after ``seconds``
    ``replay``         an intermediary that lost the answer delivers the request once more and passes on the second
    ``twice``          writes the answer twice on the connection, in one piece
    ``trickle``        sends the body in small pieces over ``seconds``
    ``cut``            sends ``share`` of the body that it announced, then closes
    ``encoding``       compresses with ``encoding`` whatever the caller accepts
    ``cut_encoding``   the compressed body ends at ``share``, correctly announced
    ``not_utf8``       the body is Windows-1252
    ``bom``            the body starts with a byte order mark
    ``set``            ``field`` of item ``item`` becomes ``value`` (a wrong type, an impossible date, …)
    ``remove``         ``field`` of item ``item`` is missing
    ``unknown_field``  every item has a field more
    ``untidy``         texts get trailing blanks, and apostrophes for final accents
    ``empty``          the list is empty
    ``top``            ``field`` of the whole answer becomes ``value``
    ``snapshot``       the list's snapshot is another one
    """

    model_config = ConfigDict(extra="forbid")

    kind: Literal[
        "status", "html", "timeout", "deaf", "slow", "replay", "twice", "trickle", "cut", "encoding", "cut_encoding",
        "not_utf8", "bom", "set", "remove", "unknown_field", "untidy", "empty", "top", "snapshot",
    ]  # fmt: skip
    path: str = ""
    after: int = Field(0, ge=0, description="requests that are still answered well")
    times: int | None = Field(1, ge=1, description="requests that suffer; null for ever")
    status: int = 500
    retry_after: int | None = None
    retry_date: bool = False
    html: bool = False
    seconds: float = 30.0
    share: float = Field(0.5, ge=0, le=1)
    encoding: Literal["gzip", "zstd"] = "gzip"
    item: int = 0
    field: str = ""
    value: Any = None


@dataclass(frozen=True, slots=True)
class Reply:
    """What a simulator would answer if nothing went wrong."""

    body: Any
    status: int = 200
    etag: bool = False
    headers: dict[str, str] = field(default_factory=dict)


def problem(status: int, title: str, **more: Any) -> Reply:
    """RFC 9457."""
    return Reply({"type": "about:blank", "title": title, "status": status, **more}, status)


Handler = Callable[[Request], Awaitable[Reply]]


class Simulator:
    """Routes of one outside system; subclasses say which in ``handlers``."""

    name = ""
    prefixes: tuple[str, ...] = (API,)

    def __init__(self, token: str = DEMO_TOKEN) -> None:
        self.token = token
        self.faults: list[Fault] = []
        self.requests: deque[dict[str, Any]] = deque(maxlen=10_000)

    def handlers(self) -> dict[tuple[str, str], Handler]:
        """(method, path below a prefix) → handler."""
        raise NotImplementedError

    def admin(self) -> list[Route]:
        """Further routes of the operator."""
        return []

    def app(self) -> Starlette:
        routes = [
            Route(prefix + path, self._endpoint(handler), methods=[method])
            for (method, path), handler in self.handlers().items()
            for prefix in self.prefixes
        ]
        return Starlette(
            routes=[
                *routes,
                Route("/admin/faults", self._faults, methods=["GET", "POST", "DELETE"]),
                Route("/admin/requests", self._requests, methods=["GET", "DELETE"]),
                *self.admin(),
            ],
            middleware=[Middleware(_Announced), Middleware(_Twice)],
        )

    def fail(self, kind: str, path: str = "", **options: Any) -> None:
        """Ask for a fault from inside the process."""
        self.faults.append(Fault.model_validate({"kind": kind, "path": path, **options}))

    async def _faults(self, request: Request) -> Response:
        if request.method == "DELETE":
            self.faults.clear()
        elif request.method == "POST":
            try:
                wanted = TypeAdapter(list[Fault] | Fault).validate_json(await request.body())
            except ValidationError as error:
                return JSONResponse(json.loads(error.json()), 422)
            self.faults.extend(wanted if isinstance(wanted, list) else [wanted])
        return JSONResponse([fault.model_dump() for fault in self.faults])

    async def _requests(self, request: Request) -> Response:
        if request.method == "DELETE":
            self.requests.clear()
        return JSONResponse(list(self.requests))

    def _take(self, path: str) -> list[Fault]:
        """The faults that this request suffers; counts them down."""
        taken = []
        for fault in list(self.faults):
            if not path.endswith(fault.path):
                continue
            if fault.after:
                fault.after -= 1
                continue
            taken.append(fault)
            if fault.times is not None:
                fault.times -= 1
                if not fault.times:
                    self.faults.remove(fault)
        return taken

    def _endpoint(self, handler: Handler) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            entry = {
                "method": request.method,
                "path": request.url.path,
                "query": dict(request.query_params),
                "at": time.time(),
            }
            self.requests.append(entry)
            if request.headers.get("Authorization") != f"Bearer {self.token}":
                entry["status"] = 401
                return _respond(problem(401, "Unauthorized"), request, [])
            faults = self._take(request.url.path)
            response = await _before(faults)
            if response is None:
                reply = await handler(request)
                if any(fault.kind == "replay" for fault in faults):
                    reply = await handler(request)
                response = await _after(reply, request, faults)
            entry["status"] = response.status_code
            return response

        return endpoint


async def _before(faults: list[Fault]) -> Response | None:
    """Faults that keep the request from being looked at."""
    for fault in faults:
        if fault.kind == "slow":
            await asyncio.sleep(fault.seconds)
        elif fault.kind == "deaf":
            await asyncio.sleep(fault.seconds)
            return Response(status_code=503)
        elif fault.kind == "html":
            return Response(_PAGE, 200, media_type="text/html")
        elif fault.kind == "status":
            headers = {}
            if fault.retry_after is not None:
                moment = datetime.now(UTC) + timedelta(seconds=fault.retry_after)
                headers["Retry-After"] = (
                    format_datetime(moment, usegmt=True) if fault.retry_date else str(fault.retry_after)
                )
            if fault.html:
                return Response(_PAGE, fault.status, headers, "text/html")
            body = {"type": "about:blank", "title": "requested fault", "status": fault.status}
            return Response(json.dumps(body), fault.status, headers, "application/problem+json")
    return None


async def _after(reply: Reply, request: Request, faults: list[Fault]) -> Response:
    """Faults of the answer itself."""
    body = json.loads(json.dumps(reply.body)) if faults else reply.body
    for fault in faults:
        _spoil(body, fault)
        if fault.kind == "timeout":
            await asyncio.sleep(fault.seconds)
    return _respond(Reply(body, reply.status, reply.etag, reply.headers), request, faults)


def _spoil(body: Any, fault: Fault) -> None:
    if not isinstance(body, dict):
        return
    items = body.get("items")
    rows: list[Any] = items if isinstance(items, list) else [body]
    if fault.kind == "top":
        body[fault.field] = fault.value
    elif fault.kind == "snapshot":
        body["snapshot"] = f"{body.get('snapshot')}-{time.monotonic_ns()}"
    elif fault.kind == "empty":
        body.update(items=[], next_page=None, total=0)
    elif fault.kind == "unknown_field":
        for row in rows:
            row["field_of_tomorrow"] = {"nested": [1, 2, 3]}
    elif fault.kind == "untidy":
        rows[:] = [_untidy(row) for row in rows]
    elif fault.kind in {"set", "remove"} and fault.item < len(rows):
        if not fault.field:
            rows[fault.item] = fault.value
        elif fault.kind == "set":
            rows[fault.item][fault.field] = fault.value
        else:
            rows[fault.item].pop(fault.field, None)


_APOSTROPHES = str.maketrans({"à": "a'", "è": "e'", "é": "e'", "ì": "i'", "ò": "o'", "ù": "u'"})


def _untidy(row: Any) -> Any:
    if not isinstance(row, dict):
        return row
    return {
        key: f"\ufeff{value.translate(_APOSTROPHES)}  " if key.endswith("name") else value for key, value in row.items()
    }


def _respond(reply: Reply, request: Request, faults: list[Fault]) -> Response:
    try:
        data = json.dumps(reply.body, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:  # half a surrogate pair can only be written as an escape
        data = json.dumps(reply.body, separators=(",", ":")).encode()
    headers = dict(reply.headers)
    if reply.etag:
        headers["ETag"] = f'"{hashlib.sha256(data).hexdigest()[:32]}"'
        if request.headers.get("If-None-Match") == headers["ETag"]:
            return Response(status_code=304, headers=headers)
    media = "application/json" if reply.status < 400 else "application/problem+json"
    announced = None
    spread = 0.0
    for fault in faults:
        if fault.kind == "not_utf8":
            data = data.decode().encode("cp1252", "replace")
        elif fault.kind == "bom":
            data = b"\xef\xbb\xbf" + data
        elif fault.kind in {"encoding", "cut_encoding"} and "Content-Encoding" not in headers:
            data = _compress(data, fault.encoding)
            headers["Content-Encoding"] = fault.encoding
            if fault.kind == "cut_encoding":
                data = data[: int(len(data) * fault.share)]
        elif fault.kind == "cut":
            announced = len(data)
            data = data[: int(len(data) * fault.share)]
        elif fault.kind == "trickle":
            spread = fault.seconds
        elif fault.kind == "twice":
            headers[_Twice.HEADER] = "yes"
    if announced is not None:
        headers[_Announced.HEADER] = str(announced)
    if spread:
        return StreamingResponse(_trickle(data, spread), reply.status, headers, media)
    return Response(data, reply.status, headers, media)


def _compress(data: bytes, encoding: str) -> bytes:
    if encoding == "gzip":
        return gzip.compress(data, 1)
    import zstandard

    return zstandard.compress(data)


async def _trickle(data: bytes, seconds: float) -> Any:
    pieces = 20
    size = max(1, -(-len(data) // pieces))
    for start in range(0, len(data), size):
        yield data[start : start + size]
        await asyncio.sleep(seconds / pieces)


class _Announced:
    """Lets an answer announce more bytes than it sends: the server then drops the connection."""

    HEADER = "x-announced-length"

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def announce(message: Any) -> None:
            if message["type"] == "http.response.start":
                headers = dict(message["headers"])
                length = headers.pop(self.HEADER.encode(), None)
                if length is not None:
                    headers[b"content-length"] = length
                    message["headers"] = list(headers.items())
            await send(message)

        await self.app(scope, receive, announce)


class _Wire:
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


class _Protocol(HttpToolsProtocol):
    """Lets the application at the connection."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        wire, app = _Wire(transport), self.app

        async def with_wire(scope: Any, receive: Any, send: Any) -> None:
            await app({**scope, _Twice.SCOPE: wire}, receive, send)

        self.app = with_wire
        super().connection_made(wire)  # type: ignore[arg-type]


class _Twice:
    """Writes an answer twice where asked to: a caller that keeps the connection may take the second for the answer
    to what it asks next."""

    HEADER = "x-answer-twice"
    SCOPE = "polydesk.wire"

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        wire: _Wire = scope[self.SCOPE]
        twice = False

        async def repeat(message: Any) -> None:
            nonlocal twice
            if message["type"] == "http.response.start":
                headers = dict(message["headers"])
                twice = headers.pop(self.HEADER.encode(), None) is not None
                if twice:
                    message["headers"] = list(headers.items())
                    wire.hold()
            await send(message)
            if twice and message["type"] == "http.response.body" and not message.get("more_body"):
                wire.repeat()

        await self.app(scope, receive, repeat)


def _config(app: Starlette, port: int) -> uvicorn.Config:
    # uvicorn reports an answer that was cut on request as an error; nobody wants to read that.
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
    return uvicorn.Config(
        app,
        host="127.0.0.1",
        port=port,
        http=_Protocol,
        log_config=None,
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=1,
    )


@contextlib.contextmanager
def in_thread(simulator: Simulator) -> Iterator[str]:
    """Serve on a free port in a thread of this process; yields the address with ``/api/v1``."""
    server = uvicorn.Server(_config(simulator.app(), 0))
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        try:
            while not server.started:
                if not thread.is_alive():
                    raise RuntimeError(f"the {simulator.name} simulator did not start")
                time.sleep(0.01)
            yield f"http://127.0.0.1:{port}{API}"
        finally:
            server.should_exit = True
            thread.join(5)


def main(description: str, build: Callable[[argparse.Namespace], Simulator], port: int) -> None:
    """The command line of one simulator: serves until SIGTERM and says on standard output where."""
    keep_to_ourselves()
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--port", type=int, default=port, help="0: una porta libera qualsiasi")
    parser.add_argument("--token", default=DEMO_TOKEN)
    parser.add_argument("--state", type=Path, help="cartella in cui conservare lo stato")
    arguments = parser.parse_args()
    simulator = build(arguments)
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("127.0.0.1", arguments.port))
        listening.listen(128)  # whoever reads the address may call at once
        address = f"http://127.0.0.1:{listening.getsockname()[1]}{API}"
        print(address, flush=True)  # noqa: T201
        server = uvicorn.Server(_config(simulator.app(), arguments.port))
        signal.signal(signal.SIGTERM, lambda *_: setattr(server, "should_exit", True))
        server.run(sockets=[listening])
