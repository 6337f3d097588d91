"""Dagster's run queue, which writes on each run who pressed the button."""

from __future__ import annotations

from dagster import DagsterRun
from dagster._core.run_coordinator import QueuedRunCoordinator
from dagster._core.run_coordinator.base import SubmitRunContext

from polydesk_dagster.runtime.names import PERSON_TAG


class SigningRunCoordinator(QueuedRunCoordinator):
    """A run from a person's request bears her name, whatever tags the request brought. What the daemon submits bears
    what it had: nothing for a schedule or a sensor, the presser of a backfill or of a run that is tried again."""

    def submit_run(self, context: SubmitRunContext) -> DagsterRun:
        presser = getattr(context.workspace, "presser", None)
        if presser is not None:
            self._instance.add_run_tags(context.dagster_run.run_id, {PERSON_TAG: presser.name})
        return super().submit_run(context)
