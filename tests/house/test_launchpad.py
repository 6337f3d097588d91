"""Dagster's page speaks to people: names that a search finds, fields that say what they take, honest previews."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import dagster as dg
import pytest
import sqlalchemy as sa
from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleStatus
from dagster._core.loader import LoadingContextForTest

from polydesk_dagster import build, definitions, emergency
from polydesk_dagster.catalog import BY_KEY, SERVICES, Place
from polydesk_dagster.demo.simulators.central import CentralSimulator
from polydesk_dagster.demo.simulators.server import DEMO_TOKEN, in_thread
from polydesk_dagster.jobs.plans import TOOLS as TOOL_JOBS
from polydesk_dagster.outcome import Reason
from polydesk_dagster.resources.polydesk import PolydeskResource
from polydesk_dagster.told import teller
from tests import world
from tests.changes.test_plan_dagster import House, house
from tests.world import AS_OF

__all__ = ["house"]  # a fixture

T = teller()
REPOSITORIES = [definitions.defs.get_repository_def(), emergency.defs.get_repository_def()]
TOOLS = ("apply_plan", "undo_plan", "look_at_workbook", "import_workbook")


def _fields() -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Job, step and the fields of the step's config."""
    for repository in REPOSITORIES:
        for job in repository.get_all_jobs():
            for node in job.nodes:
                fields = getattr(getattr(node.definition.config_schema, "config_type", None), "fields", {})  # type: ignore[attr-defined]
                yield job.name, node.name, fields


def test_every_job_schedule_and_sensor_begins_with_its_italian_name_and_says_when() -> None:
    for repository in REPOSITORIES:
        described = {
            job.name: job.description or "" for job in repository.get_all_jobs() if not job.name.startswith("__")
        }
        for name, said in described.items():
            assert said.startswith(T.service(name)), name
            assert name in TOOLS or T.cadence(BY_KEY[name].cadence) in said, name
        for schedule in repository.schedule_defs:
            said = schedule.description or ""
            assert said.startswith(T.service(schedule.name))
            assert T.cadence(BY_KEY[schedule.name].cadence) in said
        for sensor in repository.sensor_defs:
            said = sensor.description or ""
            assert "ogni" in said, sensor.name
            assert not sensor.targets or said.startswith(T.service(str(sensor.job_name))), sensor.name


def test_every_field_that_can_be_filled_in_says_what_it_takes() -> None:
    described = {(job, name): field.description for job, _, fields in _fields() for name, field in fields.items()}
    assert described
    missing = {name for name, said in described.items() if not said or said.startswith("config.")}
    assert not missing


def test_a_clinic_is_asked_for_only_where_a_run_can_be_of_one() -> None:
    by_job = {job: {name for each, _, fields in _fields() if each == job for name in fields} for job, _, _ in _fields()}
    for service in SERVICES:
        assert service.key in by_job, f"no job of jobs/ or assets of assets/ are the service {service.key}"
        given = by_job[service.key]
        assert ("clinic" in given) != (service.per_clinic or service.whole_chain), service.key
        assert ("plan" in given) <= (service.group in {"studiolab", "emergency"}), service.key


@pytest.mark.slow
def test_a_clinic_that_does_not_exist_is_refused_in_one_sentence(house: House) -> None:
    house.instance.add_dynamic_partitions("clinic", ["ZZ99"])
    for job in ("sync_services", "sync_events", "preview_prices"):
        found = house.definitions.resolve_job_def(job)
        result = found.execute_in_process(instance=house.instance, partition_key="ZZ99", raise_on_error=False)
        assert not result.success
        said = {
            event.step_failure_data.user_failure_data.description
            for event in result.all_events
            if event.is_step_failure and event.step_failure_data.user_failure_data
        }
        assert said
        assert all("ZZ99" in str(sentence) and "non esiste" in str(sentence) for sentence in said)
    assert house.recorded() == []


@pytest.fixture
def centre(monkeypatch: pytest.MonkeyPatch) -> Iterator[CentralSimulator]:
    simulator = CentralSimulator()
    with in_thread(simulator) as url:
        monkeypatch.setenv("POLYDESK_CENTRAL_URL", url)
        monkeypatch.setenv("POLYDESK_CENTRAL_TOKEN", DEMO_TOKEN)
        yield simulator


@pytest.mark.slow
def test_slots_are_not_called_out_of_date_because_the_night_goes_on(house: House, centre: CentralSimulator) -> None:
    """The closures of 03:15 change the slots themselves: those of 03:00 are as good as before."""
    with house.engine.begin() as connection:
        world.practice(connection, "RE01")
    runs = {}
    for job in ("import_closures", "generate_slots", "import_closures", "generate_slots", "import_closures"):
        found = house.definitions.resolve_job_def(job)
        (step,) = BY_KEY[job].steps
        given = {"ops": {step: {"config": {"as_of": AS_OF.isoformat()}}}}
        runs[job] = found.execute_in_process(instance=house.instance, run_config=given)
        assert runs[job].success
    for job, key in (("generate_slots", "agenda_slots"), ("import_closures", "closures")):
        newest = house.instance.get_latest_materialization_event(dg.AssetKey(["calendar", key]))
        assert newest is not None
        assert newest.run_id == runs[job].run_id, "a run that finds nothing new has looked all the same"
    graph = house.definitions.resolve_asset_graph()
    status = CachingStaleStatusResolver(house.instance, graph, LoadingContextForTest(house.instance))
    assert status.get_status(dg.AssetKey(["calendar", "agenda_slots"])) is StaleStatus.FRESH


