"""A number in a file is nobody's identity: after a power cut a process id is another's, and that one is left alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from polydesk_dagster.database import embedded, programs
from polydesk_dagster.errors import PermanentError
from tests.waiting import PATIENCE


@pytest.fixture
def home() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="polydesk-id-", dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    embedded.stop(folder, patience=PATIENCE)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    """Of the server's own account: PostgreSQL takes nobody else's process for itself."""
    process = subprocess.Popen(["sleep", "300"], **({"user": programs.account()} if os.geteuid() == 0 else {}))  # type: ignore[call-overload]
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
    assert embedded.stop(home, patience=PATIENCE)
    for each in (file, programs.socket_folder(file.parent) / f"{programs.SOCKET}.lock"):
        as_left(each, "\n".join([str(stranger.pid), *left[1:]]) + "\n")  # as a power cut leaves it
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
    assert embedded.stop(home, patience=PATIENCE)
    as_left(home / "postgres" / "postmaster.pid", "123\n")
    assert not embedded.running(home)
    embedded.start(home)
    assert embedded.running(home)


def test_a_server_that_does_not_start_is_a_sentence_that_names_its_log(home: Path) -> None:
    embedded.start(home)
    assert embedded.stop(home, patience=PATIENCE)
    with (home / "postgres" / "postgresql.auto.conf").open("a") as settings:
        settings.write("shared_buffers = 'nonsense'\n")
    with pytest.raises(PermanentError) as said:
        embedded.start(home)
    assert said.value.reason.code == "embedded_does_not_start"


def test_a_language_that_the_machine_does_not_have_keeps_no_home_from_its_data(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LANG", "LC_ALL"):
        monkeypatch.setenv(name, "xx_XX.UTF-8")
    embedded.make_empty(home / "postgres")
    assert (home / "postgres" / "PG_VERSION").exists()
