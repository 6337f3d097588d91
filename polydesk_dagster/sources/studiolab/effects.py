"""What events do to our records: one set of statements for a whole batch, inside the caller's transaction.

The batch stands in the session's ``news`` (see ``staging``). Every event of it ends with a verdict: ``applied``,
``superseded``, ``parked`` or ``waiting``. Each type tells the whole state of one side (facet) of a record, so the
newest event of a facet decides it; an older one that comes later is superseded.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime

import sqlalchemy as sa

from polydesk_dagster.changes.why import kept
from polydesk_dagster.clinic.messages.kinds import REPORT_READY
from polydesk_dagster.clinic.messages.planning import enqueue
from polydesk_dagster.clinic.patients import claims
from polydesk_dagster.errors import TransientError
from polydesk_dagster.values import Reason
from polydesk_dagster.wire import comparable

IMPORT_PATIENTS, PREVIEW_PRICES = "import_patients", "preview_prices"

RESOLVE = """
UPDATE news n
SET patient_id = l.patient_id, service_id = s.id, specialist_id = d.id, agenda_id = g.id,
    problem = CASE WHEN n.problem IS NOT NULL THEN n.problem
                   WHEN m.patient IS NOT NULL AND l.patient_id IS NULL THEN 'patient_not_imported'
                   WHEN l.suspended_at IS NOT NULL THEN 'identity_suspended'
                   WHEN m.service IS NOT NULL AND s.id IS NULL THEN 'service_unknown'
                   WHEN m.collaborator IS NOT NULL AND d.id IS NULL THEN 'collaborator_unknown'
                   WHEN m.agenda IS NOT NULL AND g.id IS NULL THEN 'agenda_unknown' END
FROM news m
LEFT JOIN patient_link l ON l.clinic_id = :clinic AND l.external_id = m.patient
LEFT JOIN service s ON s.clinic_id = :clinic AND s.external_id = m.service
LEFT JOIN specialist d ON d.clinic_id = :clinic AND d.external_id = m.collaborator
LEFT JOIN agenda g ON g.clinic_id = :clinic AND g.external_id = m.agenda
WHERE m.event_id = n.event_id"""

SUPERSEDE = """
UPDATE news n SET verdict = 'superseded', reason = 'newer_known'
FROM event_state e
WHERE e.clinic_id = :clinic AND e.facet = n.facet AND e.external_id = n.target AND e.sequence >= n.sequence"""

# An event waits behind the first of its entity that is not settled, here or in the inbox.
HOLD_BACK = """
UPDATE news n SET verdict = CASE WHEN n.sequence = b.first AND n.problem IS NOT NULL THEN 'parked' ELSE 'waiting' END
FROM (SELECT entity, min(sequence) AS first
      FROM (SELECT entity, sequence FROM news WHERE verdict IS NULL AND problem IS NOT NULL
            UNION ALL
            SELECT i.entity, i.sequence FROM event_inbox i
            WHERE i.clinic_id = :clinic AND i.state IN ('parked', 'waiting', 'dead')
              AND NOT EXISTS (SELECT FROM news o WHERE o.event_id = i.event_id)) u
      WHERE entity IS NOT NULL GROUP BY entity) b
WHERE n.entity = b.entity AND n.sequence >= b.first AND n.verdict IS NULL"""

HOLD_BACK_ALONE = "UPDATE news SET verdict = 'parked' WHERE verdict IS NULL AND problem IS NOT NULL"

# The newest state of each appointment in the batch, beside what we hold of it.
BOOKINGS = """
CREATE TEMP TABLE IF NOT EXISTS booking (
    target text PRIMARY KEY, event_id uuid, sequence bigint, patient_id bigint, service_id bigint, specialist_id bigint,
    agenda_id bigint, starts_at timestamptz, ends_at timestamptz, status text, occurred_at timestamptz, moves integer,
    appointment_id bigint, old_slot bigint, seated boolean
) ON COMMIT DELETE ROWS"""

FOLD = """
INSERT INTO booking
SELECT DISTINCT ON (t.target) t.target, t.event_id, t.sequence, t.patient_id, t.service_id, t.specialist_id,
       t.agenda_id, t.starts_at, t.ends_at, t.status, t.occurred_at,
       count(*) FILTER (WHERE t.starts_at <> t.before) OVER (PARTITION BY t.target), t.appointment_id, t.slot_id,
       t.agenda_id = t.old_agenda AND t.starts_at = t.old_start AND t.ends_at = t.old_end
           AND EXISTS (SELECT FROM seat WHERE seat.appointment_id = t.appointment_id)
