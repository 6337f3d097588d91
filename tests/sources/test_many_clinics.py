"""One run for many clinics' lists: each clinic's outcome is its own, and what went well is not done again."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import pytest
import sqlalchemy as sa
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.execution.api import create_execution_plan, execute_run
from dagster._core.execution.backfill import BulkActionStatus, PartitionBackfill
from dagster._core.remote_origin import InProcessCodeLocationOrigin
from dagster._core.test_utils import InProcessTestWorkspaceLoadTarget, create_test_daemon_workspace_context
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
from dagster._daemon.backfill import execute_backfill_iteration
from sqlalchemy.engine import URL

from polydesk_dagster import build, many, settings
from polydesk_dagster.assets.studiolab_events import EventsConfig, _in_turn
from polydesk_dagster.catalog import Place
from polydesk_dagster.changes.why import kept
from polydesk_dagster.database.engine import plain_url
from polydesk_dagster.demo.simulators.server import DEMO_TOKEN, in_thread
from polydesk_dagster.demo.simulators.studiolab import StudiolabSimulator
from polydesk_dagster.outcome import Outcome, Report
from polydesk_dagster.resources.polydesk import PolydeskResource
from polydesk_dagster.running import Run
from polydesk_dagster.runtime.state import activity, restored
from polydesk_dagster.sources.events.ahead import Ahead
from polydesk_dagster.sources.events.history import ANOTHERS
from polydesk_dagster.values import Reason
from tests import world
from tests.changes.test_plan_dagster import BASE, PATIENTS
from tests.waiting import PATIENCE

CLINICS = ("AA01", "BB01", "CC01", "DD01")
ILL, WELL = "BB01", [clinic for clinic in CLINICS if clinic != "BB01"]
TOKEN = "POLYDESK_STUDIOLAB_TOKEN_ALL"
STARTS, ENDS = "dagster/asset_partition_range_start", "dagster/asset_partition_range_end"


class Chain:
    """Four clinics with a studiolab each, and Dagster's jobs over them."""

    def __init__(self, engine: sa.Engine, simulator: StudiolabSimulator, instance: dg.DagsterInstance) -> None:
        self.engine, self.simulator, self.instance = engine, simulator, instance
        self.definitions = build.definitions(Place.ORDINARY)

    def run(
        self, job: str, *clinics: str, of: dg.DagsterRun | None = None, only: Sequence[str] = (), **config: Any
    ) -> dg.DagsterRun:
        """A run for ``clinics``, or all of them; ``of`` is the run that it is another attempt at, doing ``only``
        these steps again."""
        found = self.definitions.resolve_job_def(job)
        steps = [node.name for node in found.nodes if node.name.startswith("studiolab__")]
        config |= {"clinics": list(clinics)}
        configured = {"ops": {step: {"config": config} for step in only or steps}}
        tags, root = many.covering(clinics or CLINICS, CLINICS), of and (of.root_run_id or of.run_id)
        run = self.instance.create_run_for_job(
            found,
            create_execution_plan(found, configured, only) if only else None,
            run_config=configured,
            tags={**tags, "dagster/root_run_id": root} if root else tags,
            parent_run_id=of and of.run_id,
            root_run_id=root,
        )
        execute_run(InMemoryJob(found), run, self.instance)
        ended = self.instance.get_run_by_id(run.run_id)
        assert ended is not None
        return ended

    def told(self, run: dg.DagsterRun, kind: dg.DagsterEventType) -> list[dg.DagsterEvent]:
        records = self.instance.get_records_for_run(run.run_id, of_type=kind).records
        return [record.event_log_entry.get_dagster_event() for record in records]

    def made(self, feed: str) -> set[str]:
        return set(self.instance.get_materialized_partitions(dg.AssetKey(["studiolab", feed])))

    def outcomes(self, service: str, run: dg.DagsterRun) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        with self.engine.connect() as connection:
            rows = connection.execute(
                sa.text("""SELECT c.code, r.outcome FROM service_run r LEFT JOIN clinic c ON c.id = r.clinic_id
                           WHERE r.service = :service AND r.dagster_run = :run AND NOT r.preview ORDER BY r.id"""),
                {"service": service, "run": run.run_id},
            )
            for clinic, outcome in rows:
                found.setdefault(clinic, []).append(outcome)
        return found


