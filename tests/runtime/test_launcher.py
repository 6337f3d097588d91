"""Runs start in a forked child, end as they should whatever dies, and leave nothing behind."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from dagster import DagsterInstance, DagsterInvariantViolationError, DagsterRunStatus
from dagster._core.code_pointer import CodePointer, ModuleCodePointer
from dagster._core.launcher.base import WorkerStatus
from dagster._serdes import deserialize_value
from pydantic import SecretStr
from sqlalchemy.engine import URL

from polydesk_dagster import nearby
from polydesk_dagster.database.engine import dagster_url
from polydesk_dagster.errors import PermanentError
from polydesk_dagster.runtime import instance, orders, submit, work
from polydesk_dagster.runtime.dagster_inside import launcher
from polydesk_dagster.runtime.forks import client as forks
from polydesk_dagster.settings import Settings
from tests.postgres import dagster_storage
from tests.runtime.world import ROOT, TINY, finished, gone, kill, messages, recorded, server_of, started
from tests.waiting import until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="warm runs need Linux")


@pytest.fixture(scope="module")
def settings(server: URL) -> Iterator[Settings]:
    home = Path(tempfile.mkdtemp(prefix="polydesk-run-", dir="/tmp"))
    url = server.set(database=f"runtime_{uuid.uuid4().hex[:8]}").render_as_string(hide_password=False)
    given = Settings(home=home, database_url=SecretStr(url))
    dagster_storage(dagster_url(given))
    yield given
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="module")
def dagster(settings: Settings) -> Iterator[DagsterInstance]:
    """The instance, with the environment that a daemon would have; the fork servers that it starts are ended."""
    patch = pytest.MonkeyPatch()
    for name, value in instance.environment(settings).items():
        patch.setenv(name, value)
    patch.setenv("PYTHONPATH", f"{ROOT}:{settings.home}")
    patch.setattr(sys, "path", [*sys.path, str(settings.home)])  # Dagster drops the first while it imports
    instance.prepare(settings, (TINY,))
    with DagsterInstance.get() as opened:
        yield opened
    for path in nearby.sockets(instance.dagster_home(settings.home)).glob("*.runs"):
        try:
            pid = forks.ask(path, {"do": "status"})["pid"]
        except OSError:
            continue
        os.kill(pid, signal.SIGTERM)
        until(lambda pid=pid: gone(pid))
    patch.undo()


def _launched(dagster: DagsterInstance, settings: Settings, **how: object) -> str:
    run_id = recorded(dagster, settings, how)
    dagster.launch_run(run_id, None)  # type: ignore[arg-type] - no workspace is needed
    return run_id


def test_the_location_names_its_code_as_dagster_does() -> None:
    for location in (*instance.LOCATIONS, TINY):
        assert deserialize_value(location.pointer, CodePointer) == ModuleCodePointer(  # type: ignore[type-var,type-abstract]
            location.module, "defs", None
        )


@pytest.mark.slow
def test_a_run_is_a_child_of_one_server_and_inherits_nothing(
    dagster: DagsterInstance, settings: Settings, tmp_path: Path
) -> None:
    notes = [tmp_path / "first", tmp_path / "second"]
    for note in notes:
        run_id = _launched(dagster, settings, note=str(note))
        assert finished(dagster, run_id).status is DagsterRunStatus.SUCCESS
    server = server_of(settings)
    links = {str(path.readlink()) for path in Path(f"/proc/{server}/fd").iterdir()}
    own_sockets = {link for link in links if link.startswith("socket:")}
    assert own_sockets
    for note in notes:
        first, *rest = note.read_text().splitlines()
        assert first.endswith(f"parent {server}")
        assert [line for line in rest if " " not in line] == ["MainThread", "end-with-owner"]
        held = [line.partition(" ")[2] for line in rest if " " in line]
        assert not own_sockets & set(held)
        assert held.count("anon_inode:[pidfd]") == 1
        assert not [link for link in held if link.endswith(".lock")]
    assert len(list(Path(f"/proc/{server}/task").iterdir())) == 1


def test_what_a_step_prints_is_kept(dagster: DagsterInstance, settings: Settings) -> None:
    run_id = _launched(dagster, settings)
    finished(dagster, run_id)
    logs = dagster.all_logs(run_id)
    key = next(
        entry.dagster_event.logs_captured_data.file_key
        for entry in logs
        if entry.dagster_event and entry.dagster_event.event_type_value == "LOGS_CAPTURED"
    )
    data = dagster.compute_log_manager.get_log_data([run_id, "compute_logs", key])
    assert data.stdout is not None
    assert "stampato da un passo" in data.stdout.decode()
    assert data.stderr is not None
    assert "avviso da un passo" in data.stderr.decode()
    assert dagster.compute_log_manager.is_capture_complete([run_id, "compute_logs", key])


def test_a_run_that_fails_says_so_itself(dagster: DagsterInstance, settings: Settings) -> None:
    run_id = _launched(dagster, settings, end="fails")
    assert finished(dagster, run_id).status is DagsterRunStatus.FAILURE
    assert "è morto" not in messages(dagster, run_id)


def test_a_killed_run_is_failed_at_once_with_its_reason(dagster: DagsterInstance, settings: Settings) -> None:
    run_id = _launched(dagster, settings, end="killed")
    assert finished(dagster, run_id).status is DagsterRunStatus.FAILURE
    assert "segnale SIGKILL" in messages(dagster, run_id)


@pytest.mark.slow
def test_a_run_outlives_its_killed_server_and_the_next_starts_another(
    dagster: DagsterInstance, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which is waited for as long as it works, however long it takes to be there."""
    monkeypatch.setattr(launcher, "_START_SECONDS", 0.0)
    run_id = _launched(dagster, settings, seconds=2)
    pid, server = started(dagster, run_id), server_of(settings)
    kill(server)
    until(lambda: gone(server))
    assert not gone(pid)
    following = _launched(dagster, settings)
    assert finished(dagster, run_id).status is DagsterRunStatus.SUCCESS
    assert finished(dagster, following).status is DagsterRunStatus.SUCCESS
    assert server_of(settings) != server