@pytest.mark.slow
def test_no_preview_reads_like_the_deed(house: House, centre: CentralSimulator) -> None:
    """Every job, pressed for its preview: whatever it shows says «Da …», and never that something was done."""
    with house.engine.begin() as connection:
        practice = world.practice(connection, "RE01")
        world.user(connection, practice.clinic, email="invitata@example.org")
    deeds = {T.label("column", key) for key in ("created", "updated", "retired")}
    would = {T.label("column", f"to_be.{key}") for key in ("created", "updated", "retired")}
    done, preview = T.term("outcome", "ok"), T.text("outcome.preview")
    shown: list[tuple[str, Mapping[str, dg.MetadataValue]]] = []
    renewed: set[str] = set()
    for place in Place:
        defs = house.definitions if place is Place.ORDINARY else build.definitions(place)
        for service in (each for each in SERVICES if each.place is place):
            house.instance.add_dynamic_partitions("clinic", ["BO01"])
            job = defs.resolve_job_def(service.key)
            result = job.execute_in_process(
                run_config={"ops": {step: {"config": {"preview": True}} for step in service.steps}},
                partition_key="BO01" if service.per_clinic else None,
                instance=house.instance,
                raise_on_error=False,
            )
            for event in result.all_events:
                told = _metadata(event)
                if T.label("figure", "outcome") in told:
                    shown.append((service.key, told))
                if event.is_step_materialization:
                    renewed.add(event.asset_key.to_user_string() if event.asset_key else "")
    assert {key for key, _ in shown} >= {service.key for service in SERVICES if service.changes_records}
    assert {key for key in renewed if not key.endswith("_preview")} == set(), "looks fresh, and was only looked at"
    for key, told in shown:
        assert not deeds & told.keys(), key
        assert would <= told.keys(), key
        assert told[T.label("figure", "outcome")].value != done, key
    assert preview in {told[T.label("figure", "outcome")].value for _, told in shown}


@pytest.mark.slow
def test_a_plan_s_preview_does_not_read_like_its_application_or_undoing(house: House) -> None:
    house.run("preview_services")
    with house.engine.connect() as connection:
        plan = connection.scalar(sa.text("SELECT max(id) FROM plan"))

    def press(job: str, **config: Any) -> Mapping[str, dg.MetadataValue]:
        (tool,) = (each for each in TOOL_JOBS if each.name == job)
        (step,) = tool.nodes
        done = tool.execute_in_process(
            run_config={"ops": {step.name: {"config": {"plan": plan, **config}}}},
            resources={"polydesk": PolydeskResource()},
            instance=house.instance,
        )
        (told,) = (_metadata(event) for event in done.all_events if event.is_successful_output)
        return told

    outcome, added, to_add = T.label("figure", "outcome"), T.label("column", "created"), "Da aggiungere"
    seen = press("apply_plan", preview=True)
    assert (seen[outcome].value, added in seen) == (T.text("outcome.preview"), False)
    assert seen[to_add].value == 20
    done = press("apply_plan", reason="prestazioni concordate")
    assert (done[outcome].value, done[added].value, to_add in done) == (T.term("outcome", "ok"), 20, False)
    seen = press("undo_plan", preview=True)
    assert (seen[outcome].value, added in seen) == (T.text("outcome.preview"), False)
    done = press("undo_plan", reason="prestazioni sbagliate")
    assert done[outcome].value == T.term("outcome", "ok")


@pytest.mark.slow
def test_steps_that_name_different_plans_apply_none_of_them(house: House) -> None:
    house.run("preview_services")
    job = house.definitions.resolve_job_def("sync_services")
    for first, second in (({"plan": 1}, {"plan": 2}), ({"plan": 1, "reason": "uno"}, {"plan": 1, "reason": "due"})):
        result = job.execute_in_process(
            run_config={
                "ops": {
                    "studiolab__services_preview": {"config": first},
                    "studiolab__services": {"config": second},
                }
            },
            instance=house.instance,
            partition_key="BO01",
            raise_on_error=False,
        )
        assert not result.success
        assert house.recorded()[-1] == ("sync_services", "refused", False)
    with house.engine.connect() as connection:
        said = connection.scalars(
            sa.text("SELECT reasons FROM service_run WHERE outcome = 'refused' ORDER BY id")
        ).all()
        assert connection.scalar(sa.text("SELECT count(*) FROM service WHERE external_id IS NOT NULL")) == 0
    told = [T.reason(Reason.from_dict(reasons[0])) for reasons in said]
    assert any("differiscono plan" in each for each in told)
    assert any("differiscono reason" in each for each in told)


def _metadata(event: dg.DagsterEvent) -> Mapping[str, dg.MetadataValue]:
    if event.is_step_failure:
        found = event.step_failure_data.user_failure_data
        return found.metadata if found is not None else {}
    if event.is_successful_output:
        return event.step_output_data.metadata
    if event.is_asset_observation:
        return event.asset_observation_data.asset_observation.metadata
    return event.materialization.metadata if event.is_step_materialization else {}