FROM (SELECT n.*, a.id AS appointment_id, a.slot_id, a.agenda_id AS old_agenda, a.starts_at AS old_start,
             a.ends_at AS old_end,
             coalesce(lag(n.starts_at) OVER (PARTITION BY n.target ORDER BY n.sequence), a.starts_at, n.starts_at)
                 AS before
      FROM news n LEFT JOIN appointment a ON a.clinic_id = :clinic AND a.external_id = n.target
      WHERE n.verdict = 'apply' AND n.facet = 'appointment') t
ORDER BY t.target, t.sequence DESC"""

WANTS_SEAT = "b.status = 'booked' AND b.seated IS NOT TRUE"

RELEASE = f"""
DELETE FROM seat s USING booking b
WHERE s.appointment_id = b.appointment_id AND (b.status = 'cancelled' OR ({WANTS_SEAT}))"""

# A slot that only studiolab's booking had made goes with it; generation may then make its own again.
RETIRE_LEFT = """
UPDATE slot s SET state = 'retired', manual = false
FROM booking b, event_slot e
WHERE s.id = b.old_slot AND e.slot_id = s.id AND s.state <> 'retired'
  AND NOT EXISTS (SELECT FROM seat WHERE seat.slot_id = s.id)"""

OVERLAPPING = f"""s.agenda_id = b.agenda_id AND {WANTS_SEAT} AND s.starts_at < b.ends_at
              AND s.starts_at > b.starts_at - interval '8 hours' AND s.ends_at > b.starts_at"""

EXPIRED_HOLDS = f"""
DELETE FROM seat USING booking b, slot s
WHERE {OVERLAPPING} AND seat.slot_id = s.id AND seat.held_until <= :as_of"""

RETIRE_IN_THE_WAY = f"""
UPDATE slot s SET state = 'retired' FROM booking b
WHERE {OVERLAPPING} AND s.starts_at <> b.starts_at AND s.state <> 'retired'
  AND NOT EXISTS (SELECT FROM seat WHERE seat.slot_id = s.id)"""

TAKEN = f"""
SELECT DISTINCT b.event_id FROM booking b JOIN slot s
    ON {OVERLAPPING} AND s.starts_at <> b.starts_at AND s.state <> 'retired'"""

# Of two bookings over each other the earlier event has its place; one whose rival falls here is looked at again.
RIVALS = f"""
WITH clash AS MATERIALIZED (
    SELECT DISTINCT agenda_id
    FROM (SELECT b.agenda_id, b.starts_at, max(b.ends_at) OVER (
                     PARTITION BY b.agenda_id ORDER BY b.starts_at GROUPS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)
                     AS busy_until
          FROM booking b WHERE {WANTS_SEAT}) w
    WHERE w.starts_at < w.busy_until),
rival AS (
    SELECT b.event_id, o.event_id AS first FROM clash JOIN booking b USING (agenda_id) JOIN booking o
        ON o.agenda_id = b.agenda_id AND o.status = 'booked' AND o.seated IS NOT TRUE AND o.sequence < b.sequence
       AND o.starts_at <> b.starts_at AND o.starts_at < b.ends_at AND o.ends_at > b.starts_at
    WHERE {WANTS_SEAT})
