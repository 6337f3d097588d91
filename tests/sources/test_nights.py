"""A night of many clinics is few runs; who is left out of them, or fails for what passes, is asked for again."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

import polydesk_dagster
from polydesk_dagster import definitions, many
from polydesk_dagster.catalog import BY_KEY
from polydesk_dagster.database import refusals
from polydesk_dagster.errors import PASSING
from polydesk_dagster.resources.polydesk import PolydeskResource
from polydesk_dagster.runtime.state import activity
from polydesk_dagster.sensors import nights
from tests.runtime.copied import copied
from tests.sources import live

TICK = datetime(2026, 3, 27, 2, 30, tzinfo=UTC)
"""03:30 in Rome."""
SERVICE = "sync_prices"


@pytest.fixture
def chain(engine: sa.Engine, database: URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> sa.Engine:
    """Seven clinics with a studiolab, and everything live."""
    monkeypatch.setattr(many, "A_RUN", 3)
    return live.clinics(engine, database, tmp_path, monkeypatch, [f"C{number}" for number in range(7)], TICK)


def _night(instance: dg.DagsterInstance) -> list[dg.RunRequest]:
    repository = definitions.defs.get_repository_def()
    resources = {"polydesk": PolydeskResource()}
    with dg.build_schedule_context(
        instance, scheduled_execution_time=TICK, repository_def=repository, resources=resources
    ) as context:
        return list(repository.get_schedule_def(SERVICE).evaluate_tick(context).run_requests or ())


def _look(
    instance: dg.DagsterInstance, at: datetime, monkeypatch: pytest.MonkeyPatch, service: str = SERVICE
) -> list[dg.RunRequest]:
    monkeypatch.setattr(PolydeskResource, "now", lambda _: at)
    repository = definitions.defs.get_repository_def()
    sensor = repository.get_sensor_def(f"again_{service}")
    resources = {"polydesk": PolydeskResource()}
    with dg.build_sensor_context(instance, repository_def=repository, resources=resources) as context:
        return [said for said in sensor(context) if isinstance(said, dg.RunRequest)]


def _whom(instance: dg.DagsterInstance, asked: dg.RunRequest) -> set[str]:
    if asked.partition_key is not None:
        return {asked.partition_key}
    run = dg.DagsterRun(job_name=SERVICE, run_config=asked.run_config, tags=asked.tags)
    return many.about(run, instance.get_dynamic_partitions("clinic"))


def _ended(
    engine: sa.Engine, clinic: str, outcome: str, at: datetime, why: str = "remote_silent", service: str = SERVICE
) -> None:
    with engine.begin() as connection:
        connection.execute(
            sa.text("""
                INSERT INTO service_run (service, clinic_id, outcome, counts, reasons, as_of, started_at, seconds)
                SELECT :service, id, :outcome, '{}', jsonb_build_array(jsonb_build_object('code', CAST(:why AS text))),
                       :at, :at, 0 FROM clinic WHERE code = :clinic"""),
            {"service": service, "clinic": clinic, "outcome": outcome, "at": at, "why": why},
        )


def _made(instance: dg.DagsterInstance, clinic: str, of: str = SERVICE, asset: int = -1) -> None:
    key = dg.AssetKey(BY_KEY[of].assets[asset].split("/"))
    instance.report_runless_asset_event(dg.AssetMaterialization(key, partition=clinic))


@pytest.mark.slow
def test_a_night_is_few_runs_and_leaves_out_who_is_busy(chain: sa.Engine, instance: dg.DagsterInstance) -> None:
    asked = _night(instance)
    assert [_whom(instance, each) for each in asked] == [{"C0", "C1", "C2"}, {"C3", "C4", "C5"}, {"C6"}]
    assert len({each.run_key for each in asked}) == 3
    assert [each.run_key for each in _night(instance)] == [each.run_key for each in asked], "one a date"
    job = definitions.defs.resolve_job_def(SERVICE)
    busy = asked[1]
    instance.create_run_for_job(job, run_config=busy.run_config, tags=dict(busy.tags))
    instance.create_run_for_job(job, tags={"dagster/partition": "C0"})
    assert [_whom(instance, each) for each in _night(instance)] == [{"C1", "C2", "C6"}]
    # C6 comes with C1 and C2: who stands between them in the range is named by none
    assert many.under_way(instance) == {"C0", "C3", "C4", "C5"}


@pytest.mark.slow
def test_a_clinic_is_busy_however_many_runs_wait_before_its_own(chain: sa.Engine, instance: dg.DagsterInstance) -> None:
    job = definitions.defs.resolve_job_def(SERVICE)
    instance.create_run_for_job(job, tags={"dagster/partition": "C0"})
    of_another = instance.create_run_for_job(job, tags={"dagster/partition": "C1"})
    copied(instance, of_another.run_id, 699)
    instance.create_run_for_job(job, tags={"dagster/partition": "C2"})
    assert instance.get_runs_count(dg.RunsFilter(statuses=many.UNFINISHED)) == 702
    assert many.under_way(instance, SERVICE) == {"C0", "C1", "C2"}
    asked = [_whom(instance, each) for each in _night(instance)]
    assert set[str]().union(*asked) == {"C3", "C4", "C5", "C6"}


@pytest.mark.slow
def test_who_was_left_out_comes_after_and_who_failed_is_tried_again_alone(
    chain: sa.Engine, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look(minutes: int) -> list[set[str]]:
        return [_whom(instance, each) for each in _look(instance, TICK + timedelta(minutes=minutes), monkeypatch)]

    assert look(5) == [], "the night itself comes first"
    for clinic in ("C0", "C1"):
        _ended(chain, clinic, "ok", TICK + timedelta(minutes=1))
        _made(instance, clinic)
    _ended(chain, "C2", "failed", TICK - timedelta(hours=20))  # another night
    _ended(chain, "C3", "failed", TICK + timedelta(minutes=2))
    _ended(chain, "C4", "failed", TICK + timedelta(minutes=2), "remote_token")
    _ended(chain, "C5", "refused", TICK + timedelta(minutes=2), "guard")
    assert look(16) == [{"C2", "C6"}]
    assert look(20) == [{"C2", "C6"}, {"C3"}]
    keys = {each.run_key for each in _look(instance, TICK + timedelta(minutes=30), monkeypatch)}
    assert keys == {each.run_key for each in _look(instance, TICK + timedelta(minutes=20), monkeypatch)}, "asked once"
    for clinic in ("C2", "C6"):
        _ended(chain, clinic, "ok", TICK + timedelta(minutes=21))
        _made(instance, clinic)
    _ended(chain, "C3", "failed", TICK + timedelta(minutes=22))
    assert look(60) == []
    assert look(70) == [{"C3"}]
    job = definitions.defs.resolve_job_def(SERVICE)
    run = instance.create_run_for_job(job, tags={"dagster/partition": "C3"})
    assert look(70) == [], "it is being tried"
    instance.report_run_canceled(run)
    _ended(chain, "C3", "failed", TICK + timedelta(minutes=71))
    assert look(300) == [], "three times are enough"
    with chain.begin() as connection:
        connection.execute(sa.text("DELETE FROM service_run"))
        activity.pause(connection, SERVICE, as_of=TICK, clinic="C6", until=datetime(2099, 1, 1, tzinfo=UTC),
                       actor="manager:ugo", reason="listino in revisione")  # fmt: skip
    assert set[str]().union(*look(30)) == {f"C{number}" for number in range(6)}
    assert look(400) == [], "the night is over"


@pytest.mark.slow
def test_who_has_the_first_list_of_a_run_that_was_ended_and_not_the_last_is_left_behind(
    chain: sa.Engine, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A database that starts anew, or a process that is killed twice, between agreements and prices."""

    def look() -> list[set[str]]:
        return [_whom(instance, each) for each in _look(instance, TICK + timedelta(minutes=20), monkeypatch)]

    for number in range(7):
        _ended(chain, f"C{number}", "ok" if number else "skipped", TICK + timedelta(minutes=1))
    for number in range(1, 7):
        _made(instance, f"C{number}", asset=1)  # agreements
    for number in range(3, 7):
        _made(instance, f"C{number}")
    assert look() == [{"C1", "C2"}]
    for number in (1, 2):
        _ended(chain, f"C{number}", "nothing_to_do", TICK + timedelta(minutes=18))
        _made(instance, f"C{number}")
    assert look() == []


