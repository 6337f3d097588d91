"""One database written to a file by ``pg_dump``, and made of that file again, on a server of another version too."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

import sqlalchemy as sa
from sqlalchemy.engine import URL

from polydesk_dagster.database import programs
from polydesk_dagster.database.engine import plain_url
from polydesk_dagster.errors import PermanentError

OLDEST = 15
"""The oldest major version of PostgreSQL that we work with."""
_UNKNOWN_TO_OLDER = re.compile(rb"SET transaction_timeout = 0;\n")
"""What programs of 17 and later set at the head of what they write, and servers before 17 refuse."""
_HEAD = 1 << 16


def server_version(connection: sa.Connection) -> int:
    """The major version of the server."""
    return int(connection.scalar(sa.text("SELECT current_setting('server_version_num')::int / 10000")))


def program_for(server: int) -> Path:
    """The folder of programs that can copy a server of this major version: ours, or for a newer one this machine's.

    Raises:
        PermanentError: none here is new enough.
    """
    if server <= programs.version():
        return programs.folder()
    theirs = programs.folder_of(server)
    if theirs is not None and (theirs / "pg_dump").exists():
        return theirs
    raise PermanentError("dump_too_old", server=server, ours=programs.version())


def dump(url: URL, target: Path, *, server: int, snapshot: str | None = None) -> None:
    """Write a database to ``target``, compressed: as it is in ``snapshot``, which a transaction exported that is still
    open, else as it is now.

    Raises:
        PermanentError: the server refuses, or goes away.
    """
    seen = ("--snapshot", snapshot) if snapshot else ()
    program = str(program_for(server) / "pg_dump")
    with _address(url) as address:
        command = [program, "--format=custom", *seen, "--file", str(target), "--dbname", address]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PermanentError("dump_failed", database=url.database, why=_brief(done.stderr))


def load(source: Path, url: URL, *, server: int, then: Iterable[str] = ()) -> None:
    """Make the contents of an empty database from what ``dump`` wrote, and do the statements ``then``, in one
    transaction: all of it is there, or nothing. What there is belongs to the account of ``url``.

    Raises:
        PermanentError: the file is damaged, or the server refuses; with the SQLSTATE alone, for its words quote rows.
    """
    folder = program_for(max(server, programs.version()))
    with _address(url) as address, ExitStack() as ending:
        reading = ending.enter_context(
            _started(folder / "pg_restore", "--no-owner", "--no-privileges", "--file=-", str(source), writes=True)
        )
        writing = ending.enter_context(
            _started(
                *(folder / "psql", "--no-psqlrc", "--quiet", "--single-transaction", "--output=/dev/null"),
                *("--set=ON_ERROR_STOP=1", "--set=VERBOSITY=sqlstate", "--file=-", "--dbname", address),
            )
        )
        assert reading.stdout is not None
        assert writing.stdin is not None
        try:
            _hand_over(reading.stdout, writing.stdin)
            if reading.wait():
                writing.kill()  # before it reads the end of its input and commits half of what there was
            for statement in then:
                writing.stdin.write(f"{statement};\n".encode())
        except BrokenPipeError:  # psql gave up; why, it says below
            reading.kill()
        except BaseException:
            writing.kill()
            reading.kill()
            raise
        complaints = [process.communicate()[1].decode(errors="replace") for process in (writing, reading)]
    if writing.returncode or reading.returncode:
        raise PermanentError("load_failed", database=url.database, why=_brief("\n".join(complaints)))


def _started(program: Path, *arguments: str, writes: bool = False) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [str(program), *arguments],
        stdin=subprocess.DEVNULL if writes else subprocess.PIPE,
        stdout=subprocess.PIPE if writes else subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def _hand_over(source: IO[bytes], target: IO[bytes]) -> None:
    head = source.read(_HEAD)
    target.write(_UNKNOWN_TO_OLDER.sub(b"", head))
    shutil.copyfileobj(source, target, 1 << 20)
    target.flush()


@contextmanager
def _address(url: URL) -> Iterator[str]:
    """A URL for a command line: the password, which does not belong on one, lies in a file of our own meanwhile."""
    open_address = url.set(password=None).update_query_dict({"connect_timeout": "10"})
    if not url.password:
        yield plain_url(open_address)
        return
    with tempfile.NamedTemporaryFile("w", prefix="polydesk-", suffix=".pass") as file:  # which nobody else may read
        password = str(url.password).replace("\\", "\\\\").replace(":", "\\:")
        file.write(f"*:*:*:*:{password}\n")
        file.flush()
        yield plain_url(open_address.update_query_dict({"passfile": file.name}))


def _brief(said: str) -> str:
    """The first complaint, without the program's own name and place."""
    lines = [line for line in said.splitlines() if "error" in line.lower() or "fatal" in line.lower()]
    first = (lines or said.splitlines() or [""])[0]
    return re.sub(r"^(\S*?(pg_dump|pg_restore|psql)[^:]*:\s*(<stdin>:\d+:\s*)?)", "", first)[:200]
