"""Studiolab's events: what each clinic's practice-management system says happens, taken in as it happens."""

from collections.abc import Iterator
from contextlib import closing

import dagster as dg

from polydesk_dagster.many import ALL_AT_ONCE, NOT_WELL, ManyConfig, brief, clinics_of, left, perform_each, shown_of
from polydesk_dagster.outcome import Outcome, Report, combine
from polydesk_dagster.resources.polydesk import PolydeskResource
from polydesk_dagster.running import Run, Shown, failure, serve, shown
from polydesk_dagster.runtime.dagster_inside.outputs import told_already
from polydesk_dagster.schedules.services import CLINICS
from polydesk_dagster.sources.epochs import SourceChangedError
from polydesk_dagster.sources.events import intake, looking
from polydesk_dagster.sources.events.numbering import feed_of
from polydesk_dagster.sources.port import Numbers
from polydesk_dagster.told import teller

EVENTS = ["studiolab", "events"]
SERVICE = "sync_events"
KEY = dg.AssetKey(EVENTS)


class EventsConfig(ManyConfig):
    """What taking in events can be asked."""

    reconcile: bool = False
    """Go on after a stop: note what studiolab no longer has, read what it still has."""


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


@dg.multi_asset(
    name="studiolab__events",
    specs=[
        dg.AssetSpec(
            KEY,
            group_name="studiolab",
            kinds={"http", "postgres"},
            tags={"polydesk/records": "event"},
            description=teller().text("asset.events"),
            partitions_def=CLINICS,
            skippable=True,
            code_version="1",
        )
    ],
    pool="studiolab_events",
    backfill_policy=ALL_AT_ONCE,
)
def studiolab_events(
    context: dg.AssetExecutionContext, config: EventsConfig, polydesk: PolydeskResource
) -> Iterator[Shown | dg.AssetMaterialization]:
    clinics = clinics_of(context, polydesk.engine(), config)
    if clinics is None:
        report = serve(context, polydesk, SERVICE, config, lambda run: _take(run, config.reconcile))
        yield shown(context, EVENTS, report)
        return
    reports = []
    for clinic, report in perform_each(
        context, polydesk, SERVICE, config, lambda run: _take(run, config.reconcile), left(context, KEY, clinics)
    ):
        reports.append(brief(report))
        if report.outcome not in NOT_WELL:
            yield shown_of(KEY, clinic, report)
    if failed := [report for report in reports if report.outcome in NOT_WELL]:
        raise failure(teller().service(SERVICE), combine(failed))
    yield told_already(KEY) if context.has_partition_key_range else shown(context, EVENTS, combine(reports))


ASSETS = (studiolab_events,)
