"""The one HTTP policy: how every outside system is asked, when asking again can help, and what an answer must be.

It knows no system's records; those live beside each client (``central``, ``studiolab``, the SMS gateway's).
"""

from __future__ import annotations

import json
import ssl
import time
import zlib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache
from types import TracebackType
from typing import Any, NoReturn, Self
from urllib.parse import urlsplit

import httpx
import stamina
import zstandard
from pydantic_core import from_json
from stamina.instrumentation import LoggingOnRetryHook

from polydesk_dagster.errors import PermanentError, TransientError
from polydesk_dagster.values import Duration, Value

# Left alone, stamina writes to standard output wherever structlog happens to be installed.
stamina.instrumentation.set_on_retry_hooks([LoggingOnRetryHook])

TRANSIENT_STATUSES = frozenset({408, 425, 429}) | frozenset(range(500, 600))
LONGEST_RETRY_AFTER = 3600.0
"""Seconds; a system that asks for more is asked again after this."""

LARGEST_WINDOW = 8 * 1024 * 1024
"""Bytes that one frame of zstd may look back, which is what unpacking it holds in memory."""

Query = Mapping[str, str | int]


class UncertainError(TransientError):
    """The request went out and no whole answer came back: what it asked for may have happened."""


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


@dataclass(frozen=True, slots=True)
class Answer:
    """What a system said: ``body`` is the decoded JSON, None for 304 and for an expected status without JSON."""

    status: int
    body: Any
    etag: str | None = None
    seconds: float = 0.0

    @property
    def not_modified(self) -> bool:
        return self.status == 304


def sort_response(system: Value, response: httpx.Response) -> TransientError | PermanentError:
    """The failure that an unwelcome status stands for, returned so that the call site keeps its ``raise … from``.

    The body is never quoted: it may be a proxy's page, or hold a patient's name.
    """
    status, where = response.status_code, response.request.url.path
    if status in TRANSIENT_STATUSES:
        kind = UncertainError if status >= 500 else TransientError
        return kind("remote_later", system=system, path=where, status=status, retry_after=retry_after(response))
    if status in {401, 403}:
        return PermanentError("remote_token", system=system, path=where, status=status)
    if 300 <= status < 400:
        return PermanentError("remote_elsewhere", system=system, path=where, status=status)
    return PermanentError("remote_refused", system=system, path=where, status=status)


def sort_error(system: Value, error: httpx.HTTPError | httpx.InvalidURL) -> TransientError | PermanentError:
    """The same for a request that never got a whole answer."""
    if isinstance(error, httpx.InvalidURL | httpx.UnsupportedProtocol):
        return PermanentError("remote_address", system=system)
    if _caused_by(error, ssl.SSLCertVerificationError):
        return PermanentError("remote_certificate", system=system)
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout):
        return TransientError("remote_unreachable", system=system, error=type(error).__name__)
    if isinstance(error, httpx.TimeoutException):
        return UncertainError("remote_silent", system=system)
    return UncertainError("remote_cut", system=system, error=type(error).__name__)


def _caused_by(error: BaseException | None, kind: type[BaseException]) -> bool:
    while error is not None:
        if isinstance(error, kind):
            return True
        error = error.__cause__ or error.__context__
    return False


def retry_after(response: httpx.Response) -> float | None:
    """Seconds that the answer asks to wait, between 0 and LONGEST_RETRY_AFTER; None if it does not say.

    A date is measured against the answer's own Date, so that neither clock has to be right.
    """
    value = response.headers.get("Retry-After", "").strip()
    if not value:
        return None
    if value.isascii() and value.isdigit():
        return min(float(value), LONGEST_RETRY_AFTER)
    until = _http_date(value)
    if until is None:
        return None
    now = _http_date(response.headers.get("Date", "")) or datetime.now(UTC)
    return min(max((until - now).total_seconds(), 0.0), LONGEST_RETRY_AFTER)


