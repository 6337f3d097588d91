"""Who a patient is: adding who is missing without ever merging two.

A record of studiolab is somebody we know when its link says so, or when its fiscal code is letter by letter that of a
patient with the same name and date of birth. Whatever is merely likely (an omocodia variant, one code for two people,
a name and a date where one of the two has no codice fiscale) waits in ``patient_review`` for a person. Nothing of a
patient is ever overwritten.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import sqlalchemy as sa

from polydesk_dagster.changes.kind import Kind, Limits, Source
from polydesk_dagster.changes.stage import Page
from polydesk_dagster.changes.why import why
from polydesk_dagster.clinic.patients import fiscal_codes
from polydesk_dagster.clinic.patients.cleaning import COLUMNS, fingerprint, prepare
from polydesk_dagster.database import bulk

SERVICE = "import_patients"

FIRST_MEETINGS = 50_000
"""Linked people whose identity is noted for the first time in one import; the next one goes on from there."""

SAME_NAME = """(name_key({p}.last_name) = name_key({s}.last_name)
                 AND name_key({p}.first_name) = name_key({s}.first_name))"""

NO_CODE = "{p}.fiscal_code_kind IS DISTINCT FROM 'CF'"
"""A codice fiscale tells people apart for life. An STP or an ENI is given anew, and given up for a codice fiscale."""

SAME_PERSON = f"({{p}}.birth_date = {{s}}.birth_date AND {SAME_NAME})"

CERTAIN = f"({{p}}.fiscal_code = {{s}}.fiscal_code AND {SAME_PERSON})"

# Linked, or dismissed, while the list was being read; those from before are not even read.
_KNOWN = """
    DELETE FROM {rows} s WHERE s.external_id IN (
        SELECT l.external_id FROM patient_link l WHERE l.clinic_id = :clinic_id
        UNION ALL
        SELECT q.external_id FROM patient_review q WHERE q.clinic_id = :clinic_id AND q.state = 'dismissed')
"""

# Nobody is born, or has died, later than on the clinic's today; a code, of whose year only two digits are written,
# agrees with the wrong century as well. The first of January 1900 is put in where a date is not known.
_OUT_OF_TIME = """(s.birth_date < '1900-01-01' OR greatest(s.birth_date, s.deceased_on) > (
    SELECT CAST(CAST(:as_of AS timestamptz) AT TIME ZONE time_zone AS date) FROM clinic WHERE id = :clinic_id))"""

# A place that has become part of another is the same place, whichever of the two a source still writes.
_WRONG_PLACE = fiscal_codes.disagrees(("birth_place",)).replace("{", "{{").replace("}", "}}")
_SOUND = f"""
    UPDATE {{rows}} s
    SET action = CASE WHEN {_OUT_OF_TIME} THEN 'conflict' ELSE 'create' END,
        finding = CASE WHEN {_OUT_OF_TIME} THEN 'invalid' END,
        reason = CASE WHEN s.birth_date < '1900-01-01' THEN 'born_before_1900'
                      WHEN {_OUT_OF_TIME} THEN 'date_in_future' END,
        id = CASE WHEN {_OUT_OF_TIME} THEN NULL ELSE nextval(pg_get_serial_sequence('patient', 'id')) END
    WHERE s.finding IS NULL AND {_OUT_OF_TIME}
       OR s.finding IS NOT DISTINCT FROM 'invalid' AND s.reason = '{_WRONG_PLACE}'
          AND place_now(substr(s.fiscal_code_canonical, 12, 4)) = place_now(s.birth_place)
