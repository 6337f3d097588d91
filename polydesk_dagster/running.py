"""How a service's rule runs inside Dagster: one at a time, on a given instant, its outcome recorded and shown.

Rules do not come here; they return reports. No ``from __future__ import annotations``: Dagster reads the annotations.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import dagster as dg
import sqlalchemy as sa

from polydesk_dagster.catalog import BY_KEY, Every, Service
from polydesk_dagster.changes.plans import AHEAD
from polydesk_dagster.database import refusals, service_runs
from polydesk_dagster.database.locks import exclusive
from polydesk_dagster.errors import PolydeskError, in_brief, where
from polydesk_dagster.outcome import SHOWN_ROWS, Counts, Outcome, Reason, Report
from polydesk_dagster.resources.polydesk import PolydeskResource
from polydesk_dagster.runtime import canceling
from polydesk_dagster.runtime.following import Progress, follower
from polydesk_dagster.runtime.names import PERSON_TAG
from polydesk_dagster.runtime.progress import reporter
from polydesk_dagster.runtime.state import restored
from polydesk_dagster.runtime.state.activity import paused
from polydesk_dagster.settings import Settings, person
from polydesk_dagster.told import teller
from polydesk_dagster.told.dagster import metadata
from polydesk_dagster.values import Instant, ServiceKey, Value


class DescribedConfig(dg.Config):
    """A config whose fields the launchpad describes in Italian: ``config.CLASS.FIELD`` of the catalogues for one class
    alone, else ``config.FIELD``."""

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        t = teller()
        for name, field in cls.model_fields.items():
            own = f"config.{cls.__name__}.{name}"
            field.description = t.text(own if t.knows(own) else f"config.{name}")


class ServiceConfig(DescribedConfig):
    """What every service can be asked; the defaults are what its schedule runs."""

    as_of: str | None = None
    """The instant to work at, RFC 3339 with an offset; default now."""
    preview: bool = False
    """Only show what would change."""


class ClinicConfig(ServiceConfig):
    """What a service can be asked that one run does for one clinic or for all of them."""

    clinic: str | None = None
    """A clinic's code; default all clinics."""


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
    person: str
    """Whoever pressed, as the audit trail names people."""


Context = dg.AssetExecutionContext | dg.OpExecutionContext


def serve(
    context: Context,
    polydesk: PolydeskResource,
    service: str,
    config: ServiceConfig,
    rule: Callable[[Run], Report],
    *,
    title: str | None = None,
    alone: bool = True,
) -> Report:
    """``perform`` what ends the step where it is refused or fails.

    Raises:
        dagster.Failure: when the outcome is refused or failed; never retried by Dagster, with the report's metadata.
    """
    report = perform(context, polydesk, service, config, rule, title=title, alone=alone)
    if report.outcome in {Outcome.REFUSED, Outcome.FAILED}:
        raise failure(title or teller().service(service), report)
    return report


Shown = dg.MaterializeResult[Any] | dg.AssetObservation
"""What an asset yields of a run."""


def shown(context: Context, key: Sequence[str], report: Report, **more: dg.MetadataValue) -> Shown:
    """What a run that ended by ``report`` shows on its asset: that the asset is as new as this run, which looked at
    everything and changed what there was to change, if anything; after a preview or a run that was skipped only what
    was seen, so that the asset looks no fresher than it is."""
    told = {**more, **metadata(report)}
    if report.preview or report.outcome is Outcome.SKIPPED:
        partition = context.partition_key if context.has_partition_key else None
        return dg.AssetObservation(asset_key=key, metadata=told, partition=partition)
    return dg.MaterializeResult(asset_key=key, metadata=told)


def failure(name: str, report: Report) -> dg.Failure:
    """How a step ends by ``report``."""
    return dg.Failure(f"{name}: {teller().summary(report)}", metadata=metadata(report), allow_retries=False)


def lost(name: str, report: Report) -> dg.Failure:
    """How a step ends by ``report`` which is not recorded: whoever waits for the run is told why besides Dagster."""
    follower().unrecorded(report.reasons)
    return failure(name, report)


