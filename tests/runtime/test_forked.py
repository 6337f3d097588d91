"""Processes of ours that are forks of one, and what they spare; code servers of several locations in one process."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from dagster._api.list_repositories import sync_list_repositories_grpc
from dagster._daemon import controller, sensor
from dagster._daemon.freshness import FreshnessDaemon
from dagster._grpc import server, server_watcher
from dagster._grpc.client import DagsterGrpcClient

from polydesk_dagster.errors import PermanentError
from polydesk_dagster.runtime import instance, processes
from polydesk_dagster.runtime.apart import apart
from polydesk_dagster.runtime.child import Child
from polydesk_dagster.runtime.dagster_inside import runs
from polydesk_dagster.runtime.forks import client as forks
from polydesk_dagster.runtime.loaded import code_loads
from polydesk_dagster.runtime.supervisor import Supervisor
from polydesk_dagster.settings import Settings
from tests.runtime.world import ROOT
from tests.waiting import PATIENCE, until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks of another process need Linux")

BEHIND_A_SUPERVISOR = {"dagster", "sqlalchemy", "httpx", "starlette", "psycopg", "pandas"}
BEHIND_THE_DOOR = {"dagster", "dagster_webserver", "dagster_graphql", "graphql", "grpc", "pandas", "lancedb", "pyarrow"}

BEHIND_A_WELCOME = BEHIND_A_SUPERVISOR - {"sqlalchemy", "psycopg"} | {"fastapi", "jinja2", "uvicorn"}


@pytest.mark.parametrize(
    ("module", "without"),
    [
        ("polydesk_dagster.commands.up", BEHIND_A_SUPERVISOR),
        ("polydesk_dagster.web.__main__", BEHIND_THE_DOOR),
        ("polydesk_dagster.commands.welcome", BEHIND_A_WELCOME),
    ],
)
def test_what_stays_is_small(module: str, without: set[str]) -> None:
    code = f"import sys, {module}; print(*sorted({without!r} & sys.modules.keys()))"
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert said.stdout.split() == []


def _odd() -> None:
    raise sa.exc.StatementError("an error that quotes a patient", None, None, ValueError(lambda: None))


def test_what_is_done_apart_comes_back_or_is_raised_and_leaves_nothing_here() -> None:
    def found() -> list[int]:
        import this  # noqa: F401

        return [os.getpid()]

    def refuses() -> None:
        raise PermanentError("no_clinic", given="BO01")

    with contextlib.redirect_stdout(io.StringIO()):
        assert apart(found) != [os.getpid()]
    assert "this" not in sys.modules
    with pytest.raises(PermanentError) as refused:
        apart(refuses)
    assert refused.value.reason.values == {"given": "BO01"}
    with pytest.raises(RuntimeError, match=r"^StatementError$"):
        apart(_odd)
    with pytest.raises(ChildProcessError, match="-9"):
        apart(lambda: os.kill(os.getpid(), signal.SIGKILL))


def test_an_installation_is_four_processes_besides_who_keeps_them(tmp_path: Path) -> None:
    children = processes.dagster_children(Settings(home=tmp_path), {})
    assert [child.name for child in children] == ["launcher", "code", "web", "daemon"]
    [first, *others] = children
    assert first.fork_of is None
    assert len({child.fork_of for child in others}) == 1


def test_dagster_has_what_is_made_quiet() -> None:
    """Its numbers are read where they are set: one that it no longer has would be set for nobody."""
    for module, name in (
        (server_watcher, "WATCH_INTERVAL"),
        (server, "CLEANUP_TICK"),
        (controller, "RELOAD_WORKSPACE_INTERVAL"),
        (controller, "DEFAULT_WORKSPACE_FRESHNESS_TOLERANCE"),
        (sensor, "MIN_INTERVAL_LOOP_TIME"),
    ):
        source = Path(str(module.__file__)).read_text()
        assert source.count(name) > 1, name
    assert "interval_seconds" in vars(FreshnessDaemon())


def test_who_cannot_be_forked_is_started(tmp_path: Path) -> None:
    """A supervisor whose fork server is away, as one is whose code cannot be forked."""
    wrote = tmp_path / "wrote"
    code = (sys.executable, "-S", "-c", f"import pathlib, time; pathlib.Path({str(wrote)!r}).touch(); time.sleep(600)")
    child = Child("uno", code, {"PATH": os.environ["PATH"]}, fork_of=tmp_path / "nobody", ready=wrote.exists)
    supervisor = Supervisor(tmp_path / "home", [child], say=lambda _: None)
    assert supervisor.run(supervisor.stop) is None
    assert wrote.exists()


def test_whom_nobody_waits_for_is_waited_for_but_none_of_ours(tmp_path: Path) -> None:
    """By a process of its own: what is asked is which of all its children have ended."""
    code = """
    import os
    from polydesk_dagster.runtime.forks import becoming
    def dead():
        pid = os.fork()
        if not pid:
            os._exit(3)
        while not os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT):
            pass
        return pid
    ours = dead()
    assert becoming.reap({ours}, set()) == set()
    assert becoming.Forked(ours, None).poll() == 3
    stranger = dead()
    seen = becoming.reap({ours}, set())
    assert seen == {stranger}, seen
    assert becoming.reap({ours}, seen) == set()
    assert becoming.Forked(stranger, None).poll() == 1, "somebody has waited for it"
    assert becoming.reap(set(), set()) == set()
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, check=True, timeout=PATIENCE)


