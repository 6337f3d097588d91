"""Services whose name tells of somebody's health: proposed as sensitive, and never named until somebody has decided."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from polydesk_dagster.clinic.messages.templates import Finding
from polydesk_dagster.clinic.messages.text import CLINICAL
from polydesk_dagster.values import Named, Reason, Value


@dataclass(frozen=True, slots=True)
class Undecided:
    """A service that messages do not name although nobody has said so."""

    clinic: str
    code: str
    name: str


def undecided(connection: sa.Connection) -> list[Undecided]:
    """By clinic and code."""
    rows = connection.execute(
        sa.text("""
            SELECT c.code, s.code, s.name FROM service s JOIN clinic c ON c.id = s.clinic_id
            WHERE s.deleted_at IS NULL AND NOT s.sensitive AND s.sensitive_decided_at IS NULL AND s.name ~* :clinical
            ORDER BY 1, 2"""),
        {"clinical": CLINICAL},
    )
    return [Undecided(*row) for row in rows]


def finding(service: Undecided) -> Finding:
    """Advice to decide, with the word that speaks of health."""
    word = re.search(CLINICAL, service.name, re.IGNORECASE)
    values: dict[str, Value] = {"service": Named(service.code, service.name), "word": word[0] if word else ""}
    return Finding(False, Reason("service_undecided", values, service.clinic))


def decide(connection: sa.Connection, clinic: str, code: str, *, sensitive: bool, who: str, at: datetime) -> bool:
    """Somebody says whether messages may name a service. Returns False where the clinic has none with that code."""
    return bool(
        connection.execute(
            sa.text("""
                UPDATE service s SET sensitive = :sensitive, sensitive_decided_at = :at, sensitive_decided_by = :who
                FROM clinic c
                WHERE c.id = s.clinic_id AND c.code = :clinic AND s.code = :code AND s.deleted_at IS NULL"""),
            {"clinic": clinic, "code": code, "sensitive": sensitive, "who": who, "at": at},
        ).rowcount
    )
