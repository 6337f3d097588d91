"""Whether a fork server may be forked, whether its code is still that on disk, and how large it is."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path

from polydesk_dagster.runtime.dagster_inside.names import module_of


@contextlib.contextmanager
def staying() -> Iterator[None]:
    """What is loaded in the block stays: it is not looked through for what nobody needs again and again while it is
    loaded, an eighth of the work, nor ever by a fork, to which that would copy it."""
    gc.disable()
    try:
        yield
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


def unfit(ours: int) -> str | None:
    """Why this process cannot be forked safely: a second thread, or a socket besides our own, would be shared with
    every child."""
    threads = len(list(Path("/proc/self/task").iterdir()))
    if threads > 1:
        return f"il codice avvia {threads - 1} thread mentre si carica"
    sockets = -ours
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            sockets += str(descriptor.readlink()).startswith("socket:")
    return f"il codice apre {sockets} connessioni mentre si carica" if sockets > 0 else None


def own_files(pointer: str) -> dict[Path, tuple[int, int]]:
    """The files of the loaded code that may be edited while we run, with time and size: our package, the location's
    package, and whatever is not installed."""
    module = module_of(pointer)
    packages = {"polydesk_dagster", module.partition(".")[0]}
    installed = (sys.prefix, sys.base_prefix)
    return seen(
        Path(file)
        for name, loaded in list(sys.modules.items())
        if (file := getattr(loaded, "__file__", None))
        and (name.partition(".")[0] in packages or not file.startswith(installed))
    )


def seen(paths: Iterable[Path]) -> dict[Path, tuple[int, int]]:
    found = {}
    for path in paths:
        with contextlib.suppress(OSError):
            status = path.stat()
            found[path] = (status.st_mtime_ns, status.st_size)
    return found


def resident() -> int:
    """Memory of this process, in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def why_not_loaded(error: Exception) -> str:
    """The kind of an error that code did not load with, and its place: Dagster wraps what a module raised."""
    cause = error.__cause__ or error
    *_, last = traceback.extract_tb(cause.__traceback__) or [None]
    return type(cause).__name__ + (f", {last.filename}:{last.lineno}" if last is not None else "")
