"""Services that events ask for: a question is answered when its lists were really read, by whatever run."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from polydesk_dagster.errors import PASSING


@dataclass(frozen=True, slots=True)
class Reading:
    """How the record of runs shows that a service has read for a clinic what was asked for."""

    service: str
    preview: bool
    lists: int
    """Of each list one word in one run, all of them good."""


@dataclass(frozen=True, slots=True)
class Question:
    id: int
    clinic: str
    active: bool
    """Whether the clinic is, with its integration."""
    answered: bool
    """Whether a run that began after it was taken has read the lists."""
    hopeless: bool
    """Whether such a run was refused, or failed for what does not pass by itself."""


ASK = """
INSERT INTO service_request (clinic_id, service, asked_at)
SELECT :clinic, service, :as_of FROM unnest(CAST(:services AS text[])) service ON CONFLICT DO NOTHING"""

# A plan that was named is applied and no list read for it; of what a guard stopped it was.
_READ = """(r.outcome IN ('ok', 'nothing_to_do', 'partial') AND r.plan_id IS NULL
      OR EXISTS (SELECT FROM plan p WHERE p.id = r.plan_id AND p.origin = r.dagster_run)
         AND r.outcome IN ('ok', 'nothing_to_do', 'partial', 'refused')
      OR r.outcome = 'skipped' AND r.reasons @> '[{"code": "list_not_offered"}]')"""

_UNANSWERED = f"""
SELECT q.id, c.code, c.active AND coalesce(i.active, false),
       EXISTS (SELECT FROM service_run r
               JOIN unnest(CAST(:services AS text[]), CAST(:previews AS boolean[]), CAST(:lists AS integer[]))
                    AS reads(service, preview, lists) USING (service, preview)
               WHERE r.clinic_id = q.clinic_id AND r.started_at >= q.taken_at
               GROUP BY r.dagster_run, reads.lists
               HAVING count(*) >= reads.lists AND bool_and({_READ})),
       EXISTS (SELECT FROM service_run r
               WHERE r.service = q.service AND r.clinic_id = q.clinic_id AND r.started_at >= q.taken_at
                 AND r.outcome IN ('refused', 'failed') AND NOT {_READ}
                 AND NOT coalesce(r.reasons->0->>'code' = ANY(CAST(:passing AS text[])), false))
FROM service_request q JOIN clinic c ON c.id = q.clinic_id LEFT JOIN integration i ON i.clinic_id = c.id
WHERE q.service = :service AND q.answered_at IS NULL ORDER BY q.id"""


def unanswered(connection: sa.Connection, service: str, readings: Collection[Reading]) -> list[Question]:
    """What is asked of ``service`` and was not seen to be answered, by one of ``readings``."""
    parameters = {
        "service": service,
        "services": [each.service for each in readings],
        "previews": [each.preview for each in readings],
        "lists": [each.lists for each in readings],
        "passing": sorted(PASSING),
    }
    return [Question(*row) for row in connection.execute(sa.text(_UNANSWERED), parameters)]


def take(connection: sa.Connection, questions: Sequence[int], as_of: datetime) -> None:
    """A run is asked for them: one that begins from now on answers them, and what events ask for from then on is a
    question of its own."""
    _stamp(connection, "taken_at", questions, as_of)


def answer(connection: sa.Connection, questions: Sequence[int], as_of: datetime) -> None:
    _stamp(connection, "answered_at", questions, as_of)


def _stamp(connection: sa.Connection, column: str, questions: Sequence[int], as_of: datetime) -> None:
    connection.execute(
        sa.text(f"UPDATE service_request SET {column} = :as_of WHERE id = ANY(:questions) AND {column} IS NULL"),
        {"as_of": as_of, "questions": list(questions)},
    )
