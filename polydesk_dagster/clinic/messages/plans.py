"""When people are reminded: a plan of steps for a service, a clinic or the chain; without one, one day ahead."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from polydesk_dagster import changes
from polydesk_dagster.changes.kind import Kind
from polydesk_dagster.clinic.messages.planning import Lead
from polydesk_dagster.errors import PermanentError
from polydesk_dagster.values import Duration, Instant, Several

SERVICE = "reminder_plans"
MOST = 5
"""Steps of one plan."""
_LONGEST_DAYS, _LONGEST_MINUTES = 60, 1439
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

    @property
    def told(self) -> Several:
        return Several(tuple(Duration((step.days * 1440 + step.minutes) * 60) for step in self.steps))


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


def services(connection: sa.Connection, clinic: str) -> list[tuple[str, str]]:
    """(code, name) of what ``clinic`` offers, by name."""
    rows = connection.execute(
        sa.text("""SELECT s.code, s.name FROM service s JOIN clinic c ON c.id = s.clinic_id
                   WHERE c.code = :clinic AND s.deleted_at IS NULL ORDER BY s.name, s.code"""),
        {"clinic": clinic},
    )
    return [(row.code, row.name) for row in rows]


REMINDER_PLAN = Kind(
    name="reminder_plan",
    whole=True,
    table="reminder_plan",
    key="r.name",
    fixed=("clinic_id", "service_id"),
    owned=("steps", "set_by", "set_at"),
    carried={"name": "text"},
    taken="(t.clinic_id, t.service_id) IS NOT DISTINCT FROM (r.clinic_id, r.service_id)",
    dependents=("reminder_step",),
)

_NAME = "concat_ws(' ', coalesce(c.code, 'catena'), s.code)"
_WANTED = f"""
    SELECT CASE WHEN p.id IS NULL THEN 'create' ELSE 'update' END AS action, CAST(NULL AS text) AS finding,
           CAST(NULL AS text) AS reason, p.id, {_NAME} AS name, w.clinic_id, w.service_id, w.steps,
           CAST(:who AS text) AS set_by, CAST(:as_of AS timestamptz) AS set_at
    FROM (SELECT CAST(:clinic_id AS bigint) AS clinic_id, CAST(:service_id AS bigint) AS service_id,
                 CAST(CAST(:steps AS text[]) AS interval[]) AS steps) AS w
    LEFT JOIN clinic c ON c.id = w.clinic_id LEFT JOIN service s ON s.id = w.service_id
    LEFT JOIN reminder_plan p ON (p.clinic_id, p.service_id) IS NOT DISTINCT FROM (w.clinic_id, w.service_id)
    WHERE p.steps IS DISTINCT FROM w.steps"""
_WITHDRAWN = f"""
    SELECT 'delete' AS action, CAST(NULL AS text) AS finding, CAST(NULL AS text) AS reason, p.id, {_NAME} AS name,
           p.clinic_id, p.service_id, p.steps, p.set_by, p.set_at
    FROM reminder_plan p LEFT JOIN clinic c ON c.id = p.clinic_id LEFT JOIN service s ON s.id = p.service_id
    WHERE (p.clinic_id, p.service_id)
          IS NOT DISTINCT FROM (CAST(:clinic_id AS bigint), CAST(:service_id AS bigint))"""


def propose(
    connection: sa.Connection, clinic: str | None, service: str | None, steps: Sequence[Lead], *, who: str, at: datetime
) -> changes.Plan:
    """The plan that makes ``steps`` hold from the next run on for a service of ``clinic``, for the clinic, or (without
    one) the chain; what was told already is not told again. Where they hold already the plan has no rows.

    Raises:
        PermanentError: where there is no such clinic, or no such service in it.
    """
    spans = [f"{step.days} days" if step.days else f"{step.minutes} minutes" for step in steps]
    return _planned(connection, clinic, service, _WANTED, {"steps": spans, "who": who}, at)


def withdraw(connection: sa.Connection, clinic: str | None, service: str | None, *, at: datetime) -> changes.Plan:
    """The plan that takes one away, so that the wider one holds again; without rows where there is none."""
    return _planned(connection, clinic, service, _WITHDRAWN, {}, at)


def _planned(
    connection: sa.Connection,
    clinic: str | None,
    service: str | None,
    query: str,
    wanted: Mapping[str, object],
    at: datetime,
) -> changes.Plan:
    clinic_id, service_id = _whose(connection, clinic, service)
    scope = changes.Scope(SERVICE, clinic, clinic_id, {"service_id": service_id, **wanted})
    return changes.propose(connection, REMINDER_PLAN, scope, query, as_of=at)


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
