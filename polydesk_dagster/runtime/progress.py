"""Progress of long work: one call tells Dagster's log and whoever watches the run on a terminal."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from polydesk_dagster.told import teller

Progress = Callable[[int, int, str], None]
"""Called with what is done, how much there is, and of what: a term of the catalogues, ``DOMAIN.CODE``."""

_LOG_SECONDS = 10.0
_SHOW_SECONDS = 0.1

_watcher: ContextVar[Progress | None] = ContextVar("polydesk_progress", default=None)


@contextmanager
def shown(watcher: Progress) -> Iterator[None]:
    """Show the progress of what runs in the block to ``watcher`` too."""
    token = _watcher.set(watcher)
    try:
        yield
    finally:
        _watcher.reset(token)


def reporter(log: logging.Logger) -> Progress:
    """A function to call as often as one likes: it writes to ``log`` at the start, the end and every ten seconds in
    between, and shows a watcher at most ten changes a second."""
    watcher = _watcher.get()
    logged: dict[str, float] = {}
    told: dict[str, float] = {}

    def report(done: int, total: int, what: str) -> None:
        now = time.monotonic()
        last = done >= total
        if last or now - logged.get(what, -_LOG_SECONDS) >= _LOG_SECONDS:
            logged[what] = now
            log.info("%s: %d/%d", teller().named_term(what), done, total)
        if watcher is not None and (last or now - told.get(what, -_SHOW_SECONDS) >= _SHOW_SECONDS):
            told[what] = now
            watcher(done, total, what)

    return report
