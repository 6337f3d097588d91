"""Spreadsheets as practices and authorities have them: encodings, headings, notes, numbers, and where a fault is."""

from __future__ import annotations

import asyncio
import gzip
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from polydesk_dagster.changes.plans import Scope
from polydesk_dagster.commands.clinics import read_settings
from polydesk_dagster.errors import ConfigurationError, PermanentError, TransientError
from polydesk_dagster.outcome import Outcome
from polydesk_dagster.sources import lists, vendors
from polydesk_dagster.sources.conformance import read
from polydesk_dagster.sources.files.source import Files
from polydesk_dagster.sources.files.vendor import VENDOR, FilesSettings
from polydesk_dagster.sources.port import Link, Page
from polydesk_dagster.told import teller
from tests import world
from tests.sources.test_remote_policy import FAST
from tests.waiting import PATIENCE

VARIABLE = "POLYDESK_FILES_TOKEN_BO01"
SERVICES = {
    "id": "CODICE_NOMENCLATORE",
    "code": "CODICE_NOMENCLATORE",
    "name": "DENOMINAZIONE_COMPLETA",
}
FIXED = {"duration_minutes": 20, "active": True}
PRICES = {
    "file": "listino*.csv",
    "columns": {"service_id": "CODICE_NOMENCLATORE", "amount": "TARIFFA", "valid_from": "DATA_INIZIO_VALIDITA"},
    "fixed": {"currency": "EUR"},
}
COMUNI = {
    "file": "comuni.csv",
    "columns": {
        "cadastral_code": "Codice Catastale del comune",
        "istat_code": "Codice Comune formato alfanumerico",
        "name": "Denominazione in italiano",
        "other_name": "Denominazione altra lingua",
        "province": "Sigla automobilistica",
        "region": "Denominazione Regione",
    },
    "fixed": {"valid_from": "1861-03-17"},
}


def files(folder: Path, **tables: dict[str, Any]) -> Files:
    settings = FilesSettings.model_validate({"token": VARIABLE, "lists": tables})
    return VENDOR.open("BO01", settings, lambda _: str(folder))


def unpack(data: Path, folder: Path, name: str) -> None:
    (folder / name).write_bytes(gzip.decompress(data.read_bytes()))


def only(source: Files, kind: str) -> Page[Any]:
    (page,) = source.list(kind)
    return page


def said(page: Page[Any]) -> list[str]:
    return [teller("it").reason(rejected.reason) for rejected in page.rejected]


def test_istats_municipalities_keep_napoli_and_their_zeros(
    tmp_path: Path, shared_data: Path, engine: sa.Engine
) -> None:
    unpack(shared_data / "comuni" / "istat_elenco_comuni_2023-11-05.csv.gz", tmp_path, "comuni.csv")
    source = files(tmp_path, municipalities=COMUNI)
    found, _ = read(source, "municipalities")
    assert len(found) == 7901
    assert len([each for each in found if each["province"] == "NA"]) == 92
    assert min(each["istat_code"] for each in found) == "001001"
    report = lists.synchronise(engine, source, "municipalities", Scope("import_municipalities"), as_of=world.AS_OF)
    assert (report.outcome, report.counts.created) == (Outcome.OK, 7901)
    again = lists.synchronise(engine, source, "municipalities", Scope("import_municipalities"), as_of=world.AS_OF)
    assert again.reasons[0].code == "not_modified"


def test_umbrias_tariffs_become_services_and_prices(tmp_path: Path, shared_data: Path) -> None:
    unpack(shared_data / "listino" / "umbria_nomenclatore_v03_2024-09-17.csv.gz", tmp_path, "vecchio.csv")
    unpack(shared_data / "listino" / "umbria_nomenclatore_v04_2025-01-09.csv.gz", tmp_path, "listino_v04.csv")
    services = {"file": "listino_v04.csv", "columns": SERVICES, "fixed": FIXED}
    old = PRICES | {"file": "vecchio.csv", "columns": PRICES["columns"] | {"amount": "PREZZO"}}
    with_noise, _ = read(files(tmp_path, prices=old), "prices")
    assert len(with_noise) == 1975
    assert "54.00" in {each["code"] for each in read(files(tmp_path, services=services), "services")[0]}
    page = only(files(tmp_path, prices=PRICES), "prices")
    assert len(page.records) + len(page.rejected) == 2110
    with pytest.raises(PermanentError, match="file_headings") as caught:
        only(files(tmp_path, prices=PRICES | {"file": "vecchio.csv"}), "prices")
    assert "TARIFFA" in teller("it").reason(caught.value.reason)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252", "utf-16"])
