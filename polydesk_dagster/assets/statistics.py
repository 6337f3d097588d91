"""Statistics: one view for each question about what happened, counted together and published together."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime

import dagster as dg
import sqlalchemy as sa

from polydesk_dagster.clinic.clinics import clinic_id
from polydesk_dagster.clinic.statistics import reading
from polydesk_dagster.clinic.statistics.reading import Freshness, Period
from polydesk_dagster.clinic.statistics.refresh import refresh
from polydesk_dagster.clinic.statistics.views import VIEWS, View
from polydesk_dagster.outcome import Report
from polydesk_dagster.resources.polydesk import PolydeskResource
from polydesk_dagster.running import ClinicConfig, Run, Shown, serve, shown
from polydesk_dagster.told import teller
from polydesk_dagster.told.dagster import figures, picture
from polydesk_dagster.values import Instant, Term, Value

T = teller()
SHOWN_ROWS = 15


class RefreshStatisticsConfig(ClinicConfig):
    """What the statistics can be asked."""

    full: bool = False
    """Count everything again, not only the days that changed."""


@dg.multi_asset(
    name="run_refresh_statistics",
    can_subset=True,  # all are counted together, and those that were asked for are shown
    specs=[
        dg.AssetSpec(
            ["statistics", view.key],
            group_name="statistics",
            kinds={"postgres"},
            tags={"polydesk/records": "statistic"},
            description=T.text("statistic.described", summary=T.text(f"statistic.{view.key}.summary")),
            deps=[["calendar", "agenda_slots"]] if "offer" in view.topics else [],
            skippable=True,
            code_version="1",
        )
        for view in VIEWS.values()
    ],
)
def refresh_statistics(
    context: dg.AssetExecutionContext, config: RefreshStatisticsConfig, polydesk: PolydeskResource
) -> Iterator[Shown]:
    instants = []

    def rule(run: Run) -> Report:
        instants.append(run.as_of)
        return refresh(run.engine, run.as_of, run.clinic, full=config.full, preview=run.preview, progress=run.progress)

    report = serve(context, polydesk, "refresh_statistics", config, rule)
    as_of = instants[0] if instants else polydesk.now()
    with polydesk.engine().connect() as connection:
        period = Period.around(as_of, clinic_id(connection, config.clinic))
        fresh = reading.freshness(connection)
        overview = reading.overview(connection, period)
        for view in VIEWS.values():
            if dg.AssetKey(["statistics", view.key]) not in context.selected_asset_keys:
                continue
            told = _told(connection, view, period, overview, report)
            drawn = picture(context.run.run_id, view.key, "statistic_picture")
            yield shown(context, ["statistics", view.key], told, **drawn, **_current(view, period, fresh))


def _current(view: View, period: Period, fresh: dict[str, Freshness]) -> dict[str, dg.MetadataValue]:
    """How current one view is."""
    known = [fresh[topic] for topic in view.topics if topic in fresh]
    told: dict[str, Value] = {
        "statistic_period": T.text("report.period", first=period.first, last=period.last),
        "statistic_refreshed": _newest([f.refreshed_at for f in known]),
        "statistic_watermark": _newest([f.watermark for f in known]),
        "statistic_waiting": sum(f.waiting for f in known),
        "statistic_rows": sum(f.rows for f in known),
    }
    return figures(told)


def _told(connection: sa.Connection, view: View, period: Period, overview: reading.Overview, report: Report) -> Report:
    """The run's report with the figures and tables of one view."""
    tables = [table(connection, period) for table in view.tables]
    capped = tuple(replace(table, rows=table.rows[:SHOWN_ROWS]) for table in tables)
    return replace(report, figures={**view.figures(overview), **report.figures}, tables=capped)


def _newest(instants: list[datetime | None]) -> Value:
    given = [instant for instant in instants if instant is not None]
    return Instant(max(given)) if given else Term("statistic", "never")


ASSETS = (refresh_statistics,)
