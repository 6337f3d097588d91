"""Systems as real as they get, that hold what a test says and misbehave when asked: what the conformance kit needs."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from starlette.requests import Request

from polydesk_dagster.demo.simulators.faults import Reply
from polydesk_dagster.demo.simulators.server import DEMO_TOKEN
from polydesk_dagster.demo.simulators.studiolab import StudiolabSimulator
from polydesk_dagster.sources.conformance import Records
from polydesk_dagster.sources.fhir.records import MAKE
from polydesk_dagster.sources.fhir.source import Fhir
from polydesk_dagster.sources.fhir.vendor import VENDOR, FhirSettings
from polydesk_dagster.sources.files import tables
from polydesk_dagster.sources.files.folders import File, LocalFolder
from polydesk_dagster.sources.files.maps import FilesSettings
from polydesk_dagster.sources.files.source import Files
from polydesk_dagster.sources.port import RECORDS
from polydesk_dagster.sources.studiolab.client import Studiolab
from polydesk_dagster.values import Reason
from tests.sources.fhir_server import FhirServer, resource
from tests.sources.test_remote_policy import FAST

ONCE = replace(FAST, attempts=1)
HURRIED = replace(ONCE, read=0.3, request=0.6)
"""For who says nothing: nobody is waited for."""

ALL_FIELDS = {kind: frozenset(model.__struct_fields__) for kind, model in RECORDS.items()}


class Shifting(StudiolabSimulator):
    """Holds something else once a list has been begun."""

    def __init__(self) -> None:
        super().__init__()
        self.following: tuple[str, Records] | None = None

    async def _list(self, request: Request) -> Reply:
        reply = await super()._list(request)
        if self.following is not None:
            kind, records = self.following
            self.following = None
            self.hold("BO01", {kind: records})
        return reply


@dataclass
class StudiolabStage:
    """Studiolab's simulator on a socket."""

    simulator: Shifting
    url: str
    carries: Mapping[str, frozenset[str]] = field(default_factory=lambda: dict(ALL_FIELDS))
    faults: frozenset[str] = frozenset({"silent", "status_500", "status_429", "cut", "other_type", "page_again"})
    secret: str = DEMO_TOKEN
    fixed: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    silent: bool = False

    def hold(self, kind: str, records: Records) -> None:
        self.silent = False
        self.simulator.faults.clear()
        self.simulator.hold("BO01", {kind: records})

    def spoil(self, kind: str) -> None:
        wrong = {"prices": "amount", "municipalities": "province"}.get(kind, "valid_from")
        if wrong not in RECORDS[kind].__struct_fields__:
            wrong = "duration_minutes" if kind == "services" else "last_name"
        self.simulator.fail("set", f"/{kind}", field=wrong, value=[7])

    def fail(self, fault: str) -> None:
        self.silent = fault == "silent"
        options: dict[str, Any] = {
            "silent": {"kind": "deaf", "seconds": 1.5},
            "status_500": {"kind": "status", "status": 500},
            "status_429": {"kind": "status", "status": 429, "retry_after": 5},
            "cut": {"kind": "cut", "share": 0.6},
            "other_type": {"kind": "top", "field": "items", "value": {"no": "list"}},
            "page_again": {"kind": "top", "field": "next_page", "value": "0"},
        }[fault]
        self.simulator.fail(options.pop("kind"), times=None, **options)

    def change_while_read(self, kind: str, records: Records) -> None:
        self.simulator.following = (kind, records)

    def open(self) -> Studiolab:
        return Studiolab("BO01", self.url, DEMO_TOKEN, HURRIED if self.silent else ONCE)


FORMS: dict[str, Any] = {"duration_minutes": str, "active": lambda yes: "sì" if yes else "no"}


def cell(name: str, value: Any) -> str:
    """A value as a practice would have it in a cell."""
    if value is None:
        return ""
    if isinstance(value, list | tuple):
        return ", ".join(value)
    if name in {"amount", "patient_share"}:
        return str(value).replace(".", ",")
    if name.startswith("valid_") or name in {"birth_date", "deceased_on", "ends_on"}:
        year, month, day = str(value).split("-")
        return f"{day}/{month}/{year}"
    return str(FORMS.get(name, str)(value))


def heading(name: str) -> str:
    return f"Colonna {name}"


class Changing(LocalFolder):
    """A folder in which a file is saved anew while it is being read."""

    def read(self, file: File) -> bytes:
        data = super().read(file)
        if CHANGES:
            CHANGES.pop()()
        return data


CHANGES: list[Any] = []