def perform(
    context: Context,
    polydesk: PolydeskResource,
    service: str,
    config: ServiceConfig,
    rule: Callable[[Run], Report],
    *,
    title: str | None = None,
    alone: bool = True,
) -> Report:
    """Run ``rule`` for ``service`` and keep what it came to in ``service_run``, whatever that is. What is no service of
    the catalogue brings its Italian ``title``; what only looks need not be ``alone``.

    Raises:
        dagster.Failure: where the run's partition is no clinic of ours, the database's schema does not suit this
            program, or the database refuses; nothing is recorded then.
    """
    name = title or teller().service(service)
    with unrecorded_told(name, polydesk):
        settings, engine = polydesk.settings(), polydesk.engine()
        with canceling.fenced(context.instance, context.run.run_id, engine):
            clinic = config.clinic if isinstance(config, ClinicConfig) else None
            if context.has_partition_key:
                clinic = context.partition_key
                if (unknown := unknown_partition(engine, clinic)) is not None:
                    raise lost(name, unknown)
            return performed(context, polydesk, settings, engine, service, config, rule, name, clinic, alone=alone)


@contextmanager
def unrecorded_told(name: str, polydesk: PolydeskResource) -> Iterator[None]:
    """How a step of the service called ``name`` ends where nothing could be done, or written down of what was: by what
    is wrong with the schema, or by the database's own word, never by what it quotes.

    Raises:
        dagster.Failure: that is so.
    """
    try:
        yield
    except PolydeskError as error:
        raise lost(name, Report.of_failure(error.reason)) from None
    except sa.exc.DBAPIError as error:
        why = refusals.known(error, polydesk.engine().url)
        raise lost(name, Report.of_failure(why or Reason("unexpected", {"error": in_brief(error)}))) from None


def performed(
    context: Context,
    polydesk: PolydeskResource,
    settings: Settings,
    engine: sa.Engine,
    service: str,
    config: ServiceConfig,
    rule: Callable[[Run], Report],
    name: str,
    clinic: str | None,
    *,
    alone: bool = True,
) -> Report:
    """``rule`` run for ``service`` and one ``clinic`` (None is the whole chain), while no other run of theirs that is
    ``alone`` works, and recorded whatever it comes to; ``name`` is the service's."""
    started = polydesk.now()
    clock = time.monotonic()
    as_of = _instant(config.as_of, started)
    run = Run(
        engine,
        settings,
        as_of,
        clinic,
        config.preview,
        context.run.run_id,
        context.log,
        polydesk,
        reporter(context.log),
        context.run.tags.get(PERSON_TAG) or person(),
    )
    with exclusive(engine, service, clinic) if alone else nullcontext(True) as free:
        if not free:
            report = Report.skipped("already_running", {"service": name}, clinic)
        else:
            kept = _kept_waiting(context, engine, service, clinic, started)
            report = kept or _too_early(service, run, started) or _out_and_back(rule, run, service)
    report = replace(report, preview=run.preview or report.preview).of_clinic(clinic)
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
    one_of_many = clinic is not None and not context.has_partition_key and not isinstance(config, ClinicConfig)
    if one_of_many and report.outcome in {Outcome.OK, Outcome.NOTHING_TO_DO}:
        return report  # its record says it; a thousand sentences a night would fill Dagster's storage
    t = teller()
    for reason in report.reasons[:SHOWN_ROWS]:
        context.log.info("%s: %s", reason.clinic or t.text("all_clinics"), t.reason(reason))
    context.log.info("%s: %s", name, t.summary(report))
    return report


def service_job(
    key: str, rule: Callable[[Run, Any], Report], config_type: type[ServiceConfig] = ClinicConfig
) -> dg.JobDefinition:
    """The job of a service that keeps no asset, named and described by the catalogue; ``rule`` is given the run and
    its config, a ``config_type``."""
    service = BY_KEY[key]
    (step,) = service.steps
    description = job_description(service)

    @dg.op(name=step, description=description)
    def operation(
        context: dg.OpExecutionContext,
        config: config_type,
        polydesk: PolydeskResource,
    ) -> None:
        report = serve(context, polydesk, key, config, lambda run: rule(run, config))
        context.add_output_metadata(metadata(report))

    @dg.job(
        name=key,
        description=description,
        tags=job_tags(service),
        executor_def=dg.in_process_executor,
    )
    def job() -> None:
        operation()

    return job


