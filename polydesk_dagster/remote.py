"""The one HTTP policy: how every outside system is asked, when asking again can help, and what an answer must be.

It knows no system's records; those live beside each client (``central``, ``studiolab``, the SMS gateway's).
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Generator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import httpx
import msgspec
import stamina

from polydesk_dagster import network
from polydesk_dagster.answers import Answer, Body, is_welcome, sort_error, sort_response, sorted_errors
from polydesk_dagster.errors import TransientError
from polydesk_dagster.values import Value

Query = Mapping[str, str | int]


@dataclass(frozen=True, slots=True)
class Policy:
    """Bounds of one conversation. Seconds and bytes."""

    connect: float = 5.0
    read: float = 20.0
    """Longest silence inside an answer."""
    write: float = 10.0
    request: float = 60.0
    """Longest whole answer, so that a trickle ends too."""
    attempts: int = 4
    total: float = 120.0
    """Longest time for all attempts and the waits between them."""
    wait_first: float = 0.5
    wait_longest: float = 10.0
    """Also the longest Retry-After that is sat out here; a longer one is the caller's to plan for."""
    largest_body: int = 32 * 1024 * 1024
    """After decompression."""


@dataclass(frozen=True)
class Dialect:
    """How a kind of system speaks."""

    root: str = "/api/v1"
    """Where its interface is below an address without a path."""
    accept: str = "application/json"


def base_url(url: str, root: str = Dialect.root) -> str:
    """An address without a path means the contract's own ``root``."""
    return url.rstrip("/") if urlsplit(url).path.strip("/") else url.rstrip("/") + root


def _headers(accept: str) -> dict[str, str]:
    return {"Accept": accept, "Accept-Encoding": "gzip, zstd", "User-Agent": "polydesk"}


class Bearer(httpx.Auth):
    """The one token that a system is asked with."""

    def __init__(self, token: str) -> None:
        self.header = f"Bearer {token}"

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        request.headers["Authorization"] = self.header
        yield request


def _timeout(policy: Policy) -> httpx.Timeout:
    return httpx.Timeout(connect=policy.connect, read=policy.read, write=policy.write, pool=policy.connect)


class Remote:
    """One outside system reached with a token, or with what gets one (``httpx.Auth``); a connection pool, so close it
    (or use ``with``).

    ``system`` is its name for operators. Every method raises TransientError or PermanentError and nothing else.
    """

    def __init__(
        self,
        system: Value,
        url: str,
        token: str | httpx.Auth,
        policy: Policy | None = None,
        dialect: Dialect | None = None,
    ) -> None:
        self.system = system
        self.dialect = dialect or Dialect()
        self.url = base_url(url, self.dialect.root)
        self.policy = policy or Policy()
        self._client = httpx.Client(
            auth=Bearer(token) if isinstance(token, str) else token,
            headers=_headers(self.dialect.accept),
            timeout=_timeout(self.policy),
            transport=network.transport(),
            follow_redirects=False,
            trust_env=False,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._client.close()

    def get(
        self,
        path: str,
        query: Query | None = None,
        *,
        etag: str | None = None,
        expected: frozenset[int] = frozenset(),
        shape: msgspec.json.Decoder[Any] | None = None,
    ) -> Answer:
        """Ask until it answers, within the policy. With ``etag`` the answer may be ``not_modified``; a status in
        ``expected`` is an answer, not a failure. A body of the ``shape`` is decoded as that."""
        headers = {} if etag is None else {"If-None-Match": etag}
        wanted = expected | {304} if etag is not None else expected
        for attempt in self._attempts():
            with attempt:
                return self._once("GET", path, wanted, headers=headers, query=query, shape=shape)
        raise AssertionError("stamina raises the last error")

    def post(
        self,
        path: str,
        body: object,
        *,
        headers: Mapping[str, str],
        expected: frozenset[int] = frozenset(),
    ) -> Answer:
        """Ask once: whether a request with an effect may be repeated is the caller's to decide.

        UncertainError says that it may have taken effect; any other error that it did not.
        """
        return self._once("POST", path, expected, headers=headers, body=body)

    def _attempts(self) -> Iterator[stamina.Attempt]:
        policy = self.policy
        deadline = time.monotonic() + policy.total

        def wait(error: Exception) -> bool | float:
            if not isinstance(error, TransientError):
                return False
            if error.retry_after is None:
                return True
            fits = error.retry_after <= policy.wait_longest and time.monotonic() + error.retry_after < deadline
            return error.retry_after if fits else False

        return iter(
            stamina.retry_context(
                on=wait,
                attempts=policy.attempts,
                timeout=policy.total,
                wait_initial=policy.wait_first,
                wait_max=policy.wait_longest,
                wait_jitter=policy.wait_first,
            )
        )

    def _once(
        self,
        method: str,
        path: str,
        expected: frozenset[int],
        *,
        headers: Mapping[str, str],
        query: Query | None = None,
        body: object = None,
        shape: msgspec.json.Decoder[Any] | None = None,
    ) -> Answer:
        collected = Body(self.system, self.policy.largest_body, self.policy.request)
        with (
            sorted_errors(self.system),
            self._client.stream(
                method, self.url + path, params=dict(query) if query else None, json=body, headers=dict(headers)
            ) as response,
        ):
            if not is_welcome(response, expected):
                raise sort_response(self.system, response)
            for chunk in response.iter_raw():
                collected.add(chunk)
            return collected.answer(response, shape)


@asynccontextmanager
async def looking(policy: Policy, at_once: int) -> AsyncIterator[httpx.AsyncClient]:
    """A client for ``look``: one pool for many systems, ``at_once`` connections at most, for as many who ask.

    Each is asked once, so no connection is kept: the pool goes through all that it has for every request.
    """
    limits = httpx.Limits(max_connections=at_once, max_keepalive_connections=0)
    async with httpx.AsyncClient(
        timeout=_timeout(policy),
        transport=network.async_transport(limits=limits),
        follow_redirects=False,
        trust_env=False,
    ) as client:
        yield client


async def look(
    client: httpx.AsyncClient,
    system: Value,
    url: str,
    path: str,
    *,
    token: str,
    query: Query,
    policy: Policy,
    expected: frozenset[int] = frozenset(),
) -> Answer:
    """One GET without a second attempt, for callers that look at many systems side by side and come back anyway."""
    collected = Body(system, policy.largest_body, policy.request)
    try:
        asking = client.stream(
            "GET",
            base_url(url) + path,
            params=dict(query),
            auth=Bearer(token),
            headers=_headers(Dialect.accept),
        )
        async with asking as response:
            if not is_welcome(response, expected):
                raise sort_response(system, response)
            async for chunk in response.aiter_raw():
                collected.add(chunk)
            return collected.answer(response)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise sort_error(system, error) from error
