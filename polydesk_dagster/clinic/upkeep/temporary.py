"""Temporary files: moved out of the way when old, deleted a week later, never anything outside one folder.

Every step opens the next folder from the one before (``openat``) without following links, so neither a link nor a
folder swapped meanwhile can lead out. A file goes to quarantine first; its old place is written down before it moves.
What cannot be read or moved is counted, and the rest goes on. Names may be a patient's: none is ever told.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from pathlib import Path, PurePosixPath

from polydesk_dagster.outcome import Counts, Outcome, Reason, Report, done

KEPT = timedelta(hours=24)
QUARANTINED = timedelta(days=7)
QUARANTINE = ".quarantine"
LIST = ".list.jsonl"
"""In each day's quarantine: what every file is called there, and where it was."""

DEEPEST = 100
"""Folders in each other: each holds a descriptor open, and no program that is meant to be here nests them so far."""

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


@dataclass(slots=True)
class _Sweep:
    """One pass over the files: what it goes by, and what it has come to."""

    top: int
    """An open descriptor of the root."""
    as_of: datetime
    before: float
    preview: bool
    opened: set[tuple[int, int]] = field(default_factory=set)
    moved: int = 0
    size: int = 0
    folders: int = 0
    links: int = 0
    busy: int = 0
    failed: int = 0
    deep: int = 0

    def old(self, info: os.stat_result) -> bool:
        """A file that was unpacked or copied here keeps its old date of change; that of its entry is then young."""
        return max(info.st_mtime, info.st_ctime) < self.before


@contextmanager
def _opened(path: str | Path, within: int | None = None) -> Iterator[int]:
    handle = os.open(path, _FOLDER, dir_fd=within)
    try:
        yield handle
    finally:
        os.close(handle)


def tidy(
    root: Path,
    as_of: datetime,
    *,
    inside: str | None = None,
    in_use_since: datetime | None = None,
    preview: bool = False,
) -> Report:
    """Move files older than a day to quarantine and delete what has been there for a week; empty folders of that age go
    at once.

    ``inside`` narrows it to one folder under ``root``; ``in_use_since`` is the start of the oldest work that is still
    going on: what is newer stays. Files that a process has open stay too. Links are never followed nor moved.

    Counts: ``updated`` moved to quarantine, ``retired`` deleted from it and empty folders, ``skipped`` left alone,
    ``failed`` what could not be read or moved, and folders that are nested too deep. A root that does not exist has
    nothing to tidy. Refused by name: a path that leaves the root or goes through a link, and a root that is not a
    folder.
    """
    if inside is None and not os.path.lexists(root):
        return Report(done(Counts()))
    steps = [] if inside is None else list(PurePosixPath(inside).parts)
    if inside is not None and (not steps or PurePosixPath(inside).is_absolute() or {"..", QUARANTINE} & set(steps)):
        return Report.refused("outside", {"asked": inside})
    before = min(as_of - KEPT, in_use_since or as_of).timestamp()
    with ExitStack() as open_:
        handles: list[int] = []
        for step in [str(root), *steps]:
            try:
                handles.append(open_.enter_context(_opened(step, handles[-1] if handles else None)))
            except OSError:
                return Report.refused("no_temporary_folder", {"step": step})
        sweep = _Sweep(handles[0], as_of, before, preview, _open_files())
        _tidy_folder(sweep, handles[-1], "/".join(steps))
        deleted = _empty_quarantine(sweep, (as_of - QUARANTINED).date())
    return _told(sweep, deleted)


def _told(sweep: _Sweep, deleted: int) -> Report:
    found = (
        Reason("links", count=sweep.links),
        Reason("open", count=sweep.busy),
        Reason("unmovable", count=sweep.failed),
        Reason("too_deep", {"deepest": DEEPEST}, count=sweep.deep),
    )
    reasons = tuple(reason for reason in found if reason.count)
    failed = sweep.failed + sweep.deep
    counts = Counts(
        updated=sweep.moved,
        retired=deleted + sweep.folders,
        skipped=sweep.links + sweep.busy,
        failed=failed,
    )
    figures = {
        "files_quarantined": sweep.moved,
        "bytes_quarantined": sweep.size,
        "files_deleted": deleted,
        "folders_removed": sweep.folders,
    }
    outcome = Outcome.PARTIAL if failed else done(counts)
    return Report(outcome, counts, reasons, figures)


