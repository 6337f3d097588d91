"""Misbehaviour on request: what a simulator would answer, and the many ways in which it arrives wrong or not at all."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from polydesk_dagster.demo.simulators import wire

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
    ``etag``           the list's ETag is ``value``, whatever it holds
    """

    model_config = ConfigDict(extra="forbid")

    kind: Literal[
        "status", "html", "timeout", "deaf", "slow", "replay", "twice", "trickle", "cut", "encoding", "cut_encoding",
        "not_utf8", "bom", "set", "remove", "unknown_field", "untidy", "empty", "top", "snapshot", "etag",
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


async def before(faults: list[Fault]) -> Response | None:
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


async def after(reply: Reply, request: Request, faults: list[Fault]) -> Response:
    """Faults of the answer itself."""
    body = json.loads(json.dumps(reply.body)) if faults else reply.body
    for fault in faults:
        _spoil(body, fault)
        if fault.kind == "timeout":
            await asyncio.sleep(fault.seconds)
    return respond(Reply(body, reply.status, reply.etag, reply.headers), request, faults)


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


def respond(reply: Reply, request: Request, faults: list[Fault]) -> Response:
    try:
        data = json.dumps(reply.body, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:  # half a surrogate pair can only be written as an escape
        data = json.dumps(reply.body, separators=(",", ":")).encode()
    headers = dict(reply.headers)
    if reply.etag:
        said = [str(fault.value) for fault in faults if fault.kind == "etag"]
        headers["ETag"] = said[-1] if said else f'"{hashlib.sha256(data).hexdigest()[:32]}"'
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
            headers[wire.TWICE] = "yes"
    if announced is not None:
        headers[wire.ANNOUNCED] = str(announced)
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
