"""A link to a patient is a claim with evidence: compared with what the source says now, at every import and event.

Whoever the source no longer means is not guessed: the link is suspended, that person's events and messages wait, and a
review asks a person. What is merely corrected (one of code, name, date of birth and sex) stays linked.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from itertools import islice
from typing import Any

import sqlalchemy as sa

from polydesk_dagster.changes.kind import Reject
from polydesk_dagster.changes.why import why
from polydesk_dagster.clinic.patients.cleaning import COLUMNS, prepare
from polydesk_dagster.wire import clean

AT_ONCE = 5000
"""Records compared by one statement."""

# Both sides say something, and it is not the same.
_DIFFERENT = {
    "fiscal_code": """s.fiscal_code_kind = 'CF' AND p.fiscal_code_kind = 'CF'
                      AND s.fiscal_code_canonical <> p.fiscal_code_canonical""",
    # Names that are written alike, as nearly all are, need no key.
    "last_name": """s.last_name <> p.last_name AND s.first_name <> p.first_name
                    AND name_key(s.last_name) <> name_key(p.last_name)
                    AND name_key(s.first_name) <> name_key(p.first_name)""",
    "birth_date": "s.birth_date <> p.birth_date",
    "sex": "s.sex <> p.sex",
}
_WRONG = "array_remove(ARRAY[{}], NULL)".format(
    ", ".join(f"CASE WHEN {test} THEN '{field}' END" for field, test in _DIFFERENT.items())
)
_NAMED = "(SELECT jsonb_agg(jsonb_build_object('term', field, 'domain', 'identity')) FROM unnest(wrong) field)"

_COLUMNS = ", ".join(f"{name} {type_}" for name, type_ in COLUMNS.items())

# Link and patient are looked up by their keys, whatever is known of how many there are: right after a first import
# nothing is, and every record was compared with every link.
_COMPARED = f"""
    compared AS MATERIALIZED (
        SELECT s.*, l.patient_id, p.fiscal_code IS NULL AS without_code, {_WRONG} AS wrong
        FROM jsonb_to_recordset(CAST(:said AS jsonb))
            AS s(external_id text, identity bigint, sound boolean, {_COLUMNS})
        CROSS JOIN LATERAL (SELECT k.patient_id FROM patient_link k
                            WHERE k.clinic_id = :clinic_id AND k.external_id = s.external_id AND k.suspended_at IS NULL
                            LIMIT 1) l
        CROSS JOIN LATERAL (SELECT * FROM patient q WHERE q.id = l.patient_id AND q.erased_at IS NULL LIMIT 1) p
    )
"""

# Of whom two clinics know both may hear a code at once: everybody takes them in one order, before any is written.
WITHOUT_CODE = """
    SELECT FROM patient p
    WHERE p.fiscal_code IS NULL
      AND p.id = ANY (ARRAY(SELECT l.patient_id FROM patient_link l
                            WHERE l.clinic_id = :clinic_id AND l.external_id = ANY(:coded)))
    ORDER BY p.id FOR NO KEY UPDATE OF p
"""

# One after the other: whether a code is somebody else's is not seen of a transaction that is under way.
ONE_BY_ONE = "SELECT pg_advisory_xact_lock(hashtextextended('learn_codes', 0))"

# A code that the source has learnt since: ours where we have none, noted where it is somebody else's.
LEARN = f"""
    WITH {_COMPARED}, later AS (
        SELECT c.patient_id, c.fiscal_code, c.fiscal_code_canonical, c.fiscal_code_kind,
               EXISTS (SELECT FROM patient o WHERE o.fiscal_code_canonical = c.fiscal_code_canonical) AS taken
        FROM compared c
        WHERE c.without_code AND c.fiscal_code_canonical IS NOT NULL AND c.sound AND cardinality(c.wrong) = 0
    ), filled AS (
        UPDATE patient p SET fiscal_code = l.fiscal_code, fiscal_code_canonical = l.fiscal_code_canonical,
                             fiscal_code_kind = l.fiscal_code_kind, updated_at = :as_of
        FROM (SELECT DISTINCT ON (fiscal_code_canonical) * FROM later WHERE NOT taken
              ORDER BY fiscal_code_canonical, patient_id) l
        WHERE p.id = l.patient_id
    )
    INSERT INTO patient_discrepancy AS d (clinic_id, patient_id, field, ours, theirs, noticed_at)
    SELECT DISTINCT ON (patient_id) :clinic_id, patient_id, 'fiscal_code', NULL, fiscal_code, :as_of FROM later
    WHERE taken ORDER BY patient_id
    ON CONFLICT (clinic_id, patient_id, field) DO UPDATE SET theirs = excluded.theirs
"""

# Two of them together are another person; one alone is a correction. Nothing but the clinic's own is written: nobody
# who adds a patient elsewhere is waited for.
CHECK = f"""
    WITH {_COMPARED}, agreeing AS (
        UPDATE patient_link l SET identity = c.identity FROM compared c
        WHERE l.clinic_id = :clinic_id AND l.external_id = c.external_id AND cardinality(c.wrong) < 2
    ), suspended AS (
        UPDATE patient_link l
        SET suspended_at = :as_of, suspended_reason = {why("identity_contradicts", wrong=_NAMED)}
        FROM compared c
        WHERE l.clinic_id = :clinic_id AND l.external_id = c.external_id AND cardinality(c.wrong) >= 2
        RETURNING l.external_id, l.patient_id, l.suspended_reason,
                  to_jsonb(c) - CAST(ARRAY['sound', 'patient_id', 'without_code', 'wrong'] AS text[]) AS record
    ), asked AS (
        INSERT INTO patient_review (clinic_id, external_id, cause, candidates, record, found_at)
        SELECT :clinic_id, external_id, suspended_reason, ARRAY[patient_id], record, :as_of FROM suspended
        ON CONFLICT (clinic_id, external_id) WHERE state = 'open' DO NOTHING)
    SELECT count(*) FROM suspended
