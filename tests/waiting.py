"""Waiting for things: for a condition, never for seconds."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

PATIENCE = 300.0
"""Seconds after which what a test waits for is not coming, also on a machine that does much else."""


def until(what: Callable[[], T], otherwise: str = "it never came", *, seldom: float = 0.1) -> T:
    """The first true value of ``what``; fails the test with ``otherwise`` if none comes. It looks more and
    more seldom, at last every ``seldom`` seconds: a look at a database or at all processes takes milliseconds of the
    processor that what is waited for could have."""
    deadline, rest = time.monotonic() + PATIENCE, 0.02
    while not (value := what()):
        assert time.monotonic() < deadline, otherwise
        time.sleep(rest)
        rest = min(1.2 * rest, seldom)
    return value
