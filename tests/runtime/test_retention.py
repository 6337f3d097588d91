"""Old runs leave Dagster's history with their logs; what a page still shows stays."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import dagster as dg
import pytest
import sqlalchemy as sa
from dagster._core.storage.event_log.schema import AssetCheckExecutionsTable
from dagster._core.storage.event_log.sql_event_log import SqlEventLogStorage

from polydesk_dagster.runtime.retention import prune
from polydesk_dagster.sensors.history import tidy_history
from tests.runtime.jobs import tiny

NOW = datetime.now(UTC)


@dg.asset
def shown() -> None: ...


@dg.asset_check(asset=shown)
def whole() -> dg.AssetCheckResult:
    return dg.AssetCheckResult(passed=True)


@dg.asset(partitions_def=dg.StaticPartitionsDefinition(["BO01", "RE01"]))
def by_clinic() -> None: ...


def _prune(instance: dg.DagsterInstance, days: float, at_most: int = 100) -> int:
    return prune(instance, NOW + timedelta(days=days), at_most=at_most, seconds=60)


def test_each_status_has_its_time(instance: dg.DagsterInstance) -> None:
    done = tiny.execute_in_process(instance=instance).run_id
    failed = instance.create_run_for_job(tiny).run_id
    unfinished = instance.create_run_for_job(tiny).run_id
    run = instance.get_run_by_id(failed)
    assert run is not None
    instance.report_run_failed(run, "prova")
    assert _prune(instance, 29) == 0
    assert _prune(instance, 31) == 1
    assert instance.get_run_by_id(done) is None
    assert not instance.all_logs(done)
    assert _prune(instance, 91) == 1
    assert [each.run_id for each in instance.get_runs()] == [unfinished]


def test_the_last_materialisation_of_an_asset_stays(instance: dg.DagsterInstance) -> None:
    first, last = (dg.materialize([shown], instance=instance).run_id for _ in range(2))
    assert _prune(instance, 365) == 1
    assert instance.get_run_by_id(first) is None
    assert instance.get_run_by_id(last) is not None
    event = instance.get_latest_materialization_event(shown.key)
    assert event is not None
    assert event.run_id == last


@pytest.mark.slow
def test_what_a_partition_a_check_and_a_schedule_last_left_stays(instance: dg.DagsterInstance) -> None:
    clinics = [
        dg.materialize([by_clinic], instance=instance, partition_key=clinic).run_id for clinic in ("BO01", "RE01")
    ]
    dg.materialize([shown, whole], instance=instance)
    checked = dg.materialize([shown, whole], instance=instance).run_id
    unchecked = dg.AssetSelection.assets(shown).without_checks()
    newest = dg.materialize([shown, whole], instance=instance, selection=unchecked).run_id
    tag = {"dagster/schedule_name": "every_night"}
    _, ticked = (tiny.execute_in_process(instance=instance, tags=tag).run_id for _ in range(2))
    assert _prune(instance, 365) == 2
    assert {run.run_id for run in instance.get_runs()} == {*clinics, checked, newest, ticked}
    assert instance.get_materialized_partitions(by_clinic.key) == {"BO01", "RE01"}
    storage = instance.event_log_storage
    assert isinstance(storage, SqlEventLogStorage)
    with storage.index_connection() as connection:
        results = connection.scalars(sa.select(AssetCheckExecutionsTable.c.run_id)).all()
    assert results == [checked], "a result goes with its run"


def test_it_takes_a_bounded_bite(instance: dg.DagsterInstance) -> None:
    for _ in range(3):
        tiny.execute_in_process(instance=instance)
    assert _prune(instance, 31, at_most=2) == 2
    assert len(instance.get_runs()) == 1


def test_the_sensor_says_what_it_did(instance: dg.DagsterInstance) -> None:
    with dg.build_sensor_context(instance) as context:
        assert tidy_history.evaluate_tick(context).skip_message == "Niente da eliminare."
