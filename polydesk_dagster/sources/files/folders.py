"""Where the files are: a folder of this machine, or one behind SFTP. Names are below it, whatever a link says."""

from __future__ import annotations

from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit

from polydesk_dagster.errors import PermanentError, PolydeskError, TransientError
from polydesk_dagster.failure import failure
from polydesk_dagster.remote import Policy
from polydesk_dagster.sources.files.tables import LARGEST
from polydesk_dagster.values import Reason, Term

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class File:
    """One that is there; ``stamp`` changes with it."""

    name: str
    size: int
    stamp: str
    changed_at: float
    """Seconds since 1970."""


class Folder(Protocol):
    """What the adapter needs of a place with files."""

    def find(self, pattern: str) -> File | None:
        """The last by name that fits ``pattern``; None where there is none."""

    def read(self, file: File) -> bytes: ...


def too_large(file: File) -> PermanentError:
    return PermanentError("file_too_large", file=file.name, mib=LARGEST // 2**20)


def _how_refused(error: Exception) -> Term:
    """Why a server behind SFTP and we do not come together."""
    import asyncssh

    kinds: dict[type[Exception], str] = {
        asyncssh.HostKeyNotVerifiable: "host_key",
        asyncssh.KeyImportError: "private_key",
    }
    return Term("failure", kinds.get(type(error), "no_entry"))


def _how_unreadable(error: BaseException) -> Term:
    import asyncssh

    match error:
        case asyncssh.SFTPNoSuchFile():
            return Term("errno", "ENOENT")
        case asyncssh.SFTPPermissionDenied():
            return Term("errno", "EACCES")
    return failure(error, "unknown")


@dataclass(frozen=True, slots=True)
class LocalFolder:
    """A folder of this machine."""

    path: Path
    system: Reason

    def find(self, pattern: str) -> File | None:
        try:
            root = self.path.resolve(strict=True)
            inside = [path for path in root.glob(pattern) if path.resolve().is_relative_to(root) and path.is_file()]
            return None if not inside else self._file(max(inside), root)
        except OSError as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: OSError) -> TransientError:
        return TransientError("source_folder_unreadable", system=self.system, error=failure(error, "unknown"))

    def _file(self, path: Path, root: Path) -> File:
        about = path.stat()
        stamp = f"{about.st_size}:{about.st_mtime_ns}:{about.st_ino}"
        return File(path.relative_to(root).as_posix(), about.st_size, stamp, about.st_mtime)

    def read(self, file: File) -> bytes:
        if file.size > LARGEST:
            raise too_large(file)
        try:
            with (self.path / file.name).open("rb") as opened:
                return opened.read(LARGEST + 1)
        except OSError as error:
            raise self._unreadable(error) from error


@dataclass(frozen=True, slots=True)
class SftpFolder:
    """A folder behind SFTP, asked anew for every list; only the server whose key is known is spoken to."""

    url: str
    user: str
    host_key: str
    private_key: str
    system: Reason
    policy: Policy

    def find(self, pattern: str) -> File | None:
        with self._asking():
            return self._run(self._find(pattern))

    def read(self, file: File) -> bytes:
        if file.size > LARGEST:
            raise too_large(file)
        with self._asking():
            return self._run(self._read(file))

    @contextmanager
    def _asking(self) -> Iterator[None]:
        import asyncssh

        try:
            yield
        except (asyncssh.HostKeyNotVerifiable, asyncssh.PermissionDenied, asyncssh.KeyImportError) as error:
            raise PermanentError("sftp_refused", system=self.system, error=_how_refused(error)) from error
        except PolydeskError:
            raise
        except (asyncssh.Error, OSError, TimeoutError, EOFError) as error:
            raise TransientError(
                "source_folder_unreadable", system=self.system, error=_how_unreadable(error)
            ) from error

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        import asyncio

        async def within() -> T:
            async with asyncio.timeout(self.policy.total):
                return await work

        return asyncio.run(within())

    def _connect(self) -> Any:
        import asyncssh

        parts = urlsplit(self.url)
        known = asyncssh.import_public_key(self.host_key)
        return asyncssh.connect(
            parts.hostname or "",
            parts.port or 22,
            username=self.user,
            client_keys=[asyncssh.import_private_key(self.private_key)],
            known_hosts=([known], [], []),
            agent_path=None,
            config=None,
            connect_timeout=self.policy.connect,
            login_timeout=self.policy.request,
        )

    async def _find(self, pattern: str) -> File | None:
        root, folder, wanted = urlsplit(self.url).path, *_parted(pattern)
        async with self._connect() as connection, connection.start_sftp_client() as sftp:
            listed = await sftp.readdir(f"{root}/{folder}".rstrip("/"))
            fits = [each for each in listed if fnmatchcase(each.filename, wanted) and each.attrs.type == _REGULAR]
            if not fits:
                return None
            last = max(fits, key=lambda each: each.filename)
            size, when = last.attrs.size or 0, last.attrs.mtime or 0
            return File(f"{folder}/{last.filename}".lstrip("/"), size, f"{size}:{when}", float(when))

    async def _read(self, file: File) -> bytes:
        path = f"{urlsplit(self.url).path}/{file.name}"
        async with (
            self._connect() as connection,
            connection.start_sftp_client() as sftp,
            sftp.open(path, "rb") as opened,
        ):
            data: bytes = await opened.read(LARGEST + 1)
            return data


_REGULAR = 1
"""A regular file, by the protocol's number."""


def _parted(pattern: str) -> tuple[str, str]:
    folder, _, name = pattern.rpartition("/")
    return folder, name
