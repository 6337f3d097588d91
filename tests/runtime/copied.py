"""Many runs in Dagster's storage at the price of one: rows that it wrote, again under other names."""

from __future__ import annotations

import uuid
from datetime import datetime, timedelta

import dagster as dg
from dagster._core.storage.runs.schema import RunsTable, RunTagsTable
from dagster._core.storage.runs.sql_run_storage import SqlRunStorage


def copied(instance: dg.DagsterInstance, run_id: str, number: int) -> list[str]:
    """The ids of so many copies of a run, each written a microsecond after the one before it."""
    storage = instance.run_storage
    assert isinstance(storage, SqlRunStorage)
    with storage.connect() as connection:
        run = dict(connection.execute(RunsTable.select().where(RunsTable.c.run_id == run_id)).mappings().one())
        tags = connection.execute(RunTagsTable.select().where(RunTagsTable.c.run_id == run_id)).mappings().all()
        del run["id"]
        ids = [str(uuid.uuid4()) for _ in range(number)]
        later = [
            {
                "run_id": each,
                "run_body": run["run_body"].replace(run_id, each),
                "update_timestamp": run["update_timestamp"] + timedelta(microseconds=place),
            }
            for place, each in enumerate(ids, 1)
        ]
        connection.execute(RunsTable.insert(), [{**run, **each} for each in later])
        named = [{"run_id": each, "key": tag["key"], "value": tag["value"]} for each in ids for tag in tags]
        connection.execute(RunTagsTable.insert(), named)
    return ids


def ended(instance: dg.DagsterInstance, moments: dict[str, datetime]) -> None:
    """Let the storage say that these runs, by id, changed last at these moments (UTC)."""
    storage = instance.run_storage
    assert isinstance(storage, SqlRunStorage)
    with storage.connect() as connection:
        for run_id, at in moments.items():
            changed = {"update_timestamp": at.replace(tzinfo=None)}
            connection.execute(RunsTable.update().where(RunsTable.c.run_id == run_id).values(changed))
