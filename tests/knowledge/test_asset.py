"""The index as Dagster's asset: what an operator reads of it, which service each job is, and the command that asks."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import dagster as dg
import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL
from typer.testing import CliRunner

from polydesk_dagster.assets.knowledge import index
from polydesk_dagster.checks.knowledge import CHECKS
from polydesk_dagster.cli import app
from polydesk_dagster.resources.knowledge import why_no_indexing
from polydesk_dagster.resources.polydesk import PolydeskResource
from tests.knowledge.world import AS_OF, Shelf
from tests.light import without


class Frozen(PolydeskResource):
    """The installation at the tests' instant."""

    def now(self) -> datetime:
        return AS_OF


@pytest.mark.slow
def test_blue_and_yellow_in_dagster_and_on_the_command_line(
    engine: sa.Engine, database: URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without(monkeypatch, "matplotlib")  # the run only says where the picture is
    shelf = Shelf(engine, tmp_path)
    shelf.topics()
    shelf.write("persona.md", "# Elenco\n\nIl paziente BNCLRA85B41F205K ha chiamato.")
    monkeypatch.setenv("POLYDESK_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("POLYDESK_DATABASE_URL", database.render_as_string(hide_password=False))
    monkeypatch.setenv("POLYDESK_DOCUMENTS", str(shelf.library.folder))
    monkeypatch.setenv("POLYDESK_KNOWLEDGE_URI", shelf.library.uri)

    def run(**config: object) -> dict[str, object]:
        result = dg.materialize(
            [index, *CHECKS],
            resources={"polydesk": Frozen()},
            run_config={"ops": {"knowledge__index": {"config": config}}},
        )
        assert all(e.passed == (e.check_name != "nothing_in_quarantine") for e in result.get_asset_check_evaluations())
        (event,) = result.get_asset_materialization_events()
        metadata = event.materialization.metadata
        assert "BNCLRA85B41F205K" not in json.dumps({key: str(value.value) for key, value in metadata.items()})
        return {key: value.value for key, value in metadata.items()}

    blue = run()
    assert (blue["Aggiunte"], blue["Documenti in quarantena"]) == (10, 1)
    assert "persona.md" in str(blue["Documenti che aspettano una persona"])
    with engine.connect() as connection:
        assert why_no_indexing(connection, AS_OF) is not None
    shelf.write("bar.md", "# Bar\n\nColazioni senza glutine al piano terra.")
    with engine.connect() as connection:
        assert why_no_indexing(connection, AS_OF) is None
    yellow = run(from_zero=True)
    assert (yellow["Aggiunte"], yellow["Generazione dell'indice"]) == (1, 2)
    assert str(yellow["Domande di prova per generazione"]).endswith("/index_probes)")
    assert [row.service for row in shelf.sql("SELECT service FROM service_run ORDER BY id")] == [
        "index_knowledge",
        "reindex_knowledge",
    ]

    def ask(*arguments: str) -> dict[str, object]:
        ended = CliRunner().invoke(app, ["ask", "--json", "--as-of", AS_OF.isoformat(), *arguments])
        assert ended.exit_code == 0, ended.output
        return json.loads(ended.stdout)

    found = ask("colazioni senza glutine")
    assert found["relevant"]
    assert found["passages"][0]["sources"][0]["path"] == "bar.md"  # type: ignore[index]
    assert found["passages"][0]["headings"] == ["Bar"]  # type: ignore[index]
    assert not ask("colazioni senza glutine", "--role", "patient")["relevant"]
    assert not ask("ricetta della carbonara")["relevant"]
    run(rollback=True)
    assert not ask("colazioni senza glutine")["relevant"]
