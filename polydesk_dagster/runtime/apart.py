"""Work done in a fork of this process that ends with it: what it imports and leaves in memory does not stay here."""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Callable
from typing import TypeVar

from polydesk_dagster.errors import in_brief

T = TypeVar("T")


def apart(work: Callable[[], T]) -> T:
    """What ``work`` returns, or raises; both can be pickled. Only for a process of one thread."""
    reading, writing = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if not pid:
        os.close(reading)
        _be(work, writing)
    os.close(writing)
    with os.fdopen(reading, "rb") as answer:
        came = answer.read()
    _, status = os.waitpid(pid, 0)
    if not came:
        raise ChildProcessError(f"status {os.waitstatus_to_exitcode(status)}")
    well, found = pickle.loads(came)  # noqa: S301 - our own fork wrote it
    if not well:
        raise found
    result: T = found
    return result


def _be(work: Callable[[], object], writing: int) -> None:
    """Do it, tell it, and end without whatever our parent has yet to do."""
    answer: tuple[bool, object]
    try:
        answer = (True, work())
    except BaseException as error:  # noqa: BLE001 - the parent raises it
        answer = (False, error)
    try:
        told = pickle.dumps(answer)
        pickle.loads(told)  # noqa: S301 - whether it can be read again
    except Exception:  # noqa: BLE001 - errors of other people's make: some cannot be pickled, or read again
        told = pickle.dumps((False, RuntimeError(in_brief(answer[1]) if isinstance(answer[1], BaseException) else "")))
    with os.fdopen(writing, "wb") as pipe:
        pipe.write(told)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
