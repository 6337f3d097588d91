"""`make setup` with programs that only write what they were asked: what was broken off, and what is there."""

from __future__ import annotations

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.waiting import PATIENCE, until

ROOT = Path(__file__).resolve().parents[2]
PYTHON = """#!/bin/sh
case "$*" in
"-c "*) exec python3 "$@" ;;
"-m venv "*) mkdir -p .venv/bin && cp "$0" .venv/bin/python && cp "$0" .venv/bin/uv ;;
*"-r requirements.lock")
    echo half >.venv/package && echo one >>done
    while test -e waits; do sleep 0.05; done
    test ! -e breaks && echo whole >.venv/package ;;
esac
"""


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    python = tmp_path / "python"
    python.write_text(PYTHON)
    python.chmod(0o700)
    return tmp_path


def _set_up(clone: Path) -> tuple[int, str]:
    call = ["make", "setup", f"PYTHON={clone / 'python'}"]
    done = subprocess.run(call, cwd=clone, capture_output=True, text=True, timeout=PATIENCE, check=False)
    return done.returncode, done.stdout


def test_a_set_up_that_was_broken_off_is_begun_anew(clone: Path) -> None:
    (clone / "breaks").touch()
    assert _set_up(clone)[0] == 2
    assert (clone / ".venv" / "package").read_text() == "half\n"
    (clone / ".venv" / "left").touch()  # by whatever was being written
    (clone / "breaks").unlink()
    assert _set_up(clone)[0] == 0
    assert (clone / ".venv" / "package").read_text() == "whole\n"
    assert not (clone / ".venv" / "left").exists()


def test_of_two_at_once_the_second_waits_and_finds_it_done(clone: Path) -> None:
    (clone / "waits").touch()
    call = ["make", "setup", f"PYTHON={clone / 'python'}"]
    with ThreadPoolExecutor() as both:
        first = both.submit(_set_up, clone)
        until((clone / "done").exists)
        with (clone / "said").open("wb") as said, subprocess.Popen(call, cwd=clone, stdout=said) as second:
            until(lambda: b"waiting" in (clone / "said").read_bytes())
            (clone / "waits").unlink()
            assert second.wait(PATIENCE) == 0
        assert first.result()[0] == 0
    assert (clone / "done").read_text() == "one\n"
    assert (clone / ".venv" / "package").read_text() == "whole\n"


def test_what_is_set_up_stays_and_takes_a_new_lock(clone: Path) -> None:
    assert _set_up(clone)[0] == 0
    (clone / ".venv" / "own").touch()
    assert "requirements.lock" not in _set_up(clone)[1]
    before = (clone / "requirements.lock").stat().st_mtime - 10
    os.utime(clone / ".venv" / ".ready", (before, before))
    assert "requirements.lock" in _set_up(clone)[1]
    assert (clone / ".venv" / "own").exists()
