"""How a process of Dagster's is asked to end."""

from __future__ import annotations

import signal


def heed() -> None:
    """Let SIGINT and SIGTERM interrupt this process. Dagster does with SIGTERM what is done with SIGINT, which a shell
    that starts something in the background has ignored: nothing but SIGKILL would end it."""
    from dagster._utils.interrupts import setup_interrupt_handlers

    signal.signal(signal.SIGINT, signal.default_int_handler)
    setup_interrupt_handlers()
