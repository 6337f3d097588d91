"""Both code locations, built from the catalogue and from what the modules of assets, jobs, checks and sensors offer."""

import importlib
import pkgutil
from collections.abc import Iterator
from datetime import timedelta
from types import ModuleType
from typing import Any

import dagster as dg

from polydesk_dagster import assets, catalog, checks, jobs, sensors
from polydesk_dagster.catalog import HEARTBEAT, Daily, Every, OnDemand, Place, Service
from polydesk_dagster.resources.polydesk import PolydeskResource
from polydesk_dagster.running import job_description, job_tags
from polydesk_dagster.schedules.services import schedule_for

OWNER = "team:polydesk"


def definitions(place: Place, *, resources: dict[str, object] | None = None) -> dg.Definitions:
    """The definitions of one code location; ``resources`` replaces the real ones in tests."""
    ours = catalog.of_place(place)
    op_jobs = {job.name: job for job in _collect(jobs, "JOBS")}
    tools = list(_collect(jobs, "TOOLS")) if place is Place.ORDINARY else []
    wanted = {key for service in ours for key in service.assets}
    ordinary = place is Place.ORDINARY
    found = list(_collect(assets, "ASSETS")) if ordinary else []
    missing = wanted - {key.to_user_string() for asset in found for key in asset.keys}
    if missing:
        raise ValueError(f"the catalogue names assets that no module offers: {sorted(missing)}")
    return dg.Definitions(
        assets=[_with_policy(asset) for asset in found],
        asset_checks=list(_collect(checks, "CHECKS")) if ordinary else [],
        jobs=[op_jobs[s.key] if s.key in op_jobs else _asset_job(s) for s in ours] + tools,
        schedules=[schedule_for(s) for s in ours if _scheduled(s)],
        sensors=[sensor for sensor in _collect(sensors, "SENSORS") if ordinary],
        resources=resources or {"polydesk": PolydeskResource()},
        executor=dg.in_process_executor,
    )


def _collect(package: ModuleType, name: str) -> Iterator[Any]:
    for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        yield from getattr(importlib.import_module(module.name), name, ())


def _scheduled(service: Service) -> bool:
    """The events of studiolab are driven by their own sensor."""
    return not isinstance(service.cadence, OnDemand) and service.sensor is None


def _asset_job(service: Service) -> Any:
    return dg.define_asset_job(
        service.key,
        selection=dg.AssetSelection.assets(*service.assets),
        description=job_description(service),
        tags=job_tags(service),
    )


def _with_policy(asset: dg.AssetsDefinition) -> dg.AssetsDefinition:
    """The same owners for all, and a freshness policy for what a schedule keeps."""
    cadences = {key: s.cadence for s in catalog.SERVICES if not isinstance(s.cadence, OnDemand) for key in s.assets}

    def add(spec: dg.AssetSpec) -> dg.AssetSpec:
        spec = spec.replace_attributes(owners=list(spec.owners) or [OWNER])
        match cadences.get(spec.key.to_user_string()):
            case Daily():
                return _fresh(spec, timedelta(hours=30))
            case Every():
                return _fresh(spec, HEARTBEAT + timedelta(hours=2))
            case _:
                return spec

    return asset.map_asset_specs(add)


def _fresh(spec: dg.AssetSpec, window: timedelta) -> dg.AssetSpec:
    return spec.replace_attributes(freshness_policy=dg.FreshnessPolicy.time_window(fail_window=window))
