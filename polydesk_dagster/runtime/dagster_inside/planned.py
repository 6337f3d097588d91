"""What a run for many partitions is to make, kept once an asset and not once a partition.

Of a thousand clinics a night Dagster would keep six thousand events that say so, a quarter of all that it keeps. Its
storages may keep the partitions of a run as one set; its own for PostgreSQL do not, because they ask by partition which
were begun and not made. Here that is asked of the sets as well.
"""

from __future__ import annotations

from collections.abc import Mapping

import sqlalchemy as sa
from dagster import AssetKey, DagsterEventType
from dagster._core.events import AssetMaterializationPlannedData
from dagster._core.events.log import EventLogEntry
from dagster._serdes import deserialize_value

_SETS = sa.text("""
    SELECT id, run_id, event FROM event_logs
    WHERE asset_key = :asset AND dagster_event_type = :planned AND partition IS NULL AND id > :after
      AND timestamp > coalesce((SELECT wipe_timestamp FROM asset_keys WHERE asset_key = :asset), '-infinity')
    ORDER BY id""")


def alone(event: EventLogEntry) -> EventLogEntry:
    """``event``; where it plans a set of one partition, as Dagster says it of a partition."""
    told = event.dagster_event
    planned = None if told is None else told.event_specific_data
    if told is None or not isinstance(planned, AssetMaterializationPlannedData) or planned.partitions_subset is None:
        return event
    keys = list(planned.partitions_subset.get_partition_keys())
    if len(keys) != 1:
        return event
    of_one = told._replace(event_specific_data=AssetMaterializationPlannedData(planned.asset_key, keys[0]))
    return event._replace(dagster_event=of_one)


def newest(connection: sa.Connection, key: AssetKey, after: int | None) -> Mapping[str, tuple[str, int]]:
    """By partition the run whose set has it last, and that event's number, above ``after``."""
    values = {
        "asset": key.to_string(),
        "planned": DagsterEventType.ASSET_MATERIALIZATION_PLANNED.value,
        "after": after or 0,
    }
    found: dict[str, tuple[str, int]] = {}
    for number, run, event in connection.execute(_SETS, values):
        told = deserialize_value(event, EventLogEntry).get_dagster_event().event_specific_data
        if isinstance(told, AssetMaterializationPlannedData) and told.partitions_subset is not None:
            found |= dict.fromkeys(told.partitions_subset.get_partition_keys(), (run, number))
    return found
