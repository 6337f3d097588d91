"""The supervisor keeps its children alive or says why not, and leaves nothing running."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from polydesk_dagster.errors import PermanentError
from polydesk_dagster.runtime import guardian, processes
from polydesk_dagster.runtime import supervisor as supervisor_module
from polydesk_dagster.runtime.child import Child, Running
from polydesk_dagster.runtime.supervisor import Supervisor, running
from polydesk_dagster.told import teller
from tests.runtime.world import ROOT, gone, kill
from tests.waiting import PATIENCE, until
from tests.warm import Program

LASTING = "import time; print('ci sono', flush=True); time.sleep(600)"


def _child(name: str, code: str, **more: object) -> Child:
    environment = {"PATH": os.environ["PATH"], "PYTHONUNBUFFERED": "1"}
    return Child(name, (sys.executable, "-S", "-c", textwrap.dedent(code)), environment, **more)  # type: ignore[arg-type]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


class Up:
    """A supervisor in a process of its own, as `polydesk up` is."""

    def __init__(self, home: Path, children: str) -> None:
        self.home = home
        code = f"""
        import sys
        from pathlib import Path
        from tests.runtime.test_supervisor import LASTING, _child
        from polydesk_dagster.runtime.supervisor import Supervisor
        supervisor = Supervisor(Path({str(home)!r}), [{children}])
        print("token", supervisor.token, flush=True)
        sys.exit(3 if supervisor.run(lambda: print("ready", flush=True)) else 0)
        """
        self.process = Program(textwrap.dedent(code), environment={**os.environ, "PYTHONPATH": str(ROOT)})
        self.token = self.process.stdout.readline().split()[1]
        assert self.process.stdout.readline() == "ready\n"

    def children(self) -> list[int]:
        return guardian.marked(self.token)


@pytest.fixture
def brought_up(home: Path) -> Iterator[Callable[[str], Up]]:
    all_up: list[Up] = []

    def bring(children: str) -> Up:
        all_up.append(Up(home, children))
        return all_up[-1]

    yield bring
    for up in all_up:
        up.process.kill()
        up.process.wait()
        guardian.sweep(up.token, 0)


TWO = "_child('uno', LASTING), _child('due', LASTING, after=('uno',))"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_being_stopped_leaves_nothing_running(brought_up: Callable[[str], Up], number: signal.Signals) -> None:
    up = brought_up(TWO)
    children = up.children()
    assert len(children) == 2
    os.kill(up.process.pid, number)
    assert up.process.wait() == 0
    assert all(gone(pid) for pid in children)
    assert running(up.home) is None


@pytest.mark.slow
def test_being_killed_leaves_nothing_running_grandchildren_included(brought_up: Callable[[str], Up]) -> None:
    deaf = "import signal,subprocess,sys,time; signal.signal(15, signal.SIG_IGN); "
    deaf += "subprocess.Popen([sys.executable,'-c','import time; time.sleep(600)'],start_new_session=True); "
    deaf += "time.sleep(600)"
    up = brought_up(f"{TWO}, _child('sordo', {deaf!r})")
    children = until(lambda: pids if len(pids := up.children()) == 4 else None)
    kill(up.process.pid)
    until(lambda: all(gone(pid) for pid in children))


@pytest.mark.slow
def test_a_second_one_in_the_same_home_is_told_who_has_it(brought_up: Callable[[str], Up], home: Path) -> None:
    up = brought_up(TWO)
    assert running(home) == up.process.pid
    with pytest.raises(PermanentError, match=str(up.process.pid)):
        Supervisor(home, [_child("uno", LASTING)]).run()
    assert len(up.children()) == 2


@pytest.mark.slow
def test_a_child_that_dies_is_started_again(brought_up: Callable[[str], Up]) -> None:
    up = brought_up(TWO)
    before = set(up.children())
    kill(before.copy().pop())
    until(lambda: len(set(up.children())) == 2 and set(up.children()) != before)
    log = (up.home / "logs" / "supervisor.log").read_text()
    assert "died: segnale SIGKILL" in log
    assert "uno | ci sono" in (up.home / "logs" / "uno.log").read_text()


def _run(home: Path, children: Sequence[Child], **more: object) -> tuple[str | None, list[str]]:
    said: list[str] = []
    supervisor = Supervisor(home, children, say=said.append, **more)  # type: ignore[arg-type]
    return supervisor.run(), said


def test_a_child_that_cannot_be_kept_alive_stops_everything_with_its_last_words(home: Path) -> None:
    broken = _child("rotto", "print('manca la chiave'); raise SystemExit(7)")
    reason, said = _run(home, [_child("uno", LASTING), broken], max_deaths=2)
    assert reason is not None
    assert "rotto" in reason
    assert "uscita 7" in reason
    assert "manca la chiave" in reason
    assert said[-1] == reason


def test_a_child_that_never_answers_stops_everything(home: Path) -> None:
    mute = _child("muto", LASTING, ready=lambda: False, start_seconds=0.3)
    reason, _ = _run(home, [mute], max_deaths=1)
    assert reason is not None
    assert "non ha risposto entro" in reason


@pytest.mark.slow
def test_a_child_that_works_towards_its_answer_is_waited_for(home: Path, tmp_path: Path) -> None:
    """Longer than its patience, on however slow a machine: what it uses of the processor is progress."""
    note = tmp_path / "note"
    busy = f"""
    import time
    while time.process_time() < 1.5: pass
    open({str(note)!r}, "w").close()
    time.sleep(600)
    """
    child = _child("lento", busy, ready=note.exists, start_seconds=0.5)
    said: list[str] = []
    supervisor = Supervisor(home, [child], max_deaths=1, say=said.append)
    assert supervisor.run(supervisor.stop) is None
    assert note.exists()


def test_a_child_has_twice_as_long_after_each_death() -> None:
    each = Running(_child("lento", LASTING, start_seconds=2.0))
    spans = []
    for death in range(6):
        spans.append(each.patience())
        each.deaths.append(float(death))
    assert spans == [2.0, 4.0, 8.0, 16.0, 32.0, 32.0]


@pytest.mark.slow
def test_a_guardian_that_dies_is_replaced(brought_up: Callable[[str], Up]) -> None:
    up = brought_up(TWO)
    first = until(lambda: _guardian(up))
    kill(first)
    until(lambda: (other := _guardian(up)) is not None and other != first)
    children = up.children()
    kill(up.process.pid)
    until(lambda: all(gone(pid) for pid in children))


def _guardian(up: Up) -> int | None:
    found = Path(f"/proc/{up.process.pid}/task/{up.process.pid}/children").read_text().split()
    for pid in map(int, found):
        if not gone(pid) and b"guardian" in Path(f"/proc/{pid}/cmdline").read_bytes():
            return pid
    return None


def test_a_taken_port_is_said_before_anything_starts(home: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(PermanentError, match=f"127.0.0.1:{port}") as refused:
            Supervisor(home, [_child("web", LASTING, listens=("127.0.0.1", port))]).run()
    assert "la porta è già usata" in teller("it").reason(refused.value.reason)
    assert not (home / "logs" / "web.log").exists()


def test_a_port_that_is_taken_while_others_start_is_said_and_nobody_is_called_ready(home: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    other = f"""
    import socket, time
    held = socket.create_server(("127.0.0.1", {port}))
    time.sleep(600)
    """

    def held() -> bool:
        with socket.create_connection(("127.0.0.1", port), 1):
            return True

    ready: list[bool] = []
    children = [
        _child("other", other, ready=held),
        _child("web", LASTING, ready=held, after=("other",), listens=("127.0.0.1", port)),
    ]
    said = Supervisor(home, children).run(lambda: ready.append(True))
    assert said is not None
    assert f"127.0.0.1:{port}" in said
    assert "POLYDESK_WEB_PORT" in said
    assert (ready, (home / "logs" / "web.log").exists()) == ([], False)


def test_an_answer_of_another_program_at_our_address_is_not_ours() -> None:
    class Other(BaseHTTPRequestHandler):
        sign: str | None = None

        def do_GET(self) -> None:
            self.send_response(200)
            if self.sign is not None:
                self.send_header(processes.SIGN, self.sign)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Nothing to say."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Other) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        probe = processes.serves(f"http://127.0.0.1:{server.server_port}/health/live", "ours")
        for sign, ours in ((None, False), ("another", False), ("ours", True)):
            Other.sign = sign
            assert probe() is ours
        server.shutdown()


def test_what_others_need_is_started_first_and_stopped_last(home: Path, tmp_path: Path) -> None:
    story = tmp_path / "story"
    code = """
    import signal, time
    def tell(what): open({story!r}, "a").write(what + " {name}\\n")
    def end(*_): time.sleep(0.2); tell("fine"); raise SystemExit
    signal.signal(15, end)
    time.sleep(0.2); tell("inizio"); open({mark!r}, "w").close(); time.sleep(600)
    """

    def told(name: str, **more: object) -> Child:
        mark = tmp_path / name
        return _child(name, code.format(story=str(story), name=name, mark=str(mark)), ready=mark.exists, **more)

    supervisor = Supervisor(home, [told("sopra", after=("sotto",)), told("sotto")], say=lambda _: None)
    assert supervisor.run(supervisor.stop) is None
    assert story.read_text().split("\n")[:4] == ["inizio sotto", "inizio sopra", "fine sopra", "fine sotto"]


def test_what_is_done_once_ready_may_fail_and_then_everything_stops(home: Path) -> None:
    def failing() -> None:
        raise PermanentError("no_such_clinic", given="XX99")

    said: list[str] = []
    reason = Supervisor(home, [_child("uno", LASTING)], say=said.append).run(failing)
    assert reason is not None
    assert "XX99" in reason


def test_a_database_that_takes_long_to_come_back_is_no_clock_set_back(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = [0.0]

    def started(_: Path) -> None:
        held[0] += 60

    told, passed = (lambda: time.time() + held[0]), (lambda: time.monotonic() + held[0])
    clock = SimpleNamespace(time=told, monotonic=passed, sleep=time.sleep)
    server = SimpleNamespace(running=lambda _: held[0] > 0, start=started, stop=lambda *_, **__: None)
    monkeypatch.setattr(supervisor_module, "time", clock)
    monkeypatch.setattr(supervisor_module, "embedded", server)
    said: list[str] = []
    supervisor = Supervisor(home, [_child("uno", LASTING, by_the_clock=True)], database=True, say=said.append)
    looks = iter(range(3))
    monkeypatch.setattr(supervisor, "_reap", lambda: None if next(looks, None) is not None else supervisor.stop())
    assert supervisor.run() is None
    assert not [each for each in said if "orologio" in each]


def test_a_long_log_line_and_colours_do_not_disturb(home: Path) -> None:
    code = (
        "import time; print('\\x1b[32mverde\\x1b[0m'); print('x' * 200000); print('fine', flush=True); time.sleep(600)"
    )
    log = home / "logs" / "ciarliero.log"
    child = _child("ciarliero", code, ready=lambda: log.read_text().endswith("| fine\n"))
    supervisor = Supervisor(home, [child], say=lambda _: None)
    assert supervisor.run(supervisor.stop) is None
    text = log.read_text()
    assert "| verde\n" in text
    assert "x" * 200000 in text


@pytest.mark.slow
def test_systemd_is_told_when_all_answers_that_it_lives_and_when_it_ends(
    home: Path, brought_up: Callable[[str], Up], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.settimeout(PATIENCE)
        ear.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "400000")
        up = brought_up("_child('one', LASTING)")
        heard = {ear.recv(100) for _ in range(4)}
        assert heard == {b"READY=1", b"WATCHDOG=1"}
        os.kill(up.process.pid, signal.SIGTERM)
        while b"STOPPING=1" not in heard:
            heard.add(ear.recv(100))


def test_logs_are_objects_where_somebody_collects_them(home: Path) -> None:
    code = """print('pronto: {}'); print('{"event": "tick", "level": "error", "job": "x"}', flush=True)"""
    child = _child("one", f"import time; {code}; time.sleep(600)")
    child = replace(child, environment={**child.environment, "POLYDESK_LOG_FORMAT": "json"})
    supervisor = Supervisor(home, [child], structured=True, say=lambda _: None)
    log = home / "logs" / "one.log"

    def both() -> None:
        until(lambda: log.exists() and len(log.read_text().splitlines()) == 2, "it has not spoken")
        supervisor.stop()

    supervisor.run(both)
    plain, told = [json.loads(line) for line in log.read_text().splitlines()]
    assert (plain["process"], plain["level"], plain["message"]) == ("one", "info", "pronto: {}")
    assert (told["message"], told["level"], told["event"]) == ("tick", "error", {"job": "x"})
    assert all(json.loads(line)["at"] for line in (home / "logs" / "supervisor.log").read_text().splitlines())
