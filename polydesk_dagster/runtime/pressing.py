"""A service that a person starts: the same Dagster job wherever she presses, for one clinic or for all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import sqlalchemy as sa

from polydesk_dagster.catalog import Place, Service
from polydesk_dagster.changes import plans
from polydesk_dagster.clinic.clinics import ACTIVE_CLINICS
from polydesk_dagster.database.service_runs import recorded
from polydesk_dagster.errors import PermanentError
from polydesk_dagster.outcome import Outcome, Report, combine
from polydesk_dagster.runtime.names import PERSON_TAG
from polydesk_dagster.runtime.orders import Message, Order
from polydesk_dagster.settings import Settings
from polydesk_dagster.values import Reason, Several, Term, Value

Told = Callable[[Message], object]
"""Who is told what happens on the way; see ``orders.Message``."""


TOOLS = {"apply_plan": "apply", "undo_plan": "take_back"}
"""The jobs beside the services, each with its step."""


class UnknownError(PermanentError):
    """What was asked for does not exist: a clinic or a plan."""


def press(
    settings: Settings,
    engine: sa.Engine,
    service: Service,
    clinic: str | None,
    config: Mapping[str, Any],
    *,
    person: str | None = None,
    told: Told = lambda _: None,
) -> list[tuple[str | None, Report]]:
    """Run ``service`` for a clinic's code or for all (None), each clinic with a studiolab in a run of its own, and wait
    for the end; returns their reports. ``config`` is that of the service's steps; ``person`` is whom the audit names.

    Raises:
        UnknownError: if there is no such clinic or plan; nothing ran.
        KeyboardInterrupt: after Ctrl-C, once the run that it met has ended as canceled.
    """
    with engine.connect() as connection:
        known = set(connection.scalars(sa.text("SELECT code FROM clinic")))
        active = list(connection.scalars(ACTIVE_CLINICS))
        if clinic is not None and clinic not in known:
            if not known:
                raise UnknownError("no_clinics", given=clinic)
            raise UnknownError("unknown_clinic", given=clinic, known=Several(tuple(sorted(known))))
        if service.per_clinic and clinic is None and (plan := config.get("plan")):
            clinic = _clinic_of(connection, plan)
    if not service.per_clinic:
        whole = config if service.whole_chain else {**config, "clinic": clinic}
        return [(clinic, _execute(settings, engine, service, None, whole, person, told))]
    wanted = active if clinic is None else [code for code in active if code == clinic]
    if not wanted:
        code = "integration_off" if clinic else "integrations_off"
        return [(clinic, Report.skipped(code, clinic=clinic))]
    return [(code, _execute(settings, engine, service, code, config, person, told)) for code in wanted]


def _clinic_of(connection: sa.Connection, plan: int) -> str | None:
    try:
        return plans.load(connection, plan).clinic
    except LookupError:
        raise UnknownError("unknown_plan", plan=plan) from None


def _execute(
    settings: Settings,
    engine: sa.Engine,
    service: Service,
    partition: str | None,
    config: Mapping[str, Any],
    person: str | None,
    told: Told,
) -> Report:
    given = {name: value for name, value in config.items() if value is not None}
    steps = {"ops": {step: {"config": given} for step in service.steps}}
    order = Order(service.key, steps, _tags(service.key, person), partition)
    return _reported(settings, engine, service.place, order, service.key, partition, told)


def _tags(key: str, person: str | None) -> dict[str, str]:
    return {"polydesk/service": key} | ({PERSON_TAG: person} if person else {})


def _reported(
    settings: Settings, engine: sa.Engine, place: Place, order: Order, key: str, clinic: str | None, told: Told
) -> Report:
    """Carry out ``order`` and gather what its run recorded."""
    from polydesk_dagster.runtime.submit import execute

    lost: list[Reason] = []

    def tell(message: Message) -> None:
        if message["kind"] == "unrecorded":
            lost.extend(map(Reason.from_dict, message["reasons"]))
        else:
            told(message)

    finished = execute(settings, place.value, order, tell)
    if finished.interrupted:
        raise KeyboardInterrupt  # nor are the clinics begun whose turn has not come
    with engine.connect() as connection:
        reports = [report for _, report in recorded(connection, finished.run_id, key)]
    said = {report.outcome for report in reports} & {Outcome.REFUSED, Outcome.FAILED}
    if not ((reports and finished.status == "SUCCESS") or (said and finished.status == "FAILURE")):
        values: dict[str, Value] = {"run": finished.run_id, "status": Term("run_status", finished.status)}
        why = lost or [Reason("no_report", values)]
        reports += [Report.of_failure(reason) for reason in why]
    return combine(reports, steps=True).of_clinic(clinic)


def use(
    settings: Settings,
    engine: sa.Engine,
    tool: str,
    clinic: str | None,
    config: Mapping[str, Any],
    *,
    person: str | None = None,
    told: Told = lambda _: None,
) -> list[tuple[str | None, Report]]:
    """Run ``tool``, a key of ``TOOLS``, and wait for the end; returns its report."""
    order = Order(tool, {"ops": {TOOLS[tool]: {"config": dict(config)}}}, _tags(tool, person))
    return [(clinic, _reported(settings, engine, Place.ORDINARY, order, tool, clinic, told))]
