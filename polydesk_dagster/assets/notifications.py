"""Messages to patients: reminders and preparation notices."""

from collections.abc import Iterator

import dagster as dg

from polydesk_dagster.clinic.messages import service
from polydesk_dagster.clinic.messages.kinds import PREPARATION, REMINDER, Kind
from polydesk_dagster.outcome import Report
from polydesk_dagster.providers import configured, reach
from polydesk_dagster.resources.polydesk import PolydeskResource
from polydesk_dagster.running import ClinicConfig, Run, Shown, serve, shown
from polydesk_dagster.told import teller
from polydesk_dagster.told.dagster import picture

T = teller()


@dg.asset(
    key=["notifications", "appointment_reminders"],
    group_name="notifications",
    kinds={"postgres"},
    tags={"polydesk/records": "message"},
    description=T.text("asset.appointment_reminders"),
    output_required=False,
    code_version="1",
)
def appointment_reminders(
    context: dg.AssetExecutionContext, config: ClinicConfig, polydesk: PolydeskResource
) -> Iterator[Shown]:
    yield _send(context, polydesk, "send_reminders", config, REMINDER, ["notifications", "appointment_reminders"])


@dg.asset(
    key=["notifications", "preparation_notices"],
    group_name="notifications",
    kinds={"postgres"},
    tags={"polydesk/records": "message"},
    description=T.text("asset.preparation_notices"),
    output_required=False,
    code_version="1",
)
def preparation_notices(
    context: dg.AssetExecutionContext, config: ClinicConfig, polydesk: PolydeskResource
) -> Iterator[Shown]:
    key = ["notifications", "preparation_notices"]
    yield _send(context, polydesk, "send_preparation_notices", config, PREPARATION, key)


def _send(
    context: dg.AssetExecutionContext,
    polydesk: PolydeskResource,
    service_key: str,
    config: ClinicConfig,
    kind: Kind,
    asset: list[str],
) -> Shown:
    def rule(run: Run) -> Report:
        return service.send(
            run.engine,
            run.as_of,
            kind.key,
            configured(run.settings),
            clinic=run.clinic,
            preview=run.preview,
            reach=reach(run.settings),
            progress=run.progress,
        )

    report = serve(context, polydesk, service_key, config, rule)
    drawn = picture(context.run.run_id, kind.key, "messages_last_days") if report.counts.updated else {}
    return shown(context, asset, report, **drawn)


ASSETS = (appointment_reminders, preparation_notices)
