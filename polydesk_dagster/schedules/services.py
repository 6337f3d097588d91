"""Schedules made from the catalogue. No ``from __future__ import annotations``: Dagster reads the annotations."""

from collections.abc import Iterator
from datetime import UTC, datetime

import dagster as dg

from polydesk_dagster.catalog import ROME, Daily, Every, Service
from polydesk_dagster.clinic.clinics import ACTIVE_CLINICS
from polydesk_dagster.resources.polydesk import PolydeskResource
from polydesk_dagster.runtime.dagster_inside.history import under_way
from polydesk_dagster.runtime.state.activity import paused
from polydesk_dagster.schedules.due import why_not
from polydesk_dagster.schedules.standing import why_standing
from polydesk_dagster.told import teller
from polydesk_dagster.values import ServiceKey

CLINICS = dg.DynamicPartitionsDefinition(name="clinic")
"""Clinics with an active studiolab, by code."""

UNFINISHED = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


def schedule_for(service: Service) -> dg.ScheduleDefinition:
    """The schedule of a service that has a cadence.

    A nightly tick is keyed by its business date and its clinic: one run a date, whatever the clock does that night.
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
            clinics = list(connection.scalars(ACTIVE_CLINICS)) if service.per_clinic else [None]
            waiting = paused(connection, service.key, instant) if service.per_clinic else {}
        if standing or nothing:
            yield dg.SkipReason(standing or teller().value(nothing))
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
        yield from _requests(context.instance, service, [each for each in clinics if each not in kept], instant)

    return tick


def _requests(
    instance: dg.DagsterInstance, service: Service, clinics: list[str | None], instant: datetime
) -> Iterator[dg.RunRequest | dg.SkipReason]:
    """A run a clinic (or one for the chain), except where one is still under way: the writer's lock is the rule, this
    only spares a run."""
    busy = under_way(instance, UNFINISHED, service.key)
    if service.per_clinic:
        instance.add_dynamic_partitions("clinic", [clinic for clinic in clinics if clinic is not None])
    free = [clinic for clinic in clinics if clinic not in busy]
    for clinic in free:
        key = _run_key(service, clinic, instant)
        yield dg.RunRequest(run_key=key, partition_key=clinic, tags={"polydesk/service": service.key})
    if not free:
        yield dg.SkipReason(teller().text("reason.still_running", service=ServiceKey(service.key)))


def _run_key(service: Service, clinic: str | None, instant: datetime) -> str:
    when = instant.astimezone(ROME).date() if isinstance(service.cadence, Daily) else instant
    return ":".join(filter(None, (service.key, clinic, when.isoformat())))