@dataclass
class FilesStage:
    """A folder with one CSV or XLSX file for each list, written as a spreadsheet writes it."""

    path: Path
    xlsx: bool
    separator: str = ";"
    encoding: str = "utf-8-sig"
    carries: Mapping[str, frozenset[str]] = field(default_factory=lambda: dict(ALL_FIELDS))
    secret: str = "/a/folder/of/ours"
    fixed: Mapping[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def faults(self) -> frozenset[str]:
        return frozenset({"cut", "other_type"} if self.xlsx else {"other_type"})

    def _file(self, kind: str) -> Path:
        return self.path / f"{kind}.{'xlsx' if self.xlsx else 'csv'}"

    def hold(self, kind: str, records: Records) -> None:
        names = sorted(self.carries[kind] - ({"updated_at"} if kind == "patients" else set()))
        rows = [[heading(name) for name in names]]
        rows += [[cell(name, record.get(name)) for name in names] for record in records]
        self.write(kind, rows)

    def write(self, kind: str, rows: list[list[str]]) -> None:
        if self.xlsx:
            import openpyxl

            book = openpyxl.Workbook()
            sheet = book.active
            assert sheet is not None
            for number, row in enumerate(rows, 1):
                for place, text in enumerate(row, 1):
                    if text:
                        sheet.cell(number, place, text).data_type = "s"
            book.save(self._file(kind))
        else:
            out = io.StringIO()
            csv.writer(out, delimiter=self.separator).writerows(rows)
            self._file(kind).write_bytes(out.getvalue().encode(self.encoding))

    def spoil(self, kind: str) -> None:
        table, rows = self.open().settings.lists[kind], []
        fields = ("amount", "province", "duration_minutes", "kind", "last_name")
        wrong = next(name for name in fields if name in table.columns)

        file = self._file(kind)
        sheet = tables.read(file.name, file.read_bytes(), table, RECORDS[kind].KEY)
        names = list(table.columns)
        rows = [[heading(name) for name in names], *([row.cells[name] for name in names] for row in sheet.rows)]
        rows[1][names.index(wrong)] = "#RIF!" if wrong != "last_name" else ""
        self.write(kind, rows)

    def fail(self, fault: str) -> None:
        for file in self.path.iterdir():
            data = file.read_bytes()
            page = b"<html><table><tr><td>Accesso negato</td></tr></table></html>"
            file.write_bytes(data[: len(data) * 2 // 3] if fault == "cut" else page)

    def change_while_read(self, kind: str, records: Records) -> None:
        CHANGES.append(lambda: self.hold(kind, records))

    def open(self) -> Files:
        ending = "xlsx" if self.xlsx else "csv"
        lists = {
            kind: {
                "file": f"{kind}.{ending}",
                "columns": {name: heading(name) for name in fields if name != "updated_at"},
                "fixed": {"updated_at": "2026-03-01T10:00:00+00:00"} if kind == "patients" else {},
            }
            for kind, fields in self.carries.items()
        }
        settings = FilesSettings.model_validate({"token": "POLYDESK_FILES_TOKEN_BO01", "lists": lists})
        system = Reason("system_source", {"of": "BO01"})
        return Files(settings, "files POLYDESK_FILES_TOKEN_BO01", Changing(self.path, system), system)


@dataclass
class FhirStage:
    """A FHIR server on a socket."""

    server: FhirServer
    url: str
    faults: frozenset[str] = frozenset({"silent", "status_500", "status_429", "cut", "other_type", "page_again"})
    secret: str = DEMO_TOKEN
    fixed: Mapping[str, dict[str, Any]] = field(default_factory=lambda: {"services": {"duration_minutes": 30}})
    versions: int = 0
    silent: bool = False

    @property
    def carries(self) -> Mapping[str, frozenset[str]]:
        """FHIR has no cadastral codes, no durations, and no price of one doctor."""
        without = {
            "patients": {"birth_place", "residence", "phone"},
            "collaborators": {"ends_on"},
            "services": {"duration_minutes"},
            "prices": {"collaborator_id", "vat_rate", "patient_share"},
        }
        return {kind: ALL_FIELDS[kind] - without.get(kind, set()) for kind in MAKE}

    def _resources(self, kind: str, records: Records) -> list[Any]:
        self.versions += 1
        return [resource(kind, record, self.versions * 100 + n) for n, record in enumerate(records)]

    def hold(self, kind: str, records: Records) -> None:
        self.silent = False
        self.server.faults.clear()
        self.server.following = None
        self.server.held[MAKE[kind][0]] = self._resources(kind, records)

    def spoil(self, kind: str) -> None:
        it = self.server.held[MAKE[kind][0]][0]
        if kind == "prices":
            it["propertyGroup"][0]["priceComponent"].append(it["propertyGroup"][0]["priceComponent"][0])
        else:
            it["name"] = 7

    def fail(self, fault: str) -> None:
        self.silent = fault == "silent"
        options: dict[str, Any] = {
            "silent": {"kind": "deaf", "seconds": 1.5},
            "status_500": {"kind": "status", "status": 500},
            "status_429": {"kind": "status", "status": 429, "retry_after": 5},
            "cut": {"kind": "cut", "share": 0.6},
            "other_type": {"kind": "top", "field": "entry", "value": {"no": "list"}},
            "page_again": {"kind": "top", "field": "link", "value": [{"relation": "next", "url": "?_offset=0"}]},
        }[fault]
        self.server.fail(options.pop("kind"), times=None, **options)

    def change_while_read(self, kind: str, records: Records) -> None:
        self.server.following = (MAKE[kind][0], self._resources(kind, records))

    def open(self) -> Fhir:
        settings = FhirSettings.model_validate(
            {
                "url": self.url,
                "token": "POLYDESK_FHIR_TOKEN_BO01",
                "duration_minutes": 30,
                "agreement_kinds": {kind: kind for kind in ("insurance", "fund", "company", "public")},
            }
        )
        return VENDOR.open("BO01", settings, lambda _: DEMO_TOKEN, HURRIED if self.silent else ONCE)
