"""The desk's guide says of every service what the catalogue says, in its order."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from polydesk_dagster import cli
from polydesk_dagster.catalog import SERVICES
from polydesk_dagster.outcome import Outcome
from polydesk_dagster.told import teller

GUIDE = (Path(__file__).parents[2] / "docs" / "servizi.md").read_text(encoding="utf-8")
SECTION = re.compile(
    r"^## (?P<name>.+)\n\nchiave: `(?P<key>\w+)`\n\nquando: (?P<when>.+)\n\n(?P<text>(?:(?!^#).*\n)+)", re.MULTILINE
)


def test_it_is_in_step_with_the_catalogue() -> None:
    sections = [(match["name"], match["key"], match["when"]) for match in SECTION.finditer(GUIDE)]
    assert sections == [
        (teller().service(service.key), service.key, teller().cadence(service.cadence)) for service in SERVICES
    ]


def test_every_service_is_explained() -> None:
    for match in SECTION.finditer(GUIDE):
        assert len(match["text"]) > 60, match["key"]


def test_every_outcome_is_explained() -> None:
    for outcome in Outcome:
        assert re.search(rf"^\| {teller().outcome(outcome)} \| `{outcome}` \|", GUIDE, re.MULTILINE), outcome


COMMAND = re.compile(r"polydesk ([a-z-]+)(?: ([a-z]+))?")


@pytest.mark.parametrize("document", ["README.md", "docs/servizi.md", "docs/runbook.md", "docs/messages.md"])
def test_every_command_that_is_documented_exists(document: str) -> None:
    text = (Path(__file__).parents[2] / document).read_text(encoding="utf-8")
    typed = "\n".join(re.findall(r"`[^`]*`|^(?:\$ |\.venv/bin/)?polydesk .*$", text, re.MULTILINE))
    named = {(name, sub) for name, sub in COMMAND.findall(typed) if name in cli.COMMANDS or sub}
    assert named
    assert {name for name, _ in named} <= set(cli.COMMANDS)
    for name, sub in sorted(named):
        known = getattr(cli.loaded(name), "commands", None)
        assert known is None or not sub or sub in known, f"polydesk {name} {sub}"