SELECT DISTINCT event_id FROM rival WHERE first NOT IN (SELECT event_id FROM rival)"""

MAKE_SLOTS = f"""
WITH made AS (
    INSERT INTO slot AS s (agenda_id, starts_at, ends_at, local_date, capacity, manual)
    SELECT b.agenda_id, b.starts_at, max(b.ends_at), CAST(b.starts_at AT TIME ZONE c.time_zone AS date), g.capacity,
           true
    FROM booking b JOIN agenda g ON g.id = b.agenda_id JOIN clinic c ON c.id = g.clinic_id
    WHERE {WANTS_SEAT}
    GROUP BY b.agenda_id, b.starts_at, c.time_zone, g.capacity
    ON CONFLICT (agenda_id, starts_at) DO UPDATE
        SET state = CASE s.state WHEN 'retired' THEN 'free' ELSE s.state END, manual = true,
            ends_at = CASE s.state WHEN 'retired' THEN excluded.ends_at ELSE greatest(s.ends_at, excluded.ends_at) END
        WHERE s.state = 'retired' OR excluded.ends_at > s.ends_at
    RETURNING s.id)
INSERT INTO event_slot SELECT id FROM made ON CONFLICT DO NOTHING"""

BOOK = f"""
INSERT INTO appointment AS a (clinic_id, agenda_id, slot_id, service_id, specialist_id, patient_id, external_id,
                              starts_at, ends_at, start_version, status, channel, cancelled_at, created_at, updated_at)
SELECT :clinic, b.agenda_id, CASE WHEN {WANTS_SEAT} THEN s.id ELSE b.old_slot END, b.service_id, b.specialist_id,
       b.patient_id, b.target, b.starts_at, b.ends_at, 1 + b.moves, b.status, 'studiolab',
       CASE WHEN b.status = 'cancelled' THEN b.occurred_at END, b.occurred_at, :as_of
FROM booking b LEFT JOIN slot s ON s.agenda_id = b.agenda_id AND s.starts_at = b.starts_at AND s.state <> 'retired'
ON CONFLICT (clinic_id, external_id) DO UPDATE
SET agenda_id = excluded.agenda_id, slot_id = excluded.slot_id, service_id = excluded.service_id,
    specialist_id = excluded.specialist_id, patient_id = excluded.patient_id, starts_at = excluded.starts_at,
    ends_at = excluded.ends_at, start_version = a.start_version + excluded.start_version - 1,
    status = CASE WHEN excluded.status = 'booked' AND a.accepted_at IS NOT NULL THEN 'accepted'
                  ELSE excluded.status END,
    cancelled_at = excluded.cancelled_at, updated_at = excluded.updated_at"""

SEAT = f"""
INSERT INTO seat (slot_id, unit, appointment_id)
SELECT w.slot_id, f.unit, w.appointment_id
FROM (SELECT a.slot_id, a.id AS appointment_id, row_number() OVER (PARTITION BY a.slot_id ORDER BY b.sequence) AS turn
      FROM booking b JOIN appointment a ON a.clinic_id = :clinic AND a.external_id = b.target
      WHERE {WANTS_SEAT}) w
JOIN slot s ON s.id = w.slot_id
CROSS JOIN LATERAL (
    SELECT u.unit, row_number() OVER (ORDER BY u.unit) AS turn FROM generate_series(1, s.capacity) u(unit)
    WHERE NOT EXISTS (SELECT FROM seat WHERE seat.slot_id = s.id AND seat.unit = u.unit)) f
WHERE f.turn = w.turn"""

STANDING = f"""
SELECT b.event_id FROM booking b JOIN appointment a ON a.clinic_id = :clinic AND a.external_id = b.target
WHERE {WANTS_SEAT} AND NOT EXISTS (SELECT FROM seat WHERE seat.appointment_id = a.id)"""

_NEWEST = """(SELECT DISTINCT ON (target) * FROM news WHERE verdict = 'apply' AND facet = '{facet}'
      ORDER BY target, sequence DESC)"""

ACCEPT = f"""
UPDATE appointment a
SET accepted_at = CASE n.status WHEN 'accepted' THEN n.moment END,
    accepted_desk = CASE n.status WHEN 'accepted' THEN n.desk END,
    status = CASE WHEN n.status = 'accepted' AND a.status = 'booked' THEN 'accepted'
                  WHEN n.status = 'cancelled' AND a.status = 'accepted' THEN 'booked' ELSE a.status END,
    updated_at = :as_of
