"""The HTTP side as one application, mounted where the front stands, and its description."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.util import find_spec
from typing import Annotated

from fastapi import Depends, FastAPI
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from polydesk_dagster.front import api
from polydesk_dagster.front.assistant.access import Shelf, reader
from polydesk_dagster.front.assistant.asking import answered, judged
from polydesk_dagster.front.assistant.schema import Judgement, Question, Told
from polydesk_dagster.front.refusals import teller_of
from polydesk_dagster.front.tokens import Reader

MCP = "/mcp"


def application(shelf: Shelf) -> FastAPI:
    """What documents say, over the shelf's database. What answers over MCP lives as long as its lifespan, which whoever
    mounts it must enter; without the package ``mcp`` there is none."""
    server = None
    if find_spec("mcp") is not None:
        from polydesk_dagster.front.assistant.mcp_server import McpServer

        server = McpServer(shelf)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        if server is None:
            yield
            return
        async with server.running():
            yield

    app = api.made(
        "Polydesk assistant",
        "What a chain's documents say, for an assistant of one clinic, with where it stands.",
        lifespan=lifespan,
    )
    app.state.shelf = shelf
    app.add_api_route("/ask", ask, methods=["POST"], response_model=Told, operation_id="ask")
    app.add_api_route("/judge", judge, methods=["POST"], status_code=204, operation_id="judge")
    if server is not None:
        app.router.routes.append(Route(MCP, server, methods=["GET", "POST", "DELETE"]))
    return app


def ask(request: Request, question: Question, whose: Annotated[Reader, Depends(reader)]) -> Told:
    """The passages that answer a question, best first, with where they stand. None is invented: where `relevant` is
    false, the documents do not treat it."""
    return answered(request.app.state.shelf, question, whose, teller_of(request))


def judge(request: Request, judgement: Judgement, whose: Annotated[Reader, Depends(reader)]) -> Response:
    """What came of an answer. A question whose answer did not help is kept, without who asked."""
    judged(request.app.state.shelf, judgement, whose)
    return Response(status_code=204)
