"""Who looked at patients' data, when and where: written with the look, kept for 24 months."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa


@dataclass(frozen=True, slots=True)
class Look:
    """One look at a patient's data; ``person`` as the audit trail names people, ``page`` where it was."""

    at: datetime
    person: str
    page: str


def log(
    connection: sa.Connection,
    person: str,
    page: str,
    at: datetime,
    *,
    patients: Collection[int] = (),
    plan: int | None = None,
    record: int | None = None,
) -> None:
    """Note that ``person`` was shown ``patients`` (ids) on ``page``, the rows of a plan, or a record that could not be
    read (its number)."""
    connection.execute(
        sa.text("""
            INSERT INTO patient_look (at, person, page, patient_id, plan_id, record_id)
            SELECT :at, :person, :page, seen.* FROM (
                SELECT p, CAST(NULL AS bigint) AS plan, CAST(NULL AS bigint) AS record
                FROM unnest(CAST(:patients AS bigint[])) p
                UNION ALL
                SELECT NULL, CAST(:plan AS bigint), NULL
                UNION ALL
                SELECT NULL, NULL, CAST(:record AS bigint)) seen
            WHERE num_nonnulls(seen.p, seen.plan, seen.record) = 1"""),
        {"at": at, "person": person, "page": page, "patients": sorted(patients), "plan": plan, "record": record},
    )


def of(connection: sa.Connection, patient: int, limit: int = 200) -> list[Look]:
    """Who was shown a patient's data, newest first; looks at a whole plan of patients are not told apart by patient and
    not among them."""
    rows = connection.execute(
        sa.text(
            "SELECT at, person, page FROM patient_look WHERE patient_id = :patient ORDER BY at DESC, id DESC LIMIT :n"
        ),
        {"patient": patient, "n": limit},
    )
    return [Look(*row) for row in rows]
