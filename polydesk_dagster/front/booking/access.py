"""Who asks, and how often she may: a front end by its token, a visitor by the name that the front end has for her."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated

import sqlalchemy as sa
from fastapi import Depends, Header, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from polydesk_dagster.front import tokens
from polydesk_dagster.front.refusals import TRY_AGAIN, RefusedError
from polydesk_dagster.front.tokens import Caller, Scope
from polydesk_dagster.pace import Buckets
from polydesk_dagster.values import Reason, Term


def _now() -> datetime:
    return datetime.now(UTC)


def _of_visitors() -> Buckets:
    """A person chooses times; a program that goes through the calendar is stopped."""
    return Buckets(per_second=2, at_once=40)


def _of_front_ends() -> Buckets:
    """Whoever draws a new visitor for each request meets this."""
    return Buckets(per_second=200, at_once=1000)


@dataclass(frozen=True)
class Front:
    """What every request needs: ``request.app.state.front``."""

    engine: sa.Engine
    now: Callable[[], datetime] = _now
    visitors: Buckets = field(default_factory=_of_visitors)
    front_ends: Buckets = field(default_factory=_of_front_ends)
    counting: threading.Lock = field(default_factory=threading.Lock)
    """Requests are handled in threads."""

    def in_measure(self, front_end: str, visitor: str) -> bool:
        with self.counting:
            return self.front_ends.take(front_end) and self.visitors.take(visitor)


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that is let in."""

    front: Front
    caller: Caller
    token: str = field(repr=False)
    visitor: str = field(repr=False)
    """Tells visitors of all front ends apart; a hash, since what a front end sends may be a name."""
    as_of: datetime


_BEARER = HTTPBearer(auto_error=False, description="A token that `polydesk tokens issue` has printed")

_UNKNOWN = {"WWW-Authenticate": "Bearer"}

Visitor = Annotated[
    str,
    Header(
        alias="Polydesk-Visitor",
        min_length=8,
        max_length=200,
        pattern=r"^[\x21-\x7e]+$",
        description="The same for all requests of one visitor, and nobody else's; a session's id, no name",
    ),
]


def allowed(scope: Scope) -> Callable[..., Asked]:
    """The dependency of an operation that takes ``scope``."""

    def let_in(
        request: Request, bearer: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)], visitor: Visitor
    ) -> Asked:
        front: Front = request.app.state.front
        as_of = front.now()
        if bearer is None:
            raise RefusedError(401, Reason("front_token_unknown"), headers=_UNKNOWN)
        with front.engine.connect() as connection:
            caller = tokens.look(connection, bearer.credentials, as_of)
        if caller is None:
            raise RefusedError(401, Reason("front_token_unknown"), headers=_UNKNOWN)
        if scope not in caller.scopes:
            raise RefusedError(403, Reason("front_scope_lacking", {"scope": Term("front_scope", scope)}))
        name = hashlib.sha256(f"{caller.name}\n{visitor}".encode()).hexdigest()
        if not front.in_measure(caller.name, name):
            raise RefusedError(429, Reason("front_too_many"), retry_after=TRY_AGAIN)
        return Asked(front, caller, bearer.credentials, name, as_of)

    return let_in
