"""A run that was ended elsewhere ends here too: it looks at its own status, and commits nothing once that says so.

Whoever ends a run writes so into Dagster's storage, from whatever machine; only on the worker's own can she signal it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator

import sqlalchemy as sa
from dagster import DagsterExecutionInterruptedError, DagsterInstance, DagsterRunStatus

LOOK_SECONDS = 2.0
"""How often a run looks at its status."""
STALE_SECONDS = 6.0
"""What was seen so long ago is looked at anew before something is committed."""
_ENDED = frozenset({
    DagsterRunStatus.CANCELING, DagsterRunStatus.CANCELED, DagsterRunStatus.FAILURE, DagsterRunStatus.SUCCESS,
})  # fmt: skip

log = logging.getLogger("polydesk.canceling")


class Watch:
    """What is known of the status of a run that this process executes."""

    def __init__(self, instance: DagsterInstance, run_id: str) -> None:
        self.ended = False
        self._instance, self._run_id = instance, run_id
        self._seen_at = time.monotonic()
        self._over = threading.Event()

    def look(self) -> None:
        """Look at the status; where Dagster's storage is away, nobody has ended anything that is known."""
        try:
            run = self._instance.get_run_by_id(self._run_id)
        except Exception as error:  # noqa: BLE001 - whatever a storage does, the run goes on
            log.warning("the run's status cannot be read: %s", type(error).__name__)
        else:
            self.ended = self.ended or run is None or run.status in _ENDED
        self._seen_at = time.monotonic()

    def until_over(self) -> None:
        """Look again and again, and interrupt the main thread once the run was ended elsewhere; for a thread."""
        while not self._over.wait(LOOK_SECONDS):
            self.look()
            if self.ended:
                if signal.getsignal(signal.SIGTERM) not in {signal.SIG_DFL, signal.SIG_IGN, None}:
                    os.kill(os.getpid(), signal.SIGTERM)
                return

    def over(self) -> None:
        self._over.set()

    def fence(self, _connection: sa.Connection) -> None:
        """Before a commit.

        Raises:
            DagsterExecutionInterruptedError: the run was ended; nothing is committed then.
        """
        if time.monotonic() - self._seen_at > STALE_SECONDS:
            self.look()
        if self.ended:
            raise DagsterExecutionInterruptedError


@contextlib.contextmanager
def fenced(instance: DagsterInstance, run_id: str, engine: sa.Engine) -> Iterator[None]:
    """While the block lasts, nothing is committed by ``engine`` once the run was ended, and the run is interrupted."""
    watch = Watch(instance, run_id)
    sa.event.listen(engine, "commit", watch.fence)
    thread = threading.Thread(target=watch.until_over, name="own-status", daemon=True)
    thread.start()
    try:
        yield
    finally:
        watch.over()
        sa.event.remove(engine, "commit", watch.fence)
