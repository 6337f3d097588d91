"""Rows as Dagster itself writes them: an instance of one test, and what its daemons would leave in it."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime

import pytest
import sqlalchemy as sa
from dagster import DagsterInstance, DagsterRunStatus
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.remote_origin import GrpcServerCodeLocationOrigin, RemoteJobOrigin, RemoteRepositoryOrigin
from dagster._core.scheduler.instigation import TickData, TickStatus
from dagster._daemon.types import DaemonHeartbeat
from dagster._utils.error import SerializableErrorInfo

from polydesk_dagster.database.engine import create_engine, dagster_url
from polydesk_dagster.runtime import instance
from polydesk_dagster.settings import Settings
from tests.postgres import dagster_storage


@contextmanager
def storage(settings: Settings) -> Iterator[tuple[DagsterInstance, sa.Engine]]:
    """A Dagster instance with an empty storage of its own, and its database; both go at the end."""
    url = dagster_url(settings).set(drivername="postgresql+psycopg")
    dagster_storage(url)
    engine = create_engine(url)
    patch = pytest.MonkeyPatch()
    for name, value in instance.environment(settings).items():
        patch.setenv(name, value)
    try:
        with instance.open_instance(settings) as dagster:
            yield dagster, engine
            dagster.run_storage._engine.dispose()  # type: ignore[attr-defined]
    finally:
        patch.undo()
        engine.dispose()
        admin = create_engine(url.set(database="postgres"))
        with admin.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(sa.text(f'DROP DATABASE "{url.database}" WITH (FORCE)'))
        admin.dispose()


def beats(dagster: DagsterInstance, kind: str, at: datetime) -> None:
    dagster.add_daemon_heartbeat(DaemonHeartbeat(at.timestamp(), kind, str(uuid.uuid4()), []))


def ticked(
    dagster: DagsterInstance, name: str, at: datetime, status: TickStatus = TickStatus.SKIPPED, why: str | None = None
) -> None:
    """A tick as the daemon records it: begun, then ended."""
    begun = dagster.create_tick(
        TickData(
            instigator_origin_id=name,
            instigator_name=name,
            instigator_type=InstigatorType.SCHEDULE,
            status=TickStatus.STARTED,
            timestamp=at.timestamp(),
            selector_id=name,
        )
    )
    ended: dict[str, object] = {"skip_reason": why} if why else {}
    if status is TickStatus.FAILURE:
        ended = {"error": SerializableErrorInfo("rotto", [], "RuntimeError")}
    dagster.update_tick(begun.with_status(status, **ended))


def ran(dagster: DagsterInstance, storage: sa.Engine, job: str, status: str, since: datetime) -> str:
    """A run of a job in a status, recorded at an instant; returns its id."""
    from polydesk_dagster import definitions

    location = GrpcServerCodeLocationOrigin(host="localhost", socket="/nowhere", location_name="polydesk")
    run = dagster.create_run_for_job(
        definitions.defs.get_repository_def().get_job(job),
        status=DagsterRunStatus(status),
        remote_job_origin=RemoteJobOrigin(RemoteRepositoryOrigin(location, "__repository__"), job),
    )
    with storage.begin() as connection:
        connection.execute(
            sa.text("UPDATE runs SET create_timestamp = :at, update_timestamp = :at WHERE run_id = :run"),
            {"at": since.replace(tzinfo=None), "run": run.run_id},
        )
    return run.run_id
