"""A whole installation with each of its processes killed in the middle of a run: the run ends, the next one works."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from dagster import DagsterInstance, DagsterRunStatus

from polydesk_dagster.database import embedded
from polydesk_dagster.database.engine import business_url, create_engine
from polydesk_dagster.runtime import guardian, instance
from polydesk_dagster.settings import Settings
from tests.runtime.world import ROOT, finished, gone, kill, messages, started
from tests.waiting import PATIENCE, until
from tests.web.world import person, session

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="warm runs need Linux")]

CODE = instance.Location("polydesk", "tests.runtime.jobs")
"""The tiny jobs in the place of the ordinary location: a role's permissions hold there."""

LAUNCH = """mutation Launch($p: ExecutionParams!) { launchRun(executionParams: $p) {
    __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }"""


MODULES = {"code": "runtime.dagster_inside.code", "web": "web", "daemon": "runtime.dagster_inside.daemon"}


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


TAKEN = """
import pathlib
pathlib.Path(__file__).with_suffix(".taken").touch()
raise ImportError("this one lies where the operator stands")
"""


class Installation:
    """`polydesk up` of the tiny jobs, on an embedded PostgreSQL of its own, from a folder where modules of others lie
    that are called as some of the standard library's, of our libraries' and of our own are."""

    def __init__(self, home: Path) -> None:
        self.stands = home / "stands"
        self.stands.mkdir(exist_ok=True)
        for name in ("json", "gql", "typing_extensions", "polydesk_dagster"):
            (self.stands / f"{name}.py").write_text(TAKEN)
        self.settings = Settings(home=home, web_port=_free_port())
        code = f"""
        from pathlib import Path
        from polydesk_dagster.database import embedded
        from polydesk_dagster.commands.installation import migrated
        from polydesk_dagster.runtime import instance, processes, supervisor
        from polydesk_dagster.settings import Settings
        from tests.runtime.test_faults import CODE
        settings = Settings(home=Path({str(home)!r}), web_port={self.settings.web_port})
        embedded.start(settings.home)
        migrated(settings)
        instance.prepare(settings, (CODE,))
        children = processes.dagster_children(settings, instance.environment(settings), (CODE,))
        running = supervisor.Supervisor(settings.home, children, database=True)
        print("token", running.token, flush=True)
        running.run(lambda: print("ready", flush=True))
        """
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", textwrap.dedent(code)],
            cwd=self.stands,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "DAGSTER_IS_DEFS_VALIDATION_CLI": "", "NO_COLOR": "1"},
        )
        assert self.process.stdout is not None
        self.token = self.process.stdout.readline().split()[1]
        assert self.process.stdout.readline() == "ready\n"
        self.cookie = self._signed_in()

    def _signed_in(self) -> str:
        """The cookie of somebody who may launch runs of the tiny location."""
        engine = create_engine(business_url(self.settings))
        with engine.begin() as connection:
            token = session(connection, person(connection, "superuser"))
        engine.dispose()
        return f"polydesk-{self.settings.web_port}={token}"

    def launch(self, **how: object) -> str:
        """Launch the tiny job as the UI does. Returns the run's id."""
        selector = {"repositoryLocationName": CODE.name, "repositoryName": "__repository__", "jobName": "tiny"}
        config = {"ops": {"work": {"config": how}}}
        params = {"selector": selector, "runConfigData": json.dumps(config), "mode": "default"}
        answer = self._ask(LAUNCH, {"p": params})["launchRun"]
        assert answer["__typename"] == "LaunchRunSuccess", answer
        return str(answer["run"]["runId"])

    def _ask(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        origin = f"http://127.0.0.1:{self.settings.web_port}"
        request = urllib.request.Request(
            f"{origin}/dagster/graphql",
            json.dumps({"query": query, "variables": variables}).encode(),
            {"content-type": "application/json", "origin": origin, "cookie": self.cookie},
        )
        with urllib.request.urlopen(request, timeout=PATIENCE) as response:
            return dict(json.load(response)["data"])

    def child(self, name: str) -> int:
        """The process that the supervisor started last under this name, once it lives."""
        log = self.settings.home / "logs" / "supervisor.log"

        def look() -> int | None:
            pid = int(re.findall(rf"\b{name} started, process (\d+)", log.read_text())[-1])
            return None if gone(pid) else pid

        return until(look)


@pytest.fixture(scope="module")
def up() -> Iterator[Installation]:
    home = Path(tempfile.mkdtemp(prefix="polydesk-up-", dir="/tmp"))
    home.chmod(0o755)
    installation = Installation(home)
    yield installation
    installation.process.send_signal(signal.SIGTERM)
    installation.process.wait(PATIENCE)
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
def dagster(up: Installation, monkeypatch: pytest.MonkeyPatch) -> Iterator[DagsterInstance]:
    for name, value in instance.environment(up.settings).items():
        monkeypatch.setenv(name, value)
    with DagsterInstance.get() as opened:
        yield opened


def _works(up: Installation, dagster: DagsterInstance) -> None:
    """The next run works, whatever has happened; a page may have to be asked again."""

    def launched() -> str | None:
        try:
            return up.launch()
        except (AssertionError, OSError):
            time.sleep(0.5)
            return None

    run_id = until(launched)
    assert finished(dagster, run_id).status is DagsterRunStatus.SUCCESS


def test_all_are_forks_of_the_launcher_and_children_of_the_supervisor(up: Installation) -> None:
    for name in ("code", "web", "daemon"):
        process = psutil.Process(up.child(name))
        assert process.name() == name, "one that was started is called python"
        assert process.cmdline()[1:4] == ["-P", "-m", f"polydesk_dagster.{MODULES[name]}"]
        assert process.ppid() == up.process.pid


def test_a_killed_run_is_tried_once_more(up: Installation, dagster: DagsterInstance) -> None:
    run_id = up.launch(end="killed")
    assert finished(dagster, run_id).status is DagsterRunStatus.FAILURE
    assert "segnale SIGKILL" in messages(dagster, run_id)

    def again() -> list[str]:
        return [run.run_id for run in dagster.get_runs() if run.parent_run_id == run_id]

    [second] = until(again)
    assert finished(dagster, second).status is DagsterRunStatus.FAILURE
    _works(up, dagster)


def test_the_fork_server(up: Installation, dagster: DagsterInstance) -> None:
    run_id = up.launch(seconds=3)
    started(dagster, run_id)
    kill(up.child("launcher"))
    assert finished(dagster, run_id).status is DagsterRunStatus.SUCCESS
    _works(up, dagster)


def test_the_daemon(up: Installation, dagster: DagsterInstance) -> None:
    run_id = up.launch(seconds=2)
    started(dagster, run_id)
    daemon = up.child("daemon")
    kill(daemon)
    assert finished(dagster, run_id).status is DagsterRunStatus.SUCCESS
    _works(up, dagster)
    assert up.child("daemon") != daemon


def test_the_web_page(up: Installation, dagster: DagsterInstance) -> None:
    run_id = up.launch(seconds=2)
    started(dagster, run_id)
    kill(up.child("web"))
    assert finished(dagster, run_id).status is DagsterRunStatus.SUCCESS
    _works(up, dagster)


def test_the_code_server(up: Installation, dagster: DagsterInstance) -> None:
    run_id = up.launch(seconds=2)
    started(dagster, run_id)
    kill(up.child("code"))
    assert finished(dagster, run_id).status is DagsterRunStatus.SUCCESS
    _works(up, dagster)


def test_postgresql(up: Installation, dagster: DagsterInstance) -> None:
    run_id = up.launch(seconds=3)
    pid = started(dagster, run_id)
    postmaster = int((up.settings.home / "postgres" / "postmaster.pid").read_text().split()[0])
    kill(postmaster)
    until(lambda: gone(postmaster))
    until(lambda: embedded.running(up.settings.home))
    until(lambda: gone(pid))
    assert finished(dagster, run_id).is_finished
    _works(up, dagster)


def test_the_supervisor_leaves_nothing_and_the_next_one_works(up: Installation, dagster: DagsterInstance) -> None:
    run_id = up.launch(seconds=PATIENCE)
    started(dagster, run_id)
    left = guardian.marked(up.token)
    postmaster = int((up.settings.home / "postgres" / "postmaster.pid").read_text().split()[0])
    kill(up.process.pid)
    up.process.wait()
    until(lambda: all(gone(pid) for pid in left))
    until(lambda: gone(postmaster))
    up.__init__(up.settings.home)  # type: ignore[misc] - the same installation, brought up again
    patch = pytest.MonkeyPatch()
    for name, value in instance.environment(up.settings).items():
        patch.setenv(name, value)
    with DagsterInstance.get() as opened:
        assert finished(opened, run_id).status is DagsterRunStatus.FAILURE
        _works(up, opened)
    patch.undo()


def test_ctrl_c_in_the_middle_of_a_run_leaves_nothing(up: Installation, dagster: DagsterInstance) -> None:
    started(dagster, up.launch(seconds=PATIENCE))
    left = guardian.marked(up.token)
    assert left
    up.process.send_signal(signal.SIGINT)
    up.process.wait(PATIENCE)
    assert all(gone(pid) for pid in left)
    assert not embedded.running(up.settings.home)


def test_nothing_of_the_folder_where_it_was_started_was_taken_for_ours(up: Installation) -> None:
    assert sorted(path.suffix for path in up.stands.iterdir()) == [".py"] * 4
