"""Rows on their way into PostgreSQL: collected as COPY text in spooled files, poured with one COPY a table."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack

import psycopg
from psycopg import sql

from polydesk_dagster.database.bulk import Cell, text

_IN_MEMORY = 8 * 1024 * 1024
_CHUNK = 256 * 1024
_LINES = 4096

TABLES: Mapping[str, str] = {
    "municipality": "cadastral_code valid_from istat_code name other_name province region postal_codes",
    "clinic": "id code name language region municipality_code phone email horizon_days created_at",
    "location": "id clinic_id name address postal_code municipality_code phone",
    "specialist": "id clinic_id external_id title last_name first_name fiscal_code specialties email sort_name "
    "sort_name_manual active ends_on updated_at",
    "service": "id clinic_id external_id code name duration_minutes price preparation preparation_lead_days "
    "preparation_last_hours sensitive bookable_online active deleted_at updated_at",
    "service_group": "id clinic_id name",
    "service_group_member": "clinic_id service_group_id service_id",
    "resource": "id clinic_id location_id kind name",
    "service_resource": "clinic_id service_id resource_id",
    "agreement": "id clinic_id external_id name kind valid_from valid_to",
    "price": "id clinic_id service_id agreement_id specialist_id amount patient_share valid_from valid_to updated_at",
    "patient": "id fiscal_code fiscal_code_canonical fiscal_code_kind last_name first_name sex birth_date birth_place "
    "residence address postal_code email phone mobile language preferred_channel guardian_id deceased_on created_at "
    "updated_at",
    "app_user": "id clinic_id patient_id email display_name role state invited_at activated_at created_at",
    "agenda": "id clinic_id location_id specialist_id service_id resource_id external_id name auto_generate "
    "slot_minutes capacity min_notice_minutes online valid_to updated_at",
    "agenda_service": "clinic_id agenda_id service_id",
    "agenda_rule": "id agenda_id weekday starts_at ends_at crosses_midnight every_weeks valid_from valid_to updated_at",
    "closure": "id layer effect name date_from date_to from_time to_time yearly clinic_id agenda_id updated_at",
    "slot": "id agenda_id starts_at ends_at local_date capacity manual",
    "package": "id clinic_id patient_id name created_at",
    "appointment": "id clinic_id agenda_id slot_id service_id specialist_id patient_id package_id agreement_id "
    "starts_at ends_at start_version status channel quoted_price contact_email contact_phone verification_expires_at "
    "verified_at confirmed_by_staff_at paid_at accepted_at accepted_desk cancelled_at expired_at created_at updated_at",
    "hold": "id clinic_id slot_id token_hash visitor_hash state created_at expires_at last_activity_at "
    "confirming_since ended_at appointment_id",
    "seat": "slot_id unit hold_id appointment_id held_until",
}
"""The tables that the demo fills, each after those that it refers to, and their columns."""


class Sheet:
    """The rows of one table. An ``id`` is filled by the sheet, counting from 1."""

    def __init__(self, table: str, columns: Sequence[str]) -> None:
        self.table = table
        self.rows = 0
        self._numbered = columns[0] == "id"
        self._columns = columns
        self._lines: list[str] = []
        self._file = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY)  # noqa: SIM115 - closed by close()

    def add(self, **cells: Cell) -> int:
        """Add a row, absent columns null; returns its number, which is its id where the table has one."""
        given = self._columns[1:] if self._numbered else self._columns
        unknown = cells.keys() - set(given)
        if unknown:
            raise TypeError(f"{self.table} has no column {', '.join(sorted(unknown))}")
        return self.add_text("\t".join([text(cells.get(column)) for column in given]))

    def add_text(self, line: str) -> int:
        """Add a row already in COPY's text format, without the id: for the tables of many rows."""
        self.rows += 1
        self._lines.append(f"{self.rows}\t{line}" if self._numbered else line)
        if len(self._lines) >= _LINES:
            self._flush()
        return self.rows

    def _flush(self) -> None:
        if self._lines:
            self._file.write(("\n".join(self._lines) + "\n").encode())
            self._lines.clear()

    def pour(self, cursor: psycopg.Cursor[tuple[object, ...]]) -> None:
        """Copy the rows into the table and leave its identity behind the last id."""
        self._flush()
        self._file.seek(0)
        statement = sql.SQL("COPY {} ({}) FROM STDIN").format(
            sql.Identifier(self.table), sql.SQL(", ").join(map(sql.Identifier, self._columns))
        )
        with cursor.copy(statement) as copy:
            while chunk := self._file.read(_CHUNK):
                copy.write(chunk)
        if self._numbered and self.rows:
            cursor.execute("SELECT setval(pg_get_serial_sequence(%s, 'id'), %s)", (self.table, self.rows))

    def close(self) -> None:
        self._file.close()


class Sheets(ExitStack):
    """One sheet for each table of the demo; they close together."""

    def __init__(self) -> None:
        super().__init__()
        self._sheets = {table: Sheet(table, columns.split()) for table, columns in TABLES.items()}
        for sheet in self:
            self.callback(sheet.close)

    def __getitem__(self, table: str) -> Sheet:
        return self._sheets[table]

    def __iter__(self) -> Iterator[Sheet]:
        """In the order in which they can be poured."""
        return iter(self._sheets.values())