def test_terminate_ends_the_run_as_canceled(dagster: DagsterInstance, settings: Settings) -> None:
    run_id = _launched(dagster, settings, seconds=60)
    pid = started(dagster, run_id)
    assert dagster.run_launcher.terminate(run_id)
    assert finished(dagster, run_id).status is DagsterRunStatus.CANCELED
    until(lambda: gone(pid))
    assert not dagster.run_launcher.terminate(run_id)


def test_a_run_deaf_to_being_stopped_is_killed(
    dagster: DagsterInstance, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launcher, "_KILL_SECONDS", 0.5)
    run_id = _launched(dagster, settings, seconds=60, end="stubborn")
    pid = started(dagster, run_id)
    time.sleep(0.3)
    assert dagster.run_launcher.terminate(run_id)
    assert finished(dagster, run_id).status is DagsterRunStatus.CANCELED
    until(lambda: gone(pid))


def test_a_run_whose_server_is_gone_can_be_terminated(dagster: DagsterInstance, settings: Settings) -> None:
    run_id = _launched(dagster, settings, seconds=60)
    started(dagster, run_id)
    server = server_of(settings)
    kill(server)
    until(lambda: gone(server))
    assert dagster.run_launcher.terminate(run_id)
    assert finished(dagster, run_id).status is DagsterRunStatus.CANCELED


@pytest.mark.slow
def test_run_monitoring_learns_whether_the_process_lives(dagster: DagsterInstance, settings: Settings) -> None:
    run_id = _launched(dagster, settings, seconds=60)
    pid = started(dagster, run_id)
    run = dagster.get_run_by_id(run_id)
    assert run is not None
    check = dagster.run_launcher.check_run_worker_health
    assert check(run).status is WorkerStatus.RUNNING
    worker = work.Worker.of_process(run_id, pid)
    elsewhere = run.with_tags(replace(worker, host="altrove", pid=1).tag())
    later = run.with_tags(replace(worker, start=worker.start - 1).tag())
    assert check(elsewhere).status is WorkerStatus.RUNNING
    assert check(later).status is WorkerStatus.FAILED
    dagster.run_launcher.terminate(run_id)
    finished(dagster, run_id)
    until(lambda: check(run).status is WorkerStatus.FAILED)


