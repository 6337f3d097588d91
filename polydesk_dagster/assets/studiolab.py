"""Studiolab's lists as assets: for each one what would change, and what then does."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import dagster as dg
import sqlalchemy as sa

from polydesk_dagster import changes
from polydesk_dagster.changes import plans
from polydesk_dagster.changes.apply import is_stale
from polydesk_dagster.changes.kind import Kind
from polydesk_dagster.changes.plans import Plan, Scope
from polydesk_dagster.changes.synchronise import settle
from polydesk_dagster.errors import PolydeskError
from polydesk_dagster.outcome import WHAT_TO_DO, Counts, Outcome, Reason, Report
from polydesk_dagster.resources.polydesk import PolydeskResource
from polydesk_dagster.running import Context, Run, ServiceConfig, failure, perform, serve
from polydesk_dagster.schedules.services import CLINICS
from polydesk_dagster.sources import lists
from polydesk_dagster.sources.epochs import SourceChangedError
from polydesk_dagster.sources.port import Source
from polydesk_dagster.told import teller
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


class SyncConfig(ServiceConfig):
    """What a synchronisation with studiolab can be asked."""

    plan: int | None = None
    """Apply exactly this plan, which a preview has made; default: make a new one and apply it."""
    past_guard: str | None = None
    """A failed guard of that plan that a person has looked at; several are separated by commas. Needs ``plan``."""
    reason: str | None = None
    """Why a guard may be passed; needed with ``past_guard``."""


@dataclass(frozen=True)
class Listing:
    """One list of studiolab: its feed, the service that keeps it in step, and what it needs."""

    feed: str
    service: str
    preview_service: str | None
    priority: int
    """Which list goes first in a run: prices are compared when what they name is ours already."""
    per_clinic: bool = True
    needs: tuple[str, ...] = ()
    """Lists whose records this one names: what is new there is needed here first."""

    @property
    def kind(self) -> Kind:
        return lists.KINDS[self.feed]


LISTINGS = (
    Listing("municipalities", "import_municipalities", None, 10, per_clinic=False),
    Listing("collaborators", "sync_collaborators", "preview_collaborators", 30),
    Listing("services", "sync_services", "preview_services", 30),
    Listing("agreements", "sync_prices", "preview_prices", 20),
    Listing("prices", "sync_prices", "preview_prices", 10, needs=("services", "collaborators", "agreements")),
    Listing("patients", "import_patients", None, 10),
)


def _scope(run: Run, listing: Listing) -> Scope:
    clinic_id = None
    if run.clinic is not None and listing.per_clinic:
        with run.engine.connect() as connection:
            clinic_id = connection.scalar(sa.text("SELECT id FROM clinic WHERE code = :code"), {"code": run.clinic})
    clinic = run.clinic if listing.per_clinic else None
    return Scope(listing.service, clinic, clinic_id, origin=run.dagster_run)


def _switched_off(run: Run, listing: Listing) -> Report | None:
    """Why the list cannot be asked for, where the clinic has no active studiolab."""
    with run.engine.connect() as connection:
        active = connection.scalar(
            sa.text("""SELECT (SELECT count(*) FROM clinic c JOIN integration i ON i.clinic_id = c.id
                               WHERE c.active AND i.active AND (:clinic IS NULL OR c.code = :clinic))
                            + (SELECT count(*) FROM chain_source WHERE list = :feed AND vendor IS NOT NULL)
                    """).bindparams(sa.bindparam("clinic", type_=sa.Text)),
            {"clinic": run.clinic if listing.per_clinic else None, "feed": listing.feed},
        )
    if active:
        return None
    return Report.skipped("integration_off", None, run.clinic)


def _read(run: Run, listing: Listing, *, preview: bool) -> Report:
    off = _switched_off(run, listing)
    if off is not None:
        return off

    def ask(source: Source) -> Report:
        return lists.synchronise(
            run.engine, source, listing.feed, _scope(run, listing), as_of=run.as_of, preview=preview
        )

    if listing.per_clinic:
        try:
            with closing(run.polydesk.source(run.clinic or "")) as source:
                if listing.feed in source.capabilities.lists:
                    return ask(source)
        except SourceChangedError as error:
            return Report(Outcome.REFUSED, reasons=(error.reason,))
        return Report.skipped("list_not_offered", {"what": Term("kind", listing.kind.name)}, run.clinic)
    passed: list[Reason] = []

    def failed(clinic: str, error: PolydeskError) -> None:
        passed.append(Reason("other_studiolab", {"why": error.reason}, clinic))

    try:
        report = run.polydesk.chains_source(listing.feed, ask, failed)
    except SourceChangedError as error:
        return Report(Outcome.REFUSED, reasons=(error.reason,))
    return replace(report, reasons=(*report.reasons, *passed))


def _show(run: Run, listing: Listing, plan_id: int) -> Report:
    kind = listing.kind
    with run.engine.connect() as connection:
        return changes.preview(connection, plans.load(connection, plan_id), kind)


def _load(polydesk: PolydeskResource, plan_id: int) -> Plan:
    with polydesk.engine().connect() as connection:
        return plans.load(connection, plan_id)


def _named(
    polydesk: PolydeskResource, listing: Listing, clinic: str | None, config: SyncConfig
) -> Plan | Report | None:
    """The plan that was named, or why nothing may be done with it; None where a new one is wanted."""
    if config.plan is None:
        if not _passed(config):
            return None
        return Report.refused("guard_without_plan", None, clinic)
    try:
        plan = _load(polydesk, config.plan)
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
    if plan.clinic != (clinic if listing.per_clinic else None):
        return Report.refused("plan_of_another_clinic", {"plan": plan.id, "of": plan.clinic, "asked": clinic}, clinic)
    return plan


def _passed(config: SyncConfig) -> set[str]:
    return {name.strip() for name in (config.past_guard or "").split(",") if name.strip()}


def _clinic(context: Context) -> str | None:
    return context.partition_key if context.has_partition_key else None


def _bound(context: Context, polydesk: PolydeskResource, service: str, config: SyncConfig) -> SyncConfig:
    """``config`` with the plan that any step of the run was given, which binds all of them.

    Raises:
        dagster.Failure: where the steps name different plans, or pass it differently; recorded for ``service``.
    """
    steps: Any = context.run.run_config.get("ops", {})
    given: dict[str, set[Any]] = {name: set() for name in ("plan", "past_guard", "reason")}
    for step in steps.values():
        asked = step.get("config") or {}
        for name, values in given.items():
            if asked.get(name):
                values.add(asked[name])
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


def _look(run: Run, listing: Listing, named: Plan | None, passed: set[str]) -> Report:
    """What would change; refused where a guard stops it that nobody has passed."""
    report = _read(run, listing, preview=True) if named is None else _show(run, listing, named.id)
    if report.plan_id is None:
        return report
    plan = _load(run.polydesk, report.plan_id)
    stopping = [guard for guard in plan.failed_guards if guard.name not in passed]
    if stopping:
        said = [Reason(guard.reason.code, guard.reason.values, plan.clinic) for guard in stopping]
        what = Reason("what_to_do", {"next": report.figures[WHAT_TO_DO]}, plan.clinic)
        others = [reason for reason in report.reasons if not reason.code.startswith("guard_")]
        report = replace(report, outcome=Outcome.REFUSED, reasons=(*said, what, *others))
    first = _needed_first(run, listing, plan)
    return report if first is None else replace(report, reasons=(*report.reasons, first))


def _needed_first(run: Run, listing: Listing, plan: Plan) -> Reason | None:
    """Where rows wait for records that are new in a list which this run has looked at as well."""
    if not plan.tally.get("unmapped"):
        return None
    with run.engine.connect() as connection:
        looked = [plans.made_by(connection, run.dagster_run, lists.KINDS[feed].name) for feed in listing.needs]
    for first in filter(None, looked):
        if first.state == "ready" and first.tally.get("create"):
            values: dict[str, Value] = {"plan": first.id, "what": Term("kind", first.kind)}
            return Reason("apply_first", values, plan.clinic, plan.tally["unmapped"])
    return None


def _apply(run: Run, listing: Listing, config: SyncConfig) -> Report:
    """Apply the plan that was named, or that the preview of this run has made; alone, or where that one no longer fits,
    plan and apply."""
    kind = listing.kind
    with run.engine.connect() as connection:
        plan = (
            plans.load(connection, config.plan)
            if config.plan is not None
            else plans.made_by(connection, run.dagster_run, kind.name)
        )
    if plan is None:
        return _read(run, listing, preview=False)
    report = settle(
        run.engine,
        kind,
        Scope(plan.service, plan.clinic, plan.clinic_id, plan.scope),
        plan,
        as_of=run.as_of,
        actor="dagster" if config.plan is None else run.person,
        reason=config.reason,
        past_guards=_passed(config),
    )
    if config.plan is None:
        return _read(run, listing, preview=False) if is_stale(report) else report
    return _not_again(report)


def _not_again(report: Report) -> Report:
    """``report`` of a plan that was named, without the advice to apply it where it was refused for good."""
    codes = {reason.code for reason in report.reasons}
    if report.outcome is not Outcome.REFUSED or codes & {"guard", "reason_missing"}:
        return report
    todo = Reason("plan_expired", {"plan": report.plan_id})
    return replace(report, figures={**report.figures, WHAT_TO_DO: todo})


def _guards(listing: Listing) -> tuple[str, ...]:
    return (*BUILT_IN_GUARDS, *(guard.name for guard in listing.kind.guards))


def _results(plan: Plan | None, listing: Listing, key: dg.AssetKey, passed: set[str]) -> list[dg.AssetCheckResult]:
    said = {guard.name: guard for guard in plan.guards} if plan is not None else {}
    results, t = [], teller()
    for name in _guards(listing):
        guard = said.get(name)
        found = None if guard is None else Reason("guard_passed") if guard.passed else guard.reason
        shown = {t.label("figure", "guard"): t.reason(found or Reason("guard_idle"))}
        holds = guard is None or guard.passed or name in passed
        results.append(dg.AssetCheckResult(passed=holds, asset_key=key, check_name=name, metadata=shown))
    return results


def _preview_asset(listing: Listing) -> dg.AssetsDefinition:
    key = dg.AssetKey(["studiolab", f"{listing.feed}_preview"])

    # A skipped run yields no check, which only a step that can be run in part may: `can_subset`.
    @dg.multi_asset(
        name=f"studiolab__{listing.feed}_preview",
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
    )
    def preview(
        context: dg.AssetExecutionContext, config: SyncConfig, polydesk: PolydeskResource
    ) -> Iterator[dg.MaterializeResult | dg.AssetCheckResult]:
        alone = context.run.job_name == listing.preview_service
        service = listing.preview_service if alone and listing.preview_service else listing.service
        config = _bound(context, polydesk, service, config)
        named = _asked(context, polydesk, service, listing, config)
        if named is not None and named.kind != listing.kind.name:
            left = _results(None, listing, key, set())
            yield dg.MaterializeResult(metadata=_left_alone(named), check_results=left)
            return
        passed = _passed(config)
        only_look = SyncConfig(as_of=config.as_of, preview=True)
        report = perform(context, polydesk, service, only_look, lambda run: _look(run, listing, named, passed))
        if report.outcome in {Outcome.REFUSED, Outcome.FAILED, Outcome.SKIPPED} and not config.preview and not alone:
            stopped = Report(
                report.outcome, Counts(failed=report.counts.failed), report.reasons, plan_id=report.plan_id
            )
            perform(context, polydesk, service, config, lambda _: stopped)  # the service itself ends here
        if report.outcome is Outcome.FAILED:
            raise failure(teller().service(service), report)
        if report.outcome is Outcome.SKIPPED:
            return
        plan = _load(polydesk, report.plan_id) if report.plan_id is not None else None
        asked = context.selected_asset_check_keys
        results = [
            result
            for result in _results(plan, listing, key, passed)
            if dg.AssetCheckKey(key, result.check_name or "") in asked
        ]
        if key in context.selected_asset_keys:
            yield dg.MaterializeResult(metadata=metadata(report), check_results=results)
        else:
            yield from results

    return preview


def _real_asset(listing: Listing) -> dg.AssetsDefinition:
    @dg.asset(
        key=["studiolab", listing.feed],
        group_name="studiolab",
        kinds={"http", "postgres"},
        tags={"polydesk/records": listing.kind.name},
        description=teller().text(f"asset.{listing.feed}"),
        deps=[["studiolab", f"{listing.feed}_preview"], *(["studiolab", feed] for feed in listing.needs)],
        partitions_def=CLINICS if listing.per_clinic else None,
        op_tags={"dagster/priority": str(listing.priority)},
        pool="studiolab",
        output_required=False,
        code_version="1",
    )
    def real(
        context: dg.AssetExecutionContext, config: SyncConfig, polydesk: PolydeskResource
    ) -> Iterator[dg.MaterializeResult]:
        config = _bound(context, polydesk, listing.service, config)
        named = _asked(context, polydesk, listing.service, listing, config)
        if named is not None and named.kind != listing.kind.name:
            yield dg.MaterializeResult(metadata=_left_alone(named))
            return
        if config.preview:
            return
        report = serve(context, polydesk, listing.service, config, lambda run: _apply(run, listing, config))
        if report.outcome is not Outcome.SKIPPED:
            yield dg.MaterializeResult(metadata=metadata(report))

    return real


ASSETS = tuple(make(listing) for listing in LISTINGS for make in (_preview_asset, _real_asset))
