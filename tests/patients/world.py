"""A patient's record as studiolab sends it, and an import of such."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from polydesk_dagster.changes.plans import Scope
from polydesk_dagster.changes.stage import Page
from polydesk_dagster.changes.synchronise import synchronise
from polydesk_dagster.changes.why import read
from polydesk_dagster.clinic.patients import identity as patients
from polydesk_dagster.clinic.patients.identity import PATIENT
from polydesk_dagster.outcome import Report
from polydesk_dagster.told import teller
from tests import world

MARIO = {
    "id": "P1",
    "last_name": "Rossi",
    "first_name": "Mario",
    "sex": "M",
    "birth_date": "1980-01-01",
    "birth_place": "H501",
    "fiscal_code": "RSSMRA80A01H501U",
    "mobile": "333 123 4567",
    "updated_at": "2026-01-01T00:00:00Z",
}


OMOCODIA = "RSSMRA80A01H50MM"  # the same person's code with its last digit in letters


def person(id_: str, **fields: Any) -> dict[str, Any]:
    return {**MARIO, "id": id_, **fields}


class Import:
    def __init__(self, engine: sa.Engine, code: str = "BO01") -> None:
        self.engine = engine
        with engine.begin() as connection:
            self.clinic = world.clinic(connection, code)
        self.scope = Scope("import_patients", code, self.clinic)

    def __call__(self, *items: dict[str, Any], **more: Any) -> Report:
        page = Page(1, items, (), "s", len(items))
        with self.engine.connect() as connection:
            known = patients.linked(connection, self.clinic)
        pages = patients.missing_only([page], known)
        return synchronise(self.engine, PATIENT, self.scope, pages, as_of=world.AS_OF, **more)

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        with self.engine.connect() as connection:
            return [tuple(row) for row in connection.execute(sa.text(query))]

    def reviews(self) -> list[tuple[str, str]]:
        found = self.rows("SELECT external_id, cause FROM patient_review WHERE state = 'open' ORDER BY 1")
        return [(external_id, teller().value(read(cause))) for external_id, cause in found]

    def links(self) -> list[tuple[str, str]]:
        return self.rows("SELECT external_id, made_by FROM patient_link ORDER BY 1")