def test_a_run_is_never_executed_twice(dagster: DagsterInstance, settings: Settings) -> None:
    run_id = _launched(dagster, settings)
    finished(dagster, run_id)
    path = instance.runs_socket(instance.dagster_home(settings.home), "tiny")
    forks.ask(path, {"do": "launch", "run_id": run_id, "instance": _reference(dagster)})
    until(lambda: not forks.ask(path, {"do": "status"})["runs"])
    assert messages(dagster, run_id).count("Started process for run") == 1


def test_a_server_that_is_mute_is_soon_given_up_and_starts_nothing_of_it_later(
    dagster: DagsterInstance, settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Stopped by a signal it still listens, for the kernel does; what it finds once it goes on, nobody waits for."""
    monkeypatch.setattr(forks, "MUTE_SECONDS", 0.3)
    finished(dagster, _launched(dagster, settings))
    server, note = server_of(settings), tmp_path / "note"
    run_id = recorded(dagster, settings, {"note": str(note)})
    os.kill(server, signal.SIGSTOP)
    try:
        with pytest.raises(DagsterInvariantViolationError, match="DefaultRunLauncher"):  # it wants a code server
            dagster.launch_run(run_id, None)  # type: ignore[arg-type]
        monkeypatch.setattr(instance, "LOCATIONS", (TINY,))
        here = submit.execute(settings, "tiny", orders.Order("tiny", {"ops": {"work": {"config": {}}}}), lambda _: None)
        assert here.status == "SUCCESS"
    finally:
        os.kill(server, signal.SIGCONT)
    assert "il processo di avvio non risponde" in messages(dagster, run_id)
    following = _launched(dagster, settings)
    assert finished(dagster, following).status is DagsterRunStatus.SUCCESS
    assert server_of(settings) == server
    assert not note.exists()


def _reference(dagster: DagsterInstance) -> str:
    from dagster._serdes import serialize_value

    return serialize_value(dagster.get_ref())


@pytest.mark.slow
def test_changed_code_is_loaded_by_the_same_server_which_keeps_its_children(
    dagster: DagsterInstance, settings: Settings
) -> None:
    code = settings.home / "changing.py"
    source = (ROOT / "tests" / "runtime" / "jobs.py").read_text()
    code.write_text(source)
    location = instance.Location("changing", "changing")
    doomed = recorded(dagster, settings, {"seconds": 6, "end": "killed"}, location)
    dagster.launch_run(doomed, None)  # type: ignore[arg-type]
    started(dagster, doomed)
    server = server_of(settings, "changing")
    code.write_text(source.replace('"fatto"', '"fatto dal codice nuovo"'))
    run_id = recorded(dagster, settings, {}, location)
    dagster.launch_run(run_id, None)  # type: ignore[arg-type]
    assert finished(dagster, run_id).status is DagsterRunStatus.SUCCESS
    assert "fatto dal codice nuovo" in messages(dagster, run_id)
    assert server_of(settings, "changing") == server
    assert finished(dagster, doomed).status is DagsterRunStatus.FAILURE
    assert "segnale SIGKILL" in messages(dagster, doomed)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "line", "reason"),
    [
        ("threaded", "threading.Thread(target=threading.Event().wait, daemon=True).start()", "thread"),
        ("broken", "raise RuntimeError('rotto')", "RuntimeError"),
    ],
)
def test_code_that_cannot_be_forked_is_left_to_dagsters_launcher(
    dagster: DagsterInstance, settings: Settings, name: str, line: str, reason: str
) -> None:
    source = (ROOT / "tests" / "runtime" / "jobs.py").read_text()
    (settings.home / f"{name}.py").write_text(source)
    location = instance.Location(name, name)
    run_id = recorded(dagster, settings, {}, location)
    (settings.home / f"{name}.py").write_text(f"{source}\n{line}\n")
    with pytest.raises(DagsterInvariantViolationError, match="DefaultRunLauncher"):  # it wants a code server
        dagster.launch_run(run_id, None)  # type: ignore[arg-type]
    assert "uso quello di Dagster" in messages(dagster, run_id)
    assert reason in messages(dagster, run_id)


@pytest.mark.slow
def test_server_and_runs_end_with_the_process_that_started_them(dagster: DagsterInstance, settings: Settings) -> None:
    location = instance.Location("owned", "tests.runtime.jobs")
    run_id = recorded(dagster, settings, {"seconds": 60}, location)
    launching = f"""
import time
from dagster import DagsterInstance
with DagsterInstance.get() as dagster:
    dagster.launch_run({run_id!r}, None)
    time.sleep(60)
"""
    owner = subprocess.Popen([sys.executable, "-c", launching])
    until(lambda: instance.runs_socket(instance.dagster_home(settings.home), "owned").exists())
    pid = started(dagster, run_id)
    server = server_of(settings, "owned")
    owner.kill()
    owner.wait()
    until(lambda: gone(server) and gone(pid))
    run = finished(dagster, run_id)
    assert run.status is DagsterRunStatus.FAILURE


class TestSubmitting:
    """Where there is a fork server the command's job runs there, elsewhere in the command's process."""

    @pytest.fixture(params=["there", "here"])
    def place(
        self,
        request: pytest.FixtureRequest,
        dagster: DagsterInstance,
        settings: Settings,
        monkeypatch: pytest.MonkeyPatch,
    ) -> str:
        if request.param == "there":
            finished(dagster, _launched(dagster, settings))
        else:
            monkeypatch.setattr(submit, "_connect", lambda *_: None)
            monkeypatch.setattr(instance, "LOCATIONS", (TINY,))
        return str(request.param)

    def test_the_run_is_in_the_history_and_its_events_are_told(
        self, dagster: DagsterInstance, settings: Settings, place: str
    ) -> None:
        told: list[orders.Message] = []
        order = orders.Order("tiny", {"ops": {"work": {"config": {}}}}, {"polydesk/from": "cli"}, "MI01")
        done = submit.execute(settings, "tiny", order, told.append)
        assert done.status == "SUCCESS"
        run = dagster.get_run_by_id(done.run_id)
        assert run is not None
        assert run.tags["dagster/partition"] == "MI01"
        assert run.tags["polydesk/from"] == "cli"
        assert run.tags["polydesk/service"] == "tiny"
        assert run.remote_job_origin is not None
        assert run.remote_job_origin.location_name == "tiny"
        assert told[0]["kind"] == "run"
        assert told[0]["run_id"] == done.run_id
        assert "STEP_SUCCESS" in [message.get("type") for message in told]
        assert (told[0]["pid"] == os.getpid()) is (place == "here")

    @pytest.mark.usefixtures("place")
    def test_a_failure_is_told(self, settings: Settings) -> None:
        order = orders.Order("tiny", {"ops": {"work": {"config": {"end": "fails"}}}})
        assert submit.execute(settings, "tiny", order, lambda _: None).status == "FAILURE"

    @pytest.mark.usefixtures("place")
    @pytest.mark.parametrize(
        "order", [orders.Order("tiny", {"ops": {"work": {"config": {"nonsense": 1}}}}), orders.Order("nobody")]
    )
    def test_what_cannot_be_run_is_refused(self, settings: Settings, order: orders.Order) -> None:
        with pytest.raises(PermanentError):
            submit.execute(settings, "tiny", order, lambda _: None)

    def test_a_killed_run_ends_as_failed(self, dagster: DagsterInstance, settings: Settings) -> None:
        finished(dagster, _launched(dagster, settings))
        order = orders.Order("tiny", {"ops": {"work": {"config": {"end": "killed"}}}})
        assert submit.execute(settings, "tiny", order, lambda _: None).status == "FAILURE"

    def test_an_interrupt_cancels_the_run(self, dagster: DagsterInstance, settings: Settings) -> None:
        finished(dagster, _launched(dagster, settings))
        order = orders.Order("tiny", {"ops": {"work": {"config": {"seconds": 60}}}})

        def interrupt(message: orders.Message) -> None:
            if message.get("type") == "STEP_START":
                os.kill(os.getpid(), signal.SIGINT)

        done = submit.execute(settings, "tiny", order, interrupt)
        assert done.status in {"CANCELED", "FAILURE"}
        assert done.interrupted


def test_the_socket_finds_a_short_folder_where_the_home_is_deep(tmp_path: Path) -> None:
    deep = tmp_path / ("cartella-molto-profonda/" * 6)
    path = instance.runs_socket(deep, "polydesk_emergency")
    assert len(os.fsencode(path.with_suffix(".lock"))) < 104
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
    shutil.rmtree(path.parent)
