"""The end of a step that has told by itself, partition by partition, what it made."""

import dagster as dg
from dagster._core.definitions.source_asset import SYSTEM_METADATA_KEY_SOURCE_ASSET_OBSERVATION as TELLS_ITSELF


def told_already(key: dg.AssetKey, checks: list[dg.AssetCheckResult] | None = None) -> dg.MaterializeResult[None]:
    """What lets the steps after this one run without saying that ``key`` was made.

    A step of a range of partitions that yields its asset has made all of them, for Dagster, also those that failed; one
    that yields nothing makes the steps after it be skipped. The public API knows nothing between.
    """
    return dg.MaterializeResult(asset_key=key, metadata={TELLS_ITSELF: True}, check_results=checks or [])
