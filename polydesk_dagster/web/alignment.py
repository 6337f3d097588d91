"""«Sincronizza tutto»: a clinic's four lists in their order, each looked at, then applied before the next."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from polydesk_dagster import changes
from polydesk_dagster.catalog import BY_KEY
from polydesk_dagster.changes import plans, registry
from polydesk_dagster.changes.plans import Plan
from polydesk_dagster.outcome import Outcome, Report
from polydesk_dagster.runtime import pressing
from polydesk_dagster.runtime.orders import Message
from polydesk_dagster.runtime.pressing import Told
from polydesk_dagster.web import presses
from polydesk_dagster.web.door import Door
from polydesk_dagster.web.roles import May, Person
from polydesk_dagster.web.routes import Pages, clinic_of

pages = Pages()

SERVICE = "sync_all"
LISTS = (
    ("sync_collaborators", "collaborator"),
    ("sync_services", "service"),
    ("sync_prices", "agreement"),
    ("sync_prices", "price"),
)
"""The services, each with the kind of record that its step is about; prices name what the lists before them bring."""


class State(StrEnum):
    """How far a stage is."""

    AHEAD = "ahead"
    LOOKING = "looking"
    SEEN = "seen"
    """Its plan waits for a person's word."""
    APPLYING = "applying"
    APPLIED = "applied"
    IN_STEP = "in_step"
    """There was nothing to apply."""
    STOPPED = "stopped"


@dataclass
class Stage:
    """One list of the four."""

    service: str
    kind: str
    state: State = State.AHEAD
    plan: int | None = None
    report: Report | None = None
    """Of its look, and once applied of that."""


@dataclass
class Course:
    """The four lists of one clinic, as far as they are."""

    clinic: str
    stages: list[Stage] = field(default_factory=lambda: [Stage(*each) for each in LISTS])

    @property
    def seen(self) -> Stage | None:
        """The stage whose plan waits for a word."""
        return next((stage for stage in self.stages if stage.state is State.SEEN), None)

    @property
    def stopped(self) -> bool:
        return any(stage.state is State.STOPPED for stage in self.stages)

    @property
    def ended(self) -> bool:
        return all(stage.state in {State.APPLIED, State.IN_STEP} for stage in self.stages)


Look = Callable[[Stage], tuple[Plan | None, Report]]
"""Looks at a stage's list; the plan that it made, where it made one, and what it found."""
Apply = Callable[[int], Report]
"""Applies exactly the plan of that number."""


def go_on(course: Course, look: Look, apply: Apply) -> None:
    """Apply the plan that was seen, if there is one, and look at the lists after it, up to the next plan that somebody
    must see. What is refused, or fails, stops the whole: what comes after it would be compared with what is missing."""
    for stage in course.stages:
        if stage.state is State.SEEN and stage.plan is not None:
            stage.state = State.APPLYING
            stage.report = apply(stage.plan)
            bad = stage.report.outcome in {Outcome.REFUSED, Outcome.FAILED, Outcome.SKIPPED}
            stage.state = State.STOPPED if bad else State.APPLIED
        elif stage.state is State.AHEAD:
            stage.state = State.LOOKING
            plan, stage.report = look(stage)
            if plan is None or plan.failed_guards:
                bad = stage.report.outcome not in {Outcome.OK, Outcome.NOTHING_TO_DO} or plan is not None
                stage.state = State.STOPPED if bad else State.IN_STEP
            else:
                stage.state = State.SEEN if plan.writes else State.IN_STEP
            stage.plan = plan.id if plan is not None else None
        if stage.state in {State.SEEN, State.STOPPED}:
            return


@pages.post("/servizi/allinea", May.APPLY)
def align(request: Request) -> Response:
    """Begin with the first list of a clinic."""
    clinic = clinic_of(request, request.state.form.get("clinic") or None)
    if clinic is None:
        raise HTTPException(400, request.state.door.say(request, "door.name_a_clinic"))
    return _press(request, Course(clinic))


@pages.post("/premute/{press}/avanti", May.APPLY)
def apply_and_go_on(request: Request) -> Response:
    """Apply the plan that the page showed, and look at the next list."""
    door: Door = request.state.door
    found = door.presses.find(request.path_params["press"])
    course = None if found is None else found.course
    if not isinstance(course, Course):
        raise HTTPException(404)
    clinic_of(request, course.clinic)
    if course.seen is None or request.state.form.get("plan") != str(course.seen.plan):
        raise HTTPException(409, door.say(request, "web.align_moved_on"))
    return _press(request, course)


def _press(request: Request, course: Course) -> Response:
    door: Door = request.state.door
    person: Person = request.state.person

    def work(*, told: Told) -> list[tuple[str | None, Report]]:
        look = partial(_look, door, course.clinic, person, told)
        go_on(course, look, partial(_apply, door, course.clinic, person, told))
        return [(course.clinic, stage.report) for stage in course.stages if stage.report is not None]

    preview = course.seen is None
    return presses.pressed(request, SERVICE, course.clinic, work, preview=preview, course=course)


def _look(door: Door, clinic: str, person: Person, told: Told, stage: Stage) -> tuple[Plan | None, Report]:
    runs: list[str] = []

    def heard(message: Message) -> None:
        if message["kind"] == "run":
            runs.append(message["run_id"])
        told(message)

    service, config = BY_KEY[stage.service], {"preview": True}
    ((_, report),) = pressing.press(
        door.settings, door.engine, service, clinic, config, person=person.signature, told=heard
    )
    with door.engine.connect() as connection:
        plan = plans.made_by(connection, runs[-1], stage.kind) if runs else None
        return plan, report if plan is None else changes.preview(connection, plan, registry.kind(plan.kind))


def _apply(door: Door, clinic: str, person: Person, told: Told, plan: int) -> Report:
    config = {"plan": plan}
    ((_, report),) = pressing.use(
        door.settings, door.engine, "apply_plan", clinic, config, person=person.signature, told=told
    )
    return report
