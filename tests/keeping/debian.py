"""PostgreSQL as Debian packages it: a cluster of a test's own, with an account that is no superuser."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from tests import postgres

PROGRAMS = Path("/usr/lib/postgresql/15/bin")


def why_not() -> str | None:
    """What is missing of Debian's PostgreSQL 15 here, or None."""
    if not (PROGRAMS / "initdb").exists():
        return "NOT PROVEN: Debian's PostgreSQL 15 (apt-get install postgresql) is not on this machine"
    return None


@dataclass(frozen=True)
class Cluster:
    folder: Path
    port: int
    password: str

    def url(self, database: str) -> str:
        return f"postgresql://polydesk:{self.password}@127.0.0.1:{self.port}/{database}"

    def run(self, program: str, *arguments: str) -> None:
        as_whom: dict[str, Any] = {}
        if os.geteuid() == 0:
            entry = pwd.getpwnam("postgres")
            as_whom = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
        with (self.folder / "said").open("ab") as said:  # a pipe would be held open by the server
            subprocess.run(
                [str(PROGRAMS / program), *arguments],
                stdout=said,
                stderr=said,
                stdin=subprocess.DEVNULL,
                check=True,
                cwd=self.folder,
                **as_whom,
            )

    @property
    def data(self) -> str:
        return str(self.folder / "data")

    def start(self) -> None:
        options = f"-p {self.port} -k {self.folder} -c listen_addresses=127.0.0.1 -c shared_buffers=64MB"
        self.run("pg_ctl", "start", "-w", "-D", self.data, "-l", str(self.folder / "log"), "-o", options)

    def cut(self) -> None:
        """As by a power cut: nothing is written down any more."""
        self.run("pg_ctl", "stop", "-m", "immediate", "-D", self.data)


@contextmanager
def cluster() -> Iterator[Cluster]:
    folder = Path(tempfile.mkdtemp(prefix="polydesk-debian-", dir=postgres.room()))
    folder.chmod(0o755)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    made = Cluster(folder, port, secrets.token_hex(8))
    if os.geteuid() == 0:
        shutil.chown(folder, "postgres")
    try:
        made.run("initdb", "-D", made.data, "-U", "admin", "--auth-local=trust", "--auth-host=scram-sha-256")
        made.start()
        with psycopg.connect(f"host={folder} port={port} user=admin dbname=postgres", autocommit=True) as connection:
            connection.execute(f"CREATE ROLE polydesk LOGIN CREATEDB PASSWORD '{made.password}'".encode())
            connection.execute("CREATE DATABASE polydesk OWNER polydesk TEMPLATE template0 ENCODING 'UTF8'")
        yield made
    finally:
        if (folder / "data" / "postmaster.pid").exists():
            made.cut()
        shutil.rmtree(folder, ignore_errors=True)
