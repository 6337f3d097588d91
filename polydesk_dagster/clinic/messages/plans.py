"""When people are reminded: a plan of steps for a service, a clinic or the chain; without one, one day ahead."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from polydesk_dagster.clinic.messages.planning import Lead
from polydesk_dagster.errors import PermanentError
from polydesk_dagster.values import Instant

MOST = 5
"""Steps of one plan."""
_LONGEST_DAYS, _LONGEST_MINUTES = 60, 1440
_WRITTEN = re.compile(r"([0-9]{1,4})(d|h|m)")


@dataclass(frozen=True, slots=True)
class Plan:
    """One plan; ``clinic`` None: the chain's, ``service`` None: of every service that has none of its own."""

    clinic: str | None
    service: str | None
    steps: tuple[Lead, ...]
    """The farthest first."""
    set_by: str
    set_at: Instant

    @property
    def written(self) -> str:
        return " ".join(write(step) for step in self.steps)


def write(lead: Lead) -> str:
    """``7d``, ``3h``, ``90m``."""
    if lead.days:
        return f"{lead.days}d"
    return f"{lead.minutes // 60}h" if lead.minutes % 60 == 0 else f"{lead.minutes}m"


def read(written: str) -> tuple[Lead, ...]:
    """Steps as a person writes them: ``7d 2d 3h``, in any order, with blanks or commas.

    Raises:
        PermanentError: for what is no step, too many, or the same twice.
    """
    steps = []
    for word in written.replace(",", " ").split():
        found = _WRITTEN.fullmatch(word)
        if found is None:
            raise PermanentError("reminder_step", step=word[:20])
        number = int(found[1])
        lead = Lead(number) if found[2] == "d" else Lead(0, number * (60 if found[2] == "h" else 1))
        if lead == (0, 0) or lead.days > _LONGEST_DAYS or lead.minutes > _LONGEST_MINUTES:
            raise PermanentError("reminder_step", step=word[:20])
        steps.append(lead)
    if not 1 <= len(steps) <= MOST or len(set(steps)) < len(steps):
        raise PermanentError("reminder_steps", most=MOST)
    return tuple(sorted(steps, reverse=True))


def listed(connection: sa.Connection) -> list[Plan]:
    """Every plan, the chain's first."""
    rows = connection.execute(
        sa.text("""
            SELECT c.code, s.code AS service, p.set_by, p.set_at, coalesce(c.time_zone, 'Europe/Rome') AS zone,
                   (SELECT jsonb_agg(jsonb_build_array(t.lead_days, t.lead_minutes)) FROM reminder_step t
                    WHERE t.plan_id = p.id) AS steps
            FROM reminder_plan p LEFT JOIN clinic c ON c.id = p.clinic_id LEFT JOIN service s ON s.id = p.service_id
            ORDER BY c.code NULLS FIRST, s.code NULLS FIRST""")
    )
    return [
        Plan(
            row.code,
            row.service,
            tuple(sorted((Lead(*step) for step in row.steps), reverse=True)),
            row.set_by,
            Instant(row.set_at, row.zone),
        )
        for row in rows
    ]


def put(
    connection: sa.Connection, clinic: str | None, service: str | None, steps: Sequence[Lead], *, who: str, at: datetime
) -> None:
    """Make ``steps`` the plan from now on; what was told already is not told again.

    Raises:
        PermanentError: where there is no such clinic, or no such service in it.
    """
    clinic_id, service_id = _whose(connection, clinic, service)
    _remove(connection, clinic_id, service_id)
    plan = connection.scalar(
        sa.text("""INSERT INTO reminder_plan (clinic_id, service_id, set_by, set_at)
                   VALUES (:clinic, :service, :who, :at) RETURNING id"""),
        {"clinic": clinic_id, "service": service_id, "who": who, "at": at},
    )
    connection.execute(
        sa.text("""INSERT INTO reminder_step (plan_id, lead_days, lead_minutes)
                   SELECT :plan, * FROM unnest(CAST(:days AS integer[]), CAST(:minutes AS integer[]))"""),
        {"plan": plan, "days": [step.days for step in steps], "minutes": [step.minutes for step in steps]},
    )


def clear(connection: sa.Connection, clinic: str | None, service: str | None) -> bool:
    """Take a plan away: the wider one holds again. Returns False where there was none."""
    return _remove(connection, *_whose(connection, clinic, service))


def _remove(connection: sa.Connection, clinic_id: int | None, service_id: int | None) -> bool:
    return bool(
        connection.execute(
            sa.text("""
                DELETE FROM reminder_plan WHERE clinic_id IS NOT DISTINCT FROM CAST(:clinic AS bigint)
                   AND service_id IS NOT DISTINCT FROM CAST(:service AS bigint)"""),
            {"clinic": clinic_id, "service": service_id},
        ).rowcount
    )


def _whose(connection: sa.Connection, clinic: str | None, service: str | None) -> tuple[int | None, int | None]:
    if clinic is None:
        if service is not None:
            raise PermanentError("reminder_service_without_clinic")
        return None, None
    found = connection.execute(
        sa.text("""
            SELECT c.id, s.id AS service FROM clinic c
            LEFT JOIN service s ON s.clinic_id = c.id AND s.code = CAST(:service AS text) AND s.deleted_at IS NULL
            WHERE c.code = :clinic"""),
        {"clinic": clinic, "service": service},
    ).first()
    if found is None:
        raise PermanentError("message_unknown_clinic", code=clinic)
    if service is not None and found.service is None:
        raise PermanentError("reminder_no_service", code=service, clinic=clinic)
    return found.id, found.service
