"""Processes that share the tests are forks: what whoever starts them may expect of them."""

from __future__ import annotations

import select
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import forked
from tests.waiting import PATIENCE

pytestmark = pytest.mark.slow


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "a folder"
    (folder / "__snapshots__").mkdir(parents=True)
    (folder / "pytest.ini").write_text("[pytest]")
    (folder / "test_it.py").write_text("def test_it(snapshot): assert snapshot == 1")
    (folder / "__snapshots__" / "test_it.ambr").write_text("# serializer version: 1\n# name: test_it\n  1\n# ---\n")
    (folder / "forked.py").write_bytes(Path(forked.__file__).read_bytes())
    return folder


@pytest.fixture
def python(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    monkeypatch.setattr(forked, "__file__", str(folder / "forked.py"))
    with forked.forked([str(folder), "--snapshot-update", "-p", "no:cacheprovider"]) as command:
        yield [*shlex.split(command), "-u", "-c", "the line that is read"]


def test_a_fork_has_the_streams_of_who_starts_it_and_what_was_collected(python: list[str], folder: Path) -> None:
    line = b"'import sys; print(\"test_it\" in sys.modules)'\n"
    assert subprocess.check_output(python, input=line, timeout=PATIENCE) == b"True\n"
    assert [file.name for file in (folder / "__snapshots__").iterdir()] == ["test_it.ambr"]


def test_a_fork_ends_with_the_process_that_was_started_for_it(python: list[str]) -> None:
    with subprocess.Popen(python, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as started:
        assert started.stdin
        assert started.stdout
        started.stdin.write(b"'import time; print(1, flush=True); time.sleep(3600)'\n")
        started.stdin.flush()
        assert started.stdout.readline() == b"1\n"
        started.kill()
        assert select.select([started.stdout], [], [], PATIENCE)[0], "its fork still holds what it writes to"


def test_forks_share_the_server_of_warm_programs() -> None:
    """Which asks for none of what that imports."""
    asked = """
import os
from tests import warm

warm._FORKING.set_forkserver_preload([])
warm.share()
for fork in (False, True):
    if not fork or not os.fork():
        with warm.program("import os; print(os.getppid())") as program:
            print(program.read(), flush=True)
        if fork:
            os._exit(0)
os.wait()
"""
    command = [sys.executable, "-c", asked]
    first, second = subprocess.check_output(command, timeout=PATIENCE, text=True).splitlines()
    assert first == second
    assert first.startswith("(0, ")
