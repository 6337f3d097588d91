"""What several pages read: the state of services, the clinics that a person sees, her runs. No rule is here."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from starlette.exceptions import HTTPException
from starlette.requests import Request

from polydesk_dagster.changes import plans
from polydesk_dagster.changes.show import next_step
from polydesk_dagster.clinic.patients import seen
from polydesk_dagster.database import service_runs
from polydesk_dagster.database.service_runs import PastRun
from polydesk_dagster.knowledge.work import why
from polydesk_dagster.outcome import WHAT_TO_DO
from polydesk_dagster.runtime.state import activity, services
from polydesk_dagster.runtime.state.model import ServiceState
from polydesk_dagster.values import Reason
from polydesk_dagster.web.door import Door
from polydesk_dagster.web.roles import Person
from polydesk_dagster.web.routes import clinic_of


def states(door: Door, connection: sa.Connection, person: Person) -> list[ServiceState]:
    """Every service, as far as a person's clinics go; where Dagster's own database does not answer, without what only
    that knows."""
    live = activity.starts_live(door.settings)
    try:
        with door.dagster.connect() as dagster:
            found = services.service_states(connection, dagster, door.now(), live=live)
    except (sa.exc.OperationalError, sa.exc.ProgrammingError):  # it is down, or was never started yet
        found = services.service_states(connection, None, door.now(), live=live)
    if person.clinics is None:
        return list(found)
    return [
        replace(
            state,
            runs=tuple(run for run in state.runs if run.clinic is None or person.acts_for(run.clinic)),
            waiting=tuple(each for each in state.waiting if each.clinic is None or person.acts_for(each.clinic)),
            activity=replace(
                state.activity, paused={code: at for code, at in state.activity.paused.items() if person.acts_for(code)}
            ),
        )
        for state in found
    ]


def past(connection: sa.Connection, service: str, person: Person, limit: int = 30) -> list[PastRun]:
    """The newest runs of ``service`` that a person sees, newest first; a preview whose plan can no longer be applied
    does not ask for it any more."""
    runs = service_runs.past(connection, service, person.clinics, limit)
    asked = {run.report.plan_id for run in runs if run.report.preview and run.report.plan_id is not None}
    over = {plan.id: plan for plan in plans.several(connection, asked) if plan.state != "ready" or plan.expired}
    return [
        replace(run, report=replace(run.report, figures={**run.report.figures, WHAT_TO_DO: next_step(plan)}))
        if run.report.preview and (plan := over.get(run.report.plan_id or 0)) is not None and plan.writes
        else run
        for run in runs
    ]


@dataclass(frozen=True, slots=True)
class Clinic:
    id: int
    code: str
    name: str
    zone: str
    linked: bool
    """Whether its studiolab is on."""


def clinics(connection: sa.Connection, person: Person) -> list[Clinic]:
    """The active clinics that a person acts for, by code."""
    rows = connection.execute(
        sa.text("""
            SELECT c.id, c.code, c.name, c.time_zone, coalesce(i.active, false)
            FROM clinic c LEFT JOIN integration i ON i.clinic_id = c.id WHERE c.active ORDER BY c.code""")
    )
    found = [Clinic(*row) for row in rows]
    return [clinic for clinic in found if person.clinics is None or clinic.code in person.clinics]


def logged(request: Request, page: str, **whom: Any) -> None:
    """Note that the person is about to be shown ``whom`` (see ``seen.log``) on ``page``."""
    door: Door = request.state.door
    with door.engine.begin() as connection:
        seen.log(connection, request.state.person.signature, page, door.now(), **whom)


def patients_of(connection: sa.Connection, appointments: Collection[int]) -> set[int]:
    """Whose appointments (ids) these are."""
    query = sa.text("SELECT DISTINCT patient_id FROM appointment WHERE id = ANY(:ids) AND patient_id IS NOT NULL")
    return set(connection.scalars(query, {"ids": list(appointments)}))


def belongs(request: Request, connection: sa.Connection, table: str, number: int) -> None:
    """Refuse what is of a clinic that is not hers; what is of none may be anybody's."""
    found = connection.execute(
        sa.text(f"SELECT c.code FROM {table} t LEFT JOIN clinic c ON c.id = t.clinic_id WHERE t.id = :number"),
        {"number": number},
    ).one_or_none()
    if found is None:
        raise HTTPException(404)
    if found.code is not None:
        clinic_of(request, found.code)


@dataclass(frozen=True, slots=True)
class Document:
    """A document of the knowledge base that waits for a person."""

    id: int
    path: str
    clinic: str | None
    scoped_by: str
    audience: str
    why: Reason | None
    """What of it could not be read; None where it is only nobody's."""
    since: datetime


def waiting_documents(connection: sa.Connection, person: Person) -> list[Document]:
    """Documents that she may read, of her clinics and of the whole chain, which could not be read (in part) or are
    nobody's, without those that somebody has cleared or taken out."""
    rows = connection.execute(
        sa.text("""
            SELECT d.id, d.path, c.code, d.scoped_by, d.audience, d.changed_at, d.reason_code, d.reason_values, d.losses
            FROM document d LEFT JOIN clinic c ON c.id = d.clinic_id
            WHERE (d.state = 'quarantined' OR d.scoped_by = 'nobody'
                   OR (d.state = 'partial' AND d.cleared_sha256 IS DISTINCT FROM d.sha256))
              AND d.state <> 'gone' AND d.retracted_at IS NULL AND role_rank(d.audience) <= role_rank(:role)
              AND (CAST(:clinics AS text[]) IS NULL OR c.code IS NULL OR c.code = ANY(:clinics))
            ORDER BY d.changed_at, d.path"""),
        {"role": str(person.role), "clinics": None if person.clinics is None else sorted(person.clinics)},
    )
    return [
        Document(row.id, row.path, row.code, row.scoped_by, row.audience, why(*row[6:]), row.changed_at) for row in rows
    ]


def copies_elsewhere(connection: sa.Connection, person: Person, document: int) -> bool:
    """Whether a document's content also lies at a clinic that she does not act for, or is the whole chain's."""
    if person.clinics is None:
        return False
    query = sa.text("""
        SELECT EXISTS (SELECT FROM document d JOIN document o USING (sha256) LEFT JOIN clinic c ON c.id = o.clinic_id
                       WHERE d.id = :id AND o.state <> 'gone' AND (c.code = ANY(:clinics)) IS NOT TRUE)""")
    return bool(connection.scalar(query, {"id": document, "clinics": sorted(person.clinics)}))
