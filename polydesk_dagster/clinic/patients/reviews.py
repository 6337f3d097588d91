"""A person's verdicts on doubtful patients: somebody we know, somebody new, nobody to import; and links taken back.

What is decided does not come back with the next import. Every verdict leaves its line in the audit trail; one that
cannot be given is refused with its reason and writes nothing.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import date, datetime
from typing import Any

import sqlalchemy as sa

from polydesk_dagster.changes import audit
from polydesk_dagster.changes.audit import LEAST_REASON, is_reason
from polydesk_dagster.changes.why import read
from polydesk_dagster.clinic.patients.claims import END_SUSPENDED
from polydesk_dagster.clinic.patients.cleaning import COLUMNS
from polydesk_dagster.clinic.patients.identity import NO_CODE, SAME_NAME, SERVICE
from polydesk_dagster.outcome import Counts, Outcome, Reason, Report
from polydesk_dagster.values import Several, Value

_REVIEW = """
    SELECT q.*, c.code AS clinic, EXISTS (
        SELECT FROM patient_link l WHERE l.clinic_id = q.clinic_id AND l.external_id = q.external_id
                                     AND l.suspended_at IS NOT NULL) AS suspended
    FROM patient_review q JOIN clinic c ON c.id = q.clinic_id"""

# The people whom the import would compare the record with, and those whom it has named already.
_CANDIDATES = f"""
    WITH s AS MATERIALIZED (
        SELECT q.candidates, r.* FROM patient_review q CROSS JOIN LATERAL jsonb_to_record(q.record) AS r(
            fiscal_code text, fiscal_code_canonical text, fiscal_code_kind text, last_name text, first_name text,
            birth_date date)
        WHERE q.id = :id
    ), met AS (
        SELECT unnest(candidates) AS id FROM s
        UNION SELECT p.id FROM s JOIN patient p ON p.fiscal_code_canonical = s.fiscal_code_canonical
        UNION SELECT p.id FROM s JOIN patient p ON p.birth_date = s.birth_date
              AND {SAME_NAME.format(p="p", s="s")}
        WHERE {NO_CODE.format(p="s")} OR {NO_CODE.format(p="p")})
    SELECT p.id, p.last_name, p.first_name, p.birth_date, p.fiscal_code, p.mobile, p.email,
           coalesce(p.fiscal_code_canonical = s.fiscal_code_canonical, false) AS same_code,
           p.id = ANY(s.candidates) AS known,
           ARRAY(SELECT c.code || ' ' || l.external_id FROM patient_link l JOIN clinic c ON c.id = l.clinic_id
                 WHERE l.patient_id = p.id ORDER BY 1) AS links
    FROM met JOIN patient p USING (id) CROSS JOIN s ORDER BY p.id
"""


@dataclass(frozen=True, slots=True)
class Review:
    """A record of a clinic's studiolab that waits for a person, or that one has decided. ``record`` and ``candidates``
    are patient data, for the eyes of who decides."""

    id: int
    clinic: str
    external_id: str
    cause: Reason
    state: str
    candidates: tuple[int, ...]
    record: dict[str, Any]
    found_at: datetime
    decided_by: str | None
    decided_at: datetime | None
    reason: str | None
    suspended: bool
    """Whether it is about somebody whom we know, and whose events and messages wait until it is decided."""

    @property
    def masked(self) -> str:
        """Who it is, for a list: initials and the year of birth."""
        names = (self.record.get("last_name"), self.record.get("first_name"))
        initials = " ".join(f"{name[0]}." for name in names if name)
        return " ".join(filter(None, (initials, (self.record.get("birth_date") or "")[:4])))


@dataclass(frozen=True, slots=True)
class Candidate:
    """A patient whom the record may be, with what of the two agrees; ``known`` when the review had named it."""

    id: int
    last_name: str
    first_name: str
    birth_date: date | None
    fiscal_code: str | None
    mobile: str | None
    email: str | None
    same_code: bool
    known: bool
    links: tuple[str, ...]
    """Clinic and external id of every link that the patient has."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def listed(connection: sa.Connection, *, clinic: str | None = None, state: str = "open", limit: int) -> list[Review]:
    """Reviews in ``state``, the one that waits longest first."""
    found = connection.execute(
        sa.text(f"""{_REVIEW} WHERE q.state = :state AND (:clinic IS NULL OR c.code = :clinic)
                    ORDER BY q.found_at, q.id LIMIT :limit""").bindparams(sa.bindparam("clinic", type_=sa.Text)),
        {"state": state, "clinic": clinic, "limit": limit},
    )
    return [_review(row) for row in found]


