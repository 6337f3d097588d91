"""What Dagster sees: both code locations load in a fresh interpreter, stay light, and keep the house rules."""

from __future__ import annotations

import json
import subprocess
import sys

import dagster as dg
import pytest
from syrupy.assertion import SnapshotAssertion

from polydesk_dagster import definitions, emergency
from polydesk_dagster.catalog import ROME, SERVICES, OnDemand, Place

HEAVY = ("pandas", "lancedb", "pyarrow", "matplotlib", "numpy")


@pytest.mark.slow
@pytest.mark.parametrize("module", ["polydesk_dagster.definitions", "polydesk_dagster.emergency"])
def test_a_code_location_loads_in_a_fresh_interpreter_without_heavy_modules(module: str) -> None:
    code = f"import sys, json, {module} as m; m.defs.get_repository_def(); print(json.dumps(sorted(sys.modules)))"
    command = [sys.executable, "-W", "error::FutureWarning", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    loaded = set(json.loads(done.stdout.splitlines()[-1]))
    assert not loaded & set(HEAVY)


def _specs() -> list[dg.AssetSpec]:
    return list(definitions.defs.resolve_all_asset_specs())


def test_every_asset_keeps_the_house_rules() -> None:
    for spec in _specs():
        name = spec.key.to_user_string()
        assert len(spec.key.path) == 2, f"{name}: a prefix and a noun"
        assert spec.group_name == spec.key.path[0], name
        assert spec.kinds, name
        assert spec.owners, name
        assert spec.tags, name
        assert spec.description, name
        assert spec.code_version, name


def test_specs(snapshot: SnapshotAssertion) -> None:
    assert {
        spec.key.to_user_string(): {
            "deps": sorted(dep.asset_key.to_user_string() for dep in spec.deps),
            "kinds": sorted(spec.kinds),
            "fresh": str(spec.freshness_policy) if spec.freshness_policy else None,
            "partitions": type(spec.partitions_def).__name__ if spec.partitions_def else None,
        }
        for spec in _specs()
    } == snapshot


def test_schedules(snapshot: SnapshotAssertion) -> None:
    repository = definitions.defs.get_repository_def()
    assert {
        s.name: (s.cron_schedule, s.execution_timezone, s.default_status.value) for s in repository.schedule_defs
    } == snapshot


def test_every_service_has_its_job_and_schedule_where_it_belongs() -> None:
    for place, defs in ((Place.ORDINARY, definitions.defs), (Place.EMERGENCY, emergency.defs)):
        repository = defs.get_repository_def()
        ours = [s for s in SERVICES if s.place is place]
        tools = {"apply_plan", "undo_plan", "look_at_workbook", "import_workbook"} if place is Place.ORDINARY else set()
        named = {name for name in repository.job_names if not name.startswith("__")}
        assert named == {s.key for s in ours} | tools
        scheduled = {s.key for s in ours if not isinstance(s.cadence, OnDemand) and s.sensor is None}
        assert {schedule.name for schedule in repository.schedule_defs} == scheduled
        assert {schedule.execution_timezone for schedule in repository.schedule_defs} <= {ROME.key}
        jobs = {sensor.name: sensor.job_name for sensor in repository.sensor_defs if sensor.targets}
        assert all(jobs[s.sensor] == s.key for s in ours if s.sensor is not None)


@pytest.mark.parametrize("defs", [definitions.defs, emergency.defs], ids=["polydesk", "emergency"])
def test_every_job_resolves_and_has_the_steps_that_the_catalogue_names(defs: dg.Definitions) -> None:
    jobs = {job.name: job for job in defs.get_repository_def().get_all_jobs()}
    for service in SERVICES:
        if service.key in jobs:
            missing = set(service.steps) - {node.name for node in jobs[service.key].nodes}
            assert not missing, (
                f"nothing in ASSETS of assets/ or JOBS of jobs/ makes, as catalog.py says of {service.key}: {missing}"
            )
