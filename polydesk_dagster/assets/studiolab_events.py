"""Studiolab's events: what each clinic's practice-management system says happens, taken in as it happens."""

from collections.abc import Iterator

import dagster as dg

from polydesk_dagster.outcome import Outcome, Report
from polydesk_dagster.resources.polydesk import PolydeskResource
from polydesk_dagster.running import Run, ServiceConfig, serve
from polydesk_dagster.schedules.services import CLINICS
from polydesk_dagster.sources.events import intake, looking
from polydesk_dagster.told.dagster import metadata


class EventsConfig(ServiceConfig):
    """What taking in events can be asked."""

    reconcile: bool = False
    """Go on after a stop: note what studiolab no longer has, read what it still has."""


def _take(run: Run, reconcile: bool) -> Report:
    clinic = run.clinic or ""
    with run.engine.connect() as connection:
        if not looking.active(connection, clinic):
            return Report.skipped("integration_off", None, clinic)
    with run.polydesk.studiolab(clinic) as feed:
        if run.preview:
            return intake.preview(run.engine, clinic, feed)
        return intake.sync(run.engine, run.as_of, clinic, feed, reconcile=reconcile, progress=run.progress)


@dg.asset(
    key=["studiolab", "events"],
    group_name="studiolab",
    kinds={"http", "postgres"},
    tags={"polydesk/records": "event"},
    description=(
        "Gli eventi di studiolab: referti, accettazioni, appuntamenti, anagrafiche e listini, nell'ordine in cui sono "
        "avvenuti. Un evento che non si può applicare aspetta da solo, con la sua pratica; gli altri proseguono."
    ),
    partitions_def=CLINICS,
    pool="studiolab_events",
    output_required=False,
    code_version="1",
)
def studiolab_events(
    context: dg.AssetExecutionContext, config: EventsConfig, polydesk: PolydeskResource
) -> Iterator[dg.MaterializeResult]:
    report = serve(context, polydesk, "sync_events", config, lambda run: _take(run, config.reconcile))
    if report.outcome is not Outcome.SKIPPED:
        yield dg.MaterializeResult(metadata=metadata(report))


ASSETS = (studiolab_events,)