def load(connection: sa.Connection, review_id: int, *, lock: bool = False) -> Review:
    """The review ``review_id``; LookupError if there is none. ``lock`` keeps everybody else from deciding it."""
    query = sa.text(f"{_REVIEW} WHERE q.id = :id {'FOR UPDATE OF q' if lock else ''}")
    found = connection.execute(query, {"id": review_id}).one_or_none()
    if found is None:
        raise LookupError(f"review {review_id}")
    return _review(found)


def candidates(connection: sa.Connection, review_id: int) -> list[Candidate]:
    """Whom the record may be as things stand now: also who has come since the review was found."""
    found = connection.execute(sa.text(_CANDIDATES), {"id": review_id})
    return [Candidate(**row._asdict() | {"links": tuple(row.links)}) for row in found]


def link(
    connection: sa.Connection,
    review_id: int,
    patient_id: int,
    *,
    as_of: datetime,
    actor: str,
    reason: str | None = None,
) -> Report:
    """It is the patient ``patient_id``. One whom nothing speaks for (a number mistyped, perhaps) needs a ``reason``."""
    review = load(connection, review_id, lock=True)
    if (decided := _decided(review)) is not None:
        return decided
    known = {candidate.id for candidate in candidates(connection, review_id)}
    if patient_id not in known:
        exists = connection.scalar(sa.text("SELECT 1 FROM patient WHERE id = :id"), {"id": patient_id})
        if not exists:
            return Report.refused("unknown_patient", {"patient": patient_id}, review.clinic)
        if not is_reason(reason):
            values: dict[str, Value] = {"patient": patient_id, "review": review_id, "least": LEAST_REASON}
            return Report.refused("not_a_candidate", values, review.clinic)
    if not _linked(connection, review, patient_id, "person", as_of):
        return _linked_already(review)
    _decide(connection, review, "linked", as_of=as_of, actor=actor, reason=reason, patient=patient_id)
    return _done(Counts(updated=1), "review_linked", review, patient=patient_id)


def create(
    connection: sa.Connection,
    review_id: int,
    *,
    as_of: datetime,
    actor: str,
    shared_code: bool = False,
    reason: str | None = None,
) -> Report:
    """It is somebody new: the patient is created from the record, with its link.

    Under the import's lock, and refused for whom the import would not take either: somebody alike whom the review has
    not named (it names them from now on: who looks again may decide), and a fiscal code that another patient holds,
    variants included. Two people with one code do exist: ``shared_code`` says so, with a ``reason``.
    """
    connection.execute(sa.text("LOCK TABLE patient IN SHARE ROW EXCLUSIVE MODE"))
    review = load(connection, review_id, lock=True)
    refusal = _decided(review) or _may_create(connection, review, shared_code=shared_code, reason=reason)
    if refusal is not None:
        return refusal
    columns = ", ".join(COLUMNS)
    types = ", ".join(f"{name} {type_}" for name, type_ in COLUMNS.items())
    patient = connection.execute(
        sa.text(f"""
            INSERT INTO patient ({columns}, created_at, updated_at)
            SELECT {", ".join(f"r.{name}" for name in COLUMNS)}, :as_of, :as_of
            FROM patient_review q CROSS JOIN LATERAL jsonb_to_record(q.record) AS r({types})
            WHERE q.id = :id AND NOT EXISTS (SELECT FROM patient_link l
                                             WHERE l.clinic_id = q.clinic_id AND l.external_id = q.external_id
                                               AND l.suspended_at IS NULL)
            RETURNING id"""),
        {"id": review_id, "as_of": as_of},
    ).scalar_one_or_none()
    if patient is None or not _linked(connection, review, patient, "created", as_of):
        return _linked_already(review)
    _decide(
        connection, review, "created", as_of=as_of, actor=actor, reason=reason, patient=patient, shared_code=shared_code
    )
    return _done(Counts(created=1), "review_created", review, patient=patient)