@pytest.fixture
def chain(engine: sa.Engine, database: URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Chain]:
    monkeypatch.setenv("POLYDESK_HOME", str(tmp_path))
    monkeypatch.setenv("POLYDESK_DATABASE_URL", plain_url(database))
    monkeypatch.setenv(TOKEN, DEMO_TOKEN)
    simulator = StudiolabSimulator()
    with in_thread(simulator) as url, dg.DagsterInstance.ephemeral(tempdir=str(tmp_path)) as instance:
        with engine.begin() as connection:
            for code in CLINICS:
                patients = [{**each, "last_name": f"{each['last_name']}{code[0].lower()}"} for each in PATIENTS[5:]]
                simulator.hold(code, BASE | {"patients": patients})
                its = url.replace("/api/v1", f"/{code}/api/v1")
                world.integration(connection, world.clinic(connection, code), its, token_env=TOKEN)
        instance.add_dynamic_partitions("clinic", list(CLINICS))
        yield Chain(engine, simulator, instance)


@pytest.mark.slow
def test_a_range_of_clinics_is_one_run_and_one_that_fails_leaves_the_others_green(chain: Chain) -> None:
    assert chain.run("sync_services").is_success
    assert chain.made("services") == chain.made("services_preview") == set(CLINICS)
    chain.simulator.fail("status", f"/{ILL}/api/v1/agreements", status=403, times=None)
    night = chain.run("sync_prices")
    assert night.is_failure
    assert chain.made("prices") == chain.made("agreements") == chain.made("agreements_preview") == set(WELL)
    assert chain.outcomes("sync_prices", night) == {ILL: ["failed"]} | {clinic: ["ok", "ok"] for clinic in WELL}
    (failed,) = chain.told(night, dg.DagsterEventType.STEP_FAILURE)
    assert failed.step_key == "studiolab__prices"  # the last: what comes after a step that fails is not done
    said = str(failed.step_failure_data.user_failure_data.metadata)  # type: ignore[union-attr]
    assert (ILL in said, WELL[0] in said) == (True, False)

    chain.simulator.faults.clear()
    again = chain.run("sync_prices", of=night, only=["studiolab__prices"])
    assert again.is_success
    assert chain.outcomes("sync_prices", again) == {ILL: ["ok", "ok"]}  # its agreements too, nobody else's anything
    assert chain.made("prices") == chain.made("agreements") == set(CLINICS)
    third = chain.run("sync_prices", of=again)
    assert third.is_success
    assert chain.outcomes("sync_prices", third) == {}


@pytest.mark.slow
def test_a_guard_stops_the_clinic_that_it_is_about(chain: Chain) -> None:
    assert chain.run("sync_services").is_success
    chain.simulator.hold(ILL, BASE | {"services": BASE["services"][:2]})
    for clinic in WELL:
        chain.simulator.hold(
            clinic, BASE | {"services": [{**BASE["services"][0], "name": "Altro"}, *BASE["services"][1:]]}
        )
    looked = chain.run("preview_services", *WELL[:2], ILL)
    assert looked.is_success
    night = chain.run("sync_services")
    assert night.is_failure
    assert chain.outcomes("sync_services", night) == {ILL: ["refused"]} | {clinic: ["ok"] for clinic in WELL}
    for run in (looked, night):
        checks = [
            each.asset_check_evaluation_data for each in chain.told(run, dg.DagsterEventType.ASSET_CHECK_EVALUATION)
        ]
        stopping = {each.check_name: str(each.metadata) for each in checks if not each.passed}
        assert "source_short" in stopping
        assert all(f"{ILL}: " in why and WELL[0] not in why for why in stopping.values())


def test_whose_events_are_another_clinics_has_no_list_read(chain: Chain) -> None:
    with chain.engine.begin() as connection:
        connection.execute(
            sa.text("""INSERT INTO event_cursor (clinic_id, stopped_at, stopped_reason)
                       SELECT id, now(), :why FROM clinic WHERE code = :ill"""),
            {"ill": ILL, "why": kept(Reason(ANOTHERS, {"of": WELL[0]}))},
        )
    run = chain.run("sync_services")
    assert chain.outcomes("sync_services", run) == {ILL: ["refused"], **{clinic: ["ok"] for clinic in WELL}}
    assert chain.made("services") == set(WELL)


