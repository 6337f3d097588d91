"""What the row of an integration may name: a token among those meant for it, and an address out there.

A row is data: whoever can write one must not get at another secret of the house, nor at what only this machine reaches.
Both are checked where the row is written and again where it is read; where a name leads, as it is connected to
(``network``).
"""

from __future__ import annotations

import re
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict

from polydesk_dagster.errors import ConfigurationError
from polydesk_dagster.network import IpAddress, is_nobodys, written_out
from polydesk_dagster.values import Term

# What the name of every source's token is like; no other variable may be named.
_TOKEN = re.compile(r"POLYDESK_[A-Z0-9]+_TOKEN_[A-Z0-9_]+")
# 2130706433, 0x7f.1 and the like are addresses to some resolvers, and nobody's name.
_NUMBERS = re.compile(r"(0x[0-9a-f]*|[0-9]+)(\.(0x[0-9a-f]*|[0-9]+))*")
_METADATA_NAMES = frozenset({"metadata", "metadata.google.internal", "instance-data"})


def check_token(variable: str, clinic: str | None = None) -> None:
    """Raises ConfigurationError where ``variable`` is no name of a source's token."""
    if not _TOKEN.fullmatch(variable):
        raise ConfigurationError("token_name", clinic=clinic, variable=variable)


def check_address(url: str, clinic: str | None = None, scheme: str = "https") -> None:
    """Raises ConfigurationError where ``url`` is no address that a source may have: of ``scheme`` (https; then also
    http, but only on this machine), without user, query or fragment, neither link-local nor a cloud's metadata."""
    if (why := _wrong(url, scheme)) is not None:
        raise ConfigurationError("source_address", clinic=clinic, why=Term("address", why))


def _token_name(variable: str) -> str:
    check_token(variable)
    return variable


def _address_of_source(url: str) -> str:
    check_address(url)
    return url.rstrip("/")


TokenName = Annotated[str, AfterValidator(_token_name)]
"""A field of a vendor's settings that names the variable of a secret."""
Address = Annotated[str, AfterValidator(_address_of_source)]
"""A field that holds an address which is asked over HTTP."""


class Settings(BaseModel):
    """Base of a vendor's settings: what it does not know it refuses, and no value is ever quoted."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


def _wrong(url: str, scheme: str) -> str | None:
    try:
        parts = urlsplit(url)
        host, _ = (parts.hostname or "").rstrip("."), parts.port
    except ValueError:
        return "no_host"
    if not host or any(character.isspace() or ord(character) < 32 for character in url):
        return "no_host"
    if parts.username is not None or parts.password is not None:
        return "userinfo"
    if parts.query or parts.fragment or "?" in url or "#" in url:
        return "query"
    address = written_out(host)
    if _is_forbidden(host, address):
        return "forbidden"
    loopback = host == "localhost" or (address is not None and address.is_loopback)
    fits = parts.scheme == scheme or (scheme == "https" and parts.scheme == "http" and loopback)
    return None if fits else f"not_{scheme}"


def _is_forbidden(host: str, address: IpAddress | None) -> bool:
    if address is None:
        return host in _METADATA_NAMES or _NUMBERS.fullmatch(host) is not None
    return is_nobodys(address)
