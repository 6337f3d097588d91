"""The command of a wheel that was just built, in an environment that has of ours nothing but the wheel."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

_SERVER = """
import gc, json, os, sys
import polydesk_dagster.definitions
from polydesk_dagster.cli import COMMANDS, main
from importlib import import_module
for place in COMMANDS.values():
    import_module("polydesk_dagster.commands." + place.partition(":")[0])
import_module("polydesk_dagster.runtime.forks.ready").make()
gc.freeze()
print(polydesk_dagster.__file__, flush=True)
for line in sys.stdin:
    order = json.loads(line)
    if "arguments" not in order:
        pid, status = os.waitpid(order["pid"], 0 if order["until_it_ends"] else os.WNOHANG)
        print(json.dumps(os.waitstatus_to_exitcode(status) if pid else None), flush=True)
    elif pid := os.fork():
        print(pid, flush=True)
    else:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, name in enumerate(order["outputs"], 1):
            os.dup2(os.open(name, os.O_WRONLY), number)
        os.environ.clear()
        os.environ.update(order["environment"])
        sys.argv = order["arguments"]
        main()
        os._exit(0)
"""
"""A process in which everything is imported; each command is a fork of it, leader of a session of its own."""


def clean() -> dict[str, str]:
    """Our environment without what it says of us."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("POLYDESK_", "PYTHON"))}


class Started:
    """A command that runs."""

    def __init__(self, wheel: Wheel, arguments: tuple[str, ...], environment: Mapping[str, str]) -> None:
        self._wheel = wheel
        self._outputs = [tempfile.NamedTemporaryFile("r") for _ in range(2)]  # noqa: SIM115 - closed once they are read
        given = ["polydesk", *arguments]
        names = [each.name for each in self._outputs]
        self.pid = int(wheel.ask(arguments=given, environment=environment, outputs=names))
        self.status: int | None = None

    def ended(self, *, until_it_ends: bool = False) -> bool:
        if self.status is None:
            self.status = json.loads(self._wheel.ask(pid=self.pid, until_it_ends=until_it_ends))
        return self.status is not None

    def said(self) -> tuple[str, str]:
        """What it said on its two outputs, once it has ended."""
        self.ended(until_it_ends=True)
        out, err = (each.read() for each in self._outputs)
        for each in self._outputs:
            each.close()
        return out, err


class Wheel:
    """The wheel's command: as it is installed, and as forks of a process of the wheel that is warm."""

    def __init__(self, command: Path, server: subprocess.Popen[str]) -> None:
        self.command = command
        self._server = server

    def start(self, *arguments: str, environment: Mapping[str, str]) -> Started:
        return Started(self, arguments, environment)

    def ask(self, **order: object) -> str:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(order) + "\n")
        self._server.stdin.flush()
        return self._server.stdout.readline()


@contextmanager
def installed(folder: Path) -> Iterator[Wheel]:
    """Build the wheel and install it under ``folder``; what it needs besides is there as the lock has it."""
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder], cwd=ROOT, check=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "clean"], check=True)
    python = folder / "clean" / "bin" / "python"
    wheel = next(folder.glob("*.whl"))
    uv = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--offline", "--no-deps", "--python", str(python)]
    subprocess.run([*uv, str(wheel)], check=True)
    (site,) = (folder / "clean" / "lib").glob("python3*/site-packages")
    others = next(path for path in sys.path if path.endswith("site-packages"))
    (site / "others.pth").write_text(f"{others}\n")  # not our own source
    with subprocess.Popen(
        [python, "-c", _SERVER], cwd="/", env=clean(), text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as server:
        assert server.stdout is not None
        assert server.stdout.readline().startswith(str(folder))
        yield Wheel(python.with_name("polydesk"), server)
