"""A list that changes while it is read is read from its beginning again, and not for ever."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

from polydesk_dagster.errors import TransientError
from polydesk_dagster.values import Value

RESTARTS = 3
"""How often that is done."""

T = TypeVar("T")


class Moved(Exception):  # noqa: N818
    """The list changed while it was read."""


def read(once: Callable[[int], Iterator[T]], system: Value, path: str) -> Iterator[T]:
    """The pages of a reading that was not ``Moved``. ``once`` is given how many there were before it.

    Raises:
        TransientError: where it keeps changing; whatever else ``once`` raises.
    """
    for restart in range(RESTARTS + 1):
        try:
            yield from once(restart)
        except Moved:
            continue
        return
    raise TransientError("list_keeps_changing", system=system, path=path)
