"""Studiolab's events: what each clinic's practice-management system says happens, taken in as it happens."""

import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing

import dagster as dg

from polydesk_dagster import settings
from polydesk_dagster.errors import ConfigurationError
from polydesk_dagster.many import ALL_AT_ONCE, NOT_WELL, ManyConfig, brief, clinics_of, left, perform_each, shown_of
from polydesk_dagster.outcome import Outcome, Report, combine
from polydesk_dagster.resources.polydesk import PolydeskResource
from polydesk_dagster.running import Run, Shown, failure, serve, shown
from polydesk_dagster.runtime.dagster_inside.outputs import told_already
from polydesk_dagster.runtime.state.activity import paused
from polydesk_dagster.runtime.state.restored import noticed_restore
from polydesk_dagster.schedules.services import CLINICS
from polydesk_dagster.sources.epochs import SourceChangedError
from polydesk_dagster.sources.events import intake
from polydesk_dagster.sources.events.ahead import Ahead, questions
from polydesk_dagster.sources.events.numbering import feed_of
from polydesk_dagster.sources.port import Numbers
from polydesk_dagster.told import teller

EVENTS = ["studiolab", "events"]
SERVICE = "sync_events"
KEY = dg.AssetKey(EVENTS)
TURN = 60.0
"""Seconds after which a clinic begins no further page: who is slow and has a lot to tell comes again with the next
look, and keeps neither its place from others nor the run until that is ended by force."""


class EventsConfig(ManyConfig):
    """What taking in events can be asked."""

    reconcile: bool = False
    """Go on after a stop: note what studiolab no longer has, read what it still has."""


def _take(run: Run, reconcile: bool, ahead: Ahead | None = None) -> Report:
    clinic = run.clinic or ""
    try:
        with closing(run.polydesk.source(clinic, run.engine)) as source:
            if source.capabilities.news is Numbers.NONE:
                return Report.skipped("news_not_offered", None, clinic)
            feed = feed_of(run.engine, clinic, source if ahead is None else ahead.of(clinic, source))
            if run.preview:
                return intake.preview(run.engine, clinic, feed)
            over = time.monotonic() + TURN
            return intake.sync(
                run.engine,
                run.as_of,
                clinic,
                feed,
                reconcile=reconcile,
                goes_on=lambda: time.monotonic() < over,
                progress=run.progress,
            )
    except SourceChangedError as error:
        return Report(Outcome.REFUSED, reasons=(error.reason,))
    except ConfigurationError as error:
        if error.reason.code != "integration_off":
            raise
        return Report.skipped("integration_off", None, clinic)


def _in_turn(
    polydesk: PolydeskResource, config: EventsConfig, clinics: Sequence[str], ahead: Ahead
) -> Generator[str | None]:
    """The clinics as their turns come. Nobody is asked ahead who may not be asked, or not yet."""
    with polydesk.engine().begin() as connection:
        now = polydesk.now()
        alone = config.preview or config.reconcile or noticed_restore(connection, polydesk.settings().home, now)
        asked = questions(connection, clinics, clinics if alone else paused(connection, SERVICE, now))
    yield from ahead.in_turn(clinics, asked)


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
    reports, ahead = [], Ahead(settings.secret)
    with closing(_in_turn(polydesk, config, left(context, KEY, clinics), ahead)) as coming:
        for clinic, report in perform_each(
            context, polydesk, SERVICE, config, lambda run: _take(run, config.reconcile, ahead), coming
        ):
            reports.append(brief(report))
            if report.outcome not in NOT_WELL:
                yield shown_of(KEY, clinic, report)
    if failed := [report for report in reports if report.outcome in NOT_WELL]:
        raise failure(teller().service(SERVICE), combine(failed))
    yield told_already(KEY) if context.has_partition_key_range else shown(context, EVENTS, combine(reports))


ASSETS = (studiolab_events,)
