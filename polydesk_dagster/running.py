"""How a service's rule runs inside Dagster: one at a time, on a given instant, its outcome recorded and shown.

Rules do not come here; they return reports. No ``from __future__ import annotations``: Dagster reads the annotations.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import dagster as dg
import sqlalchemy as sa

from polydesk_dagster.catalog import BY_KEY, ROME, Every, Service
from polydesk_dagster.changes.plans import AHEAD
from polydesk_dagster.database import service_runs
from polydesk_dagster.database.locks import exclusive
from polydesk_dagster.errors import PolydeskError, TransientError, where
from polydesk_dagster.outcome import COUNT_WORDS, OUTCOME_WORDS, SHOWN_ROWS, Outcome, Reason, Report, Table, in_words
from polydesk_dagster.resources.polydesk import PolydeskResource
from polydesk_dagster.runtime.progress import Progress, reporter
from polydesk_dagster.settings import Settings


class ServiceConfig(dg.Config):
    """What every service can be asked; the defaults are what its schedule runs."""

    as_of: str | None = None
    """The instant to work at, RFC 3339 with an offset; default now."""
    clinic: str | None = None
    """A clinic's code; default all clinics."""
    preview: bool = False
    """Only show what would change."""


@dataclass(frozen=True)
class Run:
    """What a rule is given."""

    engine: sa.Engine
    settings: Settings
    as_of: datetime
    clinic: str | None
    preview: bool
    dagster_run: str
    log: logging.Logger
    polydesk: PolydeskResource
    progress: Progress


Context = dg.AssetExecutionContext | dg.OpExecutionContext


def serve(
    context: Context,
    polydesk: PolydeskResource,
    service: str,
    config: ServiceConfig,
    rule: Callable[[Run], Report],
    *,
    title: str | None = None,
) -> Report:
    """``perform`` what ends the step where it is refused or fails.

    Raises:
        dagster.Failure: when the outcome is refused or failed; never retried by Dagster, with the report's metadata.
    """
    report = perform(context, polydesk, service, config, rule, title=title)
    if report.outcome in {Outcome.REFUSED, Outcome.FAILED}:
        raise failure(title or BY_KEY[service].name, report)
    return report


def failure(name: str, report: Report) -> dg.Failure:
    """How a step ends by ``report``."""
    return dg.Failure(f"{name}: {summary(report)}", metadata=metadata(report), allow_retries=False)


def perform(
    context: Context,
    polydesk: PolydeskResource,
    service: str,
    config: ServiceConfig,
    rule: Callable[[Run], Report],
    *,
    title: str | None = None,
) -> Report:
    """Run ``rule`` for ``service`` and keep what it came to in ``service_run``, whatever that is. What is no service of
    the catalogue brings its Italian ``title``."""
    engine = polydesk.engine()
    name = title or BY_KEY[service].name
    clinic = context.partition_key if context.has_partition_key else config.clinic
    started = polydesk.now()
    clock = time.monotonic()
    as_of = _instant(config.as_of, started)
    run = Run(
        engine,
        polydesk.settings(),
        as_of,
        clinic,
        config.preview,
        context.run.run_id,
        context.log,
        polydesk,
        reporter(context.log),
    )
    with exclusive(engine, service, clinic) as alone:
        if not alone:
            report = _busy(name, clinic)
        else:
            report = _too_early(service, run, started) or _run_safely(rule, run, service)
    with engine.begin() as connection:
        service_runs.record(
            connection,
            service,
            report,
            clinic=clinic,
            preview=run.preview,
            dagster_run=run.dagster_run,
            as_of=as_of,
            started=started,
            seconds=time.monotonic() - clock,
        )
    for reason in report.reasons[:SHOWN_ROWS]:
        context.log.info("%s: %s", reason.clinic or "tutte le cliniche", reason.message)
    context.log.info("%s: %s", name, summary(report))
    return report


def service_job(
    key: str, rule: Callable[[Run, Any], Report], config_type: type[ServiceConfig] = ServiceConfig
) -> dg.JobDefinition:
    """The job of a service that keeps no asset, named and described by the catalogue; ``rule`` is given the run and
    its config, a ``config_type``."""
    service = BY_KEY[key]
    (step,) = service.steps

    @dg.op(name=step, description=service.summary)
    def operation(
        context: dg.OpExecutionContext,
        config: config_type,  # type: ignore[valid-type]
        polydesk: PolydeskResource,
    ) -> None:
        report = serve(context, polydesk, key, config, lambda run: rule(run, config))
        context.add_output_metadata(metadata(report))

    @dg.job(name=key, description=service.summary, tags=job_tags(service), executor_def=dg.in_process_executor)
    def job() -> None:
        operation()

    return job


