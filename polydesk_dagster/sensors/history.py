"""Keeps Dagster's history from growing for ever. No ``from __future__ import annotations``: Dagster reads them."""

from datetime import UTC, datetime

import dagster as dg

from polydesk_dagster.runtime.retention import prune
from polydesk_dagster.told import teller

_TICK_SECONDS = 600
_MOST_RUNS = 200
_LONGEST_SECONDS = 20.0


@dg.sensor(
    name="tidy_history",
    minimum_interval_seconds=_TICK_SECONDS,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description=teller().text("sensor.tidy_history"),
)
def tidy_history(context: dg.SensorEvaluationContext) -> dg.SkipReason:
    deleted = prune(context.instance, datetime.now(UTC), at_most=_MOST_RUNS, seconds=_LONGEST_SECONDS)
    return dg.SkipReason(f"{deleted} esecuzioni vecchie eliminate." if deleted else "Niente da eliminare.")


SENSORS = (tidy_history,)
