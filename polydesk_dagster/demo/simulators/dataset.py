"""What a clinic's studiolab would hold: the clinic's own records as studiolab tells them, and some that differ.

Seeded: the same database and seed give the same lists.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import date, datetime
from decimal import Decimal
from typing import Any

import sqlalchemy as sa

from polydesk_dagster.demo.simulators.studiolab import AGENDAS

Rows = list[dict[str, Any]]

_QUERIES = {
    "municipalities": """
        SELECT cadastral_code, istat_code, name, other_name, province, region, postal_codes, valid_from, valid_to,
               successor
        FROM municipality ORDER BY cadastral_code, valid_from""",
    "patients": """
        SELECT coalesce(l.external_id, 'P' || p.id) AS id, p.fiscal_code, p.last_name, p.first_name, p.sex,
               p.birth_date, p.birth_place, p.residence, p.address, p.postal_code, p.email, p.phone, p.mobile,
               p.deceased_on, p.updated_at
        FROM patient p
        LEFT JOIN patient_link l ON l.patient_id = p.id AND l.clinic_id = :clinic
        WHERE l.patient_id IS NOT NULL
           OR EXISTS (SELECT FROM appointment a WHERE a.patient_id = p.id AND a.clinic_id = :clinic)
        ORDER BY p.id""",
    "collaborators": """
        SELECT coalesce(external_id, 'D' || id) AS id, title, last_name, first_name, fiscal_code, specialties, email,
               active, ends_on
        FROM specialist WHERE clinic_id = :clinic AND deleted_at IS NULL ORDER BY id""",
    "services": """
        SELECT coalesce(external_id, 'S' || id) AS id, code, name, duration_minutes, preparation, active
        FROM service WHERE clinic_id = :clinic AND deleted_at IS NULL ORDER BY id""",
    "agreements": """
        SELECT coalesce(external_id, 'C' || id) AS id, name, kind, valid_from, valid_to
        FROM agreement WHERE clinic_id = :clinic ORDER BY id""",
    "prices": """
        SELECT coalesce(s.external_id, 'S' || s.id) AS service_id,
               CASE WHEN a.id IS NOT NULL THEN coalesce(a.external_id, 'C' || a.id) END AS agreement_id,
               CASE WHEN d.id IS NOT NULL THEN coalesce(d.external_id, 'D' || d.id) END AS collaborator_id,
               p.amount, p.patient_share, p.currency, p.vat_rate, p.valid_from, p.valid_to
        FROM price p JOIN service s ON s.id = p.service_id
        LEFT JOIN agreement a ON a.id = p.agreement_id
        LEFT JOIN specialist d ON d.id = p.specialist_id
        WHERE p.clinic_id = :clinic AND s.deleted_at IS NULL ORDER BY p.id""",
    AGENDAS: "SELECT coalesce(external_id, 'A' || id) AS id FROM agenda WHERE clinic_id = :clinic ORDER BY id",
}


def agreeing(connection: sa.Connection, clinic: str) -> dict[str, Rows]:
    """The lists of a studiolab that holds exactly what we hold of ``clinic`` (its code)."""
    clinic_id = connection.execute(sa.text("SELECT id FROM clinic WHERE code = :code"), {"code": clinic}).scalar_one()
    return {
        name: [
            {key: _plain(value) for key, value in row._asdict().items()}
            for row in connection.execute(sa.text(query), {"clinic": clinic_id} if ":clinic" in query else {})
        ]
        for name, query in _QUERIES.items()
    }


def differing(connection: sa.Connection, clinic: str, seed: int = 1, *, broken: bool = True) -> dict[str, Rows]:
    """The same with what a real neighbour would have otherwise: a few prices, services and collaborators that differ
    or are missing, patients that we have not met, names typed with apostrophes for accents; with ``broken``, also
    records that cannot be read or mapped."""
    data = agreeing(connection, clinic)
    dice = random.Random(f"{seed}/{clinic}")  # noqa: S311
    _prices(data["prices"], dice)
    _services(data["services"], dice)
    _collaborators(data["collaborators"], dice)
    _patients(data["patients"], dice)
    if broken:
        _break(data, dice)
    return data


def _some(rows: Rows, dice: random.Random, share: float, change: Callable[[dict[str, Any]], None]) -> None:
    for row in dice.sample(rows, min(len(rows), max(1, round(len(rows) * share)))) if rows else ():
        change(row)


def _prices(prices: Rows, dice: random.Random) -> None:
    _some(prices, dice, 0.02, lambda row: row.update(amount=str(Decimal(row["amount"]) + 2)))
    _some(prices, dice, 0.01, prices.remove)


def _services(services: Rows, dice: random.Random) -> None:
    _some(services, dice, 0.02, lambda row: row.update(name=f"{row['name']} (nuova denominazione)"))
    services.append(
        {"id": "S-NUOVO", "code": "89.7X.1", "name": "Visita di nuova istituzione", "duration_minutes": 20,
         "preparation": None, "active": True}
    )  # fmt: skip


def _collaborators(collaborators: Rows, dice: random.Random) -> None:
    _some(collaborators, dice, 0.05, lambda row: row.update(title="Prof.", last_name=f"{row['last_name']}  "))
    _some(collaborators, dice, 0.02, lambda row: row.update(active=False, ends_on="2026-01-31"))


def _patients(patients: Rows, dice: random.Random) -> None:
    accents = str.maketrans({"à": "a'", "è": "e'", "é": "e'", "ì": "i'", "ò": "o'", "ù": "u'"})
    _some(patients, dice, 0.02, lambda row: row.update(last_name=row["last_name"].translate(accents)))
    _some(patients, dice, 0.01, lambda row: row.update(email=f"nuovo.{row['id'].lower()}@example.org"))
    for number, row in enumerate(dice.sample(patients, min(len(patients), 20))):
        stranger = dict(row)
        stranger.update(id=f"P-NUOVO-{number}", fiscal_code=None, first_name=f"{row['first_name']} Maria")
        stranger.update(email=None, mobile=None, phone=None)
        patients.append(stranger)


def _break(data: dict[str, Rows], dice: random.Random) -> None:
    _some(data["prices"], dice, 0.005, lambda row: row.update(amount=f"{row['amount']} €"))
    _some(data["prices"], dice, 0.005, lambda row: row.update(agreement_id="SCONOSCIUTA", patient_share=None))
    if data["prices"]:
        data["prices"].append(dict(dice.choice(data["prices"])))
    _some(data["services"], dice, 0.01, lambda row: row.update(duration_minutes=0))
    _some(data["patients"], dice, 0.005, lambda row: row.update(birth_date="31/02/1980"))


def _plain(value: object) -> object:
    match value:
        case Decimal():
            return str(value)
        case datetime() | date():
            return value.isoformat()
        case _:
            return value