def job_tags(service: Service) -> dict[str, str]:
    """The tags of a service's runs: whose they are, and the seconds after which run monitoring ends them."""
    match service.cadence:
        case Every(minutes):
            seconds = max(600, minutes * 60)
        case _:
            seconds = 3600
    return {"polydesk/service": service.key, "dagster/max_runtime": str(seconds)}


def _instant(text: str | None, now: datetime) -> datetime:
    if text is None:
        return now
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        raise dg.Failure(f"as_of «{text}» non è un istante RFC 3339", allow_retries=False) from None
    if instant.tzinfo is None:
        raise dg.Failure(f"as_of «{text}» non ha il fuso: scrivi per esempio {text}+01:00", allow_retries=False)
    return instant.astimezone(UTC)


def _too_early(service: str, run: Run, now: datetime) -> Report | None:
    """Why a service that destroys may not work at ``run.as_of``, an instant still to come; None if it may."""
    if run.preview or service not in BY_KEY or not BY_KEY[service].destroys or run.as_of <= now + AHEAD:
        return None
    message = (
        f"«{BY_KEY[service].name}» fa cose che non tornano indietro da sole e non lavora nel futuro: as_of è "
        f"{run.as_of.astimezone(ROME):%d/%m/%Y %H:%M}, adesso sono le {now.astimezone(ROME):%H:%M} del "
        f"{now.astimezone(ROME):%d/%m/%Y}. Togli as_of, o chiedi solo l'anteprima."
    )
    return Report.refused("ahead", message, run.clinic)


def _busy(name: str, clinic: str | None) -> Report:
    return Report.skipped("already_running", f"«{name}» è già in esecuzione: questa volta non serve.", clinic)


def _run_safely(rule: Callable[[Run], Report], run: Run, service: str) -> Report:
    try:
        return rule(run)
    except PolydeskError as error:
        code = "transient" if isinstance(error, TransientError) else "permanent"
        return Report.failed(code, str(error), run.clinic)
    except dg.Failure:
        raise
    except Exception as error:  # noqa: BLE001 - whatever went wrong, its message may quote a patient's data
        run.log.error("Errore imprevisto in %s:\n%s", service, where(error))  # noqa: TRY400 - never the message
        return Report.failed(
            "unexpected",
            f"Errore imprevisto ({type(error).__name__}); il dettaglio tecnico è nel log dell'esecuzione. "
            "Nessuna modifica a metà: riprova, e se si ripete chiama l'assistenza.",
            run.clinic,
        )


def summary(report: Report) -> str:
    """One Italian line: the outcome, the counts that are not zero, the first reason."""
    counts = in_words(report.counts.as_dict())
    first = f" — {report.reasons[0].message}" if report.reasons else ""
    return f"{OUTCOME_WORDS[report.outcome][0]}{f' ({counts})' if counts else ''}{first}"


def metadata(report: Report) -> dict[str, dg.MetadataValue]:
    """The report as an operator reads it on Dagster's page."""
    shown: dict[str, dg.MetadataValue] = {"Esito": dg.MetadataValue.text(OUTCOME_WORDS[report.outcome][0])}
    for key, value in report.counts.as_dict().items():
        shown[COUNT_WORDS[key][0].capitalize()] = dg.MetadataValue.int(value)
    for label, figure in report.figures.items():
        shown[label] = dg.MetadataValue.text(figure) if isinstance(figure, str) else _number(figure)
    if report.plan_id is not None:
        shown["Piano"] = dg.MetadataValue.int(report.plan_id)
    if report.reasons:
        shown["Motivi"] = _markdown(_reasons_table(report.reasons))
    for table in report.tables:
        shown[table.title] = _markdown(table)
    return shown


def _number(value: float) -> dg.MetadataValue:
    return dg.MetadataValue.int(value) if isinstance(value, int) else dg.MetadataValue.float(value)


def _reasons_table(reasons: tuple[Reason, ...]) -> Table:
    rows = tuple((reason.clinic or "tutte", reason.message, reason.count) for reason in reasons)
    return Table("Motivi", ("Clinica", "Motivo", "Quanti"), rows, len(rows))


def _markdown(table: Table) -> dg.MetadataValue:
    def cell(value: object) -> str:
        return ("" if value is None else str(value)).replace("|", "\\|").replace("\n", " ")

    lines = [" | ".join(("", *table.columns, "")).strip(), "|" + " --- |" * len(table.columns)]
    lines += [" | ".join(("", *map(cell, row), "")).strip() for row in table.rows[:SHOWN_ROWS]]
    if table.total > min(len(table.rows), SHOWN_ROWS):
        lines.append(f"\n… e altre {table.total - min(len(table.rows), SHOWN_ROWS)} righe.")
    return dg.MetadataValue.md("\n".join(lines))
