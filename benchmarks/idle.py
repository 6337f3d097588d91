"""A whole installation with nothing to do, process by process: processor seconds an hour and memory of its own.

Memory is the proportional share (PSS): what several processes share counts once. The simulators, and the studiolabs
that have no news, play others' systems and are left out; PostgreSQL is in.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from shutil import rmtree

import psutil
import sqlalchemy as sa

from benchmarks import chain
from benchmarks.harness import Bench, Figure
from polydesk_dagster.database.engine import Role, business_url, create_engine
from polydesk_dagster.schedules.due import DUE
from polydesk_dagster.settings import Settings

CLINICS = 1000
HOUR = 3600.0
WINDOW = 600.0
"""Seconds that are looked at, at full size: every service has its tick in them."""
CALM = 30.0
"""Seconds left to whatever the start has set off."""
CPU, MEMORY = 120.0, 650.0
"""What four clinics may take: seconds of a processor an hour, MB."""
MORE = 2.0
"""How many times that a thousand may."""
NIGHTLY = ("sync_prices", "import_patients")


def figures(bench: Bench) -> Iterator[Figure]:
    window = max(60.0, WINDOW * bench.scale)
    with _up(None) as installation:
        yield from _figures("4 clinics", _idle(installation, window), 1.0)
    count = bench.size(CLINICS)
    with chain.fleet() as port, _up(port) as installation:
        _clinics(installation, count, port)
        yield from _figures(f"{count} clinics", _idle(installation, window), MORE)


@dataclass(frozen=True, slots=True)
class Installation:
    home: Path
    environment: Mapping[str, str]

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "polydesk_dagster.cli", *words]

    def run(self, *words: str) -> None:
        subprocess.run(self.command(*words), env=self.environment, stdout=subprocess.DEVNULL, check=False)

    def processes(self) -> dict[str, list[psutil.Process]]:
        """All that live of this home, by what they are."""
        found = defaultdict(list)
        server = psutil.Process(int((self.home / "postgres" / "postmaster.pid").read_text().split()[0]))
        found["postgresql"] = [server, *server.children()]
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                words = process.cmdline()
                ours = process.environ().get("POLYDESK_HOME") == str(self.home) or str(self.home) in words
                if ours and (name := _name(process, words)) is not None:
                    found[name].append(process)
        return found


def _name(process: psutil.Process, words: list[str]) -> str | None:
    line = " ".join(words)
    if "polydesk_dagster.demo" in line or "postgres" in process.name():
        return None
    kinds = {"guardian": "guardian", "forks.server": "launcher", "polydesk_dagster.cli": "supervisor"}
    return next((name for part, name in kinds.items() if part in line), process.name())


@contextmanager
def _up(port: int | None) -> Iterator[Installation]:
    """`polydesk up` in a home of its own, ready: the demo's chain after its first night, or without any clinic for
    those whose studiolabs answer at ``port``."""
    home = Path(tempfile.mkdtemp(prefix="polydesk-idle-", dir="/tmp"))
    home.chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("POLYDESK_")}
    environment |= {"POLYDESK_HOME": str(home), "POLYDESK_WEB_PORT": str(_free_port())}
    if port is not None:
        environment |= {"POLYDESK_STUDIOLAB_TOKEN_BENCH": "token"}
    installation = Installation(home, environment)
    log = home / "up.log"
    with log.open("wb") as said:
        words = installation.command("up", *([] if port is None else ["--empty"]))
        process = subprocess.Popen(words, env=environment, stdout=said, stderr=said, start_new_session=True)
    try:
        while "Polydesk è pronto" not in log.read_text():
            if process.poll() is not None:
                raise AssertionError(log.read_text())
            time.sleep(1)
        yield installation
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        rmtree(home, ignore_errors=True)


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _clinics(installation: Installation, count: int, port: int) -> None:
    """So many clinics whose night has been and whose services have run once."""
    engine = create_engine(business_url(Settings(home=installation.home), Role.OWNER))
    chain.make(engine, count, port)
    with engine.begin() as connection:
        connection.execute(
            sa.text("""
                INSERT INTO service_run (service, clinic_id, preview, dagster_run, outcome, counts, reasons, figures,
                                         tables, as_of, started_at, seconds)
                SELECT service, c.id, false, 'bench', 'nothing_to_do', '{}', '[]', '{}', '[]', :now, :now, 0
                FROM clinic c, unnest(CAST(:services AS text[])) service"""),
            {"now": datetime.now(UTC), "services": list(NIGHTLY)},
        )
    engine.dispose()
    for service in DUE:
        installation.run("run", service)


def _idle(installation: Installation, window: float) -> dict[str, tuple[float, float]]:
    """By process, or kind of process: seconds of the processor an hour, MB."""
    time.sleep(CALM)
    before, started = _spent(installation.processes()), time.monotonic()
    time.sleep(window)
    processes, lasted = installation.processes(), time.monotonic() - started
    after = _spent(processes)
    return {
        name: ((after[name] - before.get(name, 0.0)) * HOUR / lasted, sum(map(_share, each)))
        for name, each in processes.items()
    }


def _spent(processes: Mapping[str, list[psutil.Process]]) -> dict[str, float]:
    """Seconds that they have used, and their children that have ended."""
    spent: dict[str, float] = defaultdict(float)
    for name, each in processes.items():
        for process in each:
            with contextlib.suppress(psutil.Error):
                used = process.cpu_times()
                spent[name] += used.user + used.system
                if name in {"postgresql", "launcher"}:
                    spent[name] += used.children_user + used.children_system
    return spent


def _share(process: psutil.Process) -> float:
    with contextlib.suppress(psutil.Error):
        return float(process.memory_full_info().pss) / 1e6
    return 0.0


def _figures(what: str, idle: Mapping[str, tuple[float, float]], times: float) -> Iterator[Figure]:
    for unit, bound, place in (("s an hour", CPU * times, 0), ("MB", MEMORY * times, 1)):
        for name, found in sorted(idle.items()):
            yield Figure("idle", f"{what}: {name}", found[place], bound, unit, 1.0)
        whole = sum(found[place] for found in idle.values())
        yield Figure("idle", f"{what}: all of it", whole, bound, unit, 1.0)
