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
from polydesk_dagster.sources import vendors
from polydesk_dagster.sources.conformance import Records
from polydesk_dagster.sources.fhir.records import MAKE
from polydesk_dagster.sources.files import tables
from polydesk_dagster.sources.files.folders import File, LocalFolder
from polydesk_dagster.sources.files.maps import FilesSettings
from polydesk_dagster.sources.files.source import Files
from polydesk_dagster.sources.files.vendor import VENDOR as FILES
from polydesk_dagster.sources.port import RECORDS, Link, Source
from polydesk_dagster.sources.studiolab.client import Studiolab
from polydesk_dagster.values import Reason
from tests.sources.fhir_server import SLOT, FhirServer, booked, meta, resource
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


FAILURES: Mapping[str, dict[str, Any]] = {
    "silent": {"kind": "deaf", "seconds": 0.9},
    "status_500": {"kind": "status", "status": 500},
    "status_429": {"kind": "status", "status": 429, "retry_after": 5},
    "cut": {"kind": "cut", "share": 0.6},
    "expired": {"kind": "status", "status": 401},
}
"""By fault, what every simulator is asked for."""


@dataclass
class StudiolabStage:
    """Studiolab's simulator on a socket."""

    simulator: Shifting
    url: str
    carries: Mapping[str, frozenset[str]] = field(default_factory=lambda: dict(ALL_FIELDS))
    faults: frozenset[str] = frozenset({*FAILURES, "other_type", "emptied", "page_again"})
    overcome: frozenset[str] = frozenset()
    fixed: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=lambda: {"POLYDESK_STUDIOLAB_TOKEN_BO01": DEMO_TOKEN})
    silent: bool = False

    @property
    def link(self) -> Link:
        return Link("BO01", "studiolab", {"url": self.url, "token": "POLYDESK_STUDIOLAB_TOKEN_BO01"})

    def hold(self, kind: str, records: Records) -> None:
        self.recover()
        self.simulator.hold("BO01", {kind: records})

    def spoil(self, kind: str) -> None:
        wrong = {"prices": "amount", "municipalities": "province"}.get(kind, "valid_from")
        if wrong not in RECORDS[kind].__struct_fields__:
            wrong = "duration_minutes" if kind == "services" else "last_name"
        self.simulator.fail("set", f"/{kind}", field=wrong, value=[7])

    def fail(self, fault: str, after: int) -> None:
        self.silent = fault == "silent"
        of_pages = {
            "other_type": {"kind": "top", "field": "items", "value": {"no": "list"}},
            "emptied": {"kind": "top", "field": "items", "value": []},
            "page_again": {"kind": "top", "field": "next_page", "value": "0"},
        }
        self.simulator.fail(**(FAILURES | of_pages)[fault], after=after, times=None)

    def recover(self) -> None:
        self.silent = False
        self.simulator.faults.clear()

    def change_while_read(self, kind: str, records: Records) -> None:
        self.simulator.following = (kind, records)

    def happen(self, key: str) -> None:
        data = {
            "patient_id": "P1", "service_id": "S1", "agenda_id": "A1", "status": "booked",
            "starts_at": "2026-03-12T09:00:00+01:00", "ends_at": "2026-03-12T09:30:00+01:00",
        }  # fmt: skip
        entity = {"type": "appointment", "id": key}
        self.simulator.publish("BO01", {"type": "appointment.created", "entity": entity, "data": data})

    def forget(self) -> None:
        feed = self.simulator.feed("BO01")
        feed.forget(feed.last)

    def merge(self, gone: str, into: str) -> None:
        patients = self.simulator.data["BO01"]["patients"]
        merged = [each | {"merged_into": into} if each["id"] == gone else each for each in patients]
        self.simulator.hold("BO01", {"patients": merged})

    def open(self) -> Studiolab:
        return Studiolab("BO01", self.url, DEMO_TOKEN, HURRIED if self.silent else ONCE)

    def other(self) -> Studiolab:
        return Studiolab("BO01", self.url.replace("/BO01/", "/MI01/"), DEMO_TOKEN, ONCE)


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
    fixed: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    overcome: frozenset[str] = frozenset()
    whole: dict[Path, bytes] = field(default_factory=dict)

    @property
    def secrets(self) -> Mapping[str, str]:
        return {"POLYDESK_FILES_TOKEN_BO01": str(self.path)}

    @property
    def link(self) -> Link:
        return Link("BO01", "files", self._settings("POLYDESK_FILES_TOKEN_BO01"))

    @property
    def faults(self) -> frozenset[str]:
        return frozenset({"other_type", "emptied"} | ({"cut"} if self.xlsx else set()))

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

    def fail(self, fault: str, after: int) -> None:  # noqa: ARG002 - a file is read at once
        self.whole = {file: file.read_bytes() for file in self.path.iterdir()}
        page = b"<html><table><tr><td>Accesso negato</td></tr></table></html>"
        for file, data in self.whole.items():
            file.write_bytes({"cut": data[: len(data) * 2 // 3], "emptied": b""}.get(fault, page))

    def recover(self) -> None:
        for file, data in self.whole.items():
            file.write_bytes(data)
        self.whole = {}

    def change_while_read(self, kind: str, records: Records) -> None:
        CHANGES.append(lambda: self.hold(kind, records))

    def _settings(self, token: str) -> dict[str, Any]:
        ending = "xlsx" if self.xlsx else "csv"
        lists = {
            kind: {
                "file": f"{kind}.{ending}",
                "columns": {name: heading(name) for name in fields if name != "updated_at"},
                "fixed": {"updated_at": "2026-03-01T10:00:00+00:00"} if kind == "patients" else {},
            }
            for kind, fields in self.carries.items()
        }
        return {"token": token, "lists": lists}

    def _opened(self, token: str) -> Files:
        system = Reason("system_source", {"of": "BO01"})
        settings = FilesSettings.model_validate(self._settings(token))
        return Files(settings, FILES.epoch(settings), Changing(self.path, system), system)

    def open(self) -> Files:
        return self._opened("POLYDESK_FILES_TOKEN_BO01")

    def other(self) -> Files:
        return self._opened("POLYDESK_FILES_TOKEN_MI01")


@dataclass
class FhirStage:
    """A FHIR server on a socket, whose tokens are got by a key and may expire."""

    server: FhirServer
    url: str
    faults: frozenset[str] = frozenset({*FAILURES, "other_type", "emptied", "page_again"})
    overcome: frozenset[str] = frozenset({"expired"})
    fixed: Mapping[str, dict[str, Any]] = field(default_factory=lambda: {"services": {"duration_minutes": 30}})
    versions: int = 0
    silent: bool = False

    @property
    def secrets(self) -> Mapping[str, str]:
        return {"POLYDESK_FHIR_TOKEN_BO01": self.server.public_key.as_pem(private=True).decode()}

    @property
    def link(self) -> Link:
        return self._link(self.url)

    def _link(self, url: str) -> Link:
        settings = {
            "url": url,
            "token": "POLYDESK_FHIR_TOKEN_BO01",
            "smart": {"client_id": "polydesk", "token_url": self.url.replace("/fhir", "/token")},
            "duration_minutes": 30,
            "agreement_kinds": {kind: kind for kind in ("insurance", "fund", "company", "public")},
        }
        return Link("BO01", "fhir", settings)

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
        self.recover()
        self.server.following = None
        self.server.held[MAKE[kind][0]] = self._resources(kind, records)

    def spoil(self, kind: str) -> None:
        it = self.server.held[MAKE[kind][0]][0]
        if kind == "prices":
            it["propertyGroup"][0]["priceComponent"].append(it["propertyGroup"][0]["priceComponent"][0])
        else:
            it["name"] = 7

    def fail(self, fault: str, after: int) -> None:
        self.silent = fault == "silent"
        if fault == "page_again":
            self.server.again = after
            return
        of_pages = {
            "other_type": {"kind": "top", "field": "entry", "value": {"no": "list"}},
            "emptied": {"kind": "top", "field": "entry", "value": []},
        }
        self.server.fail(**(FAILURES | of_pages)[fault], after=after, times=1 if fault == "expired" else None)

    def recover(self) -> None:
        self.silent = False
        self.server.again = self.server.next_link = None
        self.server.faults.clear()

    def lead_to(self, url: str) -> None:
        self.server.next_link = f"{url}/fhir/Patient?_offset=2"

    def happen(self, key: str) -> None:
        """Two by two at the same moment."""
        number = len(self.server.held["Appointment"])
        self.server.held["Slot"] = [SLOT]
        self.server.held["Appointment"].append(booked(key) | {"meta": meta(number // 2) | {"versionId": str(number)}})

    def merge(self, gone: str, into: str) -> None:
        link = [{"other": {"reference": f"Patient/{into}"}, "type": "replaced-by"}]
        (it,) = (each for each in self.server.held["Patient"] if each["id"] == gone)
        it.update(link=link, active=False)

    def change_while_read(self, kind: str, records: Records) -> None:
        self.server.following = (MAKE[kind][0], self._resources(kind, records))

    def _opened(self, link: Link) -> Source:
        return vendors.open_source(link, self.secrets.get, HURRIED if self.silent else ONCE)

    def open(self) -> Source:
        return self._opened(self.link)

    def other(self) -> Source:
        return self._opened(self._link(self.url.replace("/fhir", "/fhir/other")))
