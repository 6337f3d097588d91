"""Studiolab's lists as assets: for each one what would change, and what then does."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import dagster as dg
import sqlalchemy as sa

from polydesk_dagster import changes
from polydesk_dagster.changes import plans, registry
from polydesk_dagster.changes.apply import is_stale
from polydesk_dagster.changes.plans import Plan, Scope
from polydesk_dagster.changes.synchronise import settle
from polydesk_dagster.errors import PolydeskError
from polydesk_dagster.outcome import WHAT_TO_DO, Counts, Outcome, Reason, Report
from polydesk_dagster.resources.polydesk import PolydeskResource
from polydesk_dagster.running import Context, Run, ServiceConfig, failure, perform, serve
from polydesk_dagster.schedules.services import CLINICS
from polydesk_dagster.sources.studiolab import sync
from polydesk_dagster.sources.studiolab.client import Studiolab
from polydesk_dagster.told import teller
from polydesk_dagster.told.dagster import metadata

BUILT_IN_GUARDS = {
    "source_empty": "La fonte ha dato almeno i record che ci si aspetta.",
    "source_short": "La fonte non si è accorciata troppo dall'ultima volta.",
    "source_incomplete": "La fonte ha dato tutti i record che annuncia.",
    "source_shape": "I record illeggibili sono pochi.",
    "source_encoding": "Le lettere accentate sono intere.",
    "duplicate_keys": "Nessun record contraddice un altro con la stessa chiave.",
    "too_many_retired": "Le chiusure sono entro il limite.",
    "too_many_changed": "Le modifiche sono entro il limite.",
    "undone_before": "Nulla ripete ciò che una persona ha annullato da poco.",
}


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
    """One list of studiolab: its feed, the service that keeps it in step, and how it is told to the operator."""

    feed: str
    service: str
    preview_service: str | None
    title: str
    describes: str
    priority: int
    """Which list goes first in a run: prices are compared when the agreements that they name are ours already."""
    per_clinic: bool = True
    names: str | None = None
    """A list of the same service whose records this one names: what is new there is needed here first."""


LISTINGS = (
    Listing(
        "municipalities",
        "import_municipalities",
        None,
        "I comuni",
        "I comuni italiani di ieri e di oggi, con il periodo in cui ciascuno è valido.",
        10,
        per_clinic=False,
    ),
    Listing(
        "collaborators",
        "sync_collaborators",
        "preview_collaborators",
        "I collaboratori",
        "I medici e i tecnici della clinica, come li tiene studiolab.",
        10,
    ),
    Listing(
        "services", "sync_services", "preview_services", "Le prestazioni", "Le prestazioni che la clinica offre.", 10
    ),
    Listing("agreements", "sync_prices", "preview_prices", "Le convenzioni", "Assicurazioni, fondi e convenzioni.", 20),
    Listing(
        "prices",
        "sync_prices",
        "preview_prices",
        "I prezzi",
        "Il listino della clinica, con le convenzioni; chi ha già prenotato tiene il prezzo che gli è stato detto.",
        10,
        names="agreements",
    ),
    Listing(
        "patients",
        "import_patients",
        None,
        "I pazienti",
        "Le anagrafiche che mancavano; nessuna viene mai cambiata, i casi dubbi attendono una persona.",
        10,
    ),
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
            sa.text("""SELECT count(*) FROM clinic c JOIN integration i ON i.clinic_id = c.id
                       WHERE c.active AND i.active AND (:clinic IS NULL OR c.code = :clinic)""").bindparams(
                sa.bindparam("clinic", type_=sa.Text)
            ),
            {"clinic": run.clinic if listing.per_clinic else None},
        )
    if active:
        return None
    return Report.skipped("integration_off", "L'integrazione con studiolab non è attiva.", run.clinic)


def _read(run: Run, listing: Listing, *, preview: bool) -> Report:
    off = _switched_off(run, listing)
    if off is not None:
        return off

    def ask(studiolab: Studiolab) -> Report:
        return sync.synchronise(
            run.engine, studiolab, listing.feed, _scope(run, listing), as_of=run.as_of, preview=preview
        )

    if listing.per_clinic:
        with run.polydesk.studiolab(run.clinic or "") as studiolab:
            return ask(studiolab)
    passed: list[Reason] = []

    def failed(clinic: str, error: PolydeskError) -> None:
        passed.append(Reason("other_studiolab", f"{error}; l'elenco è stato chiesto a un'altra clinica.", clinic))

    report = run.polydesk.any_studiolab(ask, failed)
    return replace(report, reasons=(*report.reasons, *passed))


def _show(run: Run, listing: Listing, plan_id: int) -> Report:
    kind = sync.FEEDS[listing.feed].kind
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
        message = "Per passare oltre un controllo serve anche il piano che hai guardato («plan»)."
        return Report.refused("guard_without_plan", message, clinic)
    try:
        plan = _load(polydesk, config.plan)
    except LookupError:
        return Report.refused("unknown_plan", f"Non esiste il piano {config.plan}.", clinic)
    if plan.service != listing.service:
        whose = (
            f"di «{teller().service(plan.service)}» ({registry.kind(plan.kind).label}), "
            f"non di «{teller().service(listing.service)}»"
        )
    elif plan.clinic != (clinic if listing.per_clinic else None):
        whose = f"della clinica {plan.clinic}, non di {clinic}"
    else:
        return plan
    message = f"Il piano {plan.id} è {whose}: «polydesk plan apply {plan.id}» lo applica dove va."
    return Report.refused("other_plan", message, clinic)


def _passed(config: SyncConfig) -> set[str]:
    return {name.strip() for name in (config.past_guard or "").split(",") if name.strip()}


def _asked(
    context: Context, polydesk: PolydeskResource, service: str, listing: Listing, config: SyncConfig
) -> Plan | None:
    """The plan that was named, None where a new one is wanted.

    Raises:
        dagster.Failure: where what was asked is refused; that is recorded for ``service``.
    """
    found = _named(polydesk, listing, context.partition_key if context.has_partition_key else config.clinic, config)
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
        said = [Reason(f"guard:{guard.name}", f"{guard.name}: {guard.message}", plan.clinic) for guard in stopping]
        what = Reason("what_to_do", f"Niente è stato scritto. {report.figures[WHAT_TO_DO]}", plan.clinic)
        others = [reason for reason in report.reasons if not reason.code.startswith("guard:")]
        report = replace(report, outcome=Outcome.REFUSED, reasons=(*said, what, *others))
    first = _needed_first(run, listing, plan)
    return report if first is None else replace(report, reasons=(*report.reasons, first))


def _needed_first(run: Run, listing: Listing, plan: Plan) -> Reason | None:
    """Where rows wait for records that are new in a list which this run has looked at as well."""
    if listing.names is None or not plan.tally.get("unmapped"):
        return None
    kind = sync.FEEDS[listing.names].kind
    with run.engine.connect() as connection:
        first = plans.made_by(connection, run.dagster_run, kind.name)
    if first is None or first.state != "ready" or not first.tally.get("create"):
        return None
    message = (
        f"Righe senza corrispondenza: prima applica il piano {first.id} ({kind.label}), che crea ciò che qui manca, "
        "poi rifai l'anteprima."
    )
    return Reason("apply_first", message, plan.clinic, plan.tally["unmapped"])


def _apply(run: Run, listing: Listing, config: SyncConfig) -> Report:
    """Apply the plan that was named, or that the preview of this run has made; alone, or where that one no longer fits,
    plan and apply."""
    kind = sync.FEEDS[listing.feed].kind
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
    todo = f"Il piano {report.plan_id} non si può più applicare: rifai l'anteprima."
    return replace(report, figures={**report.figures, WHAT_TO_DO: todo})


def _guards(listing: Listing) -> dict[str, str]:
    own = {guard.name: guard.message for guard in sync.FEEDS[listing.feed].kind.guards}
    return {**BUILT_IN_GUARDS, **{name: message.replace("{value}", "Nessuno dei") for name, message in own.items()}}


def _results(plan: Plan | None, listing: Listing, key: dg.AssetKey, passed: set[str]) -> list[dg.AssetCheckResult]:
    said = {guard.name: guard for guard in plan.guards} if plan is not None else {}
    results = []
    for name in _guards(listing):
        guard = said.get(name)
        shown = {"Che cosa dice": guard.message if guard else "non si applica"}
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
                description=f"{listing.title}: che cosa cambierebbe, con i controlli da superare. Non cambia nulla.",
                partitions_def=CLINICS if listing.per_clinic else None,
                skippable=True,
                code_version="1",
            )
        ],
        check_specs=[
            dg.AssetCheckSpec(name, asset=key, description=text, blocking=True)
            for name, text in _guards(listing).items()
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
        named = _asked(context, polydesk, service, listing, config)
        if isinstance(named, Plan) and named.kind != sync.FEEDS[listing.feed].kind.name:
            return
        passed = _passed(config)
        only_look = SyncConfig(as_of=config.as_of, clinic=config.clinic, preview=True)
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
        tags={"polydesk/records": sync.FEEDS[listing.feed].kind.name},
        description=listing.describes,
        deps=[["studiolab", f"{listing.feed}_preview"]],
        partitions_def=CLINICS if listing.per_clinic else None,
        op_tags={"dagster/priority": str(listing.priority)},
        pool="studiolab",
        output_required=False,
        code_version="1",
    )
    def real(
        context: dg.AssetExecutionContext, config: SyncConfig, polydesk: PolydeskResource
    ) -> Iterator[dg.MaterializeResult]:
        named = _asked(context, polydesk, listing.service, listing, config)
        if config.preview or (named is not None and named.kind != sync.FEEDS[listing.feed].kind.name):
            return
        report = serve(context, polydesk, listing.service, config, lambda run: _apply(run, listing, config))
        if report.outcome is not Outcome.SKIPPED:
            yield dg.MaterializeResult(metadata=metadata(report))

    return real


ASSETS = tuple(make(listing) for listing in LISTINGS for make in (_preview_asset, _real_asset))
