"""What a run for many partitions plans is one event an asset, and what was begun and not made is known as before.

No ``from __future__ import annotations``: Dagster reads the annotations.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import sqlalchemy as sa
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.execution.api import execute_run
from pydantic import SecretStr
from sqlalchemy.engine import URL

from polydesk_dagster.runtime.dagster_inside.outputs import told_already
from polydesk_dagster.runtime.dagster_inside.storage import PooledEventLogStorage
from polydesk_dagster.settings import Settings
from tests.runtime import written

PARTITIONS = ("A", "B", "C", "D")
KEY = dg.AssetKey("made")
RUNS = (("AD", "AC"), ("BB", ""), ("CD", "D"), ("AA", "A"), ("BC", ""), ("BB", "B"))
"""Runs of a range, its first and its last, each with what it makes before it fails."""


class Makes(dg.Config):
    partitions: list[str]
    fails: bool


@dg.multi_asset(
    name="made",
    specs=[dg.AssetSpec(KEY, partitions_def=dg.DynamicPartitionsDefinition(name="clinic"), skippable=True)],
    backfill_policy=dg.BackfillPolicy.single_run(),
)
def made(config: Makes) -> Iterator[Any]:
    for partition in config.partitions:
        yield dg.AssetMaterialization(KEY, partition=partition)
    if config.fails:
        raise dg.Failure("Non tutte.")
    yield told_already(KEY)


JOB = dg.Definitions([made], jobs=[dg.define_asset_job("job", [made], executor_def=dg.in_process_executor)])


def _begun(instance: dg.DagsterInstance) -> list[dict[str, int]]:
    """After each run the partitions that were begun and not made, each with which run that was."""
    instance.add_dynamic_partitions("clinic", list(PARTITIONS))
    job, numbers, found, after = JOB.resolve_job_def("job"), dict[str, int](), [], 0
    for number, ((first, last), partitions) in enumerate(RUNS):
        span = PARTITIONS[PARTITIONS.index(first) : PARTITIONS.index(last) + 1]
        config = {"partitions": list(partitions), "fails": len(partitions) < len(span)}
        tags = {"dagster/partition": first}
        if len(span) > 1:
            tags = {"dagster/asset_partition_range_start": first, "dagster/asset_partition_range_end": last}
        run = instance.create_run_for_job(job, run_config={"ops": {"made": {"config": config}}}, tags=tags)
        numbers[run.run_id] = number
        asked = instance.event_log_storage.get_latest_asset_partition_materialization_attempts_without_materializations
        found.append({partition: numbers[of] for partition, (of, _) in asked(KEY).items()})  # while it goes on
        execute_run(InMemoryJob(job), run, instance)
        ended = (asked(KEY), asked(KEY, after))
        found += [{partition: numbers[of] for partition, (of, _) in each.items()} for each in ended]
        after = max(event.storage_id for event in instance.fetch_materializations(KEY, limit=1).records)
    return found


def _planned(storage: sa.Engine) -> list[tuple[str, str | None]]:
    with storage.connect() as connection:
        rows = connection.execute(
            sa.text("""SELECT asset_key, partition FROM event_logs
                       WHERE dagster_event_type = 'ASSET_MATERIALIZATION_PLANNED' ORDER BY id""")
        )
        return [tuple(row) for row in rows]  # type: ignore[misc]


def test_what_was_begun_and_not_made_is_what_dagster_finds_by_partition(
    server: URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, kept = [], []
    for name in ("sets", "each"):
        url = server.set(database=f"planned_{name}").render_as_string(hide_password=False)
        with written.storage(Settings(home=tmp_path, database_url=SecretStr(url))) as (instance, storage):
            found.append(_begun(instance))
            kept.append(_planned(storage))
        sets = "supports_partition_subset_in_asset_materialization_planned_events"
        monkeypatch.setattr(PooledEventLogStorage, sets, False)
    assert found[0] == found[1]
    assert [partition for _, partition in kept[0]] == [None, "B", None, "A", None, "B"]
    assert len(kept[1]) == sum(PARTITIONS.index(last) - PARTITIONS.index(first) + 1 for (first, last), _ in RUNS)
