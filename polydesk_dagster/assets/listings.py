"""One list of studiolab in a run: what it needs, reading it, what would change, and applying that.

No ``from __future__ import annotations``: Dagster reads the annotations.
"""

from contextlib import closing
from dataclasses import dataclass, replace

import dagster as dg
import sqlalchemy as sa

from polydesk_dagster import changes
from polydesk_dagster.changes import plans
from polydesk_dagster.changes.apply import is_stale
from polydesk_dagster.changes.kind import Kind
from polydesk_dagster.changes.plans import Plan, Scope
from polydesk_dagster.changes.synchronise import settle
from polydesk_dagster.changes.why import read
from polydesk_dagster.clinic.clinics import clinic_id
from polydesk_dagster.errors import PolydeskError
from polydesk_dagster.many import ManyConfig
from polydesk_dagster.outcome import WHAT_TO_DO, Outcome, Reason, Report
from polydesk_dagster.resources.polydesk import PolydeskResource
from polydesk_dagster.running import Run
from polydesk_dagster.sources import lists
from polydesk_dagster.sources.epochs import SourceChangedError
from polydesk_dagster.sources.events import cursor
from polydesk_dagster.sources.events.history import ANOTHERS
from polydesk_dagster.sources.port import Source
from polydesk_dagster.values import Term, Value


class SyncConfig(ManyConfig):
    """What a synchronisation with studiolab can be asked."""

    plan: int | None = None
    """Apply exactly this plan, which a preview has made; default: make a new one and apply it."""
    past_guard: str | None = None
    """A failed guard of that plan that a person has looked at; several are separated by commas. Needs ``plan``."""
    reason: str | None = None
    """Why a guard may be passed; needed with ``past_guard``."""

    @property
    def passed(self) -> set[str]:
        """The names in ``past_guard``."""
        return {name.strip() for name in (self.past_guard or "").split(",") if name.strip()}


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

    @property
    def key(self) -> dg.AssetKey:
        """Of its asset."""
        return dg.AssetKey(["studiolab", self.feed])

    @property
    def preview(self) -> dg.AssetKey:
        """Of its preview's asset."""
        return dg.AssetKey(["studiolab", f"{self.feed}_preview"])

    @property
    def step(self) -> str:
        """The name of its asset's step; its preview's is this one with ``_preview``."""
        return f"studiolab__{self.feed}"


LISTINGS = (
    Listing("municipalities", "import_municipalities", None, 10, per_clinic=False),
    Listing("collaborators", "sync_collaborators", "preview_collaborators", 30),
    Listing("services", "sync_services", "preview_services", 30),
    Listing("agreements", "sync_prices", "preview_prices", 20),
    Listing("prices", "sync_prices", "preview_prices", 10, needs=("services", "collaborators", "agreements")),
    Listing("patients", "import_patients", None, 10),
)


def _scope(run: Run, listing: Listing) -> Scope:
    clinic = run.clinic if listing.per_clinic else None
    with run.engine.connect() as connection:
        return Scope(listing.service, clinic, clinic_id(connection, clinic), origin=run.dagster_run)


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


def _anothers(run: Run, listing: Listing) -> Report | None:
    """Why the list is not asked for where the clinic's address was seen to lead to another clinic's source."""
    if not listing.per_clinic:
        return None
    with run.engine.connect() as connection:
        why = read(cursor.stopped(connection).get(run.clinic or ""))
    if why is None or why.code != ANOTHERS:
        return None
    return Report.refused("events_stopped", {"why": why}, run.clinic)


def _read(run: Run, listing: Listing, *, preview: bool, first: bool = False) -> Report:
    off = _switched_off(run, listing)
    if off is not None:
        return off
    if (anothers := _anothers(run, listing)) is not None:
        return anothers

    def ask(source: Source) -> Report:
        return lists.synchronise(
            run.engine, source, listing.feed, _scope(run, listing), as_of=run.as_of, preview=preview, first=first
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


def load(polydesk: PolydeskResource, plan_id: int) -> Plan:
    with polydesk.engine().connect() as connection:
        return plans.load(connection, plan_id)


def look(run: Run, listing: Listing, named: Plan | None, passed: set[str], *, first: bool) -> Report:
    """What would change; refused where a guard stops it that nobody has passed. ``first``: the run then does it."""
    report = _read(run, listing, preview=True, first=first) if named is None else _show(run, listing, named.id)
    if report.plan_id is None:
        return report
    plan = load(run.polydesk, report.plan_id)
    stopping = [guard for guard in plan.failed_guards if guard.name not in passed]
    if stopping:
        said = [Reason(guard.reason.code, guard.reason.values, plan.clinic) for guard in stopping]
        what = Reason("what_to_do", {"next": report.figures[WHAT_TO_DO]}, plan.clinic)
        others = [reason for reason in report.reasons if not reason.code.startswith("guard_")]
        report = replace(report, outcome=Outcome.REFUSED, reasons=(*said, what, *others))
    before = _needed_first(run, listing, plan)
    return report if before is None else replace(report, reasons=(*report.reasons, before))


def _needed_first(run: Run, listing: Listing, plan: Plan) -> Reason | None:
    """Where rows wait for records that are new in a list which this run has looked at as well."""
    if not plan.tally.get("unmapped"):
        return None
    with run.engine.connect() as connection:
        kinds = [lists.KINDS[feed].name for feed in listing.needs]
        looked = [plans.made_by(connection, run.dagster_run, kind, plan.clinic) for kind in kinds]
    for first in filter(None, looked):
        if first.state == "ready" and first.tally.get("create"):
            values: dict[str, Value] = {"plan": first.id, "what": Term("kind", first.kind)}
            return Reason("apply_first", values, plan.clinic, plan.tally["unmapped"])
    return None


def apply(run: Run, listing: Listing, config: SyncConfig) -> Report:
    """Apply the plan that was named, or that the preview of this run has made; alone, or where that one no longer fits,
    plan and apply."""
    kind, scope = listing.kind, _scope(run, listing)
    with run.engine.connect() as connection:
        plan = (
            plans.load(connection, config.plan)
            if config.plan is not None
            else plans.made_by(connection, run.dagster_run, kind.name, scope.clinic)
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
        past_guards=config.passed,
    )
    if config.plan is None and is_stale(report):
        return _read(run, listing, preview=False)
    report = lists.applied(run.engine, report, listing.feed, scope, as_of=run.as_of, read=plan.as_of)
    return report if config.plan is None else _not_again(report)


def _not_again(report: Report) -> Report:
    """``report`` of a plan that was named, without the advice to apply it where it was refused for good."""
    codes = {reason.code for reason in report.reasons}
    if report.outcome is not Outcome.REFUSED or codes & {"guard", "reason_missing"}:
        return report
    todo = Reason("plan_expired", {"plan": report.plan_id})
    return replace(report, figures={**report.figures, WHAT_TO_DO: todo})