@pytest.mark.parametrize("separator", [";", ",", "\t"])
def test_encodings_and_separators_are_found(tmp_path: Path, encoding: str, separator: str) -> None:
    rows = [["Codice", "Prestazione", "Prezzo"], ["007", "Visita (Forlì; Cesena, ecc.)", "1.234,50 €"]]
    text = "\r\n".join(separator.join(f'"{cell}"' for cell in row) for row in rows)
    (tmp_path / "a.csv").write_bytes(text.encode(encoding))
    columns = {"id": "codice", "code": "CODICE", "name": "Prestazione"}
    source = files(
        tmp_path,
        services={"file": "a.csv", "columns": columns, "fixed": FIXED},
        prices={
            "file": "a.csv",
            "columns": {"service_id": "Codice", "amount": "Prezzo"},
            "fixed": {"currency": "EUR", "valid_from": "2026-01-01"},
        },
    )
    (service,) = only(source, "services").records
    assert (service.id, service.name) == ("007", "Visita (Forlì; Cesena, ecc.)")
    (price,) = only(source, "prices").records
    assert str(price.amount) == "1234.50"


def test_what_is_the_same_in_every_row_is_written_as_in_a_cell_or_as_toml_has_it(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("Codice;Visita\n007;ORL\n")
    (tmp_path / "bo01.toml").write_text("valid_from = 2026-01-01\n")
    services = {"id": "Codice", "code": "Codice", "name": "Visita"}
    said = {"currency": "EUR", "amount": "1.234,50 €"} | read_settings(tmp_path / "bo01.toml")
    source = files(
        tmp_path,
        services={"file": "a.csv", "columns": services, "fixed": {"active": "sì", "duration_minutes": "0:30"}},
        prices={"file": "a.csv", "columns": {"service_id": "Codice"}, "fixed": said | {"valid_to": "31/12/2026"}},
    )
    (service,) = only(source, "services").records
    assert (service.active, service.duration_minutes) == (True, 30)
    (price,) = only(source, "prices").records
    assert (str(price.amount), str(price.valid_from), str(price.valid_to)) == ("1234.50", "2026-01-01", "2026-12-31")


def test_what_a_file_has_no_column_for_stays_as_it_is_held(tmp_path: Path, engine: sa.Engine) -> None:
    (tmp_path / "a.csv").write_text("Codice;Visita;Note\n007;ORL;\n")
    columns = {"id": "Codice", "code": "Codice", "name": "Visita"}
    table = {"file": "a.csv", "columns": columns, "fixed": {"active": "sì", "duration_minutes": 30}}
    with engine.begin() as connection:
        clinic = world.clinic(connection, "BO01")
        world.service(connection, clinic, code="007", name="Visita", preparation="A digiuno", duration_minutes=30)
    held = []
    for more in ({}, {"preparation": "Note"}):
        source = files(tmp_path, services=table | {"columns": columns | more})
        scope = Scope("sync_services", "BO01", clinic)
        assert lists.synchronise(engine, source, "services", scope, as_of=world.AS_OF).counts.updated == 1
        with engine.connect() as connection:
            held.append(tuple(connection.execute(sa.text("SELECT name, preparation FROM service")).one()))
    assert held == [("ORL", "A digiuno"), ("ORL", None)]


def test_numbers_that_stand_fixed_are_decimals(tmp_path: Path) -> None:
    """From TOML through the integration's JSON, also from a row that was written as a number."""
    (tmp_path / "a.csv").write_text("Codice;Fascia\n007;A\n008;B\n")
    (tmp_path / "bo01.toml").write_text("amount = 33.30\nvat_rate = 22.0\nfascia = 10.10\nvalid_from = 2026-01-01\n")
    said = read_settings(tmp_path / "bo01.toml")
    band = {"heading": "Fascia", "values": {"A": said.pop("fascia"), "B": 12}}
    columns = {"service_id": "Codice", "patient_share": band}
    for amount in (said["amount"], 33.3, 33):
        fixed = {"currency": "EUR", **said, "amount": amount}
        source = files(tmp_path, prices={"file": "a.csv", "columns": columns, "fixed": json.loads(json.dumps(fixed))})
        page = only(source, "prices")
        assert not page.rejected, page.rejected
        exact = [[*map(Decimal, (it.amount, it.vat_rate, it.patient_share))] for it in page.records]
        shares = ("10.10", "12")
        assert exact == [[Decimal(str(amount)), Decimal(22), Decimal(share)] for share in shares]


def workbook(file: Path) -> None:
    """A price list as people keep one: a title, headings of two rows merged, dates, a formula that failed, notes."""
    from datetime import datetime

    import openpyxl

    book = openpyxl.Workbook()
    book.active.title = "Leggimi"
    book.active["A1"] = "Listino interno"
    sheet = book.create_sheet("Tariffe 2026")
    sheet["A1"] = "Poliambulatorio: listino in vigore"
    sheet.merge_cells("A1:E1")
    sheet["C3"] = "Tariffa"
    sheet.merge_cells("C3:D3")
    for place, title in enumerate(("Codice", "Descrizione", "Privato", "Fondo", "Dal"), 1):
        sheet.cell(4, place, title)
    sheet["A5"] = "CARDIOLOGIA E DINTORNI"
    sheet.append(["0012", "Visita", 33.300000000000004, "12,5", datetime(2026, 1, 1)])
    sheet.append(["NA", "Ecografia", "1.250,00", 40, 46023])
    sheet.append(["X9", "Test", "#RIF!", 40, "31/02/2026"])
    sheet.append(["Y1"])
    sheet.append([])
    sheet.append(["I prezzi si intendono per una seduta."])
    book.save(file)


XLSX = {
    "file": "*.xlsx",
    "columns": {
        "service_id": "Codice",
        "amount": "Tariffa Privato",
        "patient_share": "Tariffa Fondo",
        "valid_from": "Dal",
    },
    "fixed": {"currency": "EUR"},
}


def test_a_workbook_as_people_keep_one(tmp_path: Path) -> None:
    workbook(tmp_path / "listino.xlsx")
    page = only(files(tmp_path, prices=XLSX), "prices")
    assert [(each.service_id, each.amount, each.patient_share, str(each.valid_from)) for each in page.records] == [
        ("0012", "33.3", "12.5", "2026-01-01"),
        ("NA", "1250.00", "40", "2026-01-01"),
    ]
    first, second = said(page)
    assert first == (
        "file listino.xlsx, foglio Tariffe 2026, riga 8: una formula non ha dato un valore (colonna Tariffa Privato)"
    )
    assert "riga 9" in second
    assert "Tariffa Privato" in second
    assert page.rejected[1].key == "Y1", "what has a name and nothing else is a record, and wrong: it is not gone"


def test_leading_zeros_that_a_spreadsheet_dropped_come_back(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("Id;Cognome;Nome;CAP\n1;Rossi;Anna;184\n")
    columns = {"id": "Id", "last_name": "Cognome", "first_name": "Nome", "postal_code": {"heading": "CAP", "digits": 5}}
    (patient,) = only(files(tmp_path, patients={"file": "p.csv", "columns": columns}), "patients").records
    assert patient["postal_code"] == "00184"


@pytest.mark.parametrize("pattern", ["../secret.csv", "/etc/passwd", "a/../../b.csv", ""])
def test_a_file_stands_below_the_folder(pattern: str) -> None:
    link = Link("BO01", "files", {"token": VARIABLE, "lists": {"services": {"file": pattern, "columns": SERVICES}}})
    with pytest.raises(ConfigurationError, match="source_settings"):
        vendors.settings(link)


def test_a_link_out_of_the_folder_is_no_file(tmp_path: Path) -> None:
    outside, folder = tmp_path / "fuori.csv", tmp_path / "dentro"
    folder.mkdir()
    outside.write_text("CODICE_NOMENCLATORE;DENOMINAZIONE_COMPLETA\n1;a\n")
    (folder / "a.csv").symlink_to(outside)
    table = {"file": "a.csv", "columns": SERVICES, "fixed": FIXED}
    with pytest.raises(PermanentError, match="file_missing"):
        only(files(folder, services=table), "services")


@pytest.mark.parametrize(
    ("lists_", "said_"),
    [
        ({"appuntamenti": {"file": "a.csv", "columns": {}}}, "list_unknown"),
        ({"services": {"file": "a.csv", "columns": {"prezzo": "Prezzo"}}}, "field_unknown"),
        ({"services": {"file": "a.csv", "columns": SERVICES, "password": "hunter2"}}, "unknown"),
    ],
)
def test_a_map_that_makes_no_sense_is_refused_by_name(lists_: dict[str, Any], said_: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        vendors.settings(Link("BO01", "files", {"token": VARIABLE, "lists": lists_}))
    assert said_ in str(caught.value.reason.as_dict())
    assert "hunter2" not in str(caught.value)


def test_pandas_is_loaded_when_a_file_is_read_and_not_before() -> None:
    import subprocess
    import sys

    code = "import sys, polydesk_dagster.sources.files.vendor; sys.exit('pandas' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@contextmanager
def sftp(folder: Path, client_key: Any) -> Iterator[tuple[int, str]]:
    """A real SSH server on loopback, whose root is ``folder``; yields its port and its public key."""
    import asyncssh

    host = asyncssh.generate_private_key("ssh-ed25519")
    ready, loop = threading.Event(), asyncio.new_event_loop()
    port: list[int] = []

    class Server(asyncssh.SFTPServer):
        def __init__(self, channel: Any) -> None:
            super().__init__(channel, chroot=str(folder).encode())

    async def serve() -> None:
        keys = asyncssh.import_authorized_keys(client_key.export_public_key().decode())
        server = await asyncssh.listen(
            "127.0.0.1", 0, server_host_keys=[host], authorized_client_keys=keys, sftp_factory=Server
        )
        port.append(server.sockets[0].getsockname()[1])
        ready.set()

    def run() -> None:
        loop.create_task(serve())
        loop.run_forever()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert ready.wait(PATIENCE)
    try:
        yield port[0], host.export_public_key().decode().strip()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(PATIENCE)


def test_a_folder_behind_sftp(tmp_path: Path) -> None:
    import asyncssh

    folder, mine = tmp_path / "casa", asyncssh.generate_private_key("ssh-ed25519")
    (folder / "listini").mkdir(parents=True)
    workbook(folder / "listini" / "listino_2026.xlsx")
    workbook(folder / "listini" / "listino_2025.xlsx")
    with sftp(folder, mine) as (port, key):
        given = {
            "token": VARIABLE,
            "url": f"sftp://127.0.0.1:{port}/listini",
            "user": "bo01",
            "host_key": key,
            "lists": {"prices": XLSX},
        }
        private = mine.export_private_key().decode()
        source = VENDOR.open("BO01", FilesSettings.model_validate(given), lambda _: private, FAST)
        assert source.epoch == f"files sftp://127.0.0.1:{port}/listini"
        page = only(source, "prices")
        assert len(page.records) == 2
        assert "listino_2026.xlsx" in said(page)[0]
        other = asyncssh.generate_private_key("ssh-ed25519")
        stranger = VENDOR.open(
            "BO01", FilesSettings.model_validate(given), lambda _: other.export_private_key().decode(), FAST
        )
        with pytest.raises(PermanentError, match="sftp_refused"):
            only(stranger, "prices")
        impostor = FilesSettings.model_validate(given | {"host_key": other.export_public_key().decode().strip()})
        with pytest.raises(PermanentError, match="sftp_refused"):
            only(VENDOR.open("BO01", impostor, lambda _: private, FAST), "prices")
    with pytest.raises(TransientError, match="source_folder_unreadable"):
        only(
            VENDOR.open("BO01", FilesSettings.model_validate(given), lambda _: private, replace(FAST, connect=2)),
            "prices",
        )
