"""What a copy of an installation is made of: written last, so that a copy without it is none."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from hashlib import file_digest
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from polydesk_dagster.errors import PermanentError

NAME = "manifest.json"
BUSINESS = "polydesk.dump"
DAGSTER = "dagster.dump"
SETTINGS = "settings.env"
INDEX = "index"
DOCUMENTS = "documents"

FORMAT = 1


class Part(BaseModel):
    """A file of the copy."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    size: int
    sha256: str


class Manifest(BaseModel):
    """``index`` is what became of the knowledge index: copied, not there yet, kept in an object store of its own, or
    being rewritten at that moment (it is built again where the copy is restored). ``database`` is the kind of server
    that the copy was taken from; None in a copy from before this was noted."""

    model_config = ConfigDict(frozen=True)  # a newer program may have added something

    format: int
    program: str
    revision: str
    taken_at: datetime
    postgres: int
    database: Literal["embedded", "configured"] | None = None
    home: str
    generation: int | None
    index: Literal["copied", "none", "elsewhere", "busy"]
    documents: int
    figures: dict[str, int]
    """How many there are of what people count: for whoever asks whether this is the right copy."""
    secrets: tuple[str, ...]
    """Names of the variables that must be set again: their values are not in the copy."""
    parts: dict[str, Part]


def part(file: Path) -> Part:
    with file.open("rb") as opened:
        return Part(size=file.stat().st_size, sha256=file_digest(opened, "sha256").hexdigest())


def parts(folder: Path) -> dict[str, Part]:
    """Every file under the folder of a copy, by its path there."""
    return {file.relative_to(folder).as_posix(): part(file) for file in _files(folder)}


def read(folder: Path) -> Manifest:
    """The manifest of the copy in ``folder``, whose files are looked through first.

    Raises:
        PermanentError: there is no whole copy, a file of it is damaged, or a newer program made it.
    """
    try:
        manifest = Manifest.model_validate_json((folder / NAME).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise PermanentError("no_backup", folder=str(folder)) from None
    except ValidationError:
        raise PermanentError("backup_damaged", folder=str(folder), file=NAME) from None
    if manifest.format > FORMAT:
        raise PermanentError("backup_newer", found=manifest.program)
    there = {file.relative_to(folder).as_posix() for file in _files(folder)}
    for name, wanted in manifest.parts.items():
        if name not in there or part(folder / name) != wanted:
            raise PermanentError("backup_damaged", folder=str(folder), file=name)
    return manifest


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink() and path != folder / NAME:
            yield path
