"""Dagster's own page behind the door: every mutation as every role, who is written on a run, and its websocket."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from polydesk_dagster.catalog import Place
from polydesk_dagster.runtime.dagster_inside.operations import MUTATIONS
from polydesk_dagster.runtime.names import PERSON_TAG
from polydesk_dagster.web import sessions
from tests import postgres, world
from tests.web import house
from tests.web.house import House, launch_params

pytestmark = pytest.mark.slow

ORDINARY, EMERGENCY = Place.ORDINARY.value, Place.EMERGENCY.value
REPOSITORY = {"repositoryName": "__repository__"}

LAUNCH = "mutation Launch($p: ExecutionParams!) { launchRun(executionParams: $p) { __typename %s } }"
LAUNCHED = LAUNCH % "... on LaunchRunSuccess { run { runId } }"
BACKFILL = """mutation Back($p: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $p) {
    __typename ... on LaunchBackfillSuccess { backfillId } } }"""


@pytest.fixture(scope="module")
def up(server: URL) -> Iterator[House]:
    with postgres.copied(server, postgres.EMPTY) as url, house.up(url) as listening:
        with listening.door.engine.begin() as prepared:
            world.clinic(prepared, "BO01")
        yield listening


@pytest.fixture(scope="module")
def people(up: House) -> dict[str, httpx.Client]:
    with up.door.engine.connect() as connection:
        clinic = connection.scalar(sa.text("SELECT id FROM clinic"))
    return {
        "nobody": up.client(),
        "desk": up.signed_in("desk"),
        "specialist": up.signed_in("specialist"),
        "manager of a clinic": up.signed_in("manager", clinic=clinic),
        "manager": up.signed_in("manager"),
        "superuser": up.signed_in("superuser"),
    }


def launched(up: House, client: httpx.Client, location: str = ORDINARY, **tags: str) -> str:
    answer = up.ask(client, LAUNCHED, {"p": launch_params(location, **tags)}).json()["data"]["launchRun"]
    assert answer["__typename"] == "LaunchRunSuccess", answer
    return str(answer["run"]["runId"])


def backfilled(up: House, client: httpx.Client, location: str, **tags: str) -> str:
    answer = up.ask(client, BACKFILL, {"p": _backfill(location, **tags)}).json()["data"]["launchPartitionBackfill"]
    return str(answer["backfillId"])


def _backfill(location: str, **tags: str) -> dict[str, Any]:
    at = {"repositoryLocationName": location, **REPOSITORY}
    return {
        "selector": {"partitionSetName": "lettered_partition_set", "repositorySelector": at},
        "partitionNames": ["a"],
        "tags": [{"key": key, "value": value} for key, value in tags.items()],
    }


DENIED = re.compile("UnauthorizedError|You do not have permission")
RUNS, TIMES, WHOLE, ANYBODY = "runs", "times", "whole", "anybody"
MAY = {
    "nobody": {},
    "desk": {ANYBODY: {ORDINARY, EMERGENCY}},
    "specialist": {ANYBODY: {ORDINARY, EMERGENCY}},
    "manager of a clinic": {ANYBODY: {ORDINARY, EMERGENCY}},
    "manager": {ANYBODY: {ORDINARY, EMERGENCY}, RUNS: {ORDINARY}},
    "superuser": {what: {ORDINARY, EMERGENCY} for what in (ANYBODY, RUNS, TIMES, WHOLE)},
}
"""Who may do what in which location."""


@contextmanager
def something(up: House, superuser: httpx.Client, location: str) -> Iterator[dict[str, str]]:
    """What the probes press: a run, a backfill, the schedule's and the sensor's state."""
    at = {"repositoryLocationName": location, **REPOSITORY}
    start = "mutation Start($s: ScheduleSelector!) { startSchedule(scheduleSelector: $s) { __typename } }"
    up.ask(superuser, start, {"s": {**at, "scheduleName": "clock"}})
    query = """query Ids($a: ScheduleSelector!, $b: SensorSelector!) {
        scheduleOrError(scheduleSelector: $a) { ... on Schedule { scheduleState { id } } }
        sensorOrError(sensorSelector: $b) { ... on Sensor { sensorState { id } } } }"""
    found = up.ask(superuser, query, {"a": {**at, "scheduleName": "clock"}, "b": {**at, "sensorName": "ear"}}).json()[
        "data"
    ]
    yield {
        "run": launched(up, superuser, location),
        "backfill": backfilled(up, superuser, location),
        "schedule": found["scheduleOrError"]["scheduleState"]["id"],
        "sensor": found["sensorOrError"]["sensorState"]["id"],
    }


def probes(location: str, ids: dict[str, str]) -> dict[str, tuple[str, str, dict[str, Any]]]:
    """Of each mutation that comes through: what it needs, its document and its variables."""
    at = {"repositoryLocationName": location, **REPOSITORY}
    schedule, sensor = {**at, "scheduleName": "clock"}, {**at, "sensorName": "ear"}
    params, kind = launch_params(location), "ExecutionParams!"
    again = {"parentRunId": ids["run"], "strategy": "ALL_STEPS"}

    def one(needs: str, name: str, argument: str, type_: str, value: Any, rest: str = "{ __typename }") -> None:
        document = f"mutation Probe($v: {type_}) {{ {name}({argument}: $v) {rest} }}"
        found[name] = (needs, document, {"v": value})

    found: dict[str, tuple[str, str, dict[str, Any]]] = {}
    one(RUNS, "launchRun", "executionParams", kind, params)
    one(RUNS, "launchPipelineExecution", "executionParams", kind, params)
    many = "{ __typename ... on LaunchMultipleRunsResult { launchMultipleRunsResult { __typename } } }"
    one(RUNS, "launchMultipleRuns", "executionParamsList", "[ExecutionParams!]!", [params], many)
    for name in ("launchRunReexecution", "launchPipelineReexecution"):
        one(RUNS, name, "reexecutionParams", "ReexecutionParams", again)
    why = "... on TerminateRunFailure { message }"
    for name in ("terminateRun", "terminatePipelineExecution"):
        one(RUNS, name, "runId", "String!", ids["run"], f"{{ __typename {why} }}")
    ended = f"{{ ... on TerminateRunsResult {{ terminateRunResults {{ __typename {why} }} }} }}"
    one(RUNS, "terminateRuns", "runIds", "[String!]!", [ids["run"]], ended)
    one(RUNS, "launchPartitionBackfill", "backfillParams", "LaunchBackfillParams!", _backfill(location))
    one(RUNS, "cancelPartitionBackfill", "backfillId", "String!", ids["backfill"])
    one(TIMES, "startSchedule", "scheduleSelector", "ScheduleSelector!", schedule)
    one(TIMES, "resetSchedule", "scheduleSelector", "ScheduleSelector!", schedule)
    dry = "mutation Probe($v: %s) { %s(selectorData: $v, %s) { __typename } }"
    clock = dry % ("ScheduleSelector!", "scheduleDryRun", "timestamp: 1700000000")
    found["scheduleDryRun"] = (TIMES, clock, {"v": schedule})
    found["sensorDryRun"] = (TIMES, dry % ("SensorSelector!", "sensorDryRun", 'cursor: ""'), {"v": sensor})
    one(TIMES, "stopRunningSchedule", "id", "String", ids["schedule"])
    one(TIMES, "startSensor", "sensorSelector", "SensorSelector!", sensor)
    one(TIMES, "resetSensor", "sensorSelector", "SensorSelector!", sensor)
    one(TIMES, "stopSensor", "id", "String", ids["sensor"])
    one(TIMES, "reloadRepositoryLocation", "repositoryLocationName", "String!", location)
    found["reloadWorkspace"] = (WHOLE, "mutation Probe { reloadWorkspace { __typename } }", {})
    found["setConcurrencyLimit"] = (WHOLE, 'mutation Probe { setConcurrencyLimit(concurrencyKey: "k", limit: 1) }', {})
    one(WHOLE, "deleteConcurrencyLimit", "concurrencyKey", "String!", "k", "")
    one(WHOLE, "freeConcurrencySlots", "runId", "String!", ids["run"], "")
    one(WHOLE, "freeConcurrencySlotsForRun", "runId", "String!", ids["run"], "")
    found["setNuxSeen"] = (ANYBODY, "mutation Probe { setNuxSeen }", {})
    telemetry = 'logTelemetry(action: "a", clientId: "b", clientTime: "1700000000000", metadata: "{}") { __typename }'
    found["logTelemetry"] = (ANYBODY, f"mutation Probe {{ {telemetry} }}", {})
    return found


@pytest.mark.parametrize("location", [ORDINARY, EMERGENCY])
def test_every_mutation_as_every_role(up: House, people: dict[str, httpx.Client], location: str) -> None:
    wrong = []
    with something(up, people["superuser"], location) as ids:
        table = probes(location, ids)
        assert set(table) == {name for name, comes in MUTATIONS.items() if comes}
        for who, may in MAY.items():
            for name, (needs, document, variables) in table.items():
                answer = up.ask(people[who], document, variables)
                done = answer.status_code == 200 and not DENIED.search(answer.text)
                if done is not (location in may.get(needs, set())):
                    wrong.append((who, name, answer.status_code, answer.text[:300]))
    assert not wrong


def test_what_does_not_come_through_does_so_for_nobody(up: House, people: dict[str, httpx.Client]) -> None:
    for name, comes in MUTATIONS.items():
        if not comes:
            answer = up.ask(people["superuser"], f"mutation Probe {{ {name} {{ __typename }} }}")
            assert answer.status_code == 403, name


def test_the_page_greys_what_is_denied(up: House, people: dict[str, httpx.Client]) -> None:
    query = """query Permissions { permissions { permission value } workspaceOrError { ... on Workspace {
        locationEntries { name permissions { permission value } } } } }"""

    def granted(who: str) -> dict[str, set[str]]:
        data = up.ask(people[who], query).json()["data"]
        entries = data["workspaceOrError"]["locationEntries"]
        named = {entry["name"]: entry["permissions"] for entry in entries} | {"": data["permissions"]}
        return {name: {each["permission"] for each in held if each["value"]} for name, held in named.items()}

    assert granted("manager of a clinic") == granted("desk") == {"": set(), ORDINARY: set(), EMERGENCY: set()}
    manager, superuser = granted("manager"), granted("superuser")
    assert manager[""] == manager[EMERGENCY] == set()
    assert "launch_pipeline_execution" in manager[ORDINARY]
    assert superuser[ORDINARY] == superuser[EMERGENCY] > manager[ORDINARY]
    assert superuser[""] == {"reload_workspace", "edit_concurrency_limit"}


def test_a_run_bears_whoever_pressed_whatever_the_browser_says(up: House, people: dict[str, httpx.Client]) -> None:
    def email(client: httpx.Client) -> str:
        person = up.door.look(client.cookies[up.door.cookie])
        assert person is not None
        return person.signature

    manager, superuser = people["manager"], people["superuser"]
    run = launched(up, manager, **{PERSON_TAG: "superuser:capo@example.org", "nota": "mia"})
    tags = house.run_tags(up, run)
    assert (tags[PERSON_TAG], tags["nota"]) == (email(manager), "mia")
    again = """mutation Again($p: ReexecutionParams) { launchRunReexecution(reexecutionParams: $p) {
        ... on LaunchRunSuccess { run { runId } } } }"""
    answer = up.ask(superuser, again, {"p": {"parentRunId": run, "strategy": "ALL_STEPS"}}).json()
    second = answer["data"]["launchRunReexecution"]["run"]["runId"]
    assert house.run_tags(up, second)[PERSON_TAG] == email(superuser)
    backfill = backfilled(up, manager, ORDINARY, **{PERSON_TAG: "superuser:capo@example.org"})
    query = """query Back($id: String!) { partitionBackfillOrError(backfillId: $id) {
        ... on PartitionBackfill { tags { key value } } } }"""
    held = up.ask(manager, query, {"id": backfill}).json()["data"]["partitionBackfillOrError"]["tags"]
    assert {"key": PERSON_TAG, "value": email(manager)} in held
    assert not [tag for tag in held if tag["value"].startswith("superuser:")]


REQUESTS = {
    "a query by GET": ("GET", "?query={version}&operationName=A", {}, b"", 405),
    "a mutation by GET": ("GET", "?query=mutation M{setNuxSeen}", {}, b"", 405),
    "GraphiQL": ("GET", "", {"accept": "text/html"}, b"", 405),
    "a form": ("POST", "", {"content-type": "application/x-www-form-urlencoded"}, b"query=mutation M{setNuxSeen}", 415),
    "plain text": ("POST", "", {"content-type": "text/plain"}, b'{"query": "mutation M{setNuxSeen}"}', 415),
    "GraphQL as it is": ("POST", "", {"content-type": "application/graphql"}, b"mutation M{setNuxSeen}", 415),
    "a query in the address": ("POST", "?query=query A{version}", {"content-type": "application/json"}, b"{}", 400),
    "JSON that is none": ("POST", "", {"content-type": "application/json"}, b"{", 400),
    "JSON of another kind": ("POST", "", {"content-type": "application/json+x"}, b"{}", 415),
}  # fmt: skip


@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS.keys())
@pytest.mark.parametrize("path", ["/dagster/graphql", "/dagster//graphql", "/dagster/./graphql", "/dagster/%67raphql"])
def test_an_operation_comes_one_way_only(
    up: House, people: dict[str, httpx.Client], request_: tuple[str, str, dict[str, str], bytes, int], path: str
) -> None:
    """Another spelling of the path is Dagster's page, which runs nothing."""
    method, query, headers, body, status = request_
    answer = people["superuser"].request(method, path + query, headers=headers, content=body)
    page = answer.status_code == 200 and answer.text.startswith("<!DOCTYPE html>")
    assert answer.status_code in {status, 405} or page
    assert '"setNuxSeen"' not in answer.text


