"""What the front's applications have in common: how they describe themselves, what they refuse, how short a body is."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from polydesk_dagster.front.refusals import (
    MEDIA,
    RefusedError,
    on_broken,
    on_database,
    on_invalid,
    on_refused,
    on_status,
    refuse,
)
from polydesk_dagster.front.wire import Problem
from polydesk_dagster.values import Reason

LARGEST = 16_384
"""Bytes of a request's body: what is asked here is short."""

REFUSALS = {
    400: "The body cannot be read",
    401: "The token is missing, unknown, revoked or has expired",
    403: "The token lacks the scope",
    404: "There is nothing under this key",
    409: "It cannot be done as things stand: choose another time, or as `title` says",
    410: "It is over: held too long, given back, cancelled, or a secret that was used",
    413: "The body is too large",
    415: "The body is no JSON",
    422: "The request is not as described, or its `Idempotency-Key` was used for another",
    429: "Too many requests of this visitor or this front end; `Retry-After` says when",
    503: "The database is away; nothing was done, and the same request may be sent again",
}


def made(title: str, description: str, **more: Any) -> FastAPI:
    """An application of the front, without routes yet: whatever goes wrong in it is told as a problem."""
    app = FastAPI(
        title=title,
        version="1.0.0",
        description=description,
        docs_url=None,  # its page loads scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
        exception_handlers={
            RefusedError: on_refused,
            HTTPException: on_status,
            RequestValidationError: on_invalid,
            sa.exc.DBAPIError: on_database,
            sa.exc.TimeoutError: on_database,
            Exception: on_broken,
        },
        **more,
    )
    app.add_middleware(Short)
    app.openapi = lambda: described(app)  # pyrefly: ignore[method-assign]
    return app


def described(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI 3.1 description of an application of the front, with every refusal as the problem that it is."""
    if app.openapi_schema is None:
        told = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        schemas = told["components"]["schemas"]
        schemas["Problem"] = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas |= schemas["Problem"].pop("$defs", {})
        for unused in ("HTTPValidationError", "ValidationError"):
            schemas.pop(unused, None)
        content = {MEDIA: {"schema": {"$ref": "#/components/schemas/Problem"}}}
        for path in told["paths"].values():
            for operation in path.values():
                operation["responses"] |= {
                    str(status): {"description": why, "content": content} for status, why in REFUSALS.items()
                }
        app.openapi_schema = told
    return app.openapi_schema


class Short:
    """ASGI middleware: a body is short, and says that it is JSON."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > LARGEST:
            await refuse(Request(scope), RefusedError(413, Reason("front_too_large")))(scope, receive, send)
            return
        if (
            scope["method"] == "POST"
            and headers.get("content-type", "").partition(";")[0].strip() != "application/json"
        ):
            await refuse(Request(scope), RefusedError(415, Reason("front_no_json")))(scope, receive, send)
            return
        read = 0

        async def counted() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > LARGEST:  # it came in pieces, without a length
                raise RefusedError(413, Reason("front_too_large"))
            return message

        await self._app(scope, counted, send)
