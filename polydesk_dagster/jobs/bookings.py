"""Bookings kept clean: holds left behind, bookings nobody verified, and the nightly clean-up."""

import time
from collections.abc import Callable

import dagster as dg
from pydantic import Field

from polydesk_dagster.catalog import BY_KEY
from polydesk_dagster.clinic.bookings import sweeping
from polydesk_dagster.clinic.bookings import unverified as bookings
from polydesk_dagster.clinic.upkeep import registry, retention, temporary
from polydesk_dagster.database import refusals
from polydesk_dagster.errors import PermanentError, PolydeskError, in_brief, where
from polydesk_dagster.jobs.dagster_storage import clean_dagster, running_since
from polydesk_dagster.outcome import Outcome, Report, combine
from polydesk_dagster.resources.polydesk import PolydeskResource
from polydesk_dagster.running import ClinicConfig, Run, job_description, job_tags, serve, service_job
from polydesk_dagster.told.dagster import metadata
from polydesk_dagster.values import Term

SCHEDULED = "dagster"
"""Who acts, for the audit trail, where nobody gave their word for anything."""


class ReleaseExpiredHoldsConfig(ClinicConfig):
    """What the sweeper can be asked."""

    unpaid: list[int] = Field(default_factory=list)
    """Holds whose payment a person has looked up and found missing: they are released too."""


def _release_expired_holds(run: Run, config: ReleaseExpiredHoldsConfig) -> Report:
    with run.engine.begin() as connection:
        return sweeping.release_expired(
            connection,
            run.as_of,
            clinic=run.clinic,
            preview=run.preview,
            unpaid=config.unpaid,
            actor=run.person if config.unpaid else SCHEDULED,
        )


class DeleteUnverifiedConfig(ClinicConfig):
    """What the expiry of unverified bookings can be asked."""

    past_guard: str | None = None
    """``many_unverified`` goes past the stop of the one clinic that the run is for; only after looking at its gateway,
    and with a reason."""
    reason: str | None = None
    """Why the guard may be passed, at least 10 characters."""


def _delete_unverified(run: Run, config: DeleteUnverifiedConfig) -> Report:
    if config.past_guard and run.clinic is None:
        return _without_plan("guard_without_clinic", config.past_guard, "delete_unverified_appointments")
    expired = bookings.expire_unverified(
        run.engine,
        run.as_of,
        clinic=run.clinic,
        preview=run.preview,
        past_guard=config.past_guard,
        reason=config.reason,
        actor=run.person if config.past_guard else SCHEDULED,
    )
    if run.clinic is not None:  # the second stage is the chain's
        return expired
    deleted = retention.clean(
        run.engine,
        run.as_of,
        service="delete_unverified_appointments",
        chosen=registry.UNVERIFIED_BOOKINGS,
        preview=run.preview,
        rest=_rest,
        progress=run.progress,
    )
    return combine([expired, deleted])


class NightlyCleanupConfig(ClinicConfig):
    """What the clean-up can be asked."""

    only: list[str] = Field(default_factory=list)
    """Data sets by key; default all of the retention registry, then the temporary files and Dagster's history. What is
    not in the registry is refused by name."""
    files: str | None = None
    """One folder under the temporary files; default all of them, or none beside ``only``. What leads outside is refused
    by name."""
    past_guard: str | None = None
    """Refused: a run plans anew, and nobody has looked at that plan. The refusal says how to name the one looked at."""
    reason: str | None = None
    """Goes with ``polydesk plan apply``, as the guard does."""


def _nightly_cleanup(run: Run, config: NightlyCleanupConfig, instance: dg.DagsterInstance) -> Report:
    if run.clinic is not None:
        return Report.refused("whole_chain", clinic=run.clinic)
    if config.past_guard:
        return _without_plan("guard_not_looked_at", config.past_guard, "nightly_cleanup")
    try:
        chosen = registry.data_sets(config.only)
    except PermanentError as error:
        return Report(Outcome.REFUSED, reasons=(error.reason,))
    records = _part(
        run,
        "records",
        lambda: retention.clean(
            run.engine,
            run.as_of,
            chosen=chosen,
            preview=run.preview,
            actor=SCHEDULED,
            rest=_rest,
            progress=run.progress,
        ),
    )
    if config.only and config.files is None:
        return records
    since = running_since(instance, but_not=run.dagster_run)
    files = _part(
        run,
        "files",
        lambda: temporary.tidy(
            run.settings.home / "tmp", run.as_of, inside=config.files, in_use_since=since, preview=run.preview
        ),
    )
    if config.only:
        return combine([records, files])
    history = _part(
        run,
        "history",
        lambda: clean_dagster(instance, run.engine, run.as_of, preview=run.preview, progress=run.progress),
    )
    return combine([records, files, history])


def _without_plan(code: str, guard: str, service: str) -> Report:
    """A run makes plans of its own: past a guard goes only a plan that somebody has looked at."""
    return Report.refused(code, {"guard": guard, "service": service})


def _part(run: Run, part: str, rule: Callable[[], Report]) -> Report:
    """One part of the clean-up; what goes wrong with it stops no other."""
    try:
        return rule()
    except PolydeskError as error:
        return Report.of_failure(error.reason)
    except Exception as error:  # noqa: BLE001 - whatever went wrong, its message may quote a patient's data
        if (why := refusals.known(error, run.engine.url)) is not None:
            return Report.of_failure(why)
        run.log.error("Errore imprevisto in %s:\n%s", part, where(error))  # noqa: TRY400 - never the message
        return Report.failed("part_failed", {"part": Term("cleanup_part", part), "error": in_brief(error)})


def _rest() -> None:
    """Between two batches, for everybody else."""
    time.sleep(retention.REST)


_CLEANUP = BY_KEY["nightly_cleanup"]


@dg.op(name=_CLEANUP.steps[0], description=job_description(_CLEANUP))
def _cleanup_step(context: dg.OpExecutionContext, config: NightlyCleanupConfig, polydesk: PolydeskResource) -> None:
    report = serve(context, polydesk, _CLEANUP.key, config, lambda run: _nightly_cleanup(run, config, context.instance))
    context.add_output_metadata(metadata(report))


@dg.job(
    name=_CLEANUP.key,
    description=job_description(_CLEANUP),
    tags=job_tags(_CLEANUP),
    executor_def=dg.in_process_executor,
)
def nightly_cleanup() -> None:
    _cleanup_step()


JOBS = (
    service_job("release_expired_holds", _release_expired_holds, ReleaseExpiredHoldsConfig),
    service_job("delete_unverified_appointments", _delete_unverified, DeleteUnverifiedConfig),
    nightly_cleanup,
)