def test_nobody_unknown_gets_to_dagster_by_any_path(up: House, people: dict[str, httpx.Client]) -> None:
    paths = ("/dagster/", "/dagster//graphql", "/dagster/server_info", "/dagster/favicon.png", "/dagster/logs/a/b.err")
    for path in (*paths, "/dagster/download_debug/1", "/dagster/runs/1"):
        assert people["nobody"].get(path).status_code in {303, 401}, path
    assert people["nobody"].post("/dagster/report_asset_materialization/thing").status_code == 401
    assert people["superuser"].post("/dagster/report_asset_materialization/thing").status_code in {404, 405}


@pytest.mark.parametrize(
    "path",
    [
        *("download_debug/x", "download_debug/%00", "download_debug/" + "9" * 3_000),
        *("logs/x", "logs/x/out", "logs/x/compute_logs/step/err", "logs/x/y/z", "logs//out", "logs/%00/err"),
        *("logs/..%2f..%2fetc/out", "logs/%2e%2e/%2e%2e/out", "logs//etc/passwd/out", "logs/" + "a" * 3_000 + "/out"),
    ],
)
def test_what_there_is_not_is_not_there(people: dict[str, httpx.Client], path: str) -> None:
    assert people["superuser"].get(f"/dagster/{path}").status_code == 404


