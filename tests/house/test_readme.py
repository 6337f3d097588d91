"""The README's picture of the assets is the graph that Dagster has."""

from __future__ import annotations

import re
from pathlib import Path

from polydesk_dagster import definitions

README = Path(__file__).resolve().parents[2] / "README.md"


def graph() -> str:
    """The asset graph as a Mermaid block."""
    specs = sorted(definitions.defs.resolve_all_asset_specs(), key=lambda spec: spec.key.path)
    groups: dict[str, list[str]] = {}
    for spec in specs:
        groups.setdefault(spec.group_name or "", []).append(spec.key.to_user_string())
    lines = ["```mermaid", "graph LR"]
    for group, keys in sorted(groups.items()):
        lines += [f"  subgraph {group}", *(f'    {_node(key)}["{key.split("/")[1]}"]' for key in keys), "  end"]
    for spec in specs:
        for dep in sorted(spec.deps, key=lambda dep: dep.asset_key.path):
            lines.append(f"  {_node(dep.asset_key.to_user_string())} --> {_node(spec.key.to_user_string())}")
    return "\n".join([*lines, "```"])


def _node(key: str) -> str:
    return key.replace("/", "_")


def test_the_picture_is_the_graph() -> None:
    shown = re.search(r"<!-- graph -->\n(.*)<!-- /graph -->", README.read_text(), re.DOTALL)
    assert shown is not None
    assert shown.group(1).strip() == graph()
