"""What an outside system's answer comes to: unpacked and decoded inside its bounds, or which failure it stands for."""

from __future__ import annotations

import json
import re
import ssl
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from email.utils import parsedate_to_datetime
from typing import Any, NoReturn

import httpx
import msgspec
import zstandard

from polydesk_dagster.errors import PermanentError, TransientError
from polydesk_dagster.failure import failure
from polydesk_dagster.values import Duration, Value

TRANSIENT_STATUSES = frozenset({408, 425, 429}) | frozenset(range(500, 600))
LONGEST_RETRY_AFTER = 3600.0
"""Seconds; a system that asks for more is asked again after this."""

LARGEST_WINDOW = 8 * 1024 * 1024
"""Bytes that one frame of zstd may look back, which is what unpacking it holds in memory."""


class UncertainError(TransientError):
    """The request went out and no whole answer came back: what it asked for may have happened."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a system said: ``body`` is the decoded JSON (or of the shape that was asked for), None for 304 and for an
    expected status without JSON."""

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
        return TransientError("remote_unreachable", system=system, error=failure(error, "unknown"))
    if isinstance(error, httpx.TimeoutException):
        return UncertainError("remote_silent", system=system)
    return UncertainError("remote_cut", system=system, error=failure(error, "protocol"))


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


def decode(system: Value, data: bytes, shape: msgspec.json.Decoder[Any] | None = None) -> Any:
    """JSON of ``data``: what ``shape`` makes of it, or where it is not of that shape plain values, their numbers whole
    or decimals as they are written.

    TransientError where it was cut short or is no JSON at all (a proxy's page comes and goes); PermanentError where it
    is not UTF-8 or nested beyond reason.
    """
    if shape is not None:
        with suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return shape.decode(data)
    try:
        found = json.loads(data.decode("utf-8-sig"), parse_float=_number, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        if error.reason == "unexpected end of data":
            raise UncertainError("remote_truncated", system=system) from error
        raise PermanentError("remote_encoding", system=system) from error
    except RecursionError as error:
        raise PermanentError("remote_nested", system=system) from error
    except (ValueError, InvalidOperation) as error:
        html = data.lstrip()[:1] == b"<"
        raise UncertainError("remote_html" if html else "remote_unreadable", system=system) from error
    if _is_deep(data):
        raise PermanentError("remote_nested", system=system)
    return found


_DEEPEST = 100
"""Levels of lists and objects that are still read. How many the language itself reads depends on its version: from 3.12
on more than whoever works on them afterwards, in Python, can go down."""

_BRACKETS = bytes.maketrans(b"{}", b"[]")
_NO_MARKS = bytes(set(range(256)) - set(b'[]{}"'))


def _is_deep(data: bytes) -> bool:
    """Whether JSON has too many levels, at the cost of a glance: of its brackets, those in texts left out, each pass
    takes the innermost away."""
    marks = data.replace(rb"\\", b"").replace(rb"\"", b"").translate(_BRACKETS, _NO_MARKS)
    brackets = re.sub(rb'"[^"]*"', b"", marks.replace(b'""', b""))
    for _ in range(_DEEPEST):
        if not brackets:
            return False
        brackets = brackets.replace(b"[]", b"")
    return bool(brackets)


_FURTHEST = 1_000
"""Places before or after the point of a number that is still reckoned with; more take a service to its knees."""


def _number(text: str) -> Decimal | float:
    """As it is written; beyond all measure infinity or nothing, of which no arithmetic fails or grows."""
    exact = Decimal(text)
    return exact if abs(exact.adjusted()) <= _FURTHEST else float(text)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


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


class Body:
    """Collects an answer's bytes while they stay below ``largest`` (packed and unpacked) and come within seconds."""

    def __init__(self, system: Value, largest: int, within: float) -> None:
        self.system, self.largest, self.within = system, largest, within
        self.started = time.monotonic()
        self.data = bytearray()

    def add(self, chunk: bytes) -> None:
        self.data += chunk
        if len(self.data) > self.largest:
            raise self._too_large()
        if time.monotonic() - self.started > self.within:
            raise UncertainError("remote_too_slow", system=self.system, within=Duration(self.within))

    def _too_large(self) -> PermanentError:
        return PermanentError("remote_too_large", system=self.system, kib=self.largest // 1024)

    def unpacked(self, response: httpx.Response) -> bytes:
        """The body without its one encoding, never more of it in memory than allowed."""
        encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
        if encoding not in _UNPACKED:
            raise PermanentError("remote_encodings", system=self.system, encoding=encoding[:60])
        try:
            data = _UNPACKED[encoding](bytes(self.data), self.largest + 1)
        except (zlib.error, zstandard.ZstdError, EOFError) as error:
            raise UncertainError("remote_truncated", system=self.system) from error
        if len(data) > self.largest:
            raise self._too_large()
        return data

    def answer(self, response: httpx.Response, shape: msgspec.json.Decoder[Any] | None = None) -> Answer:
        body: Any = None
        if response.is_success:
            body = decode(self.system, self.unpacked(response), shape)
        elif "json" in response.headers.get("Content-Type", ""):
            with suppress(TransientError, PermanentError):
                body = decode(self.system, self.unpacked(response))
        return Answer(response.status_code, body, response.headers.get("ETag"), time.monotonic() - self.started)


def is_welcome(response: httpx.Response, expected: frozenset[int]) -> bool:
    return response.is_success or response.status_code in expected


@contextmanager
def sorted_errors(system: Value) -> Iterator[None]:
    try:
        yield
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise sort_error(system, error) from error
