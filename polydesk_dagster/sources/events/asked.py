"""Services that events ask for, each question answered by one run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa


@dataclass(frozen=True, slots=True)
class Question:
    id: int
    clinic: str


def open_questions(connection: sa.Connection, service: str) -> list[Question]:
    """What is asked of ``service`` and was not started yet, for clinics whose integration is active."""
    rows = connection.execute(
        sa.text("""
            SELECT r.id, c.code FROM service_request r
            JOIN clinic c ON c.id = r.clinic_id JOIN integration i ON i.clinic_id = c.id
            WHERE r.service = :service AND r.taken_at IS NULL AND c.active AND i.active ORDER BY r.id"""),
        {"service": service},
    )
    return [Question(*row) for row in rows]


def close(connection: sa.Connection, questions: Sequence[int], as_of: datetime) -> None:
    """Their runs exist; the next event that asks is a question of its own."""
    connection.execute(
        sa.text("UPDATE service_request SET taken_at = :as_of WHERE id = ANY(:questions)"),
        {"as_of": as_of, "questions": list(questions)},
    )
