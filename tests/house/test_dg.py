"""Dagster's own tool finds both code locations."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from polydesk_dagster import catalog
from polydesk_dagster.catalog import Place
from tests import warm

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
DG = f"import os; os.chdir({str(ROOT)!r}); from dagster_dg_cli.cli import main; main()"


def dg(*arguments: str) -> str:
    """What ``dg`` prints at the root of the repository; fails the test with its words if it fails."""
    clean = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
    done = warm.completed(DG, *arguments, environment=clean)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_both_code_locations_load() -> None:
    assert {Path(line).name for line in dg("list", "projects").splitlines()} == set(Place)
    dg("check", "defs", "--use-active-venv")


@pytest.mark.parametrize("place", Place)
def test_a_location_lists_the_services_of_its_place(place: Place) -> None:
    found = json.loads(dg("list", "defs", "--json", "--target-path", f"deploy/dg/{place}"))
    assert {service.key for service in catalog.of_place(place)} <= {job["name"] for job in found["jobs"]}
