"""Progress of long work: one call tells Dagster's log and whoever follows the run."""

from __future__ import annotations

import logging
import time

from polydesk_dagster.runtime.following import Progress, follower
from polydesk_dagster.told import teller

_LOG_SECONDS = 10.0
_SHOW_SECONDS = 0.1


def reporter(log: logging.Logger) -> Progress:
    """A function to call as often as one likes: it writes to ``log`` at the start, the end and every ten seconds in
    between, and tells who follows the run at most ten changes a second."""
    show = follower().progress
    logged: dict[str, float] = {}
    told: dict[str, float] = {}

    def report(done: int, total: int, what: str) -> None:
        now = time.monotonic()
        last = done >= total
        if last or now - logged.get(what, -_LOG_SECONDS) >= _LOG_SECONDS:
            logged[what] = now
            log.info("%s: %d/%d", teller().named_term(what), done, total)
        if last or now - told.get(what, -_SHOW_SECONDS) >= _SHOW_SECONDS:
            told[what] = now
            show(done, total, what)

    return report
