"""Dagster's daemon, quiet while nothing happens: ``python -P -m … WORKSPACE FORMAT``.

It is what ``dagster-daemon run`` does. That is a script which takes no word on how often it looks.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Sequence

from polydesk_dagster.home import keep_to_ourselves
from polydesk_dagster.runtime.dagster_inside import clock, quiet, signals


def main(arguments: Sequence[str]) -> None:
    """Run until SIGTERM. ``arguments``: the workspace's file, and the format of the log's lines."""
    from dagster import DagsterInstance
    from dagster._core.workspace.load_target import WorkspaceFileTarget
    from dagster._daemon.controller import (
        DEFAULT_DAEMON_HEARTBEAT_TOLERANCE_SECONDS,
        daemon_controller_from_instance,
    )
    from dagster._utils.interrupts import capture_interrupts

    keep_to_ourselves()
    workspace, log_format = arguments
    quiet.daemon()
    signals.heed()
    with contextlib.suppress(KeyboardInterrupt), capture_interrupts(), DagsterInstance.get() as instance:
        clock.look_anew(instance, time.time())
        with daemon_controller_from_instance(
            instance,
            WorkspaceFileTarget([workspace]),
            heartbeat_tolerance_seconds=DEFAULT_DAEMON_HEARTBEAT_TOLERANCE_SECONDS,
            gen_daemons=quiet.daemons,
            code_server_log_level="warning",
            log_format=log_format,
        ) as controller:
            controller.check_daemon_loop()


if __name__ == "__main__":
    main(sys.argv[1:])