def _names(folder: int) -> list[str]:
    return sorted(os.listdir(folder))


def _tidy_folder(sweep: _Sweep, folder: int, path: str) -> None:
    """Tidy all that is under an open folder."""
    for name in _names(folder):
        here = f"{path}/{name}" if path else name
        if here == QUARANTINE:
            continue
        try:
            info = os.stat(name, dir_fd=folder, follow_symlinks=False)
            if stat.S_ISDIR(info.st_mode) and here.count("/") >= DEEPEST:
                sweep.deep += 1
            elif stat.S_ISDIR(info.st_mode):
                with _opened(name, folder) as below:
                    _tidy_folder(sweep, below, here)
                _remove_if_empty(sweep, folder, name, info)
            elif stat.S_ISREG(info.st_mode):
                _tidy_file(sweep, folder, name, here, info)
            else:
                sweep.links += 1
        except FileNotFoundError:  # somebody else was faster
            continue
        except OSError:
            sweep.failed += 1


def _tidy_file(sweep: _Sweep, folder: int, name: str, path: str, info: os.stat_result) -> None:
    if not sweep.old(info):
        return
    if (info.st_dev, info.st_ino) in sweep.opened:
        sweep.busy += 1
        return
    if not sweep.preview:
        _quarantine(sweep, folder, name, path, info)
    sweep.moved += 1
    sweep.size += info.st_size


def _remove_if_empty(sweep: _Sweep, within: int, name: str, info: os.stat_result) -> None:
    """As old as a file has to be, so nobody has put anything into it for as long."""
    if sweep.old(info) and not sweep.preview:
        with suppress(OSError):
            os.rmdir(name, dir_fd=within)
            sweep.folders += 1


def _open_files() -> set[tuple[int, int]]:
    """Device and inode of what the processes that we can see have open."""
    found = set()
    for process in Path("/proc").glob("[0-9]*/fd"):
        try:
            for handle in process.iterdir():
                info = handle.stat()
                found.add((info.st_dev, info.st_ino))
        except OSError:  # the process or its file is gone, or it is not ours to see
            continue
    return found


def _quarantine(sweep: _Sweep, folder: int, name: str, path: str, info: os.stat_result) -> None:
    day = sweep.as_of.date().isoformat()
    with _folder(sweep.top, QUARANTINE) as quarantine, _folder(quarantine, day) as today:
        # A name has 255 bytes at most, and bytes that need not be text; the list keeps it whole.
        ending = os.fsencode(name)[-200:].decode(errors="ignore")
        kept = f"{info.st_ino:x}-{ending}"
        line = json.dumps({"name": kept, "was": path}) + "\n"
        list_ = os.open(LIST, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600, dir_fd=today)
        try:
            os.write(list_, line.encode())
            os.fsync(list_)
        finally:
            os.close(list_)
        os.rename(name, kept, src_dir_fd=folder, dst_dir_fd=today)


@contextmanager
def _folder(within: int, name: str) -> Iterator[int]:
    with suppress(FileExistsError):
        os.mkdir(name, 0o700, dir_fd=within)
    with _opened(name, within) as handle:
        yield handle


def _empty_quarantine(sweep: _Sweep, until: date) -> int:
    """Delete the days of the quarantine up to ``until``. Returns how many files went."""
    deleted = 0
    try:
        with _opened(QUARANTINE, sweep.top) as quarantine:
            for day in _names(quarantine):
                with suppress(ValueError):
                    if date.fromisoformat(day) <= until:
                        deleted += _delete_day(sweep, quarantine, day)
    except FileNotFoundError:
        return 0
    except OSError:
        sweep.failed += 1
    return deleted


def _delete_day(sweep: _Sweep, quarantine: int, day: str) -> int:
    try:
        with _opened(day, quarantine) as folder:
            files = sum(name != LIST for name in _names(folder))
        if not sweep.preview:
            shutil.rmtree(day, dir_fd=quarantine)  # never follows links, by descriptors as well
    except OSError:
        sweep.failed += 1
        return 0
    return files
