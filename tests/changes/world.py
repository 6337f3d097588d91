"""Pages for the engine's tests: studiolab's records made from plain values or from the public lists."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Iterable, Iterator
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from polydesk_dagster.changes.stage import Page, Unreadable

EPOCH = date(1861, 3, 17)


def pages(
    records: Iterable[Any], *, size: int = 500, snapshot: str = "s1", bad: Iterable[Unreadable] = ()
) -> list[Page]:
    """Everything in pages of ``size``; the bad records come with the first."""
    records, bad = list(records), list(bad)
    total = len(records) + len(bad)
    cut = [records[first : first + size] for first in range(0, len(records), size)] or [[]]
    return [Page(n, part, bad if n == 1 else (), snapshot, total) for n, part in enumerate(cut, 1)]


def read(path: Path, delimiter: str = ",") -> Iterator[dict[str, str]]:
    with gzip.open(path, "rt", encoding="utf-8-sig", newline="") as file:
        yield from csv.DictReader(file, delimiter=delimiter)


def municipality(code: str, name: str, **fields: Any) -> SimpleNamespace:
    defaults: dict[str, Any] = {
        "cadastral_code": code,
        "istat_code": "037006",
        "name": name,
        "other_name": None,
        "province": "BO",
        "region": "Emilia-Romagna",
        "postal_codes": [],
        "valid_from": EPOCH,
        "valid_to": None,
        "successor": None,
    }
    return SimpleNamespace(**{**defaults, **fields})


def istat(path: Path) -> list[SimpleNamespace]:
    """A list of ISTAT, whose columns are named otherwise from one edition to the next and hold no validity."""
    later = "situas" in path.name
    names = (
        ("Codice catasto", "Codice Comune (alfanumerico)", "Comune (dizione italiana)", "Comune (dizione straniera)")
        if later
        else (
            "Codice Catastale del comune",
            "Codice Comune formato alfanumerico",
            "Denominazione in italiano",
            "Denominazione altra lingua",
        )
    )
    region = "Regione" if later else "Denominazione Regione"
    return [
        municipality(
            row[names[0]],
            row[names[2]],
            istat_code=row[names[1]],
            other_name=row[names[3]] or None,
            province=row["Sigla automobilistica"],
            region=row[region],
        )
        for row in read(path, ";" if later else ",")
    ]


def anpr(path: Path) -> list[Any]:
    """ANPR's archive; its last day of validity is inclusive. Codes that are not known are written ND there."""
    found = []
    for row in read(path):
        end = date.fromisoformat(row["DATACESSAZIONE"])
        found.append(
            municipality(
                row["CODCATASTALE"],
                row["DENOMINAZIONE_IT"],
                istat_code=row["CODISTAT"],
                other_name=row["ALTRADENOMINAZIONE"] or None,
                province=row["SIGLAPROVINCIA"],
                region=row["IDREGIONE"],
                valid_from=date.fromisoformat(row["DATAISTITUZIONE"]),
                valid_to=None if end.year == 9999 else end + timedelta(days=1),
            )
        )
    return found


def tariffs(path: Path) -> list[SimpleNamespace]:
    """A price list of Regione Umbria: code, name, amount (its floats are noisy) and start."""
    return [
        SimpleNamespace(
            code=row["CODICE_NOMENCLATORE"],
            name=row["DENOMINAZIONE_COMPLETA"],
            amount=round(Decimal(row.get("TARIFFA") or row["PREZZO"]), 2),
            valid_from=date.fromisoformat(row["DATA_INIZIO_VALIDITA"]),
        )
        for row in read(path)
    ]


def service(id_: str, code: str, name: str = "Visita", **fields: Any) -> SimpleNamespace:
    defaults = {"id": id_, "code": code, "name": name, "duration_minutes": 20, "preparation": None, "active": True}
    return SimpleNamespace(**{**defaults, **fields})


def collaborator(id_: str, last_name: str, **fields: Any) -> SimpleNamespace:
    defaults: dict[str, Any] = {
        "id": id_,
        "title": "Dott.",
        "last_name": last_name,
        "first_name": "Ada",
        "fiscal_code": None,
        "specialties": ["Cardiologia"],
        "email": None,
        "active": True,
        "ends_on": None,
    }
    return SimpleNamespace(**{**defaults, **fields})


def agreement(id_: str, name: str, **fields: Any) -> SimpleNamespace:
    defaults = {"id": id_, "name": name, "kind": "fund", "valid_from": date(2024, 1, 1), "valid_to": None}
    return SimpleNamespace(**{**defaults, **fields})


def price(service_id: str, amount: str, **fields: Any) -> SimpleNamespace:
    defaults: dict[str, Any] = {
        "service_id": service_id,
        "agreement_id": None,
        "collaborator_id": None,
        "amount": Decimal(amount),
        "patient_share": None,
        "currency": "EUR",
        "vat_rate": None,
        "valid_from": date(2024, 1, 1),
        "valid_to": None,
    }
    return SimpleNamespace(**{**defaults, **fields})
