"""The calendar: bookable slots of agendas."""

from collections.abc import Iterator

import dagster as dg

from polydesk_dagster.clinic.calendar import closures, slots
from polydesk_dagster.outcome import Report
from polydesk_dagster.resources.polydesk import PolydeskResource
from polydesk_dagster.running import ClinicConfig, Run, ServiceConfig, Shown, serve, shown
from polydesk_dagster.told import teller

SLOTS = ["calendar", "agenda_slots"]
CLOSURES = ["calendar", "closures"]


@dg.asset(
    key=SLOTS,
    group_name="calendar",
    kinds={"postgres"},
    tags={"polydesk/records": "slot"},
    description=teller().text("asset.agenda_slots"),
    deps=[CLOSURES],
    output_required=False,
    code_version="1",
)
def agenda_slots(
    context: dg.AssetExecutionContext, config: ClinicConfig, polydesk: PolydeskResource
) -> Iterator[Shown]:
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
    yield shown(context, SLOTS, report)


@dg.asset(
    key=CLOSURES,
    group_name="calendar",
    kinds={"http", "postgres"},
    tags={"polydesk/records": "closure"},
    description=teller().text("asset.closures"),
    output_required=False,
    code_version="1",
)
def default_closures(
    context: dg.AssetExecutionContext, config: ServiceConfig, polydesk: PolydeskResource
) -> Iterator[Shown]:
    def rule(run: Run) -> Report:
        with polydesk.central() as central:
            return closures.import_closures(run.engine, central.closures, as_of=run.as_of, preview=run.preview)

    yield shown(context, CLOSURES, serve(context, polydesk, "import_closures", config, rule))


ASSETS = (agenda_slots, default_closures)
