"""A clock that a test sets, for real processes: libfaketime, loaded before whatever they are.

Only the time of day is false, as when somebody sets the clock, and stands where it was put until it is put elsewhere;
what waiting is measured by goes on. Debian's libfaketime (0.9.10) cannot tell the two apart under Python 3.11, whose
``time.sleep`` fails there: it is the one that the package index has, which is under the GPL and in no lock.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import pytest

from tests.waiting import PATIENCE

ROOT = Path(__file__).resolve().parents[2]
WANTED = Path(__file__).with_name("faketime.txt")
_TRIAL = "import time; time.sleep(0.01); print(time.gmtime().tm_year)"


class Clock:
    """The time of day of every process that is started with ``environment``."""

    def __init__(self, folder: Path, at: datetime) -> None:
        self._file = folder / "clock"
        self.environment = _environment(_library(), self._file)
        self.set(at)

    def set(self, at: datetime) -> None:
        draft = self._file.with_suffix(".new")
        draft.write_text(f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S}\n")
        draft.replace(self._file)


def _environment(library: Path, file: Path) -> dict[str, str]:
    return {
        "LD_PRELOAD": str(library),
        "FAKETIME_TIMESTAMP_FILE": str(file),
        "FAKETIME_CACHE_DURATION": "1",  # seconds; reading it at each call costs more than the work
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "NO_FAKE_STAT": "1",
        "TZ": "UTC",
    }


@cache
def _library() -> Path:
    """The library, which is installed now where it is not yet; the test is skipped where it is not to be had."""
    folder = Path(sys.prefix) / "faketime"
    said = "" if folder.exists() else _install(folder)
    found = next(folder.rglob("libfaketime.so.1"), None)
    if found is None:
        pytest.skip(f"NOT PROVEN: libfaketime is not to be had here ({said})")
    with tempfile.TemporaryDirectory() as place:
        clock = Path(place) / "clock"
        clock.write_text("2001-01-01 00:00:00\n")
        trial = [sys.executable, "-c", _TRIAL]
        _, year = _said(trial, _environment(found, clock))
    if year.split()[-1:] != ["2001"]:
        pytest.skip("NOT PROVEN: libfaketime does not deceive this Python")
    return found


def _install(folder: Path) -> str:
    """Into ``folder``, whole or not at all: another process of the tests may be at it too. Returns what pip said."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--retries", "1", "--require-hashes"]
    try:
        with tempfile.TemporaryDirectory(dir=folder.parent) as place:
            draft = Path(place) / folder.name
            well, said = _said([*pip, "-r", str(WANTED), "--target", str(draft)])
            if well:
                with suppress(OSError):
                    draft.rename(folder)
    except OSError as error:
        return type(error).__name__
    return said.strip()[-200:]


def _said(command: list[str], environment: Mapping[str, str] | None = None) -> tuple[bool, str]:
    """Whether a program did what it should, in time, and what it said; a package index may be out of reach."""
    try:
        done = subprocess.run(
            command,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=PATIENCE,
        )
    except subprocess.TimeoutExpired:
        return False, "it took too long"
    return done.returncode == 0, done.stdout
