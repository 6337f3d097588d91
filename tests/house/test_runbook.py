"""The runbook knows every finding that there can be, and every command that it names exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from polydesk_dagster import cli

ROOT = Path(__file__).resolve().parents[2]
RUNBOOK = (ROOT / "docs" / "runbook.md").read_text()
PLACES = ("runtime/health.py", "runtime/unread.py", "commands/doctor.py")


def _codes() -> set[str]:
    """The first argument of every finding that is written out, and of the tables that findings are made from."""
    found: set[str] = set()
    for place in PLACES:
        for node in ast.walk(ast.parse((ROOT / "polydesk_dagster" / place).read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in {"Finding", "_reached"} and node.args:
                first = node.args[0]
                if isinstance(first, ast.Constant):
                    found.add(str(first.value))
    return found


def test_every_finding_is_explained() -> None:
    explained = set(re.findall(r"`(\w+)`", "\n".join(re.findall(r"^\| (`[^|]+) \|", RUNBOOK, re.MULTILINE))))
    assert _codes() >= {"database", "service_failed", "studiolab_asked"}
    assert _codes() - explained == set()


def test_every_command_that_is_named_exists() -> None:
    named = set(re.findall(r"`polydesk ([a-z-]+)", RUNBOOK))
    assert named
    assert named - set(cli.COMMANDS) == set()
