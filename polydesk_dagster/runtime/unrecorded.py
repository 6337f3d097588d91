"""Why a run has no record, told to whoever waits for it: where the record would be read, there is none."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

from polydesk_dagster.values import Reason

Listener = Callable[[Sequence[Reason]], object]

_listener: ContextVar[Listener | None] = ContextVar("polydesk_unrecorded", default=None)


@contextmanager
def heard(listener: Listener) -> Iterator[None]:
    """Tell ``listener`` why a step that runs in the block could not be recorded."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def tell(reasons: Sequence[Reason]) -> None:
    """Tell whoever listens."""
    listener = _listener.get()
    if listener is not None:
        listener(reasons)
