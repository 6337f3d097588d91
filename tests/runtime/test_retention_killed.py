"""SIGKILL between any two steps of the clean-up of Dagster's history: the next one finds what is left of each run."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import sqlalchemy as sa
from pydantic import SecretStr
from sqlalchemy.engine import URL

from polydesk_dagster.changes import audit
from polydesk_dagster.database.engine import create_engine, dagster_url
from polydesk_dagster.jobs.dagster_storage import clean_dagster
from polydesk_dagster.runtime import instance
from polydesk_dagster.runtime.retention import prune
from polydesk_dagster.settings import Settings
from tests.postgres import dagster_storage
from tests.runtime.jobs import tiny
from tests.waiting import PATIENCE

RUNS = 4
LATER = datetime.now(UTC) + timedelta(days=100)


def _prune(dagster: dg.DagsterInstance, database: URL) -> int:
    return prune(dagster, LATER, at_most=100, seconds=60)


def _clean(dagster: dg.DagsterInstance, database: URL) -> int:
    engine = create_engine(database)
    deleted = clean_dagster(dagster, engine, LATER).counts.retired
    engine.dispose()
    return deleted


@pytest.fixture
def settings(database: URL, tmp_path: Path) -> Settings:
    url = database.render_as_string(hide_password=False)
    settings = Settings(home=tmp_path / "home", database_url=SecretStr(url))
    dagster_storage(dagster_url(settings))
    return settings


@pytest.fixture
def dagster(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[dg.DagsterInstance]:
    for name, value in instance.environment(settings).items():
        monkeypatch.setenv(name, value)
    with instance.open_instance(settings) as opened:
        yield opened


def _left(dagster: dg.DagsterInstance, settings: Settings) -> dict[str, set[str]]:
    """The runs of which something is left, wherever it is kept."""
    storage = Path(instance.dagster_home(settings.home)) / "storage"
    engine = create_engine(dagster_url(settings).set(drivername="postgresql+psycopg"))
    with engine.connect() as connection:
        found = {
            table: set(connection.scalars(sa.text(f"SELECT run_id FROM {table}"))) for table in ("runs", "event_logs")
        }
    engine.dispose()
    return {**found, "logs": {each.name for each in storage.iterdir() if any(each.rglob("*.out"))}}


def _run_and_die(
    settings: Settings, database: URL, clean: Callable[[dg.DagsterInstance, URL], int], step: str, calls: int
) -> None:
    """Clean up; right after the ``calls``-th time of ``step``, be gone."""
    dagster = instance.open_instance(settings)
    owner: Any = {
        "delete_logs": dagster.compute_log_manager,
        "delete_events": dagster.event_log_storage,
        "delete_run": dagster.run_storage,
    }[step]
    real, done = getattr(owner, step), 0

    def then_die(*args: Any, **kwargs: Any) -> None:
        nonlocal done
        real(*args, **kwargs)
        done += 1
        if done == calls:
            os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, step, then_die)
    clean(dagster, database)


@pytest.mark.slow
@pytest.mark.parametrize("step", ["delete_logs", "delete_events", "delete_run"])
@pytest.mark.parametrize("clean", [_prune, _clean], ids=["sensor", "nightly"])
def test_a_killed_clean_up_leaves_nothing_that_the_next_does_not_find(
    dagster: dg.DagsterInstance,
    settings: Settings,
    database: URL,
    clean: Callable[[dg.DagsterInstance, URL], int],
    step: str,
) -> None:
    old = {tiny.execute_in_process(instance=dagster).run_id for _ in range(RUNS)}
    unfinished = dagster.create_run_for_job(tiny).run_id
    before = _left(dagster, settings)
    assert before == {"runs": {*old, unfinished}, "event_logs": old, "logs": old}
    context = multiprocessing.get_context("fork")
    process = context.Process(target=_run_and_die, args=(settings, database, clean, step, 2))
    process.start()
    process.join(PATIENCE)
    assert process.exitcode == -signal.SIGKILL
    between = _left(dagster, settings)
    assert between["logs"] <= between["event_logs"] <= between["runs"], "nothing without the run that leads to it"
    assert len(between["runs"]) >= RUNS - 1
    gone = RUNS + 1 - len(between["runs"])
    assert clean(dagster, database) == RUNS - gone, "each run once"
    assert _left(dagster, settings) == {"runs": {unfinished}, "event_logs": set(), "logs": set()}
    assert clean(dagster, database) == 0
    engine = create_engine(database)
    with engine.connect() as connection:
        assert audit.verify(connection) == []
    engine.dispose()
