"""The calendar: bookable slots of agendas."""

import dagster as dg

from polydesk_dagster.clinic.calendar import closures, slots
from polydesk_dagster.outcome import Report
from polydesk_dagster.resources.polydesk import PolydeskResource
from polydesk_dagster.running import ClinicConfig, Run, ServiceConfig, serve
from polydesk_dagster.told import teller
from polydesk_dagster.told.dagster import metadata


@dg.asset(
    key=["calendar", "agenda_slots"],
    group_name="calendar",
    kinds={"postgres"},
    tags={"polydesk/records": "slot"},
    description=teller().text("asset.agenda_slots"),
    deps=[["calendar", "closures"]],
    code_version="1",
)
def agenda_slots(
    context: dg.AssetExecutionContext, config: ClinicConfig, polydesk: PolydeskResource
) -> dg.MaterializeResult:
    report = serve(
        context,
        polydesk,
        "generate_slots",
        config,
        lambda run: slots.generate(
            run.engine,
            run.as_of,
            clinic=run.clinic,
            preview=run.preview,
            progress=run.progress,
        ),
    )
    return dg.MaterializeResult(metadata=metadata(report))


@dg.asset(
    key=["calendar", "closures"],
    group_name="calendar",
    kinds={"http", "postgres"},
    tags={"polydesk/records": "closure"},
    description=teller().text("asset.closures"),
    code_version="1",
)
def default_closures(
    context: dg.AssetExecutionContext, config: ServiceConfig, polydesk: PolydeskResource
) -> dg.MaterializeResult:
    def rule(run: Run) -> Report:
        with polydesk.central() as central:
            return closures.import_closures(run.engine, central.closures, as_of=run.as_of, preview=run.preview)

    return dg.MaterializeResult(metadata=metadata(serve(context, polydesk, "import_closures", config, rule)))


ASSETS = (agenda_slots, default_closures)
