"""What the SMS gateway tells by itself: signed requests about what became of texts and what people answered.

The contract is ``sms.openapi.yaml``, ``webhooks``.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from datetime import datetime, timedelta
from typing import Annotated, Literal, TypeVar

from pydantic import AwareDatetime, BaseModel, Field

from polydesk_dagster.clinic.messages.provider import Answer
from polydesk_dagster.providers import sms

WINDOW = timedelta(minutes=5)
"""How far a signature's time may be from ours."""
_SIGNATURE = re.compile(r"t=([0-9]{1,12}),v1=([0-9a-f]{64})")


class UnsignedError(Exception):
    """A request that the gateway has not signed, or signed too long ago."""


class UnreadableError(Exception):
    """A request of the gateway's that is not what the contract says; names no value of it."""


def _storable(value: object) -> object:
    """A text without what no database keeps: NUL, and halves of a character that the gateway has cut."""
    return value.replace("\x00", "").encode("utf-8", "replace").decode() if isinstance(value, str) else value


Name = Annotated[str, Field(min_length=1, max_length=200)]
T = TypeVar("T", bound=BaseModel)


class Receipt(BaseModel):
    """What became of a text; ``message_id`` is the gateway's name for it."""

    id: Name
    message_id: Name
    status: Literal["accepted", "delivered", "undeliverable"]
    reason: Annotated[str, Field(max_length=200)] | None = None
    at: AwareDatetime


class Reply(BaseModel):
    """What somebody texted; ``sender`` however the gateway wrote the number."""

    id: Name
    sender: Name = Field(alias="from")
    text: Annotated[str, Field(max_length=5_000)]
    received_at: AwareDatetime


def signature(secret: str, body: bytes, at: int) -> str:
    """``X-Signature`` of ``body`` at the Unix time ``at``."""
    return f"t={at},v1={_mac(secret, body, str(at))}"


def check(secret: str, body: bytes, given: str, now: datetime) -> None:
    """Whether the gateway has signed ``body`` within :data:`WINDOW` of ``now``.

    Raises:
        UnsignedError: it has not.
    """
    read = _SIGNATURE.fullmatch(given)
    if read is None or not hmac.compare_digest(read[2], _mac(secret, body, read[1])):
        raise UnsignedError
    if abs(now.timestamp() - int(read[1])) > WINDOW.total_seconds():
        raise UnsignedError


def _mac(secret: str, body: bytes, at: str) -> str:
    return hmac.new(secret.encode(), at.encode() + b"." + body, hashlib.sha256).hexdigest()


def receipt(body: bytes) -> Receipt:
    """Raises :class:`UnreadableError`."""
    return _read(Receipt, body)


def reply(body: bytes) -> Reply:
    """Raises :class:`UnreadableError`."""
    return _read(Reply, body)


def _read(shape: type[T], body: bytes) -> T:
    try:
        said = json.loads(body)
        return shape.model_validate({name: _storable(value) for name, value in said.items()})
    except (ValueError, RecursionError, AttributeError):
        raise UnreadableError from None


def became(told: Receipt) -> Answer:
    """What a receipt says of its text, as a look-up would."""
    return sms.became(told.message_id, told.status, told.reason)
