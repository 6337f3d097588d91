"""Checks that share a step: each says what it found, whatever becomes of another."""

from pathlib import Path

import dagster as dg
import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

from polydesk_dagster.checks.looks import Look, checks_of
from polydesk_dagster.database.engine import plain_url
from polydesk_dagster.resources.polydesk import PolydeskResource

THING = dg.AssetKey(["calendar", "thing"])
FIRST, BROKEN, LAST = "no_dead_letters", "no_stopped_feed", "no_lost_events"


@dg.asset(key=THING)
def thing() -> None: ...


def _finds(*, passed: bool) -> Look:
    return lambda _connection, _as_of: dg.AssetCheckResult(passed=passed, severity=dg.AssetCheckSeverity.WARN)


def _breaks(_connection: sa.Connection, _as_of: object) -> dg.AssetCheckResult:
    raise RuntimeError("broke off")


CHECKS = checks_of(THING, {FIRST: _finds(passed=True), BROKEN: _breaks, LAST: _finds(passed=False)})


@pytest.fixture
def looked(database: URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dg.ExecuteInProcessResult:
    monkeypatch.setenv("POLYDESK_HOME", str(tmp_path))
    monkeypatch.setenv("POLYDESK_DATABASE_URL", plain_url(database))
    with dg.DagsterInstance.ephemeral() as instance:
        return dg.materialize(
            [thing, CHECKS],
            resources={"polydesk": PolydeskResource()},
            instance=instance,
            raise_on_error=False,
        )


def test_one_that_breaks_off_fails_the_run_after_the_others_have_said_what_they_found(
    looked: dg.ExecuteInProcessResult,
) -> None:
    found = {each.check_name: each.passed for each in looked.get_asset_check_evaluations()}
    assert found == {FIRST: True, LAST: False}
    (failed,) = looked.get_step_failure_events()
    assert "broke off" in str(failed.step_failure_data.error)
    assert not looked.success


def test_each_names_the_run_s_own_asset_as_what_it_looked_at(looked: dg.ExecuteInProcessResult) -> None:
    first, last = (each.target_materialization_data for each in looked.get_asset_check_evaluations())
    assert first is not None
    assert first == last
