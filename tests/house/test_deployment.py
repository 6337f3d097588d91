"""What a deployment is given: monitoring that asks for figures which are there, processes that compose starts."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

from polydesk_dagster.catalog import BY_KEY
from polydesk_dagster.runtime import metrics, watching
from polydesk_dagster.runtime.instance import LOCATIONS
from polydesk_dagster.settings import Settings, variable

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
FIGURES = {gauge[0] for gauge in vars(metrics).values() if isinstance(gauge, tuple) and len(gauge) == 3}


def _asked(text: str) -> set[str]:
    return set(re.findall(r"\bpolydesk_\w+", text))


def test_alerts_and_dashboard_ask_for_figures_that_there_are() -> None:
    alerts = yaml.safe_load((DEPLOY / "monitoring" / "alerts.yaml").read_text())
    rules = [rule["expr"] for group in alerts["groups"] for rule in group["rules"]]
    dashboard = json.loads((DEPLOY / "monitoring" / "dashboard.json").read_text())
    shown = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    assert _asked(" ".join(rules)) <= FIGURES
    assert _asked(" ".join(shown)) | {"polydesk_database_up"} == FIGURES, "each figure is shown"
    services = re.findall(r'service=~"([^"]+)"', " ".join(rules))
    assert {key for each in services for key in each.split("|")} <= BY_KEY.keys()


def _compose() -> dict[str, Any]:
    return dict(yaml.safe_load((DEPLOY / "compose.yaml").read_text()))


def test_compose_starts_a_server_for_each_location_and_names_it_in_the_workspace() -> None:
    services = _compose()["services"]
    commands = [" ".join(service.get("command", [])) for service in services.values()]
    workspace = yaml.safe_load((DEPLOY / "workspace.yaml").read_text())["load_from"]
    assert {each["grpc_server"]["location_name"] for each in workspace} == {each.name for each in LOCATIONS}
    for location in LOCATIONS:
        assert any(f"--module-name {location.module} --location-name {location.name}" in each for each in commands)
    assert {each["grpc_server"]["host"] for each in workspace} <= services.keys()
    assert services["migrate"]["command"] == ["polydesk", "db", "migrate"]


def test_whoever_tells_outside_what_is_wrong_is_started_and_waits_for_nobody() -> None:
    watcher = _compose()["services"]["watcher"]
    assert watcher["command"][-1] == watching.__name__
    assert "depends_on" not in watcher


def test_kubernetes_can_read_each_thing_by_itself() -> None:
    """A document is read alone: what one calls by a name, another does not know."""
    things = list(yaml.safe_load_all((DEPLOY / "helm" / "door.yaml").read_text()))
    deployed = {each["metadata"]["name"]: each for each in things if each["kind"] == "Deployment"}
    assert deployed.keys() == {"polydesk-door", "polydesk-watcher"}
    for each in deployed.values():
        assert each["spec"]["selector"]["matchLabels"] == each["spec"]["template"]["metadata"]["labels"]


def test_what_a_deployment_sets_means_something() -> None:
    known = {variable(field) for field in Settings.model_fields}
    given = {name for name in _compose()["services"]["door"]["environment"] if name.startswith("POLYDESK_")}
    given |= set(re.findall(r"^(POLYDESK_\w+)=", (DEPLOY / "env.example").read_text(), re.MULTILINE))
    given |= set(re.findall(r"\bPOLYDESK_(?!PLAYED)\w+(?==)", (DEPLOY / "Containerfile").read_text()))
    assert given <= known


def _camel(value: Any) -> Any:
    """As the chart spells what Dagster spells with underscores."""
    if isinstance(value, list):
        return [_camel(each) for each in value]
    if not isinstance(value, dict):
        return value
    return {re.sub(r"_(\w)", lambda found: found[1].upper(), name): _camel(each) for name, each in value.items()}


def test_kubernetes_is_told_the_same_limits_as_every_other_deployment() -> None:
    production = yaml.safe_load((DEPLOY / "production.yaml").read_text())
    values = yaml.safe_load((DEPLOY / "helm" / "values.yaml").read_text())
    for section in ("concurrency", "retention"):
        assert values[section] == {"enabled": True, **_camel(production[section])}, section
    assert values["dagsterDaemon"]["runRetries"] == _camel(production["run_retries"])
