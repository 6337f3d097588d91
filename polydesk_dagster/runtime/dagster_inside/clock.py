"""A clock that was set back: Dagster's sensors wait until it has come so far again as it was when they last looked.

When a sensor last looked lies in its stored state, which nothing that is public changes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dagster import DagsterInstance


def look_anew(instance: DagsterInstance, now: float) -> None:
    """Have every sensor that looked later than ``now``, seconds since 1970, look at once; its cursor stays."""
    from dagster._core.definitions.run_request import InstigatorType
    from dagster._core.scheduler.instigation import SensorInstigatorData

    for state in instance.all_instigator_state(instigator_type=InstigatorType.SENSOR):
        data = state.instigator_data
        if not isinstance(data, SensorInstigatorData):
            continue
        looked = max(data.last_tick_timestamp or 0.0, data.last_tick_start_timestamp or 0.0)
        if looked > now:
            forgotten = data._replace(last_tick_timestamp=None, last_tick_start_timestamp=None)
            instance.update_instigator_state(state.with_data(forgotten))
