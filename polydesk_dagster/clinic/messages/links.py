"""The signed links of messages: one press says that nothing more is wanted (RFC 8058); another shows an appointment."""

from __future__ import annotations

import binascii
import hashlib
import hmac
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from polydesk_dagster.clinic.messages import blocks
from polydesk_dagster.clinic.messages.text import mask_address

PATH = "/basta/"
"""Where the door answers the links that stop, below the public address."""
VISIT = "/v/"
"""Where it answers those that show an appointment."""


@dataclass(frozen=True, slots=True)
class Purpose:
    """What a link is good for, and how it is written: bytes of the message's number, and of its signature."""

    name: bytes
    number: int
    mac: int


STOP = Purpose(b"stop", 8, 16)
SHOW = Purpose(b"visit", 6, 12)
"""Shorter, because it is part of texts; of use for a few days."""


@dataclass(frozen=True, slots=True)
class Reach:
    """How people reach back who are written to: by the door's pages at ``public_url``, by answering a text."""

    public_url: str | None = None
    replies: bool = False


NOWHERE = Reach()


@dataclass(frozen=True, slots=True)
class Ways:
    """The same, for each message by its number; None where there is no such link."""

    stop: Callable[[int], str] | None = None
    visit: Callable[[int], str] | None = None
    replies: bool = False


def secret(connection: sa.Connection) -> bytes:
    """What links of this installation are signed with."""
    return bytes(connection.execute(sa.text("SELECT secret FROM message_secret")).scalar_one())


def ways(connection: sa.Connection, reach: Reach) -> Ways:
    """Links only where the door is reached over TLS: one press needs it, and nobody else is to read them."""
    url = reach.public_url
    if url is None or not url.startswith("https://"):
        return Ways(replies=reach.replies)
    key = secret(connection)
    return Ways(
        lambda message: f"{url}{PATH}{token(key, message, STOP)}",
        lambda message: f"{url}{VISIT}{token(key, message, SHOW)}",
        reach.replies,
    )


def token(key: bytes, message: int, purpose: Purpose) -> str:
    """The capability to do with ``message`` what ``purpose`` says, and nothing else."""
    number = message.to_bytes(purpose.number, "big")
    return urlsafe_b64encode(number + _mac(key, number, purpose)).decode().rstrip("=")


def _mac(key: bytes, number: bytes, purpose: Purpose) -> bytes:
    return hmac.new(key, purpose.name + number, hashlib.sha256).digest()[: purpose.mac]


def read(key: bytes, given: str, purpose: Purpose) -> int | None:
    """The number of the message whose link ``given`` is; None for what was never signed."""
    try:
        raw = urlsafe_b64decode(given + "=" * (-len(given) % 4))
    except (ValueError, binascii.Error):
        return None
    number, mac = raw[: purpose.number], raw[purpose.number :]
    good = len(mac) == purpose.mac and hmac.compare_digest(mac, _mac(key, number, purpose))
    return int.from_bytes(number, "big") if good else None


@dataclass(frozen=True, slots=True)
class Letter:
    """Whose letter a link came with; the address is masked."""

    clinic: str
    address: str
    language: str


def look(connection: sa.Connection, given: str) -> Letter | None:
    """What the link ``given`` speaks of; None for one that was never signed, or whose letter is forgotten."""
    number = read(secret(connection), given, STOP)
    row = connection.execute(
        sa.text("""
            SELECT c.name, m.address, c.language FROM message m JOIN clinic c ON c.id = m.clinic_id
            WHERE m.id = :id AND m.channel = 'email' AND m.address IS NOT NULL"""),
        {"id": number},
    ).one_or_none()
    return None if row is None else Letter(row.name, mask_address(row.address), row.language)


def stop(connection: sa.Connection, given: str, as_of: datetime) -> Letter | None:
    """Nothing more goes to the address that the link's letter went to; pressing twice is pressing once."""
    letter = look(connection, given)
    if letter is not None:
        address = connection.scalar(
            sa.text("SELECT lower(address) FROM message WHERE id = :id"), {"id": read(secret(connection), given, STOP)}
        )
        blocks.stop(connection, "email", [str(address)], as_of)
    return letter
