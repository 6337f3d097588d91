"""Which outside systems are not configured and are therefore played by the demo's simulators, and how they start."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import sqlalchemy as sa

from polydesk_dagster.commands.show import say
from polydesk_dagster.demo import chain
from polydesk_dagster.errors import PermanentError
from polydesk_dagster.settings import Settings

DEMO_TOKEN = "demo-token"  # noqa: S105 - opens nothing but the simulators of this machine
STUDIOLAB_TOKEN = "POLYDESK_DEMO_STUDIOLAB_TOKEN"  # noqa: S105 - a variable's name


@dataclass(frozen=True, slots=True)
class Played:
    """One outside system that a simulator plays."""

    name: str
    what: str
    module: str
    port: int

    @property
    def command(self) -> tuple[str, ...]:
        return (sys.executable, "-m", self.module, "--port", str(self.port), "--token", DEMO_TOKEN)

    def answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
            return True
        return False


def _central(address: str) -> dict[str, str]:
    return {"POLYDESK_CENTRAL_URL": address, "POLYDESK_CENTRAL_TOKEN": DEMO_TOKEN}


def _sms(address: str) -> dict[str, str]:
    return {"POLYDESK_SMS_URL": address, "POLYDESK_SMS_TOKEN": DEMO_TOKEN, "POLYDESK_SMS_SENDER": "Polydesk"}


SYSTEMS: tuple[tuple[str, str, int, Callable[[Settings], bool], Callable[[str], dict[str, str]]], ...] = (
    ("central", "server centrale", 8082, lambda s: s.central_url is None, _central),
    ("sms", "gateway SMS", 8083, lambda s: s.sms_url is None, _sms),
)


def unconfigured(settings: Settings) -> tuple[list[Played], dict[str, str]]:
    """What must be played here, on free ports, and the environment that points at it."""
    played = []
    environment: dict[str, str] = {}
    for name, what, port, missing, variables in SYSTEMS:
        if missing(settings):
            system = Played(name, what, f"polydesk_dagster.demo.simulators.{name}", _free(port))
            played.append(system)
            environment |= variables(f"http://127.0.0.1:{system.port}/api/v1")
    return played, environment


def _free(port: int) -> int:
    """The usual port, or if somebody has it any free one."""
    for wanted in (port, 0):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", wanted))
            return int(probe.getsockname()[1])
    raise PermanentError(say("Nessuna porta libera su 127.0.0.1.", "No free port on 127.0.0.1."))


@contextlib.contextmanager
def playing(played: list[Played], environment: Mapping[str, str]) -> Iterator[None]:
    """The simulators running for the block, and this process pointed at them."""
    processes = [subprocess.Popen(system.command, stdout=subprocess.DEVNULL) for system in played]
    before = {name: os.environ.get(name) for name in environment}
    try:
        for system, process in zip(played, processes, strict=True):
            _wait(system, process)
        os.environ.update(environment)
        yield
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(10)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _wait(system: Played, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 30
    while not system.answers():
        if process.poll() is not None or time.monotonic() > deadline:
            raise PermanentError(say(f"Il simulatore «{system.what}» non parte.", f"{system.name}: does not start."))
        time.sleep(0.05)


def mark_demo(engine: sa.Engine) -> None:
    """Give the demo's clinics their studiolab; its token's name also says from now on that this is the demo."""
    chain.integrations(engine, "http://127.0.0.1:8081/{clinic}/api/v1", STUDIOLAB_TOKEN)


def is_demo(engine: sa.Engine) -> bool:
    """Whether the records of this installation are the demo's."""
    with engine.connect() as connection:
        return bool(
            connection.scalar(
                sa.text("SELECT EXISTS (SELECT FROM integration WHERE token_env = :name)"), {"name": STUDIOLAB_TOKEN}
            )
        )


def point_studiolab(engine: sa.Engine, played: list[Played]) -> None:
    """Point the demo's clinics at the port that the studiolab simulator has this time; on and off stay as they are."""
    port = next((system.port for system in played if system.name == "studiolab"), None)
    if port is not None:
        with engine.begin() as connection:
            connection.execute(
                sa.text(r"""
                    UPDATE integration SET base_url = regexp_replace(base_url, ':\d+/', :port)
                    WHERE token_env = :name"""),
                {"port": f":{port}/", "name": STUDIOLAB_TOKEN},
            )
