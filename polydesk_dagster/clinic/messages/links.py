"""The signed link of a letter on which one press says that nothing more is wanted (RFC 8058)."""

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
"""Where the door answers these links, below the public address."""
_MAC = 16


def secret(connection: sa.Connection) -> bytes:
    """What links of this installation are signed with."""
    return bytes(connection.execute(sa.text("SELECT secret FROM message_secret")).scalar_one())


def stopping(connection: sa.Connection, public_url: str | None) -> Callable[[int], str] | None:
    """What makes the link of a message; None where the door is not reached over TLS, which one press needs."""
    if public_url is None or not public_url.startswith("https://"):
        return None
    key = secret(connection)
    return lambda message: f"{public_url}{PATH}{token(key, message)}"


def token(key: bytes, message: int) -> str:
    """The capability to stop what goes to the address of ``message``, and to do nothing else."""
    number = message.to_bytes(8, "big")
    return urlsafe_b64encode(number + _mac(key, number)).decode().rstrip("=")


def _mac(key: bytes, number: bytes) -> bytes:
    return hmac.new(key, b"stop" + number, hashlib.sha256).digest()[:_MAC]


def _read(key: bytes, given: str) -> int | None:
    try:
        raw = urlsafe_b64decode(given + "=" * (-len(given) % 4))
    except (ValueError, binascii.Error):
        return None
    number, mac = raw[:8], raw[8:]
    return (
        int.from_bytes(number, "big") if len(raw) == 8 + _MAC and hmac.compare_digest(mac, _mac(key, number)) else None
    )


@dataclass(frozen=True, slots=True)
class Letter:
    """Whose letter a link came with; the address is masked."""

    clinic: str
    address: str
    language: str


def look(connection: sa.Connection, given: str) -> Letter | None:
    """What the link ``given`` speaks of; None for one that was never signed, or whose letter is forgotten."""
    number = _read(secret(connection), given)
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
            sa.text("SELECT lower(address) FROM message WHERE id = :id"), {"id": _read(secret(connection), given)}
        )
        blocks.stop(connection, "email", str(address), as_of)
    return letter