def test_the_page_comes_whole_and_under_its_prefix(up: House, people: dict[str, httpx.Client]) -> None:
    page = people["desk"].get("/dagster/runs")
    policy = page.headers["content-security-policy"]
    assert "frame-ancestors 'none'" in policy
    assert "img-src 'self' data: blob:" in policy
    scripts = [part.split('"')[0] for part in page.text.split('src="')[1:]]
    assert scripts
    for script in scripts:
        answer = people["desk"].get(script)
        assert (answer.status_code, answer.headers["content-type"]) == (200, "application/javascript")


@contextmanager
def socket(up: House, token: str | None, origin: str | None = None) -> Iterator[ClientConnection]:
    headers = {"cookie": f"{up.door.cookie}={token}"} if token else {}
    address = up.origin.replace("http", "ws") + "/dagster/graphql"
    with connect(
        address,
        origin=origin or up.origin,  # type: ignore[arg-type]
        additional_headers=headers,
        subprotocols=["graphql-ws"],  # type: ignore[list-item]
    ) as opened:
        yield opened


def test_a_websocket_needs_a_session_and_our_origin(up: House, people: dict[str, httpx.Client]) -> None:
    token = people["desk"].cookies[up.door.cookie]
    for held, origin in ((None, None), ("wrong", None), (token, "https://evil.example"), (token, "null")):
        with pytest.raises(InvalidStatus), socket(up, held, origin):
            pass