def test_plans_that_expired_while_others_were_looked_at_are_made_again(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a hundred clinics the slow ones may take longer to look at than a plan of the first stands."""
    ended_badly = many.ended_badly

    def later(*args: Any) -> dict[str, Report]:
        with chain.engine.begin() as connection:
            connection.execute(sa.text("UPDATE plan SET expires_at = now() - interval '1 s' WHERE state = 'ready'"))
        return ended_badly(*args)

    monkeypatch.setattr("polydesk_dagster.assets.studiolab.ended_badly", later)
    run = chain.run("sync_services")
    assert run.is_success
    assert chain.outcomes("sync_services", run) == {clinic: ["ok"] for clinic in CLINICS}
    assert chain.made("services") == set(CLINICS)


def test_patients_are_read_for_so_many_at_a_time_and_a_broken_rule_is_one_clinics(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    working, most, lock = 0, 0, threading.Lock()
    performed = many.performed

    def counted(*args: Any) -> Any:
        nonlocal working, most
        with lock:
            working += 1
            most = max(most, working)
        try:
            return performed(*args)
        finally:
            with lock:
                working -= 1

    monkeypatch.setattr(many, "performed", counted)
    monkeypatch.setattr(many, "SIDE_BY_SIDE", 2)
    chain.simulator.fail("cut", f"/{ILL}/api/v1/patients", times=None)
    night = chain.run("import_patients")
    assert night.is_failure
    assert most == 2
    assert chain.made("patients") == set(WELL)
    assert chain.outcomes("import_patients", night)[ILL] == ["failed"]
    # what Dagster keeps of a clinic that is well is a sentence and its plan
    made = chain.told(night, dg.DagsterEventType.ASSET_MATERIALIZATION)
    assert {label for each in made for label in each.materialization.metadata} == {"Esito", "Piano"}
    logged = [entry.message for entry in chain.instance.all_logs(night.run_id) if entry.dagster_event is None]
    summaries = [message for message in logged if message.startswith("Import pazienti: ")]
    assert summaries
    assert all("fallito" in summary for summary in summaries)


@pytest.mark.slow
def test_dagsters_own_daemon_makes_a_range_in_one_run_and_what_failed_of_it_again(chain: Chain, tmp_path: Path) -> None:
    """A backfill as people press it, and *re-execute from failure*: what is asked for is Dagster's own reckoning."""
    origin = InProcessCodeLocationOrigin(
        LoadableTargetOrigin(module_name="polydesk_dagster.definitions"), location_name="polydesk"
    )
    load = InProcessTestWorkspaceLoadTarget(origin)
    graph = chain.definitions.get_repository_def().asset_graph
    services = [dg.AssetKey(["studiolab", name]) for name in ("services_preview", "services")]
    core = "dagster._core"
    at_once = {
        "run_launcher": {
            "module": f"{core}.launcher.sync_in_memory_run_launcher",
            "class": "SyncInMemoryRunLauncher",
        },
        "run_coordinator": {"module": f"{core}.run_coordinator", "class": "DefaultRunCoordinator"},
    }
    folder = tmp_path / "instance"
    folder.mkdir()
    with (
        dg.DagsterInstance.local_temp(str(folder), at_once) as chain.instance,
        create_test_daemon_workspace_context(load, chain.instance) as workspace,
    ):
        chain.instance.add_dynamic_partitions("clinic", list(CLINICS))

        def made(asked: PartitionBackfill) -> PartitionBackfill:
            chain.instance.add_backfill(asked)
            for _ in range(10):
                deque(execute_backfill_iteration(workspace, logging.getLogger("backfill")), maxlen=0)
                found = chain.instance.get_backfill(asked.backfill_id)
                assert found is not None
                if found.status is not BulkActionStatus.REQUESTED:
                    break
            return found

        def runs(backfill: str) -> list[tuple[str | None, str | None, bool]]:
            found = chain.instance.get_runs(dg.RunsFilter(tags={"dagster/backfill": backfill}))
            return [(run.tags.get(STARTS), run.tags.get(ENDS), run.is_success) for run in found]

        common: dict[str, Any] = {"title": None, "description": None, "run_config": None, "backfill_timestamp": 1.0}
        chain.simulator.fail("status", f"/{ILL}/api/v1/services", status=403, times=None)
        first = made(
            PartitionBackfill.from_asset_partitions(
                "first",
                graph,
                CLINICS,
                services,
                tags={},
                dynamic_partitions_store=chain.instance,
                all_partitions=False,
                **common,
            )
        )
        assert (first.status, runs("first")) == (BulkActionStatus.COMPLETED_FAILED, [("AA01", "DD01", False)])
        assert chain.made("services") == set(WELL)

        chain.simulator.faults.clear()
        data = first.get_asset_backfill_data(graph)
        again = made(
            PartitionBackfill.from_asset_graph_subset(
                backfill_id="again",
                asset_graph_subset=data.target_subset - data.materialized_subset,
                tags={},
                dynamic_partitions_store=chain.instance,
                **common,
            )
        )
        assert (again.status, runs("again")) == (BulkActionStatus.COMPLETED_SUCCESS, [(ILL, ILL, True)])
        assert chain.made("services") == set(CLINICS)


def test_events_of_a_range_are_each_clinics_own(chain: Chain) -> None:
    chain.simulator.fail("status", f"/{ILL}/api/v1/events", status=403, times=None)
    run = chain.run("sync_events", *CLINICS[:3])
    assert run.is_failure
    assert chain.made("events") == {"AA01", "CC01"}
    assert chain.outcomes("sync_events", run)[ILL] == ["failed"]
    # each asked once, ahead of its turn
    assert sorted(each["path"][1:5] for each in chain.simulator.requests) == ["AA01", "BB01", "CC01"]


def test_what_one_comes_to_is_told_while_it_is_nobodys_turn(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(many, "performed", lambda *_: Report(Outcome.OK))
    monkeypatch.setattr(many.canceling, "fenced", lambda *_: nullcontext())
    told: list[str] = []

    def turns() -> Iterator[str | None]:
        yield "AA01"
        deadline = time.monotonic() + PATIENCE
        while not told and time.monotonic() < deadline:
            yield None
        yield "BB01" if told else "nobody was told"

    context: Any = SimpleNamespace(instance=None, run=dg.DagsterRun(job_name="sync_events"))
    for clinic, _ in many.perform_each(context, PolydeskResource(), "sync_events", EventsConfig(), _never, turns()):
        told.append(clinic)
    assert told == ["AA01", "BB01"]


def _never(run: Run) -> Report:
    raise AssertionError(run)


def _held(connection: sa.Connection) -> None:
    restored.hold(connection, datetime.now(UTC))


def _paused(connection: sa.Connection) -> None:
    now = datetime.now(UTC)
    until = now + timedelta(hours=1)
    activity.pause(
        connection, "sync_events", until=until, actor="anna", reason="linea in prova", as_of=now, clinic="AA01"
    )


@pytest.mark.parametrize(
    ("asked", "made", "waits"),
    [
        ({}, None, []),
        ({"preview": True}, None, CLINICS),
        ({"reconcile": True}, None, CLINICS),
        ({}, _held, CLINICS),
        ({}, _paused, ["AA01"]),
    ],
)
def test_nobody_is_asked_ahead_who_may_not_be_asked(
    chain: Chain, asked: dict[str, bool], made: Callable[[sa.Connection], None] | None, waits: Sequence[str]
) -> None:
    if made is not None:
        with chain.engine.begin() as connection:
            made(connection)
    coming = _in_turn(PolydeskResource(), EventsConfig(**asked), CLINICS, Ahead(settings.secret))
    assert sorted(filter(None, coming)) == [*CLINICS]
    assert {each["path"][1:5] for each in chain.simulator.requests} == {*CLINICS} - {*waits}


def test_a_plan_is_applied_for_its_clinic_alone(chain: Chain) -> None:
    looked = chain.run("preview_services", "AA01")
    with chain.engine.connect() as connection:
        plan = connection.scalar(sa.text("SELECT id FROM plan WHERE origin = :run"), {"run": looked.run_id})
        assert chain.run("sync_services", "AA01", "BB01", plan=plan).is_failure
        said = connection.scalar(sa.text("SELECT reasons->0->>'code' FROM service_run ORDER BY id DESC LIMIT 1"))
    assert said == "plan_in_run_for_many"


@pytest.mark.parametrize(
    ("tags", "config", "clinics"),
    [
        ({"dagster/partition": "B"}, {}, {"B"}),
        ({STARTS: "B", ENDS: "C"}, {}, {"B", "C"}),
        ({STARTS: "B", ENDS: "gone"}, {}, set()),
        ({STARTS: "B", ENDS: "D"}, {"ops": {"one": {"config": {"clinics": ["A", "B"]}}}}, {"B"}),
        ({}, {"ops": {"one": {"config": {"clinics": ["A"]}}, "two": {}}}, {"A"}),
        ({}, {}, set()),
    ],
)
def test_whom_a_run_is_about(tags: dict[str, str], config: dict[str, Any], clinics: set[str]) -> None:
    run = dg.DagsterRun(
        job_name="sync_prices", run_id="00000000-0000-4000-8000-000000000000", run_config=config, tags=tags
    )
    assert many.about(run, ["A", "B", "C", "D"]) == clinics
