"""What the simulators share: a server, the bearer token, faults on request, and a record of what was asked.

A simulator speaks its contract under ``/api/v1`` and listens to its operator under ``/admin``:

- ``POST /admin/faults``  one fault or a list of them (``Fault``); ``DELETE`` takes all away, ``GET`` shows them;
- ``GET /admin/requests``  what was asked so far, oldest first; ``DELETE`` forgets it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import uvicorn
from pydantic import TypeAdapter, ValidationError
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from polydesk_dagster.demo.simulators import wire
from polydesk_dagster.demo.simulators.faults import Fault, Reply, after, before, problem, respond
from polydesk_dagster.home import keep_to_ourselves

DEMO_TOKEN = "demo-token"  # noqa: S105
API = "/api/v1"


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
            middleware=[Middleware(wire.Announced), Middleware(wire.Twice)],
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
                return respond(problem(401, "Unauthorized"), request, [])
            faults = self._take(request.url.path)
            response = await before(faults)
            if response is None:
                reply = await handler(request)
                if any(fault.kind == "replay" for fault in faults):
                    reply = await handler(request)
                response = await after(reply, request, faults)
            entry["status"] = response.status_code
            return response

        return endpoint


def _config(app: Starlette, port: int) -> uvicorn.Config:
    # uvicorn reports an answer that was cut on request as an error; nobody wants to read that.
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
    return uvicorn.Config(
        app,
        host="127.0.0.1",
        port=port,
        http=wire.Protocol,
        log_config=None,
        access_log=False,
        lifespan="off",
        timeout_keep_alive=75,  # as web servers do, so that none goes away while who asks is kept waiting by others
        timeout_graceful_shutdown=1,
    )


def _listening() -> socket.socket:
    """A socket that says that it is TCP's: asyncio lets the second part of an answer go at once on those alone, on
    others it waits up to 40 ms for the first to be acknowledged."""
    return socket.socket(proto=socket.IPPROTO_TCP)


@contextlib.contextmanager
def in_thread(simulator: Simulator) -> Iterator[str]:
    """Serve on a free port in a thread of this process; yields the address with ``/api/v1``."""
    server = uvicorn.Server(_config(simulator.app(), 0))
    with _listening() as listening:
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


def main(
    description: str,
    build: Callable[[argparse.Namespace], Simulator],
    port: int,
    options: Callable[[argparse.ArgumentParser], None] = lambda _: None,
) -> None:
    """The command line of one simulator, with ``options`` of its own: serves until SIGTERM and says on standard output
    where."""
    keep_to_ourselves()
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--port", type=int, default=port, help="0: una porta libera qualsiasi")
    parser.add_argument("--token", default=DEMO_TOKEN)
    parser.add_argument("--state", type=Path, help="cartella in cui conservare lo stato")
    options(parser)
    arguments = parser.parse_args()
    simulator = build(arguments)
    with _listening() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("127.0.0.1", arguments.port))
        listening.listen(128)  # whoever reads the address may call at once
        address = f"http://127.0.0.1:{listening.getsockname()[1]}{API}"
        print(address, flush=True)  # noqa: T201
        server = uvicorn.Server(_config(simulator.app(), arguments.port))
        signal.signal(signal.SIGTERM, lambda *_: setattr(server, "should_exit", True))
        server.run(sockets=[listening])
