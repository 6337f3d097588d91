"""Applying a plan and taking it back from the web page: no services of the catalogue, tools beside all of them."""

from collections.abc import Callable
from dataclasses import replace

import dagster as dg

from polydesk_dagster import changes
from polydesk_dagster.assets.standing import standing
from polydesk_dagster.catalog import BY_KEY, Place
from polydesk_dagster.changes import plans, registry
from polydesk_dagster.changes.audit import LEAST_REASON, is_reason
from polydesk_dagster.changes.plans import Plan, Scope
from polydesk_dagster.changes.synchronise import settle
from polydesk_dagster.clinic.calendar import slots
from polydesk_dagster.clinic.calendar.slot_plan import SERVICE as SLOTS
from polydesk_dagster.database.locks import exclusive
from polydesk_dagster.outcome import Reason, Report, combine
from polydesk_dagster.resources.polydesk import PolydeskResource
from polydesk_dagster.running import ClinicConfig, DescribedConfig, Run, serve
from polydesk_dagster.sources.practice import importing, undoing
from polydesk_dagster.told import teller
from polydesk_dagster.told.dagster import metadata
from polydesk_dagster.values import Count, ServiceKey, Several, Term

APPLY, UNDO = "apply_plan", "undo_plan"


class PlanConfig(DescribedConfig):
    """Which plan; the defaults do nothing and say what to fill in."""

    plan: int = 0
    """The number of the plan; 0 is none."""
    reason: str = ""
    """Why, at least 10 characters: it stays in the audit trail."""
    preview: bool = False
    """Only show which rows would change."""


class ApplyConfig(PlanConfig):
    """Which plan to apply; exactly that one, whatever else its service would do."""

    guards: list[str] = []  # noqa: RUF012 - Dagster copies it
    """Failed guards of the plan that a person has looked at and passes; needs ``reason``."""


class UndoConfig(PlanConfig):
    """Which applied plan to take back."""

    whole: bool = False
    """Of a workbook all of its plans, with the slots of its turns."""


def _load(polydesk: PolydeskResource, plan_id: int) -> Plan | Report:
    """The plan, or why there is none."""
    if not plan_id:
        return Report.refused("which_plan")
    with polydesk.engine().connect() as connection:
        try:
            return plans.load(connection, plan_id)
        except LookupError:
            return Report.refused("unknown_plan", {"plan": plan_id})


def _emergency(plan: Plan, verb: str) -> Report | None:
    """Why a plan of the emergency location is not touched from here, or None."""
    if plan.service not in BY_KEY or BY_KEY[plan.service].place is not Place.EMERGENCY:
        return None
    return Report.refused("emergency_plan", {"plan": plan.id, "verb": verb}, plan.clinic)


def _apply(run: Run, plan: Plan, config: ApplyConfig) -> Report:
    kind = registry.kind(plan.kind)
    if (refusal := _emergency(plan, "apply")) is not None:
        return refusal
    if importing.is_part(plan):
        with run.engine.begin() as connection:
            return importing.take(
                connection,
                importing.load(connection, plan.id),
                as_of=run.as_of,
                actor=run.person,
                reason=config.reason.strip() or None,
                past_guards=config.guards,
                preview=config.preview,
            )
    if config.preview:
        with run.engine.connect() as connection:
            return changes.preview(connection, plan, kind)
    report = settle(
        run.engine,
        kind,
        Scope(plan.service, plan.clinic, plan.clinic_id, plan.scope),
        plan,
        as_of=run.as_of,
        actor=run.person,
        reason=config.reason.strip() or None,
        past_guards=config.guards,
    )
    # What is ordered is told by its reasons: nothing has come or gone yet.
    return replace(report, counts=replace(report.counts, created=0)) if kind.orders else report


def _undo(run: Run, plan: Plan, config: UndoConfig) -> Report:
    if (refusal := _emergency(plan, "undo")) is not None:
        return refusal
    if not config.preview and not is_reason(config.reason):
        return Report.refused("reason_missing", {"least": LEAST_REASON}, plan.clinic)
    if config.whole and importing.is_part(plan):
        return _undo_workbook(run, plan, config)
    with run.engine.begin() as connection:
        report = changes.undo(
            connection,
            plan.id,
            as_of=run.as_of,
            actor=run.person,
            reason=config.reason.strip() or None,
            preview=config.preview,
        )
        if report.plan_id is None or report.plan_id == plan.id:
            return report
        back = plans.load(connection, report.plan_id)
        rows = changes.preview(connection, back, registry.kind(back.kind)).tables
        return replace(report, tables=report.tables + rows)


def _undo_workbook(run: Run, plan: Plan, config: UndoConfig) -> Report:
    """Take back the whole that ``plan`` is of, and make the slots anew: nobody shall book what has gone."""
    given = {"as_of": run.as_of, "actor": run.person, "reason": config.reason.strip() or None}
    with run.engine.begin() as connection:
        found = importing.load(connection, plan.id)
        before = undoing.left_by_its_turns(connection, found)
        codes = undoing.clinics_of_its_times(connection, found)
        report = undoing.undo(connection, found, **given, preview=config.preview)
    if config.preview or not report.counts.changed or not codes:
        return report
    with exclusive(run.engine, SLOTS, None) as alone:
        if not alone:
            return replace(report, reasons=(*report.reasons, Reason("slots_wait", {"service": ServiceKey(SLOTS)})))
        made = combine([slots.generate(run.engine, run.as_of, clinic=code) for code in codes])
        made = undoing.retire_left(run.engine, found, made, before, **given)
    numbers = Several(tuple(Count(f"counts.{key}", n) for key, n in made.counts.as_dict().items() if n))
    said = Reason("slots_made", {"outcome": Term("outcome", made.outcome), "counts": numbers})
    return replace(report, outcome=combine([report, made]).outcome, reasons=(*report.reasons, said, *made.reasons))


def _alone(run: Run, plan: Plan, rule: Callable[[], Report]) -> Report:
    """``rule`` under the lock that a run of the plan's service would hold."""
    with exclusive(run.engine, plan.service, plan.clinic) as alone:
        return rule() if alone else plans.busy(plan)


def _tool(key: str, step: str, config_type: type[PlanConfig], rule: Callable[..., Report]) -> dg.JobDefinition:
    described = f"{teller().service(key)}. {teller().summary_of(key)}"

    @dg.op(name=step, description=described)
    def operation(
        context: dg.OpExecutionContext,
        config: config_type,
        polydesk: PolydeskResource,
    ) -> None:
        asked: PlanConfig = config
        found = _load(polydesk, asked.plan)
        report = serve(
            context,
            polydesk,
            key,
            ClinicConfig(clinic=found.clinic if isinstance(found, Plan) else None, preview=asked.preview),
            lambda run: found if isinstance(found, Report) else _alone(run, found, lambda: rule(run, found, asked)),
            title=teller().service(key),
        )
        if isinstance(found, Plan) and not asked.preview:
            with polydesk.engine().connect() as connection:
                for check in standing(connection, found):
                    context.log_event(check)  # pyrefly: ignore[bad-argument-type] - it takes these too
        context.add_output_metadata(metadata(report))

    @dg.job(
        name=key,
        description=described,
        tags={"polydesk/service": key, "dagster/max_runtime": "3600"},
        executor_def=dg.in_process_executor,
    )
    def job() -> None:
        operation()

    return job


apply_plan = _tool(APPLY, "apply", ApplyConfig, _apply)
undo_plan = _tool(UNDO, "take_back", UndoConfig, _undo)

TOOLS = (apply_plan, undo_plan)