FROM {_NEWEST.format(facet="acceptance")} n
WHERE a.clinic_id = :clinic AND a.external_id = n.target"""

ACCEPTED_NOBODY = """
SELECT n.event_id FROM news n
WHERE n.verdict = 'apply' AND n.facet = 'acceptance'
  AND NOT EXISTS (SELECT FROM appointment a WHERE a.clinic_id = :clinic AND a.external_id = n.target)"""

REPORTS = """
INSERT INTO report AS r (clinic_id, external_id, patient_id, appointment_id, title, url, published_at, withdrawn_at,
                         version, updated_at)
SELECT DISTINCT ON (t.target) :clinic, t.target, t.patient_id, t.visit, t.title, t.url, t.moment,
       CASE t.status WHEN 'withdrawn' THEN t.occurred_at END,
       1 + count(*) FILTER (WHERE t.status = 'published' AND t.before = 'withdrawn') OVER (PARTITION BY t.target),
       :as_of
FROM (SELECT n.*, a.id AS visit,
             coalesce(lag(n.status) OVER (PARTITION BY n.target ORDER BY n.sequence),
                      CASE WHEN k.withdrawn_at IS NOT NULL THEN 'withdrawn' END) AS before
      FROM news n
      LEFT JOIN appointment a ON a.clinic_id = :clinic AND a.external_id = n.appointment
      LEFT JOIN report k ON k.clinic_id = :clinic AND k.external_id = n.target
      WHERE n.verdict = 'apply' AND n.facet = 'report') t
ORDER BY t.target, t.sequence DESC
ON CONFLICT (clinic_id, external_id) DO UPDATE
SET patient_id = excluded.patient_id, appointment_id = excluded.appointment_id, title = excluded.title,
    url = excluded.url, published_at = excluded.published_at, withdrawn_at = excluded.withdrawn_at,
    version = r.version + excluded.version - 1, updated_at = excluded.updated_at"""

REPORT_NEWS_DAYS = 7
"""A report published longer ago is no news to its patient."""

ANNOUNCE = f"""
SELECT r.clinic_id, 'report' AS subject, r.id AS subject_id, r.version, 'patient' AS recipient_type,
       r.patient_id AS recipient_id, r.published_at + interval '{REPORT_NEWS_DAYS} days' AS expires_at,
       CAST(NULL AS jsonb) AS context
FROM report r JOIN integration i ON i.clinic_id = r.clinic_id
WHERE r.clinic_id = :clinic AND i.report_messages AND r.withdrawn_at IS NULL
  AND r.published_at > CAST(:as_of AS timestamptz) - interval '{REPORT_NEWS_DAYS} days'
  AND r.external_id IN (SELECT target FROM news WHERE verdict = 'apply' AND facet = 'report')"""

# A message that was sent stays sent; one that still waits must not speak of a report that is gone.
HUSH = """
UPDATE message m SET state = 'withheld', reason = 'report_withdrawn', changed_at = :as_of
FROM message_ledger l JOIN report r ON r.id = l.subject_id
WHERE l.subject = 'report' AND m.id = l.message_id AND m.state IN ('planned', 'retry')
  AND r.clinic_id = :clinic AND r.withdrawn_at IS NOT NULL
  AND r.external_id IN (SELECT target FROM news WHERE verdict = 'apply' AND facet = 'report')"""

# Where a patient lives, and that one has died, is the desk's to know; studiolab is where the desk writes it.
PATIENTS = f"""
UPDATE patient p
SET residence = coalesce(t.residence, p.residence), address = coalesce(t.address, p.address),
    postal_code = coalesce(t.postal_code, p.postal_code), deceased_on = coalesce(t.deceased_on, p.deceased_on),
    updated_at = :as_of
FROM {_NEWEST.format(facet="patient")} n
CROSS JOIN LATERAL jsonb_to_record(n.person) AS t(residence text, address text, postal_code text, deceased_on date)
WHERE p.id = n.patient_id
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
FROM {_NEWEST.format(facet="patient")} n JOIN patient p ON p.id = n.patient_id"""

DISCREPANCIES = """
WITH said AS (
    SELECT * FROM jsonb_to_recordset(CAST(:said AS jsonb)) AS t(patient_id bigint, field text, ours text, theirs text)),