def test_a_websocket_carries_a_runs_log_and_nothing_else(up: House, people: dict[str, httpx.Client]) -> None:
    run = launched(up, people["superuser"])
    logs = "subscription Logs($run: ID!) { pipelineRunLogs(runId: $run) { __typename } }"
    with socket(up, people["desk"].cookies[up.door.cookie]) as opened:
        opened.send(json.dumps({"type": "connection_init"}))
        assert json.loads(opened.recv(20))["type"] == "connection_ack"
        for number, query in enumerate(("mutation M { setNuxSeen }", "query A { version }")):
            opened.send(json.dumps({"type": "start", "id": str(number), "payload": {"query": query}}))
            assert json.loads(opened.recv(20))["type"] == "error"
        payload = {"query": logs, "variables": {"run": run}}
        opened.send(json.dumps({"type": "start", "id": "x", "payload": payload}))
        told = json.loads(opened.recv(20))
        assert (told["type"], told["payload"]["data"]["pipelineRunLogs"]["__typename"]) == (
            "data",
            "PipelineRunLogsSubscriptionSuccess",
        )


def test_a_websocket_does_not_outlive_its_session(up: House) -> None:
    client = up.signed_in("desk")
    token = client.cookies[up.door.cookie]
    with socket(up, token) as opened:
        opened.send(json.dumps({"type": "connection_init"}))
        assert json.loads(opened.recv(20))["type"] == "connection_ack"
        with up.door.engine.begin() as connection:
            sessions.end(connection, token, datetime.now(UTC))
        with pytest.raises(ConnectionClosed):
            opened.recv(60)
