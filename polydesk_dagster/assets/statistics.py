"""Statistics: one view for each question about what happened, counted together and published together."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import dagster as dg
import sqlalchemy as sa

from polydesk_dagster.clinic.clinics import clinic_id
from polydesk_dagster.clinic.statistics import pictures, reading
from polydesk_dagster.clinic.statistics.reading import Freshness, Period
from polydesk_dagster.clinic.statistics.refresh import refresh
from polydesk_dagster.clinic.statistics.views import VIEWS, View
from polydesk_dagster.outcome import Report
from polydesk_dagster.resources.polydesk import PolydeskResource
from polydesk_dagster.running import Run, ServiceConfig, serve
from polydesk_dagster.told.dagster import metadata

ROME = ZoneInfo("Europe/Rome")
BEFORE = timedelta(days=30)
AFTER = timedelta(days=14)
"""What the pages show: the last month and the next two weeks."""
SHOWN_ROWS = 15


class RefreshStatisticsConfig(ServiceConfig):
    """What the statistics can be asked."""

    full: bool = False
    """Count everything again, not only the days that changed."""


@dg.multi_asset(
    name="run_refresh_statistics",
    specs=[
        dg.AssetSpec(
            ["statistics", view.key],
            group_name="statistics",
            kinds={"postgres"},
            tags={"polydesk/records": "statistic"},
            description=f"{view.description} Si ricalcolano solo i giorni che sono cambiati.",
            deps=[["calendar", "agenda_slots"]] if "offer" in view.topics else [],
            code_version="1",
        )
        for view in VIEWS.values()
    ],
)
def refresh_statistics(
    context: dg.AssetExecutionContext, config: RefreshStatisticsConfig, polydesk: PolydeskResource
) -> Iterator[dg.MaterializeResult]:
    instants = []

    def rule(run: Run) -> Report:
        instants.append(run.as_of)
        return refresh(run.engine, run.as_of, run.clinic, full=config.full, preview=run.preview, progress=run.progress)

    report = serve(context, polydesk, "refresh_statistics", config, rule)
    as_of = instants[0] if instants else polydesk.now()
    with polydesk.engine().connect() as connection:
        today = as_of.astimezone(ROME).date()
        period = Period(today - BEFORE, today + AFTER, clinic_id(connection, config.clinic))
        fresh = reading.freshness(connection)
        overview = reading.overview(connection, period)
        for view in VIEWS.values():
            yield dg.MaterializeResult(
                asset_key=["statistics", view.key],
                metadata={
                    **_current(connection, view, period, fresh),
                    **metadata(_told(connection, view, period, overview, report)),
                },
            )


def _current(
    connection: sa.Connection, view: View, period: Period, fresh: dict[str, Freshness]
) -> dict[str, dg.MetadataValue]:
    """The plot of one view, and how current it is."""
    picture = pictures.data_uri(view.picture(connection, period))
    known = [fresh[topic] for topic in view.topics if topic in fresh]
    return {
        "Grafico": dg.MetadataValue.md(f"![{view.label}]({picture})"),
        "Periodo": dg.MetadataValue.text(f"dal {period.first:%d/%m/%Y} al {period.last:%d/%m/%Y}"),
        "Aggiornato alle": _moment([f.refreshed_at for f in known]),
        "Ultima modifica contata": _moment([f.watermark for f in known]),
        "Giorni che aspettano un aggiornamento": dg.MetadataValue.int(sum(f.waiting for f in known)),
        "Righe": dg.MetadataValue.int(sum(f.rows for f in known)),
    }


def _told(connection: sa.Connection, view: View, period: Period, overview: reading.Overview, report: Report) -> Report:
    """The run's report with the figures and tables of one view."""
    tables = [table(connection, period) for table in view.tables]
    capped = tuple(replace(table, rows=table.rows[:SHOWN_ROWS]) for table in tables)
    return replace(report, figures={**view.figures(overview), **report.figures}, tables=capped)


def _moment(instants: list[datetime | None]) -> dg.MetadataValue:
    given = [instant for instant in instants if instant is not None]
    if not given:
        return dg.MetadataValue.text("mai")
    return dg.MetadataValue.text(f"{max(given).astimezone(ROME):%d/%m/%Y %H:%M:%S}")


ASSETS = (refresh_statistics,)
