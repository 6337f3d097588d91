"""Studiolab's lists as assets: for each one what would change, and what then does."""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import dagster as dg

from polydesk_dagster import changes
from polydesk_dagster.assets.listings import LISTINGS, Listing, SyncConfig, apply, load, look
from polydesk_dagster.changes.plans import Plan
from polydesk_dagster.many import ALL_AT_ONCE, NOT_WELL, brief, clinics_of, ended_badly, left, perform_each
from polydesk_dagster.outcome import Counts, Outcome, Reason, Report, combine
from polydesk_dagster.resources.polydesk import PolydeskResource
from polydesk_dagster.running import Context, failure, perform, serve
from polydesk_dagster.runtime.dagster_inside.outputs import together, told_already
from polydesk_dagster.schedules.services import CLINICS
from polydesk_dagster.told import teller
from polydesk_dagster.told.dagster import brief as in_brief
from polydesk_dagster.told.dagster import metadata
from polydesk_dagster.values import ServiceKey, Several, Term, Value

BUILT_IN_GUARDS = (
    "source_empty",
    "source_short",
    "source_incomplete",
    "source_shape",
    "source_encoding",
    "duplicate_keys",
    "too_many_retired",
    "too_many_changed",
    "too_many_since_confirmed",
    "undone_before",
)


def _named(
    polydesk: PolydeskResource, listing: Listing, clinic: str | None, config: SyncConfig
) -> Plan | Report | None:
    """The plan that was named, or why nothing may be done with it; None where a new one is wanted."""
    if config.plan is None:
        if not config.passed:
            return None
        return Report.refused("guard_without_plan", None, clinic)
    try:
        plan = load(polydesk, config.plan)
    except LookupError:
        return Report.refused("unknown_plan", {"plan": config.plan}, clinic)
    if plan.service != listing.service:
        values: dict[str, Value] = {
            "plan": plan.id,
            "of": ServiceKey(plan.service),
            "what": Term("kind", plan.kind),
            "service": ServiceKey(listing.service),
        }
        return Report.refused("plan_of_another_service", values, clinic)
    if clinic is None and plan.clinic is not None:
        return Report.refused("plan_in_run_for_many", {"plan": plan.id, "of": plan.clinic})
    if plan.clinic != (clinic if listing.per_clinic else None):
        return Report.refused("plan_of_another_clinic", {"plan": plan.id, "of": plan.clinic, "asked": clinic}, clinic)
    strange = changes.unknown_guards([plan], config.passed)
    return plan if strange is None else Report(Outcome.REFUSED, reasons=(strange,), plan_id=plan.id)


def _clinic(context: Context) -> str | None:
    return context.partition_key if context.has_partition_key else None


def _bound(context: Context, polydesk: PolydeskResource, service: str, config: SyncConfig) -> SyncConfig:
    """``config`` with the plan and the clinics that any step of the run was given, which bind all of them.

    Raises:
        dagster.Failure: where the steps name different ones, or pass a plan differently; recorded for ``service``.
    """
    steps: Any = context.run.run_config.get("ops", {})
    given: dict[str, set[Any]] = {name: set() for name in ("plan", "past_guard", "reason", "clinics")}
    for step in steps.values():
        asked = step.get("config") or {}
        for name, values in given.items():
            if value := asked.get(name):
                values.add(tuple(value) if isinstance(value, list) else value)
    if any(len(values) > 1 for values in given.values()):
        differing = Several(tuple(sorted(name for name, values in given.items() if len(values) > 1)))
        refused = Report.refused("steps_disagree", {"fields": differing}, _clinic(context))
        perform(context, polydesk, service, config, lambda _: refused)
        raise failure(teller().service(service), refused)
    bound = {name: next(iter(values)) for name, values in given.items() if values}
    return SyncConfig(**{**config.model_dump(), **bound})


def _left_alone(named: Plan) -> dict[str, str]:
    """What a step says that leaves its list alone because the run applies a plan of another."""
    t = teller()
    why = Reason("only_this_plan", {"plan": named.id, "what": Term("kind", named.kind)})
    return {t.label("figure", "outcome"): t.reason(why)}


def _asked(
    context: Context, polydesk: PolydeskResource, service: str, listing: Listing, config: SyncConfig
) -> Plan | None:
    """The plan that was named, None where a new one is wanted.

    Raises:
        dagster.Failure: where what was asked is refused; that is recorded for ``service``.
    """
    found = _named(polydesk, listing, _clinic(context), config)
    if isinstance(found, Report):
        perform(context, polydesk, service, config, lambda _: found)
        raise failure(teller().service(service), found)
    return found


def _guards(listing: Listing) -> tuple[str, ...]:
    return (*BUILT_IN_GUARDS, *(guard.name for guard in listing.kind.guards))


