"""Studiolab's events: what each clinic's practice-management system says happens, taken in as it happens."""

from collections.abc import Iterator, Sequence
from contextlib import closing

import dagster as dg
from pydantic import Field

from polydesk_dagster.clinic.clinics import ACTIVE_CLINICS
from polydesk_dagster.outcome import Outcome, Report, combine
from polydesk_dagster.resources.polydesk import PolydeskResource
from polydesk_dagster.running import Run, ServiceConfig, Shown, failure, perform_each, serve, shown, shown_of
from polydesk_dagster.schedules.services import CLINICS
from polydesk_dagster.sources.epochs import SourceChangedError
from polydesk_dagster.sources.events import intake, looking
from polydesk_dagster.sources.events.numbering import feed_of
from polydesk_dagster.sources.port import Numbers
from polydesk_dagster.told import teller

EVENTS = ["studiolab", "events"]
SERVICE = "sync_events"
NOT_WELL = frozenset({Outcome.REFUSED, Outcome.FAILED})


class EventsConfig(ServiceConfig):
    """What taking in events can be asked."""

    reconcile: bool = False
    """Go on after a stop: note what studiolab no longer has, read what it still has."""
    clinics: list[str] = Field(default_factory=list)
    """Codes of the clinics to read in a run of no partition; default all whose integration is on."""


def _take(run: Run, reconcile: bool) -> Report:
    clinic = run.clinic or ""
    with run.engine.connect() as connection:
        if not looking.active(connection, clinic):
            return Report.skipped("integration_off", None, clinic)
    try:
        with closing(run.polydesk.source(clinic)) as source:
            if source.capabilities.news is Numbers.NONE:
                return Report.skipped("news_not_offered", None, clinic)
            feed = feed_of(run.engine, clinic, source)
            if run.preview:
                return intake.preview(run.engine, clinic, feed)
            return intake.sync(run.engine, run.as_of, clinic, feed, reconcile=reconcile, progress=run.progress)
    except SourceChangedError as error:
        return Report(Outcome.REFUSED, reasons=(error.reason,))


@dg.asset(
    key=EVENTS,
    group_name="studiolab",
    kinds={"http", "postgres"},
    tags={"polydesk/records": "event"},
    description=teller().text("asset.events"),
    partitions_def=CLINICS,
    pool="studiolab_events",
    output_required=False,
    code_version="1",
)
def studiolab_events(
    context: dg.AssetExecutionContext, config: EventsConfig, polydesk: PolydeskResource
) -> Iterator[Shown | dg.AssetMaterialization]:
    if context.has_partition_key:
        report = serve(context, polydesk, SERVICE, config, lambda run: _take(run, config.reconcile))
        yield shown(context, EVENTS, report)
        return
    clinics: Sequence[str] = config.clinics
    if not clinics:
        with polydesk.engine().connect() as connection:
            clinics = list(connection.scalars(ACTIVE_CLINICS))
    reports = []
    for clinic, report in perform_each(
        context, polydesk, SERVICE, config, lambda run: _take(run, config.reconcile), clinics
    ):
        reports.append(report)
        if report.outcome not in NOT_WELL:
            yield shown_of(EVENTS, clinic, report)
    if failed := [report for report in reports if report.outcome in NOT_WELL]:
        raise failure(teller().service(SERVICE), combine(failed))
    yield shown(context, EVENTS, combine(reports))


ASSETS = (studiolab_events,)
