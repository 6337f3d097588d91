"""Which assistant asks, and how often it may: by its token, which says for whom."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated

import sqlalchemy as sa
from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from polydesk_dagster.front import tokens
from polydesk_dagster.front.refusals import TRY_AGAIN, RefusedError
from polydesk_dagster.front.tokens import Reader, Scope
from polydesk_dagster.knowledge.library import Library
from polydesk_dagster.pace import Buckets
from polydesk_dagster.values import Reason, Term


def _now() -> datetime:
    return datetime.now(UTC)


def _of_assistants() -> Buckets:
    return Buckets(per_second=10, at_once=60)


@dataclass(frozen=True)
class Shelf:
    """What every question needs: ``request.app.state.shelf``."""

    engine: sa.Engine
    library: Callable[[], Library]
    address: str
    """Where people reach the door, for the links of citations."""
    now: Callable[[], datetime] = _now
    assistants: Buckets = field(default_factory=_of_assistants)
    counting: threading.Lock = field(default_factory=threading.Lock)
    """Requests are handled in threads."""

    def reader(self, token: str | None) -> Reader:
        """For whom a token asks.

        Raises:
            RefusedError: for one that is not good, may not ask, or asks too often.
        """
        if token is None:
            raise RefusedError(401, Reason("front_token_unknown"), headers={"WWW-Authenticate": "Bearer"})
        with self.engine.connect() as connection:
            caller = tokens.look(connection, token, self.now())
        if caller is None:
            raise RefusedError(401, Reason("front_token_unknown"), headers={"WWW-Authenticate": "Bearer"})
        if caller.reader is None:
            raise RefusedError(403, Reason("front_scope_lacking", {"scope": Term("front_scope", Scope.ASK)}))
        with self.counting:
            in_measure = self.assistants.take(str(caller.token_id))
        if not in_measure:
            raise RefusedError(429, Reason("front_too_many"), retry_after=TRY_AGAIN)
        return caller.reader


_BEARER = HTTPBearer(auto_error=False, description="A token that `polydesk tokens issue --role` has printed")


def reader(request: Request, bearer: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)]) -> Reader:
    """The dependency of an operation: for whom it asks."""
    shelf: Shelf = request.app.state.shelf
    return shelf.reader(bearer.credentials if bearer else None)
