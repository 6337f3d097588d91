"""The desk's guide says of every service what the catalogue says, in its order."""

from __future__ import annotations

import re
from pathlib import Path

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