def _http_date(value: str) -> datetime | None:
    try:
        moment = parsedate_to_datetime(value)
    except (TypeError, ValueError):
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def decode(system: Value, data: bytes) -> Any:
    """JSON of ``data``. TransientError where it was cut short or is no JSON at all (a proxy's page comes and goes);
    PermanentError where it is not UTF-8 or nested beyond reason."""
    with suppress(ValueError):  # twice as fast and stricter: what it refuses is looked at again
        return from_json(data, allow_inf_nan=False, cache_strings="keys")
    try:
        return json.loads(data.decode("utf-8-sig"), parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        if error.reason == "unexpected end of data":
            raise UncertainError("remote_truncated", system=system) from error
        raise PermanentError("remote_encoding", system=system) from error
    except RecursionError as error:
        raise PermanentError("remote_nested", system=system) from error
    except ValueError as error:
        html = data.lstrip()[:1] == b"<"
        raise UncertainError("remote_html" if html else "remote_unreadable", system=system) from error


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def base_url(url: str) -> str:
    """An address without a path means the contract's own ``/api/v1``."""
    return url.rstrip("/") if urlsplit(url).path.strip("/") else f"{url.rstrip('/')}/api/v1"


def _headers(token: str) -> dict[str, str]:
    return {
        "Authorization": f"Bearer {token}",
        "Accept": "application/json",
        "Accept-Encoding": "gzip, zstd",
        "User-Agent": "polydesk",
    }


@cache
def _trust() -> ssl.SSLContext:
    """Reading the certificates takes tens of milliseconds; once a process is enough."""
    return httpx.create_ssl_context(trust_env=False)


def _timeout(policy: Policy) -> httpx.Timeout:
    return httpx.Timeout(connect=policy.connect, read=policy.read, write=policy.write, pool=policy.connect)


def _gunzip(data: bytes, most: int) -> bytes:
    unpacked = bytearray()
    while data and len(unpacked) < most:
        member = zlib.decompressobj(zlib.MAX_WBITS | 16)
        unpacked += member.decompress(data, most - len(unpacked))
        if not member.eof and len(unpacked) < most:
            raise EOFError
        data = member.unused_data
    return bytes(unpacked)


def _unzstd(data: bytes, most: int) -> bytes:
    unpacked = bytearray()
    reader = zstandard.ZstdDecompressor(max_window_size=LARGEST_WINDOW).stream_reader(data, read_across_frames=True)
    while len(unpacked) < most and (piece := reader.read(min(65_536, most - len(unpacked)))):
        unpacked += piece
    return bytes(unpacked)


_UNPACKED: Mapping[str, Callable[[bytes, int], bytes]] = {
    "identity": lambda data, _: data,
    "gzip": _gunzip,
    "zstd": _unzstd,
}
"""What an answer may be packed with, once."""


class _Body:
    """Collects an answer's bytes while it stays inside the policy's bounds."""

    def __init__(self, system: Value, policy: Policy, started: float) -> None:
        self.system, self.policy, self.started = system, policy, started
        self.data = bytearray()

    def add(self, chunk: bytes) -> None:
        self.data += chunk
        if len(self.data) > self.policy.largest_body:
            raise self._too_large()
        if time.monotonic() - self.started > self.policy.request:
            raise UncertainError("remote_too_slow", system=self.system, within=Duration(self.policy.request))

    def _too_large(self) -> PermanentError:
        return PermanentError("remote_too_large", system=self.system, kib=self.policy.largest_body // 1024)

    def unpacked(self, response: httpx.Response) -> bytes:
        """The body without its one encoding, never more of it in memory than the policy allows."""
        encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
        if encoding not in _UNPACKED:
            raise PermanentError("remote_encodings", system=self.system, encoding=encoding[:60])
        try:
            data = _UNPACKED[encoding](bytes(self.data), self.policy.largest_body + 1)
        except (zlib.error, zstandard.ZstdError, EOFError) as error:
            raise UncertainError("remote_truncated", system=self.system) from error
        if len(data) > self.policy.largest_body:
            raise self._too_large()
        return data

    def answer(self, response: httpx.Response) -> Answer:
        body: Any = None
        if response.is_success:
            body = decode(self.system, self.unpacked(response))
        elif "json" in response.headers.get("Content-Type", ""):
            with suppress(TransientError, PermanentError):
                body = decode(self.system, self.unpacked(response))
        return Answer(response.status_code, body, response.headers.get("ETag"), time.monotonic() - self.started)


def _welcome(response: httpx.Response, expected: frozenset[int]) -> bool:
    return response.is_success or response.status_code in expected


class Remote:
    """One outside system reached with a bearer token; a connection pool, so close it (or use ``with``).

    ``system`` is its name for operators. Every method raises TransientError or PermanentError and nothing else.
    """

    def __init__(self, system: Value, url: str, token: str, policy: Policy | None = None) -> None:
        self.system = system
        self.url = base_url(url)
        self.policy = policy or Policy()
        self._client = httpx.Client(
            headers=_headers(token),
            timeout=_timeout(self.policy),
            verify=_trust(),
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
        self, path: str, query: Query | None = None, *, etag: str | None = None, expected: frozenset[int] = frozenset()
    ) -> Answer:
        """Ask until it answers, within the policy. With ``etag`` the answer may be ``not_modified``; a status in
        ``expected`` is an answer, not a failure."""
        headers = {} if etag is None else {"If-None-Match": etag}
        wanted = expected | {304} if etag is not None else expected
        for attempt in self._attempts():
            with attempt:
                return self._once("GET", path, wanted, headers=headers, query=query)
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
    ) -> Answer:
        started = time.monotonic()
        collected = _Body(self.system, self.policy, started)
        with (
            _sorted_errors(self.system),
            self._client.stream(
                method, self.url + path, params=dict(query or {}), json=body, headers=dict(headers)
            ) as response,
        ):
            if not _welcome(response, expected):
                raise sort_response(self.system, response)
            for chunk in response.iter_raw():
                collected.add(chunk)
            return collected.answer(response)


@contextmanager
def _sorted_errors(system: Value) -> Iterator[None]:
    try:
        yield
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise sort_error(system, error) from error


@asynccontextmanager
async def looking(policy: Policy, at_once: int) -> AsyncIterator[httpx.AsyncClient]:
    """A client for ``look``: one pool for many systems, ``at_once`` connections at most."""
    limits = httpx.Limits(max_connections=at_once, max_keepalive_connections=at_once)
    async with httpx.AsyncClient(
        timeout=_timeout(policy), limits=limits, verify=_trust(), follow_redirects=False, trust_env=False
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
    started = time.monotonic()
    collected = _Body(system, policy, started)
    try:
        async with client.stream("GET", base_url(url) + path, params=dict(query), headers=_headers(token)) as response:
            if not _welcome(response, expected):
                raise sort_response(system, response)
            async for chunk in response.aiter_raw():
                collected.add(chunk)
            return collected.answer(response)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise sort_error(system, error) from error
