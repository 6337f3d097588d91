"""Dagster's own scheduler and sensors over our schedules, in this process, at whatever time a test says it is.

The scheduler is Dagster's, and so are its ticks and the runs that it asks for; only the runs are not executed: they
end well at once.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime

import dagster as dg
import sqlalchemy as sa
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.remote_origin import InProcessCodeLocationOrigin
from dagster._core.storage.dagster_run import FINISHED_STATUSES
from dagster._core.test_utils import (
    InProcessTestWorkspaceLoadTarget,
    create_test_daemon_workspace_context,
    freeze_time,
)
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._daemon.sensor import execute_sensor_iteration
from dagster._scheduler.scheduler import ScheduleIterationTimes, launch_scheduled_runs

from polydesk_dagster import settings as configuration
from polydesk_dagster.catalog import SERVICES, Every
from polydesk_dagster.database import service_runs
from polydesk_dagster.database.engine import create_engine, dagster_url
from polydesk_dagster.outcome import Outcome, Report
from polydesk_dagster.runtime import instance as instances
from polydesk_dagster.runtime.dagster_inside.clock import look_anew
from polydesk_dagster.runtime.state import activity
from tests import postgres

LATELY = datetime(2030, 1, 1, tzinfo=UTC)
"""After all that a test plays: a frequent service runs at times also where nothing is due."""

log = logging.getLogger("tests.clockwork")
log.setLevel(logging.CRITICAL)


class Clockwork:
    """What the daemon does, a look at a time."""

    def __init__(self, instance: dg.DagsterInstance, workspace: WorkspaceProcessContext) -> None:
        self.instance = instance
        self._workspace = workspace
        self._times: dict[str, ScheduleIterationTimes] = {}

    def schedules(self, now: datetime) -> None:
        """The scheduler looks, and what it starts ends well."""
        with freeze_time(now):
            for _ in launch_scheduled_runs(self._workspace, log, now, self._times):
                pass
            self._end_all()

    def sensors(self, now: datetime) -> None:
        with freeze_time(now):
            for _ in execute_sensor_iteration(self._workspace, log, None, None):
                pass
            self._end_all()

    def restart(self, now: datetime) -> None:
        """The daemon dies and comes back: what it kept in memory is gone."""
        self._times = {}
        look_anew(self.instance, now.timestamp())

    def looks(self) -> int:
        """How often any sensor has looked."""
        states = self.instance.all_instigator_state(instigator_type=InstigatorType.SENSOR)
        return sum(len(self.instance.get_ticks(each.instigator_origin_id, each.selector_id)) for each in states)

    def runs(self) -> list[dg.DagsterRun]:
        return self.instance.get_runs()

    def ticks(self, name: str) -> list[datetime]:
        """When the schedule was looked at, the oldest first."""
        repository = next(iter(self._workspace.create_request_context().code_locations)).get_repositories()
        schedule = next(iter(repository.values())).get_schedule(name)
        found = self.instance.get_ticks(schedule.get_remote_origin_id(), schedule.selector_id)
        return sorted(datetime.fromtimestamp(tick.timestamp, UTC) for tick in found)

    def _end_all(self) -> None:
        for run in self.instance.get_runs():
            if run.status not in FINISHED_STATUSES:
                event = dg.DagsterEvent(event_type_value="PIPELINE_SUCCESS", job_name=run.job_name)
                self.instance.report_dagster_event(event, run.run_id)


@contextmanager
def clockwork(module: str = "polydesk_dagster.definitions") -> Iterator[Clockwork]:
    """One for the ordinary location of the installation that the environment says, with our own instance of Dagster:
    what it queues, nobody takes."""
    settings = configuration.load()
    storage = dagster_url(settings)
    postgres.dagster_storage(storage)
    origin = InProcessCodeLocationOrigin(LoadableTargetOrigin(module_name=module), location_name="polydesk")
    load = InProcessTestWorkspaceLoadTarget(origin)
    with (
        postgres.dropped(storage),
        instances.open_instance(settings) as instance,
        create_test_daemon_workspace_context(load, instance) as workspace,
    ):
        yield Clockwork(instance, workspace)


def live(url: sa.URL, since: datetime, services: Sequence[str] = activity.STANDING) -> None:
    """Somebody let these services start by themselves, and the frequent ones have all run lately: they look, and start
    something where something is due."""
    engine = create_engine(url, pool_size=1)
    told = {"clinic": None, "preview": False, "dagster_run": "before", "as_of": since, "seconds": 1.0}
    with engine.begin() as connection:
        activity.go_live(connection, services, actor="tests", reason="provato con la direzione", as_of=since)
        for service in SERVICES:
            if isinstance(service.cadence, Every):
                service_runs.record(connection, service.key, Report(Outcome.OK), started=LATELY, **told)
    engine.dispose()
