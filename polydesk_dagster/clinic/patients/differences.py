"""Where a source and we say different things of a patient who stays linked: for a person to know, never to guess."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

GONE = "gone_at_source"

_MISSING = """
    WITH said AS (SELECT unnest(CAST(:missing AS text[])) AS external_id),
    back AS (
        UPDATE patient_link l SET missing_since = NULL
        WHERE l.clinic_id = :clinic_id AND l.missing_since IS NOT NULL
          AND NOT EXISTS (SELECT FROM said s WHERE s.external_id = l.external_id)),
    new AS (
        UPDATE patient_link l SET missing_since = :as_of FROM said s
        WHERE l.clinic_id = :clinic_id AND l.external_id = s.external_id AND l.missing_since IS NULL)
    SELECT
"""


def missing(connection: sa.Connection, clinic_id: int, external_ids: Collection[str], as_of: datetime) -> None:
    """Note which linked patients a whole reading of the list did not have."""
    values = {"missing": list(external_ids), "clinic_id": clinic_id, "as_of": as_of}
    connection.execute(sa.text(_MISSING), values)


def gone(connection: sa.Connection, clinic_id: int, as_of: datetime) -> int:
    """How many linked patients the reading of ``as_of`` did not have, nor one before it."""
    query = """SELECT count(*) FROM patient_link
               WHERE clinic_id = :clinic_id AND missing_since < :as_of AND suspended_at IS NULL"""
    return int(connection.scalar(sa.text(query), {"clinic_id": clinic_id, "as_of": as_of}) or 0)


@dataclass(frozen=True, slots=True)
class Difference:
    """One of them; ``what`` is a field, or ``gone_at_source``. No value of either side."""

    clinic: str
    external_id: str | None
    patient: int
    what: str
    since: datetime


def listed(connection: sa.Connection, *, clinic: str | None = None, limit: int) -> list[Difference]:
    """What differs, the longest first; two names of one place no more, once the municipalities say that they are."""
    found = connection.execute(
        sa.text("""
            SELECT c.code AS clinic, d.external_id, d.patient_id AS patient, d.what, d.since
            FROM (SELECT clinic_id, external_id, patient_id, CAST(:gone AS text) AS what, missing_since AS since
                  FROM patient_link WHERE missing_since IS NOT NULL AND suspended_at IS NULL
                  UNION ALL
                  SELECT d.clinic_id, l.external_id, d.patient_id, d.field, d.noticed_at
                  FROM patient_discrepancy d
                  LEFT JOIN patient_link l ON l.clinic_id = d.clinic_id AND l.patient_id = d.patient_id
                  WHERE d.field <> 'birth_place' OR place_now(d.ours) IS DISTINCT FROM place_now(d.theirs)) d
            JOIN clinic c ON c.id = d.clinic_id
            WHERE CAST(:clinic AS text) IS NULL OR c.code = :clinic
            ORDER BY d.since, c.code, d.patient_id, d.what LIMIT :limit"""),
        {"gone": GONE, "clinic": clinic, "limit": limit},
    )
    return [Difference(*row) for row in found]