"""

_CROWD = 100
"""From so many people without a codice fiscale who were born on one day on (a date put in for an unknown one, perhaps),
names are compared by hashing them: each with each would take for ever."""


def _namesakes(columns: str, others: str, where: str) -> str:
    """SQL for ``columns`` of every record ``s`` and other one ``o`` with the same date of birth and name."""
    pairs = f"SELECT {columns} FROM {{rows}} s JOIN {others} o ON o.birth_date = s.birth_date"
    same = SAME_NAME.format(p="o", s="s")
    return f"""{pairs} AND (s.birth_date IN (TABLE crowd)) IS NOT TRUE AND {same} IS TRUE
              WHERE {where}
              UNION ALL
              {pairs} AND {same} WHERE s.birth_date IN (TABLE crowd) AND {where} AND EXISTS (TABLE crowd)"""


# Of all who have no code only those are fetched who were born when somebody of the list was.
_WITHOUT = f"""(SELECT met.* FROM born CROSS JOIN LATERAL (
    SELECT * FROM patient q WHERE q.birth_date = born.birth_date AND {NO_CODE.format(p="q")} OFFSET 0) met)"""

# The cause of an open review as a value: a reason with values, a code alone, or the sentence of an old one.
_CAUSE = """CASE WHEN r.cause LIKE '_"code"%' THEN jsonb_build_object('reason', CAST(r.cause AS jsonb))
                 WHEN r.cause ~ '^[a-z]+(_[a-z0-9]+)+$'
                 THEN jsonb_build_object('reason', jsonb_build_object('code', r.cause, 'values', jsonb_build_object()))
                 ELSE to_jsonb(r.cause) END"""

# Found by comparing, with places and people who may have changed since: whoever dissolved a link has another reason.
_OURS = """(r.cause LIKE '_"code"%' OR r.cause ~ '^[a-z]+(_[a-z0-9]+)+$') AND r.cause <> 'link_dissolved'"""

# Only what is not simply new: the list itself is gone through once for each way of meeting somebody. Names are compared
# where the date of birth agrees, hence IS TRUE: their keys are not worked out for everybody else.
_DOUBTS = f"""
    WITH twice AS MATERIALIZED (
        SELECT fiscal_code_canonical AS code, count(*) AS people, count(DISTINCT fiscal_code) AS codes,
               count(DISTINCT (name_key(last_name), name_key(first_name), birth_date)) AS identities,
               min(ordinal) AS first
        FROM {{rows}} WHERE finding IS NULL AND fiscal_code_canonical IN (
            SELECT fiscal_code_canonical FROM {{rows}} WHERE finding IS NULL AND fiscal_code_canonical IS NOT NULL
            GROUP BY 1 HAVING count(*) > 1)
        GROUP BY 1
    ), sharing AS MATERIALIZED (
        SELECT s.ordinal, t.people, t.codes, t.identities, t.first
        FROM {{rows}} s JOIN twice t ON t.code = s.fiscal_code_canonical WHERE s.finding IS NULL
    ), met AS MATERIALIZED ( -- asked of the index alone: most are new, and whom they are not nobody has to look at
        SELECT s.ordinal, s.fiscal_code, s.fiscal_code_canonical, s.last_name, s.first_name, s.birth_date
        FROM {{rows}} s
        WHERE EXISTS (SELECT FROM patient p WHERE p.fiscal_code_canonical = s.fiscal_code_canonical OFFSET 0)
    ), by_code AS MATERIALIZED (
        SELECT s.ordinal, array_agg(p.id ORDER BY p.id) AS candidates,
               count(*) = 1 AND bool_and({CERTAIN.format(p="p", s="s")}) AS certain
        FROM met s CROSS JOIN LATERAL (
            SELECT * FROM patient q WHERE q.fiscal_code_canonical = s.fiscal_code_canonical OFFSET 0) p
        GROUP BY 1
    ), born AS MATERIALIZED (
        SELECT birth_date, count(*) AS people FROM patient p
        WHERE {NO_CODE.format(p="p")} AND birth_date IN (SELECT s.birth_date FROM {{rows}} s) GROUP BY 1
    ), crowd AS MATERIALIZED (
        SELECT birth_date FROM {{rows}} s WHERE {NO_CODE.format(p="s")} GROUP BY 1 HAVING count(*) > {_CROWD}
        UNION
        SELECT birth_date FROM born WHERE people > {_CROWD}
    ), by_name AS MATERIALIZED (
        SELECT ordinal, array_agg(DISTINCT id ORDER BY id) AS candidates
        FROM ({_namesakes("s.ordinal, o.id", "patient", NO_CODE.format(p="s"))}
              UNION ALL
              {_namesakes("s.ordinal, o.id", _WITHOUT, "true")}) same
        GROUP BY 1
    ), without_code AS MATERIALIZED (
        SELECT DISTINCT ordinal
        FROM ({
    _namesakes("s.ordinal", "{rows}", f"{NO_CODE.format(p='s')} AND s.finding IS NULL AND o.ordinal <> s.ordinal")
}) same
    ), waiting AS MATERIALIZED (
        SELECT s.ordinal, s.finding, q.cause, q.record, s.fiscal_code, s.last_name, s.first_name, s.birth_date
        FROM patient_review q JOIN {{rows}} s USING (external_id)
        WHERE q.clinic_id = :clinic_id AND q.state = 'open'
    ), doubt AS MATERIALIZED (
    SELECT ordinal, coalesce(c.candidates, i.candidates) AS candidates, c.candidates[1] AS known,
           CASE WHEN t.identities > 1 OR t.codes > 1 THEN 'code_of_several'
                WHEN t.people > 1 AND ordinal <> t.first THEN 'code_of_another_record'
                WHEN c.certain IS NOT TRUE AND c.ordinal IS NOT NULL
                THEN 'code_known_identity_differs'
                WHEN c.ordinal IS NULL AND i.ordinal IS NOT NULL
                THEN 'namesake_of_patient'
                WHEN w.ordinal IS NOT NULL
                THEN 'namesake_of_record'
                WHEN r.cause LIKE ANY (ARRAY['%"clear_now"%', '%"clear_by_others"%', 'ora senza dubbi%']) THEN r.cause
                WHEN r.record ->> 'last_name' IS NOT NULL
                 AND (r.record ->> 'fiscal_code', r.record ->> 'last_name', r.record ->> 'first_name',
                      r.record ->> 'birth_date')
                     IS DISTINCT FROM (r.fiscal_code, r.last_name, r.first_name, CAST(r.birth_date AS text))
                THEN {why("clear_now", before=_CAUSE)}
                WHEN r.finding IS NULL AND {_OURS} THEN {why("clear_by_others", before=_CAUSE)}
                WHEN r.ordinal IS NOT NULL THEN r.cause
           END AS doubt
    FROM (SELECT ordinal FROM sharing UNION SELECT ordinal FROM by_code UNION SELECT ordinal FROM by_name
          UNION SELECT ordinal FROM without_code UNION SELECT ordinal FROM waiting) special
    LEFT JOIN sharing t USING (ordinal)
    LEFT JOIN by_code c USING (ordinal)
    LEFT JOIN by_name i USING (ordinal)
    LEFT JOIN without_code w USING (ordinal)
    LEFT JOIN waiting r USING (ordinal))
    UPDATE {{rows}} s
    SET action = CASE WHEN doubt IS NULL AND finding IS NULL THEN 'link' ELSE 'conflict' END,
        finding = CASE WHEN doubt IS NULL THEN finding ELSE coalesce(finding, 'duplicate') END,
        reason = coalesce(s.reason, doubt, 'same_person_by_code'),
        id = CASE WHEN doubt IS NULL AND finding IS NULL THEN d.known END,
        candidates = d.candidates
    FROM doubt d WHERE d.ordinal = s.ordinal AND (d.doubt IS NOT NULL OR d.known IS NOT NULL)
