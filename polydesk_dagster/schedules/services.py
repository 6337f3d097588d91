"""Schedules made from the catalogue. No ``from __future__ import annotations``: Dagster reads the annotations."""

from collections.abc import Iterator
from datetime import UTC, datetime

import dagster as dg

from polydesk_dagster import many
from polydesk_dagster.catalog import ROME, Daily, Every, Service
from polydesk_dagster.clinic.clinics import ACTIVE_CLINICS
from polydesk_dagster.resources.polydesk import PolydeskResource
from polydesk_dagster.runtime.state.activity import paused
from polydesk_dagster.schedules.due import why_not
from polydesk_dagster.schedules.standing import why_standing
from polydesk_dagster.told import teller
from polydesk_dagster.values import ServiceKey

CLINICS = dg.DynamicPartitionsDefinition(name="clinic")
"""Clinics with an active studiolab, by code."""


def schedule_for(service: Service) -> dg.ScheduleDefinition:
    """The schedule of a service that has a cadence.

    A nightly tick is keyed by its business date: one run a date, whatever the clock does that night.
    """
    cadence = service.cadence
    if not isinstance(cadence, Daily | Every):
        raise TypeError(f"{service.key} is run on demand and has no schedule")

    @dg.schedule(
        name=service.key,
        job_name=service.key,
        cron_schedule=cadence.cron,
        execution_timezone=ROME.key,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description=f"{teller().service(service.key)}: {teller().cadence(cadence)}.",
    )
    def tick(
        context: dg.ScheduleEvaluationContext, polydesk: PolydeskResource
    ) -> Iterator[dg.RunRequest | dg.SkipReason]:
        instant = context.scheduled_execution_time.astimezone(UTC)
        if isinstance(cadence, Every) and not cadence.runs_at(instant):
            coming = cadence.next_after(instant).astimezone(ROME)
            yield dg.SkipReason(teller().text("reason.true_cadence", minutes=cadence.minutes, coming=coming.time()))
            return
        with polydesk.looking() as connection:
            standing = why_standing(connection, polydesk.settings(), service.key, instant)
            nothing = None if standing else why_not(connection, service.key, instant)
            clinics = list(connection.scalars(ACTIVE_CLINICS)) if service.per_clinic else []
            waiting = paused(connection, service.key, instant) if service.per_clinic else {}
        if standing or nothing:
            yield dg.SkipReason(standing or teller().value(nothing))
            return
        key = _run_key(service, instant)
        if not service.per_clinic:
            yield _alone(context.instance, service, key)
            return
        if not clinics:
            yield dg.SkipReason(teller().text("reason.no_clinic_integrated"))
            return
        kept = {clinic: teller().reason(why) for clinic, why in waiting.items() if clinic in clinics}
        for why in kept.values():
            context.log.info(why)
        if kept and len(kept) == len(clinics):
            yield dg.SkipReason(" ".join(kept.values()))
            return
        free = {clinic for clinic in clinics if clinic not in kept} - many.under_way(context.instance, service.key)
        yield from many.requests(context.instance, service, free, key)
        if not free:
            yield dg.SkipReason(teller().text("reason.still_running", service=ServiceKey(service.key)))

    return tick


def _alone(instance: dg.DagsterInstance, service: Service, key: str) -> dg.RunRequest | dg.SkipReason:
    """The run of a service for the whole chain, except while one is under way: the writer's lock is the rule, this only
    spares a run."""
    if instance.get_runs_count(dg.RunsFilter(job_name=service.key, statuses=many.UNFINISHED)):
        return dg.SkipReason(teller().text("reason.still_running", service=ServiceKey(service.key)))
    return dg.RunRequest(run_key=key, tags={"polydesk/service": service.key})


def _run_key(service: Service, instant: datetime) -> str:
    when = instant.astimezone(ROME).date() if isinstance(service.cadence, Daily) else instant
    return f"{service.key}:{when.isoformat()}"
