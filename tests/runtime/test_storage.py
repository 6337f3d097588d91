"""Dagster's storage on one pool: what a server's restart costs, and what is asked once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa
from dagster import DagsterInstance
from pydantic import SecretStr
from sqlalchemy.engine import URL

from polydesk_dagster.database import engine as engines
from polydesk_dagster.settings import Settings
from tests.postgres import left
from tests.runtime import written
from tests.waiting import PATIENCE


@pytest.fixture(scope="module")
def kept(server: URL, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[DagsterInstance, URL]]:
    home: Path = tmp_path_factory.mktemp("home")
    url = server.set(database="pooled").render_as_string(hide_password=False)
    with written.storage(Settings(home=home, database_url=SecretStr(url))) as (dagster, engine):
        yield dagster, engine.url


@contextmanager
def _noted(dagster: DagsterInstance) -> Iterator[list[str]]:
    """What the storage is asked meanwhile."""
    asked: list[str] = []
    engine = dagster.run_storage._engine  # type: ignore[attr-defined]

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        asked.append(statement)

    sa.event.listen(engine, "before_cursor_execute", note)
    yield asked
    sa.event.remove(engine, "before_cursor_execute", note)


def _asked(dagster: DagsterInstance) -> list[str]:
    """What the storage is asked for a look at two runs, and whether it knows of checks."""
    with _noted(dagster) as asked:
        for run in ("a", "b"):
            assert dagster.get_run_by_id(run) is None
        assert dagster.event_log_storage.supports_asset_checks
    return asked


@pytest.mark.parametrize("rest", [0.0, PATIENCE], ids=["asked", "just worked"])
def test_a_connection_that_ended_while_it_rested_is_nobodys_error(
    kept: tuple[DagsterInstance, URL], rest: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    dagster, url = kept
    monkeypatch.setattr(engines, "_REST", rest)
    assert dagster.get_run_by_id("a") is None
    left(url)
    assert dagster.get_run_by_id("a") is None


def test_which_tables_and_columns_there_are_is_asked_once(kept: tuple[DagsterInstance, URL]) -> None:
    dagster, _ = kept
    _asked(dagster)
    assert [statement for statement in _asked(dagster) if "pg_attribute" in statement or "pg_class" in statement] == []


def test_an_event_is_written_and_nobody_is_told(kept: tuple[DagsterInstance, URL]) -> None:
    dagster, _ = kept
    with _noted(dagster) as asked:
        dagster.report_engine_event("awake", run_id="c", job_name="night")
    assert [statement.split()[:3] for statement in asked] == [["INSERT", "INTO", "event_logs"]]
    assert [each.message for each in dagster.all_logs("c")] == ["awake"]
