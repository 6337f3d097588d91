"""A schedule and a sensor start nothing while their service is not live or paused, whatever Dagster's switch says."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

from polydesk_dagster import definitions
from polydesk_dagster.resources.polydesk import PolydeskResource
from polydesk_dagster.runtime import alerts
from polydesk_dagster.runtime.state import activity
from polydesk_dagster.sensors import run_failure
from tests import world

NOW = datetime(2026, 3, 27, 2, 0, tzinfo=UTC)
WHY = "messaggi provati con la direzione"


@pytest.fixture(autouse=True)
def configured(database: URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYDESK_HOME", str(tmp_path))
    monkeypatch.setenv("POLYDESK_DATABASE_URL", database.render_as_string(hide_password=False))


def _tick(instance: dg.DagsterInstance, name: str, at: datetime = NOW) -> tuple[int, str | None]:
    """How many runs a tick of the schedule asks for, and why none."""
    schedule = definitions.defs.get_repository_def().get_schedule_def(name)
    resources = {"polydesk": PolydeskResource()}
    with dg.build_schedule_context(instance, scheduled_execution_time=at, resources=resources) as context:
        data = schedule.evaluate_tick(context)
    return len(data.run_requests or ()), data.skip_message


def test_a_service_starts_once_somebody_has_let_it(instance: dg.DagsterInstance, engine: sa.Engine) -> None:
    runs, why = _tick(instance, "generate_slots")
    assert runs == 0
    assert why is not None
    assert "non è ancora attivato" in why
    with engine.begin() as connection:
        activity.go_live(connection, ["generate_slots"], actor="desk:anna", reason=WHY, as_of=NOW - timedelta(days=1))
    assert _tick(instance, "generate_slots") == (1, None)


def test_a_pause_is_told_with_who_and_why_and_ends(instance: dg.DagsterInstance, engine: sa.Engine) -> None:
    with engine.begin() as connection:
        before = NOW - timedelta(days=1)
        activity.go_live(connection, activity.STANDING, actor="desk:anna", reason=WHY, as_of=before)
        activity.pause(
            connection,
            "generate_slots",
            until=NOW + timedelta(hours=1),
            actor="desk:ugo",
            reason="agende in revisione",
            as_of=before,
        )
    runs, why = _tick(instance, "generate_slots")
    assert runs == 0
    assert why is not None
    assert "in pausa fino al 27/03/2026 04:00, da desk:ugo: agende in revisione" in why
    assert _tick(instance, "generate_slots", NOW + timedelta(days=1)) == (1, None)


def test_a_studiolab_is_not_even_asked_before_its_service_is_live(
    instance: dg.DagsterInstance, engine: sa.Engine
) -> None:
    with engine.begin() as connection:
        world.integration(
            connection, world.clinic(connection), "http://127.0.0.1:1", token_env="POLYDESK_STUDIOLAB_TOKEN_NOBODY"
        )
    sensor = definitions.defs.get_repository_def().get_sensor_def("studiolab_events")
    with dg.build_sensor_context(instance, resources={"polydesk": PolydeskResource()}) as context:
        data = sensor.evaluate_tick(context)
    assert not data.run_requests
    assert data.skip_message is not None
    assert "non è ancora attivato" in data.skip_message
    with engine.connect() as connection:
        assert connection.scalar(sa.text("SELECT count(*) FROM event_cursor")) == 0


def _looked(instance: dg.DagsterInstance, what: str) -> None:
    """A tick of a schedule or a sensor."""
    repository, resources = definitions.defs.get_repository_def(), {"polydesk": PolydeskResource()}
    if repository.has_schedule_def(what):
        _tick(instance, what)
        return
    with dg.build_sensor_context(instance, repository_def=repository, resources=resources) as context:
        repository.get_sensor_def(what).evaluate_tick(context)


@pytest.mark.parametrize("what", ["generate_slots", "studiolab_events", "asked_import_patients"])
def test_a_tick_beside_a_schema_that_does_not_suit_says_so_in_a_sentence(
    instance: dg.DagsterInstance, engine: sa.Engine, what: str
) -> None:
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '0001'"))
    with pytest.raises((dg.Failure, dg.DagsterUserCodeExecutionError)) as failed:
        _looked(instance, what)
    told = str(getattr(failed.value, "user_exception", failed.value))
    assert "Lo schema del database è alla versione 0001" in told
    assert "polydesk db migrate" in told


def test_who_tells_of_failures_tells_them_beside_such_a_schema_too(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '0001'"))
    assert run_failure._reasons(PolydeskResource(), ["a run"]) == {}
    assert run_failure._stopped(PolydeskResource(), alerts.State.load(None, NOW)) == []


@pytest.fixture
def paused(engine: sa.Engine) -> None:
    """Two clinics with a studiolab, everything live, and prices and news paused at one of them."""
    with engine.begin() as connection:
        for code in ("BO01", "MI01"):
            url = "http://127.0.0.1:1"
            world.integration(connection, world.clinic(connection, code), url, token_env="POLYDESK_STUDIOLAB_TOKEN_X")
        before = NOW - timedelta(days=1)
        activity.go_live(connection, activity.STANDING, actor="desk:anna", reason=WHY, as_of=before)
        said = {"until": datetime(2099, 1, 1, tzinfo=UTC), "actor": "manager:ugo", "reason": "listino in revisione"}
        for service in ("sync_prices", "sync_events"):
            activity.pause(connection, service, as_of=before, clinic="BO01", **said)


TOLD = "a BO01 è in pausa fino al 01/01/2099 01:00, da manager:ugo: listino in revisione"


@pytest.mark.usefixtures("paused")
def test_a_pause_of_a_clinic_keeps_only_its_runs_from_starting(instance: dg.DagsterInstance, engine: sa.Engine) -> None:
    repository, resources = definitions.defs.get_repository_def(), {"polydesk": PolydeskResource()}
    schedule, sensor = repository.get_schedule_def("sync_prices"), repository.get_sensor_def("studiolab_events")
    with dg.build_schedule_context(
        instance, scheduled_execution_time=NOW, repository_def=repository, resources=resources
    ) as context:
        asked = schedule.evaluate_tick(context).run_requests or ()
    assert [request.partition_key for request in asked] == ["MI01"]
    with engine.begin() as connection:
        connection.execute(
            sa.text("UPDATE integration SET active = (SELECT code = 'BO01' FROM clinic c WHERE c.id = clinic_id)")
        )
    runs, why = _tick(instance, "sync_prices")
    assert (runs, TOLD in (why or "")) == (0, True)
    cursor = '{"BO01": [7, 2]}'
    with dg.build_sensor_context(instance, cursor, repository_def=repository, resources=resources) as looking:
        data = sensor.evaluate_tick(looking)
    assert (data.run_requests, TOLD in (data.skip_message or "")) == ([], True)
    assert json.loads(data.cursor or "")["attempts"] == json.loads(cursor)


@pytest.mark.slow
@pytest.mark.usefixtures("paused")
@pytest.mark.parametrize(("tags", "skips"), [({"dagster/schedule_name": "sync_prices"}, True), ({}, False)])
def test_a_run_that_waited_in_the_queue_is_skipped_and_one_by_hand_is_not(
    instance: dg.DagsterInstance, engine: sa.Engine, tags: dict[str, str], skips: bool
) -> None:
    instance.add_dynamic_partitions("clinic", ["BO01"])
    definitions.defs.resolve_job_def("sync_prices").execute_in_process(
        partition_key="BO01", instance=instance, tags=tags, raise_on_error=False
    )
    with engine.connect() as connection:
        outcomes = connection.execute(sa.text("SELECT outcome, reasons FROM service_run WHERE clinic_id IS NOT NULL"))
        found = {(row.outcome, reason["code"]) for row in outcomes for reason in row.reasons}
    assert (("skipped", "clinic_paused") in found) is skips
    assert found
