"""Messages to patients: reminders and preparation notices."""

from base64 import b64encode
from io import BytesIO

import dagster as dg

from polydesk_dagster.clinic.messages import health, service
from polydesk_dagster.clinic.messages.kinds import PREPARATION, REMINDER, Kind
from polydesk_dagster.outcome import Report
from polydesk_dagster.providers import configured
from polydesk_dagster.resources.polydesk import PolydeskResource
from polydesk_dagster.running import Run, ServiceConfig, serve
from polydesk_dagster.told.dagster import metadata


class MessagesConfig(ServiceConfig):
    """What a service that writes to patients can be asked."""

    past_guard: str | None = None
    """``unusual_volume`` lets more than three times the usual messages of a day go out; give it only after looking at
    why there are so many."""


@dg.asset(
    key=["notifications", "appointment_reminders"],
    group_name="notifications",
    kinds={"postgres"},
    tags={"polydesk/records": "message"},
    description=(
        "I promemoria degli appuntamenti di domani: un messaggio per persona e giorno, mai due volte per lo stesso "
        "orario, mai nelle ore di silenzio. Di ciò che non parte è scritto il motivo."
    ),
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
    description=(
        "Le istruzioni da seguire prima della visita, in tempo perché il paziente possa rispettarle; quando è troppo "
        "tardi l'appuntamento finisce nell'elenco delle telefonate della segreteria."
    ),
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
            progress=run.progress,
        )

    report = serve(context, polydesk, key, config, rule)
    shown = metadata(report)
    if report.counts.updated and instants:
        with polydesk.engine().connect() as connection:
            shown["Ultimi giorni"] = _picture(kind, health.days(connection, kind.key, instants[0]))
    return dg.MaterializeResult(metadata=shown)


def _picture(kind: Kind, days: list[health.Day]) -> dg.MetadataValue:
    """Sent, withheld and failed by day, as bars."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 2.4), layout="constrained")
    axes = figure.add_subplot()
    labels = [f"{day.day:%d/%m}" for day in days]
    base = [0] * len(days)
    for name, colour, values in (
        ("inviati", "#2a7f62", [day.sent for day in days]),
        ("trattenuti", "#c9c9c9", [day.withheld for day in days]),
        ("non riusciti o in dubbio", "#c0392b", [day.lost for day in days]),
    ):
        axes.bar(labels, values, bottom=base, label=name, color=colour)
        base = [below + value for below, value in zip(base, values, strict=True)]
    axes.set_title(kind.name)
    axes.legend(fontsize="small")
    axes.tick_params(labelsize="small")
    drawn = BytesIO()
    figure.savefig(drawn, format="png", dpi=80)
    return dg.MetadataValue.md(f"![{kind.name}](data:image/png;base64,{b64encode(drawn.getvalue()).decode()})")


ASSETS = (appointment_reminders, preparation_notices)
