"""What a sheet is made of, and what several of them share: the clinic that a row names, its location, its services."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from polydesk_dagster.changes.kind import Kind
from polydesk_dagster.sources.practice import cells
from polydesk_dagster.sources.practice.cells import Cell
from polydesk_dagster.values import Reason


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a sheet. ``sql`` over ``s`` (the row), its references and ``m`` (what we hold) is what is written,
    where that is not the cell itself; ``default`` stands where the cell is blank; ``target`` is the column of ours.
    One that is ``required`` of what is ``new`` alone may be missing from a list of what is known."""

    key: str
    cell: Cell
    required: bool = False
    default: str | None = None
    target: str | None = None
    new: bool = False


@dataclass(frozen=True, slots=True)
class Reference:
    """What a row names that must be known: ``missing`` is SQL that holds where it is not, for the cell ``column``;
    ``{column}`` in it is whether the sheet has that column. ``which`` is SQL for what of a list in that cell it is."""

    column: str
    missing: str
    code: str = "sheet_unknown"
    which: str | None = None


@dataclass(frozen=True, slots=True)
class Members:
    """A list in a cell that says all that belongs to the row's thing, of what is in the table ``among``.

    ``known`` joins it (alias ``v``) to a name of the list (alias ``w``: owner, clinic_id, name, place); ``owner`` and
    ``member`` are the columns of ours.
    """

    column: str
    kind: Kind
    owner: str
    member: str
    among: str
    known: str


@dataclass(frozen=True, slots=True)
class Sheet:
    """One sheet and the record kind of its rows.

    ``joins`` brings in what a row ``s`` refers to; ``match`` is SQL over ``t`` that finds the row without a number;
    ``natural`` is SQL for what two rows about one new thing have in common, null where what tells things apart refers
    to nothing known: the doctors of two clinics that could not be read are not one;
    ``written`` gives, by column of ours, the SQL of what is not simply a cell. ``known`` are the columns by which the
    sheets after it refer to a row. ``exported`` is the query behind an export, by column of the sheet.
    """

    key: str
    kind: Kind
    columns: tuple[Column, ...]
    match: str
    joins: str = ""
    written: Mapping[str, str] = field(default_factory=dict)
    natural: str = ""
    name: str = ""
    living: str = "true"
    references: tuple[Reference, ...] = ()
    members: tuple[Members, ...] = ()
    known: tuple[str, ...] = ()
    check: Callable[[Mapping[str, Any]], Reason | None] | None = None
    exported: str = ""

    @property
    def numbered(self) -> bool:
        """Whether an exported row carries its number, by which it is found again."""
        return NUMBER in self.columns

    @property
    def required(self) -> frozenset[str]:
        return frozenset(column.key for column in self.columns if column.required)

    @property
    def identifying(self) -> frozenset[str]:
        """Columns without which no row of it says anything."""
        return frozenset(column.key for column in self.columns if column.required and not column.new)


NUMBER = Column("number", cells.whole(1, 999_999_999))
CLINIC = Column("clinic", cells.CLINIC, required=True)
ACTIVE = Column("active", cells.YES_NO, default="true")
OF_CLINIC = "LEFT JOIN known_clinic k ON k.code = s.clinic"
OF_LOCATION = """
    LEFT JOIN known_location l ON l.clinic_id = k.id AND lower(l.name) = lower(s.location)"""
OF_AGENDA = """
    LEFT JOIN LATERAL (
        SELECT array_agg(DISTINCT g.id) AS ids FROM known_agenda g LEFT JOIN known_location l ON l.id = g.location_id
        WHERE g.clinic_id = k.id AND lower(g.name) = lower(s.agenda)
          AND (s.location IS NULL OR lower(l.name) = lower(s.location))) a ON true"""
WEEKDAY = "array_position(ARRAY['mon', 'tue', 'wed', 'thu', 'fri', 'sat', 'sun'], s.weekday)"
NO_CLINIC = Reference("clinic", "k.id IS NULL")
NO_LOCATION = Reference("location", "l.id IS NULL")
_UNKNOWN = "WHERE code NOT IN (SELECT v.code FROM known_service v WHERE v.clinic_id = k.id)"
NO_SERVICE = Reference(
    "services",
    f"EXISTS (SELECT FROM unnest(s.services) AS code {_UNKNOWN})",
    "sheet_unknown_service",
    f"(SELECT string_agg(code, '; ') FROM unnest(s.services) AS code {_UNKNOWN})",
)
SERVICE_OF_CLINIC = "known_service", "v.clinic_id = w.clinic_id AND v.code = w.name"


def service_codes(table: str, owner: str) -> str:
    return f"""ARRAY(SELECT v.code FROM {table} x JOIN service v ON v.id = x.service_id
                     WHERE x.{owner} = t.id AND v.deleted_at IS NULL ORDER BY v.code)"""
