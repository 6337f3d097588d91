"""The adapters that we bring pass the kit that we ask others to pass."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from polydesk_dagster.demo.simulators.server import in_thread
from polydesk_dagster.sources import conformance
from polydesk_dagster.sources.studiolab import client
from tests.sources.fhir_server import FhirServer
from tests.sources.stages import FhirStage, FilesStage, Shifting, StudiolabStage


@pytest.fixture(params=["studiolab", "fhir", "csv", "xlsx"])
def stage(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    if request.param == "studiolab":
        monkeypatch.setattr(client, "LIST_LIMIT", 2)  # a few records are several pages
        simulator = Shifting()
        with in_thread(simulator) as url:
            yield StudiolabStage(simulator, url.replace("/api/v1", "/BO01/api/v1"))
    elif request.param == "fhir":
        server = FhirServer()
        with in_thread(server) as url:
            yield FhirStage(server, url.replace("/api/v1", "/fhir"))
    else:
        yield FilesStage(tmp_path, xlsx=request.param == "xlsx")


@pytest.mark.slow
@pytest.mark.parametrize("check", conformance.CHECKS, ids=lambda check: check.__name__)
def test_it_conforms(check: Any, stage: Any) -> None:
    check(stage)


class OneSaysSo(FhirStage):
    """Of two records that became one, the one that stays alone says so, as some servers do it."""

    def merge(self, gone: str, into: str) -> None:
        (it,) = (each for each in self.server.held["Patient"] if each["id"] == into)
        it["link"] = [{"other": {"reference": f"Patient/{gone}"}, "type": "replaces"}]


@pytest.mark.slow
def test_who_was_merged_is_listed_no_more_where_only_the_one_that_stays_says_so() -> None:
    server = FhirServer()
    with in_thread(server) as url:
        conformance.who_was_merged_is_told_and_listed_no_more(OneSaysSo(server, url.replace("/api/v1", "/fhir")))