"""

# Whoever adds a patient waits for this: of those whom we have, names are looked at where the date of birth is met.
_ALIKE = """
    {p} AND {same} AND t.birth_date IN (
        SELECT x.birth_date FROM {{rows}} x WHERE x.action = 'create' AND {x})
"""

# And of those who are new, where somebody without a code was born on their day: whichever way the two are joined.
_NAMES = "ARRAY[name_key({p}.last_name), name_key({p}.first_name)]"
_SAME_WHERE_MET = f"""t.birth_date = r.birth_date AND {_NAMES.format(p="t")} =
    CASE WHEN r.birth_date IN (SELECT u.birth_date FROM patient u WHERE {NO_CODE.format(p="u")})
         THEN {_NAMES.format(p="r")} END"""

PATIENT = Kind(
    name="patient",
    table="patient",
    key="r.external_id",
    fixed=tuple(COLUMNS),
    kept=("language", "preferred_channel", "guardian_id"),
    carried={"external_id": "text", "candidates": "bigint[]"},
    private=True,
    taken="t.fiscal_code_canonical = r.fiscal_code_canonical OFFSET 0",
    alike=(
        _ALIKE.format(p=NO_CODE.format(p="r"), same=SAME_PERSON.format(p="t", s="r"), x=NO_CODE.format(p="x")),
        _ALIKE.format(p=NO_CODE.format(p="t"), same=_SAME_WHERE_MET, x="true"),
    ),
    barred=f"""CASE WHEN r.action = 'link' AND CAST(:undoes AS bigint) IS NULL
                         AND {CERTAIN.format(p="t", s="r")} IS NOT TRUE
                    THEN 'identity_moved' END""",
    dependents=("patient_link",),
    held="""CASE WHEN EXISTS (SELECT FROM patient_link l
                                WHERE l.patient_id = t.id AND l.plan_id IS DISTINCT FROM :undoes)
                 THEN 'linked_elsewhere' END""",
    limits=Limits(shrink=0.3, rejected=0.05, retired=None),
    # Two imports that would create the same person wait for each other; the later one then finds them here.
    # In a line of their own, however long it is: whoever else writes a patient waits for one of them at most.
    before=(
        f"""SET LOCAL lock_timeout = '15min';
            SELECT pg_advisory_xact_lock(hashtextextended('import_patients', 0));
            SET LOCAL lock_timeout TO DEFAULT; {bulk.LOOKED_UP};
            LOCK TABLE patient IN SHARE ROW EXCLUSIVE MODE""",
    ),
    after=(
        # The rows of a plan from before an upgrade do not say who they are: then it is the first one's, null.
        """INSERT INTO patient_link (clinic_id, external_id, patient_id, made_by, plan_id, made_at, identity)
           SELECT :clinic_id, external_id, id, CASE action WHEN 'create' THEN 'created' ELSE 'code' END,
                  :plan_id, :as_of, r.identity
           FROM (SELECT CAST(NULL AS bigint) AS identity) unsaid
           CROSS JOIN LATERAL (SELECT external_id, id, action, identity FROM {rows} p) r
           WHERE action IN ('create', 'link')""",
        """INSERT INTO patient_review AS q (clinic_id, external_id, cause, candidates, record, found_at)
           SELECT :clinic_id, external_id, reason, coalesce(candidates, '{{}}'),
                  to_jsonb(r) - 'ordinal' - 'action' - 'finding' - 'reason' - 'candidates' - 'id', :as_of
           FROM {rows} r WHERE action = 'conflict'
             AND NOT EXISTS (SELECT FROM patient_link l
                             WHERE l.clinic_id = :clinic_id AND l.external_id = r.external_id)
             AND NOT EXISTS (SELECT FROM patient_review d
                             WHERE d.clinic_id = :clinic_id AND d.external_id = r.external_id
                               AND d.state = 'dismissed')
           ON CONFLICT (clinic_id, external_id) WHERE state = 'open' DO UPDATE
           SET record = excluded.record, cause = excluded.cause,
               candidates = CASE WHEN excluded.candidates = '{{}}' THEN q.candidates ELSE excluded.candidates END
           WHERE q.record <> excluded.record OR q.cause <> excluded.cause AND q.cause <> 'link_dissolved'""",
    ),
    undo_before=(
        f"""WITH ended AS (
               DELETE FROM patient_link l USING {{rows}} r
               WHERE l.clinic_id = :clinic_id AND l.external_id = r.external_id AND l.plan_id = :undoes
                 AND r.action IN ('delete', 'link') RETURNING l.*)
           INSERT INTO patient_link_ended (clinic_id, external_id, patient_id, made_by, made_at, ended_at, reason)
           SELECT clinic_id, external_id, patient_id, made_by, made_at, :as_of,
                  {why("plan_taken_back", plan="CAST(:undoes AS bigint)")}
           FROM ended""",
    ),
    source=Source(
        columns={"external_id": "text", **COLUMNS, "identity": "bigint"},
        prepare=prepare,
        label=lambda item: str(item.get("id") or "?") if isinstance(item, Mapping) else "?",
        text=("last_name", "first_name"),
        key=("{}.external_id",),
        apart=("external_id",),
        indexed="action, external_id, fiscal_code_canonical, fiscal_code_kind, birth_date",
        judge=(_KNOWN, _SOUND, _DOUBTS),
        compared=("patient_link", "patient_review"),
    ),
)


class Unseen:
    """Which of the ``known`` names a reading has not come upon yet."""

    def __init__(self, known: Mapping[str, int | None]) -> None:
        self.names: set[str] | None = set(known)
        """None where a record that cannot be read does not say whose it is: it could be anybody's."""
        self.unchanged = False
        """Whether the list is the one that was read last time, by its source's word."""

    def unreadable(self, page: Page) -> None:
        """Meet those whose records cannot be read."""
        for record in page.unreadable:
            if self.names is not None:
                self.names.discard(record.key or "")
                self.names = self.names if record.key else None


