"""A request is done once, however often it is sent: its answer is kept in the transaction of what it did."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import sqlalchemy as sa
from cryptography.fernet import Fernet
from fastapi import Header, Request
from pydantic import BaseModel
from starlette.responses import Response

from polydesk_dagster.front.booking.access import Asked
from polydesk_dagster.front.refusals import RefusedError, as_response
from polydesk_dagster.values import Reason

TRIES = 3
"""Of a transaction that PostgreSQL ended because two waited for each other."""

IdempotencyKey = Annotated[
    str,
    Header(
        alias="Idempotency-Key",
        min_length=8,
        max_length=200,
        pattern=r"^[\x21-\x7e]+$",
        description="New for each thing to be done; the same when the answer was lost and the request is sent again",
    ),
]


@dataclass(frozen=True, slots=True)
class Attempt:
    """A request as it came, by which it is known again."""

    key: str
    request: bytes


async def attempt(request: Request, key: IdempotencyKey) -> Attempt:
    """The dependency of an operation that changes something."""
    said = b"\n".join((request.method.encode(), request.url.path.encode(), await request.body()))
    return Attempt(key, hashlib.sha256(said).digest())


Act = Callable[[sa.Connection], tuple[int, BaseModel]]
"""Does what was asked: the status and the body of the answer; a refusal of the rules is one, and is kept too."""

_CLAIM = sa.text("""
    INSERT INTO front_answer (token_id, key_hash, request_hash, answered_at)
    VALUES (:token, :key, :request, :as_of) ON CONFLICT (token_id, key_hash) DO NOTHING RETURNING id""")

_KEPT = sa.text("""
    SELECT request_hash, status, sealed FROM front_answer WHERE token_id = :token AND key_hash = :key""")

_KEEP = sa.text("UPDATE front_answer SET status = :status, sealed = :sealed WHERE id = :id")


def once(asked: Asked, made: Attempt, act: Act) -> Response:
    """Do it, or answer what was answered. Whoever sends the same request meanwhile waits for the first.

    Raises:
        RefusedError: 422 for a key that was used for another request.
    """
    for turn in range(1, TRIES + 1):
        try:
            return _once(asked, made, act)
        except sa.exc.OperationalError as error:
            if getattr(error.orig, "sqlstate", None) != "40P01" or turn == TRIES:
                raise
    raise AssertionError("unreachable")


def _once(asked: Asked, made: Attempt, act: Act) -> Response:
    given = {
        "token": asked.caller.token_id,
        "key": hashlib.sha256(made.key.encode()).digest(),
        "request": made.request,
        "as_of": asked.as_of,
    }
    seal = Fernet(base64.urlsafe_b64encode(_derived(asked, "answers")))
    with asked.front.engine.begin() as connection:
        claimed = connection.scalar(_CLAIM, given)
        if claimed is None:
            kept = connection.execute(_KEPT, given).one()
            if bytes(kept.request_hash) != made.request:
                raise RefusedError(422, Reason("front_key_used"))
            return as_response(kept.status, seal.decrypt(bytes(kept.sealed)), {"Idempotent-Replay": "true"})
        status, answer = act(connection)
        body = answer.model_dump_json(exclude_none=True).encode()
        connection.execute(_KEEP, {"id": claimed, "status": status, "sealed": seal.encrypt(body)})
    return as_response(status, body)


def key_of(asked: Asked, made: Attempt) -> str:
    """The key of what a request holds: the same when it is sent again, and nobody's to guess without the token."""
    return base64.urlsafe_b64encode(_derived(asked, f"key {made.key}")).decode().rstrip("=")


def _derived(asked: Asked, purpose: str) -> bytes:
    return hmac.new(asked.token.encode(), purpose.encode(), hashlib.sha256).digest()
