"""What a patient's event does: who no longer is the one that is linked, what is the desk's to know, what differs."""

from __future__ import annotations

import json

from polydesk_dagster.sources.events.settling import NEWEST, Run
from polydesk_dagster.wire import comparable

# Where a patient lives, and that one has died, is the desk's to know; studiolab is where the desk writes it.
PATIENTS = f"""
UPDATE patient p
SET residence = coalesce(t.residence, p.residence), address = coalesce(t.address, p.address),
    postal_code = coalesce(t.postal_code, p.postal_code), deceased_on = coalesce(t.deceased_on, p.deceased_on),
    updated_at = :as_of
FROM {NEWEST.format(facet="patient")} n
CROSS JOIN LATERAL jsonb_to_record(n.person) AS t(residence text, address text, postal_code text, deceased_on date)
WHERE p.id = n.patient_id AND p.erased_at IS NULL
  AND (p.residence, p.address, p.postal_code, p.deceased_on)
      IS DISTINCT FROM (coalesce(t.residence, p.residence), coalesce(t.address, p.address),
                        coalesce(t.postal_code, p.postal_code), coalesce(t.deceased_on, p.deceased_on))"""

PEOPLE = """
SELECT DISTINCT ON (target) person FROM news WHERE facet = 'patient' AND person IS NOT NULL AND verdict IS NULL
ORDER BY target, sequence DESC"""

# Who a patient is and how to reach them is ours once we know it.
OWN_FIELDS = ("last_name", "first_name", "fiscal_code", "sex", "birth_date", "birth_place", "email", "phone", "mobile")

BOTH_SIDES = f"""
SELECT p.id, n.person, {", ".join(f"CAST(p.{field} AS text) AS {field}" for field in OWN_FIELDS)}
FROM {NEWEST.format(facet="patient")} n
JOIN patient p ON p.id = n.patient_id AND p.erased_at IS NULL"""

DISCREPANCIES = """
WITH said AS (
    SELECT * FROM jsonb_to_recordset(CAST(:said AS jsonb)) AS t(patient_id bigint, field text, ours text, theirs text)
    WHERE field <> 'birth_place' OR place_now(ours) <> place_now(theirs)),
gone AS (DELETE FROM patient_discrepancy d
         WHERE d.clinic_id = :clinic AND d.patient_id = ANY(:patients)
           AND NOT EXISTS (SELECT FROM said WHERE said.patient_id = d.patient_id AND said.field = d.field))
INSERT INTO patient_discrepancy AS d (clinic_id, patient_id, field, ours, theirs, noticed_at)
SELECT :clinic, patient_id, field, ours, theirs, :as_of FROM said
ON CONFLICT (clinic_id, patient_id, field) DO UPDATE SET ours = excluded.ours, theirs = excluded.theirs
WHERE (d.ours, d.theirs) IS DISTINCT FROM (excluded.ours, excluded.theirs)"""


def take(run: Run) -> None:
    """Carry out the patients that apply, and note where both sides say different things of one."""
    run(PATIENTS)
    said, patients = [], []
    for row in run(BOTH_SIDES).mappings():
        patients.append(row["id"])
        theirs: dict[str, str | None] = row["person"]
        said += [
            {"patient_id": row["id"], "field": field, "ours": row[field], "theirs": theirs[field]}
            for field in OWN_FIELDS
            if _differ(field, row[field], theirs[field])
        ]
    run(DISCREPANCIES, said=json.dumps(said), patients=patients)


def _differ(field: str, ours: str | None, theirs: str | None) -> bool:
    """Whether both sides say something and it is not the same thing written in another way."""
    if not ours or not theirs:
        return False
    if field in {"phone", "mobile"}:
        return _digits(ours) != _digits(theirs)
    return comparable(ours) != comparable(theirs)


def _digits(number: str) -> str:
    return "".join(c for c in number if c.isdigit()).removeprefix("00").removeprefix("39")
