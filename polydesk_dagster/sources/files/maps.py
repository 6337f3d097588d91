"""What an integration says of its files: where they are, which file is which list, and which column is which field."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator

from polydesk_dagster.sources.access import Settings, TokenName, check_address
from polydesk_dagster.sources.port import RECORDS
from polydesk_dagster.wrong import stated


def _pattern(value: str) -> str:
    path = PurePosixPath(value)
    if path.is_absolute() or ".." in path.parts or not path.name or "\0" in value:
        raise stated("file_outside")
    return value


def _sftp(value: str) -> str:
    check_address(value, scheme="sftp")
    return value.rstrip("/")


def _exact(said: dict[str, Any]) -> dict[str, Any]:
    """Numbers with decimals as they are written: what JSON hands on is a binary fraction."""
    return {name: str(each) if isinstance(each, float) else each for name, each in said.items()}


Said = Annotated[dict[str, Any], AfterValidator(_exact)]


class Column(Settings):
    """Where a field's value stands."""

    heading: str = Field(min_length=1)
    digits: int | None = Field(None, ge=1, le=20)
    """Leading zeros that a spreadsheet has dropped are put back up to this many digits."""
    values: Said = Field(default_factory=dict)
    """What a cell says, and what that means: ``{"Assicurazione" = "insurance"}``."""
    split: str | None = None
    """What parts several values in one cell."""


def _column(value: Any) -> Any:
    return {"heading": value} if isinstance(value, str) else value


class Table(Settings):
    """One list: the file that it stands in, its sheet, its columns."""

    file: Annotated[str, AfterValidator(_pattern)]
    """A name below the folder, with ``*`` and ``?``; of several that fit, the last by name."""
    sheet: str | None = None
    """Of a workbook; the first one whose headings fit where none is named."""
    encoding: Literal["utf-8", "cp1252", "cp850", "utf-16"] | None = None
    """Found where it is not said; cp850 is never guessed."""
    columns: dict[str, Column]
    fixed: Said = Field(default_factory=dict)
    """Fields that are the same in every row."""

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        columns = value.get("columns") if isinstance(value, dict) else None
        if not isinstance(columns, dict):
            return value
        return {**value, "columns": {name: _column(column) for name, column in columns.items()}}


class FilesSettings(Settings):
    """A folder of this machine, whose path stands in the variable that ``token`` names (what a folder holds can only be
    given away by whoever runs the installation), or one behind SFTP."""

    token: TokenName
    """Of the folder's path; with ``url``, of the private key."""
    url: Annotated[str, AfterValidator(_sftp)] | None = None
    user: str | None = None
    host_key: str | None = None
    """The server's public key as ``ssh-keyscan`` writes it, without the name; another one is refused."""
    lists: dict[str, Table]

    @model_validator(mode="after")
    def _check(self) -> FilesSettings:
        if self.url is not None and (self.user is None or self.host_key is None or not urlsplit(self.url).path):
            raise stated("sftp_half")
        for name, table in self.lists.items():
            if name not in RECORDS:
                raise stated("list_unknown", list=name)
            unknown = sorted({*table.columns, *table.fixed} - set(RECORDS[name].__struct_fields__))
            if unknown:
                raise stated("field_unknown", list=name, field=unknown[0])
        return self
