"""Runs on Celery workers of plain machines, and finding those whose worker died.

Needs the extra ``celery``; a deployment names the launcher in its ``dagster.yaml``, and nothing else imports it.
Dagster's own believes for ever what Redis last heard: that a run goes on whose worker was killed or lost its power.
"""

from __future__ import annotations

from typing import Any

from dagster import DagsterRun
from dagster._core.launcher.base import CheckRunHealthResult, WorkerStatus
from dagster_celery.launcher import CeleryRunLauncher
from dagster_celery.tags import DAGSTER_CELERY_TASK_ID_TAG

ATTEMPTS = 3
ANSWER_SECONDS = 3.0
"""A worker answers beside its work; one that says nothing so often, so long, is gone."""


class WatchedCeleryRunLauncher(CeleryRunLauncher):
    """Celery's launcher, which also asks the worker of a run whether it still has it."""

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        task = run.tags.get(DAGSTER_CELERY_TASK_ID_TAG)
        if task is None:  # it was launched before this launcher was chosen
            return CheckRunHealthResult(WorkerStatus.UNKNOWN, "nessun compito noto")
        told: CheckRunHealthResult = super().check_run_worker_health(run)
        if told.status is not WorkerStatus.RUNNING:
            return told
        worker = self._worker(task)
        if worker is None or any(self._has(worker, task) for _ in range(ATTEMPTS)):
            return told
        told = super().check_run_worker_health(run)  # it may have ended while its worker was asked
        if told.status is not WorkerStatus.RUNNING:
            return told
        return CheckRunHealthResult(
            WorkerStatus.FAILED, f"il worker {worker} non ha più l'esecuzione", run_worker_id=worker
        )

    def _worker(self, task: str) -> str | None:
        known: Any = self.celery.AsyncResult(task).info
        return known.get("hostname") if isinstance(known, dict) else None

    def _has(self, worker: str, task: str) -> bool:
        inspect = self.celery.control.inspect(destination=[worker], timeout=ANSWER_SECONDS)
        return any(each["id"] == task for each in (inspect.active() or {}).get(worker, ()))
