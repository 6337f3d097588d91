"""Waiting for things: for a condition, never for seconds."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

PATIENCE = 300.0
"""Seconds after which what a test waits for is not coming, also on a machine that does much else."""


def until(what: Callable[[], T], otherwise: str = "it never came") -> T:
    """The first true value of ``what``; fails the test with ``otherwise`` if none comes."""
    deadline = time.monotonic() + PATIENCE
    while not (value := what()):
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.02)
    return value