LOADS_AND_NOT = """
    import signal, sys
    from polydesk_dagster.runtime.dagster_inside import code
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell starts what it does not wait for
    code.main(["json", *sys.argv[1:]])
"""


@pytest.fixture
def served(tmp_path: Path) -> Iterator[dict[str, DagsterGrpcClient]]:
    """A location that does not load and one that does, in one process, named as the ordinary and the emergency one."""
    modules = {"polydesk": "tests.runtime.no_such_module", "polydesk_emergency": "tests.runtime.jobs"}
    paths = {name: tmp_path / name for name in modules}
    locations = [json.dumps([name, module, str(paths[name])]) for name, module in modules.items()]
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(LOADS_AND_NOT), *locations],
        cwd=ROOT,
        env={**os.environ, "DAGSTER_HOME": str(tmp_path)},
        stderr=subprocess.DEVNULL,
    )
    until(lambda: process.poll() is not None or all(path.exists() for path in paths.values()))
    yield {name: DagsterGrpcClient(socket=str(path)) for name, path in paths.items()}
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) == 0


def test_a_location_that_does_not_load_says_so_and_leaves_the_other(served: dict[str, DagsterGrpcClient]) -> None:
    with pytest.raises(Exception, match="no_such_module"):
        sync_list_repositories_grpc(served["polydesk"])
    assert [
        each.repository_name for each in sync_list_repositories_grpc(served["polydesk_emergency"]).repository_symbols
    ]


def test_code_that_does_not_load_is_a_finding_and_a_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    location = instance.Location("polydesk", "tests.runtime.no_such_module")
    monkeypatch.setattr(instance, "LOCATIONS", (location,))
    home = tmp_path / "home"
    instance.dagster_home(home).mkdir(parents=True)
    path = instance.runs_socket(instance.dagster_home(home), location.name)
    assert [*code_loads(home)] == []
    command = forks.command(path, location.name, location.pointer, tmp_path / "output")
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        [found] = until(lambda: [*code_loads(home)] if process.poll() is None else [None])
    finally:
        process.terminate()
        process.wait(PATIENCE)
    assert found is not None
    assert not found.ok
    with pytest.raises(PermanentError, match="code_not_loaded") as refused:
        runs.loaded(location.pointer)
    assert refused.value.reason.values["why"] == found.values["why"]
    assert str(found.values["why"]).startswith("ModuleNotFoundError, ")