def _results(plan: Plan | None, listing: Listing, passed: set[str]) -> list[dg.AssetCheckResult]:
    said = {guard.name: guard for guard in plan.guards} if plan is not None else {}
    results, t = [], teller()
    for name in _guards(listing):
        guard = said.get(name)
        found = None if guard is None else Reason("guard_passed") if guard.passed else guard.reason
        shown = {t.label("figure", "guard"): t.reason(found or Reason("guard_idle"))}
        holds = guard is None or guard.passed or name in passed
        results.append(dg.AssetCheckResult(passed=holds, asset_key=listing.preview, check_name=name, metadata=shown))
    return results


def _results_of_many(listing: Listing, stopping: Iterable[tuple[str, Reason]]) -> list[dg.AssetCheckResult]:
    """A check for all clinics of a run; one that stops some of them is no error, which would stop the others."""
    by_guard: dict[str, list[str]] = {}
    t = teller()
    for name, reason in stopping:
        by_guard.setdefault(name, []).append(f"{reason.clinic}: {t.reason(reason)}")
    return [
        dg.AssetCheckResult(
            passed=name not in by_guard,
            severity=dg.AssetCheckSeverity.WARN,
            asset_key=listing.preview,
            check_name=name,
            metadata={t.label("figure", "guard"): "\n".join(by_guard.get(name) or [t.reason(Reason("guard_passed"))])},
        )
        for name in _guards(listing)
    ]


def _steps(context: Context) -> set[str]:
    """The steps of this run; of another attempt, those that it does again."""
    return set(context.run.step_keys_to_execute or [node.name for node in context.job_def.nodes])


def _is_missing(report: Report) -> bool:
    """Whether the source has no such list: what names records of it is read all the same."""
    return any(reason.code == "list_not_offered" for reason in report.reasons)


def _is_needed(context: Context, listing: Listing) -> bool:
    steps = _steps(context)
    return any(listing.feed in each.needs and each.step in steps for each in LISTINGS)


Told = dg.MaterializeResult[Any] | dg.AssetCheckResult | dg.AssetMaterialization
"""What a step says."""


def _stopped(report: Report) -> Report:
    """How the service itself ends where its preview ended by ``report``."""
    return Report(report.outcome, Counts(failed=report.counts.failed), report.reasons, plan_id=report.plan_id)


def _look_at_each(
    context: dg.AssetExecutionContext,
    polydesk: PolydeskResource,
    service: str,
    listing: Listing,
    config: SyncConfig,
    clinics: list[str],
) -> Iterator[Told]:
    """The preview for each of these clinics. One that is stopped or fails is left out by the steps that follow; where
    none follows the run ends by it, when all the others have been looked at."""
    if listing.step in _steps(context) and not context.has_partition_key_range:
        raise failure(teller().service(service), Report.refused("no_partitions"))
    only_look = SyncConfig(as_of=config.as_of, preview=True)
    first = not config.preview and listing.step in _steps(context)
    rule = partial(look, listing=listing, named=None, passed=set(), first=first)
    stopped: dict[str, Report] = {}
    stopping: list[tuple[str, Reason]] = []
    for clinic, report in perform_each(context, polydesk, service, only_look, rule, clinics):
        if report.outcome in {*NOT_WELL, Outcome.SKIPPED}:
            stopped[clinic] = brief(report)
        if report.plan_id is not None:
            guards = load(polydesk, report.plan_id).failed_guards
            stopping += [(guard.name, replace(guard.reason, clinic=clinic)) for guard in guards]
        if report.outcome not in {Outcome.FAILED, Outcome.SKIPPED}:
            yield dg.AssetMaterialization(listing.preview, metadata=in_brief(report), partition=clinic)
    if not config.preview and service == listing.service:
        ends = perform_each(
            context, polydesk, service, config, lambda run: _stopped(stopped[run.clinic or ""]), list(stopped)
        )
        deque(ends, maxlen=0)
    failed = [report for report in stopped.values() if report.outcome is Outcome.FAILED]
    if failed and (config.preview or listing.step not in _steps(context)):
        raise failure(teller().service(service), combine(failed))
    yield told_already(listing.preview)
    yield from together(_results_of_many(listing, stopping))


def _apply_to_each(
    context: dg.AssetExecutionContext,
    polydesk: PolydeskResource,
    listing: Listing,
    config: SyncConfig,
    clinics: list[str],
) -> Iterator[Told]:
    """The list kept in step for each of these clinics but those that this run has already lost; where no step follows
    that needs it, the run ends by all who were lost, when everything has been done for the others.

    Another attempt that only does this step again does for whoever was lost before it what the step needs.
    """
    steps, needed = _steps(context), [each for each in LISTINGS if each.feed in listing.needs]
    behind = [each for each in needed if each.service == listing.service and each.step not in steps]
    with polydesk.engine().connect() as connection:
        lost = ended_badly(connection, context.run.run_id, [listing.service, *(each.service for each in needed)])
    for each in (*(behind if context.run.root_run_id else ()), listing):
        rule = partial(apply, listing=each, config=config)
        wanted = [clinic for clinic in left(context, each.key, clinics) if clinic not in lost]
        for clinic, report in perform_each(context, polydesk, each.service, config, rule, wanted):
            if report.outcome in NOT_WELL:
                lost[clinic] = brief(report)
            elif report.outcome is not Outcome.SKIPPED:
                yield dg.AssetMaterialization(each.key, metadata=in_brief(report), partition=clinic)
    if lost and not any(listing.feed in each.needs and each.step in steps for each in LISTINGS):
        raise failure(teller().service(listing.service), combine(lost.values()))
    yield told_already(listing.key)


