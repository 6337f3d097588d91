"""``/metrics``: the installation's figures for a monitoring system, which has a token, or sits on this machine."""

from __future__ import annotations

import secrets
from ipaddress import ip_address

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from polydesk_dagster.runtime import metrics
from polydesk_dagster.web.door import Door

_CARRIED = ("forwarded", "x-forwarded-for", "x-real-ip")
"""Headers of a request that somebody else's proxy has carried here."""


async def figures(request: Request) -> Response:
    """With ``POLYDESK_METRICS_TOKEN`` for whoever brings it; else for a program on this machine, no proxy between."""
    door: Door = request.state.door
    if not _may(request, door):
        raise HTTPException(401)
    text = await run_in_threadpool(metrics.exposition, door.settings, door.reader, door.dagster, door.now())
    return Response(text, media_type=CONTENT_TYPE_LATEST)


def _may(request: Request, door: Door) -> bool:
    token = door.settings.metrics_token
    if token is not None:
        given = request.headers.get("authorization", "").encode()
        return secrets.compare_digest(given, f"Bearer {token.get_secret_value()}".encode())
    if request.client is None or any(name in request.headers for name in _CARRIED):
        return False
    try:
        return ip_address(request.client.host).is_loopback
    except ValueError:
        return False
