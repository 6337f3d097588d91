"""How long somebody waits for an answer of PostgreSQL: for ever while it lives, not at all once it is dead.

Neither the server's own limits nor TCP's end a wait for a server that is frozen: the first need the server, and to the
second its machine answers in its place; a Unix socket has none. So whoever has waited for a while asks, by a
connection of its own, whether anybody is there. Nothing else tells an hour's honest work from silence.
"""

from __future__ import annotations

import asyncio
import ctypes
import re
import select
import time
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import psycopg
from psycopg import pq
from psycopg.abc import PQGen
from psycopg.conninfo import make_conninfo
from psycopg.errors import ConnectionTimeout, _WaitTimeout
from psycopg.waiting import READY_NONE

T = TypeVar("T")

QUIET = 10.0
"""Seconds without an answer after which the server is asked whether it lives; and for which it may think about that."""
PERSON = 15.0
"""Seconds for which a server that is asked may be mute before whoever waits for a page or a command is told."""
RUN = 300.0
"""The same for a run, for which nobody waits: a machine that is moved or copied stands still for minutes."""

NETWORK = {"keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3, "tcp_user_timeout": 300_000}
"""What libpq asks of TCP, where a server is reached by it: a network that swallows one connection alone lets others be
answered. Longer than any lock is waited for (``SESSION``): what is copied meanwhile is not read either."""

_REST = 1.0
_ONLY_SQLSTATE = 3
"""libpq's PQERRORS_SQLSTATE."""


class Connection(psycopg.Connection[Any]):
    """psycopg's, which gives up a server that is mute."""

    patience = PERSON

    def wait(self, gen: PQGen[T], interval: float = 0.1, timeout: float | None = None) -> T:
        """Until it is answered, or nobody is there who would.

        Raises:
            ConnectionTimeout: that is so; what was asked may still be done if the server goes on.
        """
        if timeout is not None:
            return super().wait(gen, interval, timeout)
        waited: PQGen[T] = gen
        while True:
            try:
                return super().wait(waited, interval, QUIET)
            except _WaitTimeout:
                if not lives(_address(self.pgconn), self.patience):
                    raise _given_up(self.pgconn) from None
                waited = _going_on(gen)


class AsyncConnection(psycopg.AsyncConnection[Any]):
    """The same for who does something else meanwhile."""

    async def wait(self, gen: PQGen[T], interval: float = 0.1, timeout: float | None = None) -> T:  # noqa: ASYNC109 - psycopg's own
        if timeout is not None:
            return await super().wait(gen, interval, timeout)
        waited: PQGen[T] = gen
        while True:
            try:
                return await super().wait(waited, interval, QUIET)
            except _WaitTimeout:
                if not await asyncio.to_thread(lives, _address(self.pgconn), PERSON):
                    raise _given_up(self.pgconn) from None
                waited = _going_on(gen)


def _address(connection: Any) -> str:
    """Where, and as whom, another connection is had."""
    return make_conninfo(**{each.keyword.decode(): each.val.decode() for each in connection.info if each.val})


def _given_up(connection: Any) -> ConnectionTimeout:
    connection.finish()
    return ConnectionTimeout("the server is mute")


def _going_on(gen: PQGen[T]) -> PQGen[T]:
    """What was waited for already, for whoever waits for it from its beginning."""
    ready: Any = READY_NONE
    while True:
        try:
            wanted = gen.send(ready)
        except StopIteration as end:
            answer: T = end.value
            return answer
        ready = yield wanted


def lives(conninfo: str, patience: float) -> bool:
    """Whether the server answers somebody else within its patience, if only by refusing."""
    deadline = time.monotonic() + patience
    while (left := deadline - time.monotonic()) > 0:
        answered, sqlstate = asked(conninfo, min(QUIET, left))
        if answered or sqlstate is not None:
            return True
        time.sleep(max(0.0, min(_REST, deadline - time.monotonic())))
    return False


def asked(conninfo: str, seconds: float = QUIET) -> tuple[bool, str | None]:
    """Whether the server lets us in now and answers, and else the SQLSTATE by which it does not; none where nobody
    answers. A pooler lets in whom it will, whatever has become of the server behind it: it is asked for something.

    libpq tells what was refused in the server's language; asked so, it says the code alone. psycopg has no way to ask.
    """
    deadline = time.monotonic() + seconds
    try:
        connection: Any = pq.PGconn.connect_start(conninfo.encode())
    except psycopg.OperationalError:
        return False, None
    try:
        _library().PQsetErrorVerbosity(connection.pgconn_ptr, _ONLY_SQLSTATE)
        while (state := connection.connect_poll()) not in {pq.PollingStatus.OK, pq.PollingStatus.FAILED}:
            if not _ready(connection, deadline, reads=state == pq.PollingStatus.READING):
                return False, None
        if state == pq.PollingStatus.OK:
            connection.send_query(b"SELECT 1")
            while connection.is_busy():
                if not _ready(connection, deadline, reads=True):
                    return False, None
                connection.consume_input()
            return True, None
        code = re.search(r": +([0-9A-Z]{5})\s*$", connection.error_message.decode(errors="replace"))
        return False, code[1] if code else None
    except (psycopg.OperationalError, OSError):
        return False, None
    finally:
        connection.finish()


def _ready(connection: Any, deadline: float, *, reads: bool) -> bool:
    waiting: Iterable[int] = [connection.socket]
    left = deadline - time.monotonic()
    return left > 0 and any(select.select(*((waiting, [], []) if reads else ([], waiting, [])), left))


@cache
def _library() -> ctypes.CDLL:
    """The libpq that psycopg has loaded, not the one of Dagster's psycopg2: that knows other connections."""
    maps = Path("/proc/self/maps").read_text().splitlines()
    loaded = (line.split()[-1] for line in maps if "/libpq" in line)
    library = ctypes.CDLL(next(path for path in loaded if "psycopg2" not in path))
    library.PQsetErrorVerbosity.argtypes = [ctypes.c_void_p, ctypes.c_int]
    library.PQsetErrorVerbosity.restype = ctypes.c_int
    return library