def _name(item: Any) -> str | None:
    external_id = item.get("id") if isinstance(item, Mapping) else None
    return external_id if isinstance(external_id, str) else None


def missing_only(
    pages: Iterable[Page],
    known: Mapping[str, int | None],
    differing: list[Mapping[str, Any]] | None = None,
    unseen: Unseen | None = None,
) -> Iterator[Page]:
    """``pages`` without the records that are linked already. Of those only who they are is looked at: whoever is not
    as the link remembers is added to ``differing``, as it came. ``unseen`` is left with those who did not come."""
    for page in pages:
        if not known:
            yield page
            continue
        fresh = []
        if unseen is not None:
            unseen.unreadable(page)
        met = set[str]() if unseen is None or unseen.names is None else unseen.names
        for item in page.records:
            external_id = _name(item)
            if external_id is None or external_id not in known:
                fresh.append(item)
                continue
            met.discard(external_id)
            if differing is not None and _is_another(item, known[external_id], len(differing)):
                differing.append(item)
        yield replace(page, records=fresh, passed=len(page.records) - len(fresh))


def _is_another(item: Mapping[str, Any], seen: int | None, noted: int) -> bool:
    return noted < FIRST_MEETINGS if seen is None else seen != fingerprint(item)


def linked(connection: sa.Connection, clinic_id: int) -> dict[str, int | None]:
    """The names by which the clinic's studiolab knows patients that are linked, or that a person has dismissed, each
    with the hash of who it was the last time (None: not looked at yet, or to be left alone)."""
    found = connection.execute(
        sa.text("""SELECT external_id, identity FROM patient_link WHERE clinic_id = :clinic_id
                   UNION ALL
                   SELECT external_id, NULL FROM patient_review
                   WHERE clinic_id = :clinic_id AND state = 'dismissed'"""),
        {"clinic_id": clinic_id},
        execution_options={"stream_results": True, "max_row_buffer": 10_000},
    )
    return {row.external_id: row.identity for row in found}