gone AS (DELETE FROM patient_discrepancy d
         WHERE d.clinic_id = :clinic AND d.patient_id = ANY(:patients)
           AND NOT EXISTS (SELECT FROM said WHERE said.patient_id = d.patient_id AND said.field = d.field))
INSERT INTO patient_discrepancy AS d (clinic_id, patient_id, field, ours, theirs, noticed_at)
SELECT :clinic, patient_id, field, ours, theirs, :as_of FROM said
ON CONFLICT (clinic_id, patient_id, field) DO UPDATE SET ours = excluded.ours, theirs = excluded.theirs
WHERE (d.ours, d.theirs) IS DISTINCT FROM (excluded.ours, excluded.theirs)"""

REQUEST = """
INSERT INTO service_request (clinic_id, service, asked_at)
SELECT :clinic, :service, :as_of
WHERE EXISTS (SELECT FROM news WHERE {condition}) ON CONFLICT DO NOTHING"""
ASK_PRICES = REQUEST.format(condition="facet = 'price_list' AND verdict = 'applied'")
ASK_PATIENTS = REQUEST.format(
    condition="patient IS NOT NULL AND patient_id IS NULL AND verdict IN ('parked', 'waiting')"
)

MARK = "UPDATE news SET problem = :problem WHERE event_id = ANY(:events)"

REMEMBER = """
INSERT INTO event_state AS e (clinic_id, facet, external_id, sequence)
SELECT :clinic, facet, target, max(sequence) FROM news WHERE verdict = 'apply' GROUP BY facet, target
ON CONFLICT (clinic_id, facet, external_id) DO UPDATE SET sequence = excluded.sequence"""


def settle(connection: sa.Connection, clinic_id: int, as_of: datetime) -> None:
    """Give every event in ``news`` its verdict and carry out those that apply.

    Raises:
        TransientError: the database asks to try again (a deadlock, a lock that was waited for too long).
    """
    _Settling(connection, clinic_id, as_of).all()


class _Settling:
    def __init__(self, connection: sa.Connection, clinic_id: int, as_of: datetime) -> None:
        self.connection = connection
        self.as_of = as_of
        self.parameters = {"clinic": clinic_id, "as_of": as_of}

    def run(self, statement: str, **more: object) -> sa.CursorResult[object]:
        return self.connection.execute(sa.text(statement), self.parameters | more)

    def all(self) -> None:
        self.run(BOOKINGS)
        self.run(SUPERSEDE)
        self.check_claims()
        self.run(RESOLVE)
        self.group(None)
        self.run(ASK_PRICES, service=PREVIEW_PRICES)
        self.run(ASK_PATIENTS, service=IMPORT_PATIENTS)

    def group(self, entities: Sequence[str] | None) -> None:
        """Settle the entities named, or all. What fails is found out inside a savepoint and tried again without it."""
        while True:
            self.run(HOLD_BACK)
            self.run(HOLD_BACK_ALONE)
            savepoint = self.connection.begin_nested()
            try:
                chosen = self.choose(entities)
                problems = self.carry_out() if chosen else {}
            except (sa.exc.IntegrityError, sa.exc.DataError, sa.exc.InternalError) as error:
                savepoint.rollback()
                self.divide(entities, error)
                return
            except sa.exc.OperationalError as error:
                if error.connection_invalidated:
                    raise
                raise TransientError("database_busy") from error
            if not problems:
                savepoint.commit()
                return
            savepoint.rollback()
            for problem, events in problems.items():
                self.run(
                    "UPDATE news SET problem = :problem WHERE event_id = ANY(:events)", problem=problem, events=events
                )

    def choose(self, entities: Sequence[str] | None) -> int:
        chosen = "" if entities is None else " AND entity = ANY(:entities)"
        return self.run(f"UPDATE news SET verdict = 'apply' WHERE verdict IS NULL{chosen}", entities=entities).rowcount

    def divide(self, entities: Sequence[str] | None, error: sa.exc.DBAPIError) -> None:
        """The database refused the batch: find the entity that it is about by halves, and park that one alone."""
        chosen = "" if entities is None else " AND entity = ANY(:entities)"
        found = self.run(
            f"SELECT DISTINCT entity FROM news WHERE verdict IS NULL{chosen} ORDER BY entity", entities=entities
        )
        names = [str(name) for name in found.scalars()]
        if len(names) > 1:
            half = len(names) // 2
            self.group(names[:half])
            self.group(names[half:])
            return
        diagnosis = getattr(error.orig, "diag", None)
        constraint = getattr(diagnosis, "constraint_name", None) or getattr(error.orig, "sqlstate", None)
        self.run(
            """UPDATE news SET problem = :problem
               WHERE event_id = (SELECT event_id FROM news WHERE verdict IS NULL AND entity = ANY(:names)
                                 ORDER BY sequence DESC LIMIT 1)""",
            problem=kept(Reason("refused_by_database", {"constraint": constraint})),
            names=names,
        )
        self.group(names)

    def carry_out(self) -> dict[str, list[object]]:
        """Effects of what is to ``apply``; returns the events that cannot be, by problem, and has then to be undone."""
        facets = set(self.run("SELECT DISTINCT facet FROM news WHERE verdict = 'apply'").scalars())
        problems: dict[str, list[object]] = {}
        if "appointment" in facets:
            problems |= self.book()
        if "acceptance" in facets and not problems:
            self.run(ACCEPT)
            problems |= _found("appointment_unknown", self.run(ACCEPTED_NOBODY))
        if problems:
            return problems
        if "report" in facets:
            self.run(REPORTS)
            enqueue(self.connection, REPORT_READY.key, ANNOUNCE, self.parameters, self.as_of)
            self.run(HUSH)
        if "patient" in facets:
            self.run(PATIENTS)
            self.compare_patients()
        self.run(REMEMBER)
        self.run("UPDATE news SET verdict = 'applied' WHERE verdict = 'apply'")
        return {}

    def book(self) -> dict[str, list[object]]:
        self.run("DELETE FROM booking")
        self.run(FOLD)
        self.run(RELEASE)
        self.run(RETIRE_LEFT)
        self.run(EXPIRED_HOLDS)
        self.run(RETIRE_IN_THE_WAY)
        for statement in (TAKEN, RIVALS):
            taken = _found("time_taken", self.run(statement))
            if taken:
                return taken
        self.run(MAKE_SLOTS)
        self.run(BOOK)
        self.run(SEAT)
        return _found("time_full", self.run(STANDING))

    def check_claims(self) -> None:
        """Suspend the links of those whom the newest of their events no longer means, before anything is done."""
        found = self.run(PEOPLE).scalars()
        claims.check(self.connection, self.parameters["clinic"], found, self.as_of)  # type: ignore[arg-type]

    def compare_patients(self) -> None:
        said, patients = [], []
        for row in self.run(BOTH_SIDES).mappings():
            patients.append(row["id"])
            theirs: dict[str, str | None] = row["person"]
            said += [
                {"patient_id": row["id"], "field": field, "ours": row[field], "theirs": theirs[field]}
                for field in OWN_FIELDS
                if _differ(field, row[field], theirs[field])
            ]
        self.run(DISCREPANCIES, said=json.dumps(said), patients=patients)


def _found(problem: str, result: sa.CursorResult[object]) -> dict[str, list[object]]:
    events = list(result.scalars())
    return {problem: events} if events else {}


def _differ(field: str, ours: str | None, theirs: str | None) -> bool:
    """Whether both sides say something and it is not the same thing written in another way."""
    if not ours or not theirs:
        return False
    if field in {"phone", "mobile"}:
        return _digits(ours) != _digits(theirs)
    return comparable(ours) != comparable(theirs)


def _digits(number: str) -> str:
    return "".join(c for c in number if c.isdigit()).removeprefix("00").removeprefix("39")