@pytest.mark.slow
def test_dagster_is_not_asked_which_lists_were_made_where_there_is_one(
    chain: sa.Engine, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[dg.AssetKey]()
    made = many.made

    def counted(*args: Any) -> Any:
        asked.append(args[1])
        return made(*args)

    monkeypatch.setattr(many, "made", counted)
    at = TICK + timedelta(hours=1)
    for service in (SERVICE, "import_patients"):
        for number in range(6):
            _ended(chain, f"C{number}", "ok", at - timedelta(minutes=25), service=service)
        again = _look(instance, at, monkeypatch, service)
        left = {"C6"} if service == "import_patients" else {f"C{number}" for number in range(7)}
        assert set[str]().union(*(_whom(instance, each) for each in again)) == left
    assert [key.to_user_string() for key in asked] == ["studiolab/prices"]


OF_THE_DATABASE = {"database_busy", "refused_memory", "refused_restarting"}


def test_what_passes_is_what_reading_a_source_calls_transient_and_what_the_database_refuses_for_now() -> None:
    root = Path(polydesk_dagster.__file__).parent
    rooms = [root / "answers.py", *(root / "sources").rglob("*.py"), *(root / "changes").rglob("*.py")]
    text = "\n".join(path.read_text() for path in rooms)
    raised = re.findall(r'(?:TransientError|UncertainError|kind)\((?:"(\w+)"(?: if \w+ else "(\w+)")?)', text)
    assert {code for pair in raised for code in pair if code} | OF_THE_DATABASE == PASSING
    assert {code for code, _ in refusals.CASES.values()} >= OF_THE_DATABASE


def test_each_nightly_list_of_clinics_is_looked_after() -> None:
    names = {sensor.name for sensor in nights.SENSORS}
    assert names == {"again_sync_prices", "again_import_patients"}
    assert all(BY_KEY[name.removeprefix("again_")].per_clinic for name in names)