def job_description(service: Service) -> str:
    """How a job is described on Dagster's page, whose search looks at it: its Italian name first, when, what for."""
    return f"{named(service)} {teller().summary_of(service.key)}"


def named(service: Service) -> str:
    """A service's Italian name and its true cadence: «Importa comuni (ogni notte alle 02:30).»"""
    return f"{teller().service(service.key)} ({teller().cadence(service.cadence)})."


def job_tags(service: Service) -> dict[str, str]:
    """The tags of a service's runs: whose they are, the seconds after which run monitoring ends them, and that Dagster
    never presses a dangerous button a second time by itself."""
    match service.cadence:
        case Every(minutes):
            seconds = max(600, minutes * 60)
        case _:
            seconds = 3600
    tags = {"polydesk/service": service.key, "dagster/max_runtime": str(seconds)}
    return {**tags, "dagster/max_retries": "0"} if service.dangerous else tags


def _instant(text: str | None, now: datetime) -> datetime:
    if text is None:
        return now
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        raise dg.Failure(teller().text("reason.no_instant", given=text), allow_retries=False) from None
    if instant.tzinfo is None:
        raise dg.Failure(teller().text("reason.no_offset", given=text), allow_retries=False)
    return instant.astimezone(UTC)


def unknown_partition(engine: sa.Engine, code: str) -> Report | None:
    """Why nothing can be done for a partition that somebody has added by hand; None if it is a clinic of ours."""
    with engine.connect() as connection:
        if connection.scalar(sa.text("SELECT count(*) FROM clinic WHERE code = :code"), {"code": code}):
            return None
    return Report.refused("unknown_partition", None, code)


BY_ITSELF = frozenset({"dagster/schedule_name", "dagster/sensor_name"})
"""Tags of a run that nobody pressed."""


def _kept_waiting(
    context: Context, engine: sa.Engine, service: str, clinic: str | None, now: datetime
) -> Report | None:
    """Why a run that a schedule or sensor asked for, before the clinic was paused, does nothing; None if it works."""
    if clinic is None or not BY_ITSELF & context.run.tags.keys():
        return None
    with engine.connect() as connection:
        why = paused(connection, service, now).get(clinic)
    return None if why is None else Report(Outcome.SKIPPED, Counts(), (why,))


def _too_early(service: str, run: Run, now: datetime) -> Report | None:
    """Why a service may not work at ``run.as_of``, an instant still to come, for which only previews are; None if it
    may. What would be deleted is still needed, who would be reminded may not be booked by then."""
    if run.preview or service not in BY_KEY or run.as_of <= now + AHEAD:
        return None
    values: dict[str, Value] = {"service": ServiceKey(service), "asked": Instant(run.as_of), "now": Instant(now)}
    return Report.refused("ahead", values, run.clinic)


def _out_and_back(rule: Callable[[Run], Report], run: Run, service: str) -> Report:
    """``_run_safely``, counted where it reaches out: before, so that a copy that is made meanwhile is known as one, and
    after, so that one from before is."""
    if run.preview or service not in BY_KEY or not BY_KEY[service].reaches_out:
        return _run_safely(rule, run, service)
    home = run.settings.home
    if (held := restored.go_out(run.engine, home, run.polydesk.now())) is not None:
        return Report(Outcome.REFUSED, reasons=(held,))
    report = _run_safely(rule, run, service)
    restored.go_out(run.engine, home, run.polydesk.now())
    return report


def _run_safely(rule: Callable[[Run], Report], run: Run, service: str) -> Report:
    try:
        return rule(run)
    except PolydeskError as error:
        return Report.of_failure(error.reason)
    except dg.Failure:
        raise
    except Exception as error:  # noqa: BLE001 - whatever went wrong, its message may quote a patient's data
        if (why := refusals.known(error, run.engine.url)) is not None:  # COPY raises psycopg's own errors
            return Report.of_failure(why)
        run.log.error(teller().text("log.unexpected", service=ServiceKey(service), where=where(error)))  # noqa: TRY400 - never the message
        return Report.failed("unexpected", {"error": type(error).__name__}, run.clinic)