def dismiss(connection: sa.Connection, review_id: int, *, as_of: datetime, actor: str, reason: str) -> Report:
    """It is nobody to import (a trial record, one entered by mistake): the import passes it over from now on."""
    review = load(connection, review_id, lock=True)
    refusal = _decided(review) or _needs_reason(reason, review.clinic)
    if refusal is not None:
        return refusal
    connection.execute(sa.text(END_SUSPENDED), {"id": review.id, "as_of": as_of})
    _decide(connection, review, "dismissed", as_of=as_of, actor=actor, reason=reason)
    return _done(Counts(updated=1), "review_dismissed", review)


def reopen(connection: sa.Connection, review_id: int, *, as_of: datetime, actor: str, reason: str) -> Report:
    """Take a dismissal back: the record waits for a person again."""
    review = load(connection, review_id, lock=True)
    if review.state != "dismissed":
        return Report.refused("not_dismissed", {"review": review_id}, review.clinic)
    if (refusal := _needs_reason(reason, review.clinic)) is not None:
        return refusal
    connection.execute(
        sa.text("""UPDATE patient_review SET state = 'open', decided_by = NULL, decided_at = NULL, reason = NULL
                   WHERE id = :id"""),
        {"id": review_id},
    )
    _note(connection, "reopen", review.clinic, as_of, actor, review=review_id, reason=reason)
    return _done(Counts(updated=1), "review_reopened", review)


def unlink(
    connection: sa.Connection, clinic: str, external_id: str, *, as_of: datetime, actor: str, reason: str
) -> Report:
    """End a link that was wrong; its record then waits for a person. The patient, and what it has, stays."""
    if (refusal := _needs_reason(reason, clinic)) is not None:
        return refusal
    ended = connection.execute(
        sa.text("""
            WITH ended AS (DELETE FROM patient_link l USING clinic c
                           WHERE c.id = l.clinic_id AND c.code = :clinic AND l.external_id = :external_id
                           RETURNING l.*),
            kept AS (
                INSERT INTO patient_link_ended (clinic_id, external_id, patient_id, made_by, made_at, ended_at, reason)
                SELECT clinic_id, external_id, patient_id, made_by, made_at, :as_of, :reason FROM ended),
            waiting AS (
                INSERT INTO patient_review (clinic_id, external_id, cause, candidates, record, found_at)
                SELECT e.clinic_id, e.external_id, 'link_dissolved', ARRAY[e.patient_id],
                       coalesce((SELECT q.record FROM patient_review q
                                 WHERE q.clinic_id = e.clinic_id AND q.external_id = e.external_id
                                 ORDER BY q.id DESC LIMIT 1), '{}'), :as_of
                FROM ended e
                ON CONFLICT (clinic_id, external_id) WHERE state = 'open' DO NOTHING)
            SELECT patient_id FROM ended"""),
        {"clinic": clinic, "external_id": external_id, "as_of": as_of, "reason": reason},
    ).scalar_one_or_none()
    if ended is None:
        return Report.refused("not_linked", {"record": external_id}, clinic)
    _note(connection, "unlink", clinic, as_of, actor, external_id=external_id, patient=ended, reason=reason)
    reason_ = Reason("patient_unlinked", {"record": external_id, "patient": ended}, clinic)
    return Report(Outcome.OK, Counts(updated=1), (reason_,))