"""


def check(connection: sa.Connection, clinic_id: int, items: Iterable[Mapping[str, Any]], as_of: datetime) -> int:
    """Compare ``items``, patients of the clinic's source as it writes them, with whom they are linked to; returns how
    many links were suspended. Those who cannot be read are left to the import."""
    everybody = list(items)
    named = {"clinic_id": clinic_id, "coded": _coded(everybody)}
    learning = named["coded"] and connection.execute(sa.text(WITHOUT_CODE), named).rowcount
    if learning:
        connection.execute(sa.text(ONE_BY_ONE))
    found = 0
    rest = iter(everybody)
    while part := list(islice(rest, AT_ONCE)):
        said = [values for item in part if (values := _said(item)) is not None]
        about = {"said": json.dumps(said), "clinic_id": clinic_id, "as_of": as_of}
        if learning:
            connection.execute(sa.text(LEARN), about)
        found += connection.scalar(sa.text(CHECK), about) or 0
    return found


def _coded(items: Iterable[Mapping[str, Any]]) -> list[str]:
    """The names of those of whom a code is said."""
    coded = [item for item in items if isinstance(item, Mapping) and item.get("fiscal_code")]
    return [clean(name) for item in coded if isinstance(name := item.get("id"), str)]


def _said(item: Mapping[str, Any]) -> dict[str, Any] | None:
    try:
        values = prepare(item)
    except Reject:
        return None
    known = ("external_id", *COLUMNS, "identity")
    return dict(zip(known, values, strict=False)) | {"sound": values[len(known)] is None}


MERGED = f"""
    WITH said AS (SELECT * FROM unnest(CAST(:gone AS text[]), CAST(:into AS text[])) AS s(gone, target)),
    suspended AS (
        UPDATE patient_link l SET suspended_at = :as_of, suspended_reason = {why("merged_at_source", into="s.target")}
        FROM said s
        WHERE l.clinic_id = :clinic_id AND l.external_id = s.gone AND l.suspended_at IS NULL
        RETURNING l.external_id, l.patient_id, l.suspended_reason, s.target
    ), asked AS (
        INSERT INTO patient_review (clinic_id, external_id, cause, candidates, record, found_at)
        SELECT :clinic_id, d.external_id, d.suspended_reason,
               array_remove(ARRAY[d.patient_id, nullif(t.patient_id, d.patient_id)], NULL),
               (SELECT jsonb_object_agg(key, value) FROM jsonb_each(to_jsonb(p)) WHERE key = ANY(:columns))
                   || jsonb_build_object('external_id', d.external_id),
               :as_of
        FROM suspended d JOIN patient p ON p.id = d.patient_id
        LEFT JOIN patient_link t ON t.clinic_id = :clinic_id AND t.external_id = d.target
        ON CONFLICT (clinic_id, external_id) WHERE state = 'open' DO NOTHING)
    SELECT count(*) FROM suspended
"""


def merged(connection: sa.Connection, clinic_id: int, pairs: Iterable[tuple[str, str]], as_of: datetime) -> int:
    """Suspend the links to records that the source has merged into others (gone, into), and ask a person whose they
    are now; returns how many."""
    found = 0
    rest = iter(pairs)
    while part := list(islice(rest, AT_ONCE)):
        about = {"gone": [gone for gone, _ in part], "into": [into for _, into in part], "columns": list(COLUMNS)}
        values = about | {"clinic_id": clinic_id, "as_of": as_of}
        found += connection.scalar(sa.text(MERGED), values) or 0
    return found


def suspended(connection: sa.Connection, clinic_id: int, at: datetime) -> tuple[int, dict[str, int]]:
    """How many links of the clinic wait for a person, and how many of them since what was compared ``at`` that
    instant, by the reason of the report: another person, or a record that was merged into another."""
    query = """SELECT count(*) AS waiting, count(*) FILTER (WHERE new AND NOT merged) AS links_suspended,
                      count(*) FILTER (WHERE new AND merged) AS links_merged
               FROM (SELECT suspended_at = :at AS new,
                            starts_with(suspended_reason, '{"code": "merged_at_source"') AS merged
                     FROM patient_link WHERE clinic_id = :clinic_id AND suspended_at IS NOT NULL) l"""
    found = connection.execute(sa.text(query), {"clinic_id": clinic_id, "at": at}).one()
    return found.waiting, {code: found._mapping[code] for code in ("links_suspended", "links_merged")}


END_SUSPENDED = """
    WITH ended AS (
        DELETE FROM patient_link l USING patient_review q
        WHERE q.id = :id AND l.clinic_id = q.clinic_id AND l.external_id = q.external_id AND l.suspended_at IS NOT NULL
        RETURNING l.*)
    INSERT INTO patient_link_ended (clinic_id, external_id, patient_id, made_by, made_at, ended_at, reason)
    SELECT clinic_id, external_id, patient_id, made_by, made_at, :as_of, suspended_reason FROM ended
"""
"""What makes room for a person's verdict on the review ``:id``; the patient, and what it has, stays."""
