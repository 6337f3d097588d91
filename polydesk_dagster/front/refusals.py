"""What is refused, with which status, and how it is told: ``application/problem+json``, in the visitor's language."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from polydesk_dagster.front.wire import Fault, Problem
from polydesk_dagster.told import Teller, accepted, teller
from polydesk_dagster.values import Reason

MEDIA = "application/problem+json"
TRY_AGAIN = 5
"""Seconds that somebody waits for the database, or for her turn."""


class RefusedError(HTTPException):
    """A request that is not done, and changes nothing."""

    def __init__(
        self,
        status: int,
        reason: Reason,
        *,
        faults: Sequence[Fault] = (),
        retry_after: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        wait = {"Retry-After": str(retry_after)} if retry_after else {}
        super().__init__(status, reason.code, {**(headers or {}), **wait})
        self.reason, self.faults = reason, faults


def teller_of(request: Request) -> Teller:
    return teller(accepted(request.headers.get("accept-language", "")))


def problem(status: int, code: str, title: str, **more: Any) -> Problem:
    return Problem(type=f"urn:polydesk:problem:{code}", title=title, status=status, code=code, **more)


def as_response(status: int, body: bytes, headers: Mapping[str, str] | None = None) -> Response:
    media = "application/json" if status < 400 else MEDIA
    return Response(body, status, {"Cache-Control": "no-store", **(headers or {})}, media)


def refuse(request: Request, refused: RefusedError) -> Response:
    title = teller_of(request).reason(refused.reason)
    body = problem(refused.status_code, refused.reason.code, title, errors=list(refused.faults) or None)
    return as_response(refused.status_code, body.model_dump_json(exclude_none=True).encode(), refused.headers)


_OF_STATUS: Mapping[int, str] = {404: "front_no_such_path", 405: "front_method_wrong"}


async def on_refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, RefusedError)
    return refuse(request, error)


async def on_status(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    reason = Reason(_OF_STATUS.get(error.status_code, "front_request_wrong"))
    return refuse(request, RefusedError(error.status_code, reason, headers=error.headers))


async def on_invalid(request: Request, error: Exception) -> Response:
    """What does not fit the description: where and how, never the value, which may be a patient's."""
    faults = [Fault(at=".".join(map(str, each["loc"])), code=each["type"]) for each in error.errors()]  # pyrefly: ignore[missing-attribute]
    return refuse(request, RefusedError(422, Reason("front_request_wrong"), faults=faults))


async def on_database(request: Request, error: Exception) -> Response:
    """Away, or too busy to wait for: nothing was done, and asking again with the same key is safe."""
    away = isinstance(error, sa.exc.OperationalError | sa.exc.InterfaceError | sa.exc.TimeoutError)
    if away or getattr(error, "connection_invalidated", False):
        return refuse(request, RefusedError(503, Reason("front_database_away"), retry_after=TRY_AGAIN))
    return refuse(request, RefusedError(500, Reason("front_broken")))


async def on_broken(request: Request, _error: Exception) -> Response:
    return refuse(request, RefusedError(500, Reason("front_broken")))