def _may_create(connection: sa.Connection, review: Review, *, shared_code: bool, reason: str | None) -> Report | None:
    """Why the patient is not created, or None. Called under the lock: who is alike now stays all there is."""
    if not review.record.get("last_name"):
        return Report.refused("no_record", {"record": review.external_id}, review.clinic)
    alike = candidates(connection, review.id)
    unseen = [candidate.id for candidate in alike if not candidate.known]
    if unseen:
        connection.execute(
            sa.text("UPDATE patient_review SET candidates = candidates || CAST(:unseen AS bigint[]) WHERE id = :id"),
            {"id": review.id, "unseen": unseen},
        )
        values: dict[str, Value] = {"patients": Several(tuple(unseen)), "review": review.id}
        return Report.refused("new_candidate", values, review.clinic)
    holders = [candidate.id for candidate in alike if candidate.same_code]
    if holders and not shared_code:
        return Report.refused("code_taken", {"patients": Several(tuple(holders))}, review.clinic)
    if holders and not is_reason(reason):
        return _needs_reason("", review.clinic)
    return None


def _linked(connection: sa.Connection, review: Review, patient_id: int, made_by: str, as_of: datetime) -> bool:
    """Make the link, in the place of one that was suspended; False if an import has made one meanwhile."""
    connection.execute(sa.text(END_SUSPENDED), {"id": review.id, "as_of": as_of})
    made = connection.execute(
        sa.text("""
            INSERT INTO patient_link (clinic_id, external_id, patient_id, made_by, made_at, identity)
            SELECT clinic_id, external_id, :patient, :made_by, :as_of, CAST(record ->> 'identity' AS bigint)
            FROM patient_review WHERE id = :id
            ON CONFLICT DO NOTHING"""),
        {"id": review.id, "patient": patient_id, "made_by": made_by, "as_of": as_of},
    )
    return bool(made.rowcount)


def _linked_already(review: Review) -> Report:
    return Report.refused("linked_already", {"record": review.external_id}, review.clinic)


def _decided(review: Review) -> Report | None:
    if review.state == "open":
        return None
    return Report.refused("already_decided", {"review": review.id}, review.clinic)


def _needs_reason(reason: str, clinic: str) -> Report | None:
    if is_reason(reason):
        return None
    return Report.refused("reason_missing", {"least": LEAST_REASON}, clinic)


def _decide(
    connection: sa.Connection,
    review: Review,
    state: str,
    *,
    as_of: datetime,
    actor: str,
    reason: str | None,
    **detail: object,
) -> None:
    connection.execute(
        sa.text("""UPDATE patient_review SET state = :state, decided_by = :actor, decided_at = :as_of, reason = :reason
                   WHERE id = :id"""),
        {"id": review.id, "state": state, "actor": actor, "as_of": as_of, "reason": reason},
    )
    _note(connection, _ACTIONS[state], review.clinic, as_of, actor, review=review.id, reason=reason, **detail)


_ACTIONS = {"linked": "link", "created": "create", "dismissed": "dismiss"}


def _note(
    connection: sa.Connection, action: str, clinic: str, as_of: datetime, actor: str, /, **detail: object
) -> None:
    audit.append(connection, as_of=as_of, actor=actor, action=action, service=SERVICE, clinic=clinic, detail=detail)


def _done(counts: Counts, code: str, review: Review, **values: Value) -> Report:
    said = Reason(code, {"record": review.external_id, "review": review.id, **values}, review.clinic)
    return Report(Outcome.OK, counts, (said,))


def _review(row: sa.Row[Any]) -> Review:
    values = row._mapping
    record = {name: value for name, value in values["record"].items() if name != "identity"}
    told: dict[str, Any] = {"candidates": tuple(values["candidates"]), "cause": read(values["cause"]), "record": record}
    known: dict[str, Any] = {name: values[name] for name in Review.__slots__}
    return Review(**known | told)
