"""Messages to patients: reminders and preparation notices."""

import dagster as dg

from polydesk_dagster.clinic.messages import health, service
from polydesk_dagster.clinic.messages.kinds import PREPARATION, REMINDER, Kind
from polydesk_dagster.clinic.statistics.drawing import Drawing
from polydesk_dagster.outcome import Report
from polydesk_dagster.providers import configured
from polydesk_dagster.resources.polydesk import PolydeskResource
from polydesk_dagster.running import ClinicConfig, Run, serve
from polydesk_dagster.told import pictures, teller
from polydesk_dagster.told.dagster import metadata

T = teller()


class MessagesConfig(ClinicConfig):
    """What a service that writes to patients can be asked."""

    past_guard: str | None = None
    """``unusual_volume`` lets more than three times the usual messages of a day go out; give it only after looking at
    why there are so many."""


@dg.asset(
    key=["notifications", "appointment_reminders"],
    group_name="notifications",
    kinds={"postgres"},
    tags={"polydesk/records": "message"},
    description=T.text("asset.appointment_reminders"),
    code_version="1",
)
def appointment_reminders(
    context: dg.AssetExecutionContext, config: MessagesConfig, polydesk: PolydeskResource
) -> dg.MaterializeResult:
    return _send(context, polydesk, "send_reminders", config, REMINDER)


@dg.asset(
    key=["notifications", "preparation_notices"],
    group_name="notifications",
    kinds={"postgres"},
    tags={"polydesk/records": "message"},
    description=T.text("asset.preparation_notices"),
    code_version="1",
)
def preparation_notices(
    context: dg.AssetExecutionContext, config: MessagesConfig, polydesk: PolydeskResource
) -> dg.MaterializeResult:
    return _send(context, polydesk, "send_preparation_notices", config, PREPARATION)


def _send(
    context: dg.AssetExecutionContext, polydesk: PolydeskResource, key: str, config: MessagesConfig, kind: Kind
) -> dg.MaterializeResult:
    instants = []

    def rule(run: Run) -> Report:
        instants.append(run.as_of)
        return service.send(
            run.engine,
            run.as_of,
            kind.key,
            configured(run.settings),
            clinic=run.clinic,
            preview=run.preview,
            past_guard=config.past_guard,
            public_url=run.settings.public_url,
            progress=run.progress,
        )

    report = serve(context, polydesk, key, config, rule)
    shown = metadata(report)
    if report.counts.updated and instants:
        with polydesk.engine().connect() as connection:
            shown[T.label("figure", "messages_last_days")] = _picture(
                kind, health.days(connection, kind.key, instants[0])
            )
    return dg.MaterializeResult(metadata=shown)


def _picture(kind: Kind, days: list[health.Day]) -> dg.MetadataValue:
    """Sent, withheld and failed by day, as bars."""
    import pandas as pd

    frame = pd.DataFrame(
        [(day.sent, day.withheld, day.lost) for day in days],
        index=pd.DatetimeIndex([day.day for day in days]),
        columns=["message_sent", "message_withheld", "message_lost"],
    )
    drawn = pictures.png(Drawing(kind.key, frame, "messages", True), T)
    return dg.MetadataValue.md(f"![{T.term('message_kind', kind.key)}]({pictures.data_uri(drawn)})")


ASSETS = (appointment_reminders, preparation_notices)
