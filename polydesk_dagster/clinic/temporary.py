"""Temporary files: moved out of the way when old, deleted a week later, never anything outside one folder.

Every step opens the next folder from the one before (``openat``) without following links, so neither a link nor a
folder swapped meanwhile can lead out. A file goes to quarantine first; its old place is written down before it moves.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from pathlib import Path, PurePosixPath

from polydesk_dagster.errors import PermanentError
from polydesk_dagster.outcome import Counts, Reason, Report, done

KEPT = timedelta(hours=24)
QUARANTINED = timedelta(days=7)
QUARANTINE = ".quarantine"

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


@dataclass(frozen=True, slots=True)
class _File:
    folder: int
    """An open descriptor of its folder."""
    name: str
    path: str
    size: int


@contextmanager
def _opened(path: str | Path, within: int | None = None) -> Iterator[int]:
    handle = os.open(path, _FOLDER, dir_fd=within)
    try:
        yield handle
    finally:
        os.close(handle)


@contextmanager
def _under(root: Path, inside: str | None) -> Iterator[int]:
    """The folder to clean, opened one step at a time.

    Raises:
        PermanentError: for a path that leaves the root or goes through a link, and for a root that is not a folder.
    """
    steps = [] if inside is None else list(PurePosixPath(inside).parts)
    if inside is not None and (not steps or PurePosixPath(inside).is_absolute() or {"..", QUARANTINE} & set(steps)):
        raise PermanentError(f"«{inside}» è fuori da {root}: la pulizia tocca solo le cartelle sotto quella.")
    handles: list[int] = []
    try:
        for step in [str(root), *steps]:
            handles.append(os.open(step, _FOLDER, dir_fd=handles[-1] if handles else None))
        yield handles[-1]
    except OSError as error:
        if error.filename not in {str(root), *steps}:
            raise
        raise PermanentError(
            f"«{error.filename}» non è una cartella vera (manca, è un file o un collegamento): "
            f"la pulizia dei file temporanei di {root} si ferma."
        ) from None
    finally:
        for handle in reversed(handles):
            os.close(handle)


def tidy(
    root: Path,
    as_of: datetime,
    *,
    inside: str | None = None,
    in_use_since: datetime | None = None,
    preview: bool = False,
) -> Report:
    """Move files older than a day to quarantine and delete what has been there for a week.

    ``inside`` narrows it to one folder under ``root``; ``in_use_since`` is the start of the oldest work that is still
    going on: what is newer stays. Files that a process has open stay too. Links are never followed nor moved.

    Counts: ``updated`` moved to quarantine, ``retired`` deleted from it, ``skipped`` left alone. A root that does not
    exist has nothing to tidy.

    Raises:
        PermanentError: see :func:`_under`.
    """
    if inside is None and not os.path.lexists(root):
        return Report(done(Counts()))
    before = min(as_of - KEPT, in_use_since or as_of).timestamp()
    with _under(root, inside) as folder, _under(root, None) as top:
        opened = _open_files()
        links: list[str] = []
        busy = moved = size = 0
        for entry in _files(folder, "" if inside is None else inside, links):
            info = os.stat(entry.name, dir_fd=entry.folder, follow_symlinks=False)
            if info.st_mtime >= before:
                continue
            if (info.st_dev, info.st_ino) in opened:
                busy += 1
                continue
            if not preview:
                _quarantine(top, entry, as_of.date())
            moved += 1
            size += info.st_size
        deleted = _empty_quarantine(top, (as_of - QUARANTINED).date(), preview=preview)
    reasons = []
    if links:
        named = ", ".join(sorted(links)[:5])
        reasons.append(Reason("links", f"collegamenti lasciati dove sono: {named}", count=len(links)))
    if busy:
        reasons.append(Reason("open", "file vecchi ma ancora aperti da un programma", count=busy))
    counts = Counts(updated=moved, retired=deleted, skipped=len(links) + busy)
    figures = {"File in quarantena": moved, "Byte in quarantena": size, "File eliminati dalla quarantena": deleted}
    return Report(done(counts), counts, tuple(reasons), figures)


def _names(folder: int) -> list[str]:
    return sorted(os.listdir(folder))


def _files(folder: int, path: str, links: list[str]) -> Iterator[_File]:
    """Every plain file under an open folder; links and devices are named and passed over."""
    for entry in _names(folder):
        here = f"{path}/{entry}" if path else entry
        info = os.stat(entry, dir_fd=folder, follow_symlinks=False)
        if stat.S_ISREG(info.st_mode):
            yield _File(folder, entry, here, info.st_size)
        elif stat.S_ISDIR(info.st_mode):
            if here != QUARANTINE:
                with _opened(entry, folder) as below:
                    yield from _files(below, here, links)
        else:
            links.append(here)


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


def _quarantine(top: int, entry: _File, day: date) -> None:
    with _folder(top, QUARANTINE) as quarantine, _folder(quarantine, day.isoformat()) as today:
        info = os.stat(entry.name, dir_fd=entry.folder, follow_symlinks=False)
        name = f"{info.st_ino:x}-{entry.name}"[-200:]
        line = json.dumps({"name": name, "was": entry.path}, ensure_ascii=False) + "\n"
        list_ = os.open(".list.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600, dir_fd=today)
        try:
            os.write(list_, line.encode())
            os.fsync(list_)
        finally:
            os.close(list_)
        os.rename(entry.name, name, src_dir_fd=entry.folder, dst_dir_fd=today)


@contextmanager
def _folder(within: int, name: str) -> Iterator[int]:
    with suppress(FileExistsError):
        os.mkdir(name, 0o700, dir_fd=within)
    with _opened(name, within) as handle:
        yield handle


def _empty_quarantine(top: int, until: date, *, preview: bool) -> int:
    """Delete the days of the quarantine up to ``until``. Returns how many files went."""
    deleted = 0
    try:
        quarantine = os.open(QUARANTINE, _FOLDER, dir_fd=top)
    except FileNotFoundError:
        return 0
    try:
        for day in _names(quarantine):
            try:
                if date.fromisoformat(day) > until:
                    continue
            except ValueError:
                continue
            with _opened(day, quarantine) as folder:
                deleted += sum(name != ".list.jsonl" for name in _names(folder))
            if not preview:
                shutil.rmtree(day, dir_fd=quarantine)  # never follows links, by descriptors as well
    finally:
        os.close(quarantine)
    return deleted
