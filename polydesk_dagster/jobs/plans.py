"""Taking an applied plan back from the web page: no service of the catalogue, a tool beside all of them."""

from dataclasses import replace

import dagster as dg

from polydesk_dagster import changes
from polydesk_dagster.catalog import BY_KEY, Place
from polydesk_dagster.changes import plans, registry
from polydesk_dagster.changes.audit import LEAST_REASON, is_reason
from polydesk_dagster.changes.plans import Plan
from polydesk_dagster.database.locks import exclusive
from polydesk_dagster.outcome import Report
from polydesk_dagster.resources.polydesk import PolydeskResource
from polydesk_dagster.running import Run, ServiceConfig, serve
from polydesk_dagster.told import teller
from polydesk_dagster.told.dagster import metadata

KEY, TITLE = "undo_plan", "Annulla un piano"
DESCRIPTION = (
    "Annulla un piano applicato: riporta le sue righe com'erano. Ciò che è stato modificato o è entrato in uso dopo "
    "resta com'è e viene nominato. Serve il numero del piano (plan) e il motivo (reason); con preview mostra soltanto."
)


class UndoConfig(dg.Config):
    """Which plan to take back; the defaults do nothing and say what to fill in."""

    plan: int = 0
    """The number of the applied plan; 0 is none."""
    reason: str = ""
    """Why, at least 10 characters: it stays in the audit trail."""
    preview: bool = False
    """Only show which rows would go back."""


def _load(polydesk: PolydeskResource, plan_id: int) -> Plan | Report:
    """The plan, or why there is none to take back."""
    if not plan_id:
        message = "Quale piano? Scrivi il numero in «plan» e il motivo in «reason»; «polydesk plan list» li elenca."
        return Report.refused("which_plan", message)
    with polydesk.engine().connect() as connection:
        try:
            return plans.load(connection, plan_id)
        except LookupError:
            return Report.refused("unknown_plan", f"Non esiste il piano {plan_id}.")


def _refusal(plan: Plan, config: UndoConfig) -> Report | None:
    """Why nothing is even tried, or None."""
    if plan.service in BY_KEY and BY_KEY[plan.service].place is Place.EMERGENCY:
        undo = f"«polydesk plan undo {plan.id} --reason '…'»"
        message = f"Il piano {plan.id} è di un servizio di emergenza: si annulla con {undo}."
        return Report.refused("emergency_plan", message, plan.clinic)
    if not config.preview and not is_reason(config.reason):
        message = f"Per annullare il piano {plan.id} serve un motivo («reason») di almeno {LEAST_REASON} caratteri."
        return Report.refused("reason_missing", message, plan.clinic)
    return None


def _undo(run: Run, plan: Plan, config: UndoConfig) -> Report:
    if (refusal := _refusal(plan, config)) is not None:
        return refusal
    with exclusive(run.engine, plan.service, plan.clinic) as alone:  # the lock that a run of its service would hold
        if not alone:
            return plans.busy(plan, teller().service(plan.service))
        with run.engine.begin() as connection:
            report = changes.undo(
                connection,
                plan.id,
                as_of=run.as_of,
                actor=run.person,
                reason=config.reason.strip() or None,
                preview=config.preview,
            )
            if report.plan_id is None or report.plan_id == plan.id:
                return report
            back = plans.load(connection, report.plan_id)
            rows = changes.preview(connection, back, registry.kind(back.kind)).tables
            return replace(report, tables=report.tables + rows)


@dg.op(description=DESCRIPTION)
def take_back(context: dg.OpExecutionContext, config: UndoConfig, polydesk: PolydeskResource) -> None:
    found = _load(polydesk, config.plan)
    clinic = found.clinic if isinstance(found, Plan) else None
    report = serve(
        context,
        polydesk,
        KEY,
        ServiceConfig(clinic=clinic, preview=config.preview),
        lambda run: _undo(run, found, config) if isinstance(found, Plan) else found,
        title=TITLE,
    )
    context.add_output_metadata(metadata(report))


@dg.job(
    name=KEY,
    description=DESCRIPTION,
    tags={"polydesk/service": KEY, "dagster/max_runtime": "3600"},
    executor_def=dg.in_process_executor,
)
def undo_plan() -> None:
    take_back()


TOOLS = (undo_plan,)
