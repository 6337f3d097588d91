"""What events do to our records: one set of statements for a whole batch, inside the caller's transaction.

The batch stands in the session's ``news`` (see ``staging``). Every event of it ends with a verdict: ``applied``,
``superseded``, ``parked`` or ``waiting``. Each type tells the whole state of one side (facet) of a record, so the
newest event of a facet decides it; an older one that comes later is superseded.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import sqlalchemy as sa

from polydesk_dagster.changes.why import kept
from polydesk_dagster.clinic.messages.kinds import REPORT_READY
from polydesk_dagster.clinic.messages.planning import enqueue
from polydesk_dagster.clinic.patients import claims
from polydesk_dagster.database import refusals
from polydesk_dagster.errors import TransientError
from polydesk_dagster.sources.events import bookings, people, types
from polydesk_dagster.sources.events.staging import Batch
from polydesk_dagster.values import Reason

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

# An event waits behind the first of its entity that is not settled, here or in the inbox; one of no entity for itself.
HOLD_BACK = """
UPDATE news n SET verdict = CASE WHEN n.problem IS NOT NULL AND (b.entity IS NULL OR n.sequence = b.first)
                                 THEN 'parked' ELSE 'waiting' END
FROM news m LEFT JOIN (
      SELECT entity, min(sequence) AS first
      FROM (SELECT entity, sequence FROM news WHERE verdict IS NULL AND problem IS NOT NULL
            UNION ALL
            SELECT i.entity, i.sequence FROM event_inbox i
            WHERE i.clinic_id = :clinic AND i.state IN ('parked', 'waiting', 'dead')
              AND NOT EXISTS (SELECT FROM news o WHERE o.event_id = i.event_id)) u
      WHERE entity IS NOT NULL GROUP BY entity) b ON b.entity = m.entity AND m.sequence >= b.first
WHERE m.event_id = n.event_id AND n.verdict IS NULL AND (n.problem IS NOT NULL OR b.entity IS NOT NULL)"""

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

ASK_FOR = f"""
INSERT INTO service_request (clinic_id, service, asked_at)
SELECT DISTINCT :clinic, wanted.service, CAST(:as_of AS timestamptz)
FROM news, LATERAL (VALUES
    ('{PREVIEW_PRICES}', facet = 'price_list' AND verdict = 'applied'),
    ('{IMPORT_PATIENTS}', patient IS NOT NULL AND patient_id IS NULL AND verdict IN ('parked', 'waiting'))
) wanted(service, due) WHERE wanted.due ON CONFLICT DO NOTHING"""

MARK = "UPDATE news SET problem = :problem WHERE event_id = ANY(:events)"

REMEMBER = """
WITH known AS (
    INSERT INTO event_state AS e (clinic_id, facet, external_id, sequence)
    SELECT :clinic, facet, target, max(sequence) FROM news WHERE verdict = 'apply' GROUP BY facet, target
    ON CONFLICT (clinic_id, facet, external_id) DO UPDATE SET sequence = excluded.sequence)
UPDATE news SET verdict = 'applied' WHERE verdict = 'apply'"""


def settle(connection: sa.Connection, clinic_id: int, as_of: datetime, staged: Batch) -> None:
    """Give every event in ``news`` its verdict and carry out those that apply; ``staged`` is what was put there.

    Raises:
        TransientError: the database asks to try again (a deadlock, a lock that was waited for too long).
    """
    _Settling(connection, clinic_id, as_of, staged).all()


class _Settling:
    def __init__(self, connection: sa.Connection, clinic_id: int, as_of: datetime, staged: Batch) -> None:
        self.connection = connection
        self.as_of = as_of
        self.staged = staged
        self.facets = staged.column("facet")
        self.parameters = {"clinic": clinic_id, "as_of": as_of}

    def run(self, statement: str, **more: object) -> sa.CursorResult[object]:
        return self.connection.execute(sa.text(statement), self.parameters | more)

    def all(self) -> None:
        if any(types.UNKNOWN in problem for problem in self.staged.column("problem")):
            self.run(types.ASK)
            self.run(types.JUDGE)
        if "appointment" in self.facets:
            self.run(bookings.BOOKINGS)
        self.run(SUPERSEDE)
        if "patient" in self.facets:
            self.check_claims()
        self.run(RESOLVE)
        self.group(None)
        self.run(ASK_FOR)

    def group(self, entities: Sequence[str] | None) -> None:
        """Settle the entities named, or all. What fails is found out inside a savepoint and tried again without it."""
        while True:
            self.run(HOLD_BACK)
            savepoint = self.connection.begin_nested()
            try:
                chosen = self.choose(entities)
                problems = self.carry_out() if chosen else {}
            except (sa.exc.IntegrityError, sa.exc.DataError, sa.exc.InternalError) as error:
                savepoint.rollback()
                self.divide(entities, error)
                return
            except sa.exc.OperationalError as error:
                if refusals.of_the_server(error):
                    raise
                raise TransientError("database_busy") from error
            if not problems:
                savepoint.commit()
                return
            savepoint.rollback()
            for problem, events in problems.items():
                self.run(MARK, problem=problem, events=events)

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
        problems: dict[str, list[object]] = {}
        if "appointment" in self.facets:
            problems |= bookings.book(self.run)
        if "acceptance" in self.facets and not problems:
            problems |= bookings.accept(self.run)
        if problems:
            return problems
        if "report" in self.facets:
            self.run(REPORTS)
            enqueue(self.connection, REPORT_READY.key, ANNOUNCE, self.parameters, self.as_of)
            if "withdrawn" in self.staged.column("status"):
                self.run(HUSH)
        if "patient" in self.facets:
            people.take(self.run)
        self.run(REMEMBER)
        return {}

    def check_claims(self) -> None:
        """Suspend the links of those whom the newest of their events no longer means, before anything is done."""
        found = self.run(people.PEOPLE).scalars()
        claims.check(self.connection, self.parameters["clinic"], found, self.as_of)  # pyrefly: ignore[bad-argument-type]