def _preview_asset(listing: Listing) -> dg.AssetsDefinition:
    key = listing.preview

    # A skipped run yields no check, which only a step that can be run in part may: `can_subset`.
    @dg.multi_asset(
        name=f"{listing.step}_preview",
        specs=[
            dg.AssetSpec(
                key,
                group_name="studiolab",
                kinds={"http", "postgres"},
                tags={"polydesk/records": "plan"},
                description=teller().text(f"asset.{listing.feed}_preview"),
                partitions_def=CLINICS if listing.per_clinic else None,
                skippable=True,
                code_version="1",
            )
        ],
        check_specs=[
            dg.AssetCheckSpec(name, asset=key, description=teller().text(f"guard.{name}"), blocking=True)
            for name in _guards(listing)
        ],
        can_subset=True,
        op_tags={"dagster/priority": str(listing.priority + 5)},
        pool="studiolab",
        backfill_policy=ALL_AT_ONCE if listing.per_clinic else None,
    )
    def preview(context: dg.AssetExecutionContext, config: SyncConfig, polydesk: PolydeskResource) -> Iterator[Told]:
        alone = context.run.job_name == listing.preview_service
        service = listing.preview_service if alone and listing.preview_service else listing.service
        config = _bound(context, polydesk, service, config)
        named = _asked(context, polydesk, service, listing, config)
        if named is not None and named.kind != listing.kind.name:
            yield dg.MaterializeResult(metadata=_left_alone(named))
            yield from together(_results(None, listing, set()))
            return
        clinics = clinics_of(context, polydesk.engine(), config) if listing.per_clinic else None
        if clinics is not None:
            yield from _look_at_each(context, polydesk, service, listing, config, clinics)
            return
        passed = config.passed
        only_look = SyncConfig(as_of=config.as_of, preview=True)
        first = not config.preview and listing.step in _steps(context)
        report = perform(
            context, polydesk, service, only_look, lambda run: look(run, listing, named, passed, first=first)
        )
        goes_on = _is_missing(report) and not config.preview and _is_needed(context, listing)
        ended = report.outcome in {Outcome.REFUSED, Outcome.FAILED, Outcome.SKIPPED} and not goes_on
        if ended and not config.preview and not alone:
            perform(context, polydesk, service, config, lambda _: _stopped(report))  # the service itself ends here
        if report.outcome is Outcome.FAILED:
            raise failure(teller().service(service), report)
        if goes_on:
            yield told_already(key)
            yield from together(_results(None, listing, passed))
        if report.outcome is Outcome.SKIPPED:
            return
        plan = load(polydesk, report.plan_id) if report.plan_id is not None else None
        asked = context.selected_asset_check_keys
        results = [
            result
            for result in _results(plan, listing, passed)
            if dg.AssetCheckKey(key, result.check_name or "") in asked
        ]
        if key in context.selected_asset_keys:
            yield dg.MaterializeResult(metadata=metadata(report))
        yield from together(results)

    return preview


def _real_asset(listing: Listing) -> dg.AssetsDefinition:
    @dg.multi_asset(
        name=listing.step,
        specs=[
            dg.AssetSpec(
                listing.key,
                group_name="studiolab",
                kinds={"http", "postgres"},
                tags={"polydesk/records": listing.kind.name},
                description=teller().text(f"asset.{listing.feed}"),
                deps=[listing.preview, *(["studiolab", feed] for feed in listing.needs)],
                partitions_def=CLINICS if listing.per_clinic else None,
                skippable=True,
                code_version="1",
            )
        ],
        op_tags={"dagster/priority": str(listing.priority)},
        pool="studiolab",
        backfill_policy=ALL_AT_ONCE if listing.per_clinic else None,
    )
    def real(context: dg.AssetExecutionContext, config: SyncConfig, polydesk: PolydeskResource) -> Iterator[Told]:
        config = _bound(context, polydesk, listing.service, config)
        named = _asked(context, polydesk, listing.service, listing, config)
        if named is not None and named.kind != listing.kind.name:
            yield dg.MaterializeResult(metadata=_left_alone(named))
            return
        if config.preview:
            return
        clinics = clinics_of(context, polydesk.engine(), config) if listing.per_clinic else None
        if clinics is not None:
            yield from _apply_to_each(context, polydesk, listing, config, clinics)
            return
        report = serve(context, polydesk, listing.service, config, lambda run: apply(run, listing, config))
        if report.outcome is not Outcome.SKIPPED:
            yield dg.MaterializeResult(metadata=metadata(report))
        elif _is_missing(report) and _is_needed(context, listing):
            yield told_already(listing.key)

    return real


ASSETS = tuple(make(listing) for listing in LISTINGS for make in (_preview_asset, _real_asset))
