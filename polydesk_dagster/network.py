"""Where a name may lead: it is resolved once, every address looked at, and what was looked at is connected to.

A name that a row holds is checked as it is written, but what it means is decided elsewhere and later: whoever owns it
may let it lead to this machine or to a cloud's metadata in the moment between a look and a connection. TLS still asks
for the name, and so does ``Host``.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
from functools import cache
from typing import Any

import anyio
import anyio.to_thread
import httpcore
import httpx
import stamina
from stamina.instrumentation import LoggingOnRetryHook

from polydesk_dagster.errors import PermanentError

# Whoever asks others tries again with stamina, which left alone writes to standard output wherever structlog is.
stamina.instrumentation.set_on_retry_hooks([LoggingOnRetryHook])

METADATA = frozenset({"100.100.100.200", "fd00:ec2::254"})
"""Where clouds tell a machine its secrets, besides the link-local one."""

AT_ONCE = 100
LIMITS = httpx.Limits(max_connections=AT_ONCE, max_keepalive_connections=20)
"""Connections at once, where nobody says."""

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


def written_out(host: str) -> IpAddress | None:
    """The address that ``host`` writes out, an IPv4 one in IPv6's clothes included; None for a name."""
    try:
        found = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    return getattr(found, "ipv4_mapped", None) or found


def is_nobodys(address: IpAddress) -> bool:
    """Whether no system of anybody's is at ``address``: link-local, unspecified, multicast, a cloud's metadata."""
    return address.is_link_local or address.is_unspecified or address.is_multicast or str(address) in METADATA


def resolve(host: str, port: int) -> list[str]:
    """The addresses of a name, in the order in which they are to be tried.

    Raises:
        OSError: it has none.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))


def checked(host: str, port: int) -> list[str]:
    """The addresses to connect to. This machine is reached by its own names alone; a clinic's network may be where its
    practice system is.

    Raises:
        httpcore.ConnectError: the name has no address.
        PermanentError: it leads where no outside system is; one such address among others is enough.
    """
    literal = written_out(host)
    try:
        found = [host] if literal is not None else resolve(host, port)
    except OSError as error:
        raise httpcore.ConnectError(str(error)) from None
    for each in found:
        address = written_out(each)
        inside = address is not None and address.is_loopback and literal is None and host.rstrip(".") != "localhost"
        if address is None or inside or is_nobodys(address):
            raise PermanentError("address_leads_inside", host=host)
    return found


class Pinned(httpcore.SyncBackend):
    """Connects to addresses that were looked at."""

    def connect_tcp(self, host: str, port: int, *given: Any, **more: Any) -> httpcore.NetworkStream:
        failed: httpcore.NetworkError | httpcore.TimeoutException | None = None
        for address in checked(host, port):
            try:
                return super().connect_tcp(address, port, *given, **more)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failed = error
        raise failed or httpcore.ConnectError(host)


class AsyncPinned(httpcore.AnyIOBackend):  # pyrefly: ignore[invalid-inheritance] - a union, for where anyio is missing
    """The same, side by side."""

    def __init__(self, at_once: int) -> None:
        self._names = anyio.CapacityLimiter(at_once)

    async def connect_tcp(self, host: str, port: int, *given: Any, **more: Any) -> httpcore.AsyncNetworkStream:
        failed: httpcore.NetworkError | httpcore.TimeoutException | None = None
        for address in await self._checked(host, port):
            try:
                return await super().connect_tcp(address, port, *given, **more)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failed = error
        raise failed or httpcore.ConnectError(host)

    async def _checked(self, host: str, port: int) -> list[str]:
        if written_out(host) is not None:
            return checked(host, port)
        # A name server that says nothing keeps nobody who has given up, and no other name.
        return await anyio.to_thread.run_sync(checked, host, port, abandon_on_cancel=True, limiter=self._names)


@cache
def trust(*, environment: bool = False) -> ssl.SSLContext:
    """The certificates that are believed; with ``environment`` those of ``SSL_CERT_FILE`` too, for what stands in the
    owner's own network. Reading them takes tens of milliseconds; once a process is enough."""
    return httpx.create_ssl_context(trust_env=environment)


def transport(verify: ssl.SSLContext | None = None) -> httpx.HTTPTransport:
    """What an ``httpx.Client`` connects by; httpx has no option for it."""
    made = httpx.HTTPTransport(trust_env=False, verify=verify or trust())
    assert isinstance(made._pool, httpcore.ConnectionPool)
    made._pool._network_backend = Pinned()
    return made


def async_transport(verify: ssl.SSLContext | None = None, limits: httpx.Limits = LIMITS) -> httpx.AsyncHTTPTransport:
    """What an ``httpx.AsyncClient`` connects by."""
    made = httpx.AsyncHTTPTransport(trust_env=False, verify=verify or trust(), limits=limits)
    assert isinstance(made._pool, httpcore.AsyncConnectionPool)
    made._pool._network_backend = AsyncPinned(limits.max_connections or AT_ONCE)
    return made
