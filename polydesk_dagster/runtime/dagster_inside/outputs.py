"""The end of a step that has told by itself, partition by partition, what it made, and what its checks came to."""

from collections.abc import Iterable, Iterator
from typing import Any

import dagster as dg
from dagster._core.definitions.source_asset import SYSTEM_METADATA_KEY_SOURCE_ASSET_OBSERVATION as TELLS_ITSELF


def told_already(key: dg.AssetKey) -> dg.MaterializeResult[Any]:
    """What lets the steps after this one run without saying that ``key`` was made.

    A step of a range of partitions that yields its asset has made all of them, for Dagster, also those that failed; one
    that yields nothing makes the steps after it be skipped. The public API knows nothing between.
    """
    return dg.MaterializeResult(asset_key=key, metadata={TELLS_ITSELF: True})


class _OfOneStep(dg.AssetCheckResult):
    _targets: dict[dg.AssetKey, Any]

    def _get_target_materialization_data(self, step_context: Any, check_key: dg.AssetCheckKey) -> Any:
        if check_key.asset_key not in self._targets:
            self._targets[check_key.asset_key] = super()._get_target_materialization_data(step_context, check_key)
        return self._targets[check_key.asset_key]


def together(results: Iterable[dg.AssetCheckResult]) -> Iterator[dg.AssetCheckResult]:
    """The results of a step whose checks all look at what it has made.

    Dagster looks up for each of them what was made last, two statements for every one, and twice where they are handed
    over with the asset instead of after it; here it is looked up for the first.
    """
    targets: dict[dg.AssetKey, Any] = {}
    for result in results:
        one = _OfOneStep(**result._asdict())
        one._targets = targets
        yield one
