"""Which outside systems are not configured and are therefore played by the demo's simulators, and how they start."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from polydesk_dagster.commands.installation import PLAYED_TOKEN
from polydesk_dagster.commands.show import say
from polydesk_dagster.demo import mailbox
from polydesk_dagster.demo.simulators import sms
from polydesk_dagster.demo.simulators.server import API, DEMO_TOKEN
from polydesk_dagster.errors import PermanentError
from polydesk_dagster.runtime import pythons
from polydesk_dagster.runtime.processes import listening
from polydesk_dagster.runtime.state.activity import PLAYED
from polydesk_dagster.settings import Settings
from polydesk_dagster.web.addresses import RECEIPTS, REPLIES


@dataclass(frozen=True, slots=True)
class Played:
    """One outside system that a simulator plays; what it was told lasts in ``state``."""

    name: str
    what: str
    module: str
    port: int
    state: Path
    options: tuple[str, ...] = ()

    @property
    def command(self) -> tuple[str, ...]:
        common = ("--port", str(self.port), "--state", str(self.state))
        return (*pythons.module(self.module), *common, *self.options)

    @property
    def where(self) -> str:
        """Where to look at it: its address, and for mail the folder of what was sent."""
        if self.name != "mail":
            return f"http://127.0.0.1:{self.port}"
        return say("command.simulator.mail", address=f"smtp://127.0.0.1:{self.port}", folder=str(self.state))

    def answers(self) -> bool:
        return listening(self.port)()


def _central(system: Played) -> dict[str, str]:
    return {"POLYDESK_CENTRAL_URL": f"http://127.0.0.1:{system.port}{API}", "POLYDESK_CENTRAL_TOKEN": DEMO_TOKEN}


def _sms(system: Played) -> dict[str, str]:
    return {
        "POLYDESK_SMS_URL": f"http://127.0.0.1:{system.port}{API}",
        "POLYDESK_SMS_TOKEN": DEMO_TOKEN,
        "POLYDESK_SMS_SENDER": "+393200000000",
        "POLYDESK_SMS_WEBHOOK_SECRET": sms.DEMO_SECRET,
    }


def _webhooks(settings: Settings) -> tuple[str, ...]:
    """The door's own addresses, on this machine."""
    door = f"http://127.0.0.1:{settings.web_port}"
    return ("--webhook", f"{door}{REPLIES}", f"{door}{RECEIPTS}")


def _mail(system: Played) -> dict[str, str]:
    certificate = system.state / mailbox.CERTIFICATE
    login = f"{mailbox.USER}:{mailbox.PASSWORD}"
    return {
        "POLYDESK_SMTP_URL": f"smtp://{login}@127.0.0.1:{system.port}?starttls=require&ca={certificate}",
        "POLYDESK_MAIL_FROM": "Polydesk <polydesk@polydesk.example>",
    }


def _studiolab(_: Played) -> dict[str, str]:
    return {PLAYED_TOKEN: DEMO_TOKEN}


@dataclass(frozen=True, slots=True)
class _System:
    name: str
    what: str
    module: str
    port: int
    missing: Callable[[Settings], bool]
    variables: Callable[[Played], dict[str, str]]
    options: Callable[[Settings], tuple[str, ...]] = lambda _: ()


_PATIENCE = 180.0
"""Seconds that a simulator may take to answer: many times what it takes, because the machine may be busy."""

SYSTEMS = (
    _System("studiolab", "studiolab", "polydesk_dagster.demo.simulators.studiolab", 8081, lambda _: True, _studiolab),
    _System(
        "central",
        "server centrale",
        "polydesk_dagster.demo.simulators.central",
        8082,
        lambda settings: settings.central_url is None,
        _central,
    ),
    _System(
        "sms",
        "gateway SMS",
        "polydesk_dagster.demo.simulators.sms",
        8083,
        lambda settings: settings.sms_url is None,
        _sms,
        _webhooks,
    ),
    _System("mail", "posta", "polydesk_dagster.demo.mailbox", 8025, lambda s: s.smtp_url is None, _mail),
)


def unconfigured(settings: Settings) -> tuple[list[Played], dict[str, str]]:
    """What must be played here, on free ports, and the environment that points at it."""
    played = []
    environment: dict[str, str] = {}
    for system in SYSTEMS:
        if system.missing(settings):
            state = settings.home / "simulators" / system.name
            port, options = free_port(system.port), system.options(settings)
            playing = Played(system.name, system.what, system.module, port, state, options)
            played.append(playing)
            environment |= system.variables(playing)
    environment[PLAYED] = ",".join(playing.name for playing in played)
    return played, environment


_claims: list[socket.socket] = []
"""Of UDP, which nothing here speaks: only one process has such a socket at a port, and the kernel takes it back."""


def free_port(port: int) -> int:
    """The usual port, or if somebody has it or is about to have it one near it. It is this process's as long as that
    lives: whoever is to listen there takes seconds to begin, and another process may look for a port meanwhile.

    Raises:
        PermanentError: none of a hundred is free.
    """
    for wanted in range(port, port + 1000, 10):
        claim = socket.socket(type=socket.SOCK_DGRAM)
        with contextlib.suppress(OSError), socket.socket() as probe:
            claim.bind(("127.0.0.1", wanted))
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", wanted))
            _claims.append(claim)
            return wanted
        claim.close()
    raise PermanentError("no_free_port")


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
    deadline = time.monotonic() + _PATIENCE
    while process.poll() is None and time.monotonic() < deadline:
        if system.answers():
            return
        time.sleep(0.05)
    raise PermanentError("simulator_dead", what=system.name)


def mark_demo(engine: sa.Engine, home: Path) -> None:
    """Give the demo's clinics their studiolab, which holds what they hold and some that differs; its token's name also
    says from now on that this is the demo."""
    from polydesk_dagster.demo import chain
    from polydesk_dagster.demo.simulators import dataset
    from polydesk_dagster.demo.simulators.studiolab import StudiolabSimulator

    chain.integrations(engine, f"http://127.0.0.1:8081/{{clinic}}{API}", PLAYED_TOKEN)
    simulator = StudiolabSimulator(state=home / "simulators" / "studiolab")
    with engine.connect() as connection:
        for code in connection.scalars(sa.text("SELECT code FROM clinic ORDER BY code")).all():
            simulator.hold(code.lower(), dataset.differing(connection, code, broken=False))


def point_studiolab(engine: sa.Engine, played: list[Played]) -> None:
    """Point the demo's clinics at the port that the studiolab simulator has this time; on and off stay as they are."""
    port = next((system.port for system in played if system.name == "studiolab"), None)
    if port is not None:
        with engine.begin() as connection:
            connection.execute(
                sa.text(r"""
                    WITH moved AS (
                        UPDATE integration SET base_url = regexp_replace(base_url, ':\d+/', :port),
                                               source = regexp_replace(source, ':\d+/', :port)
                        WHERE token_env = :name RETURNING clinic_id, source),
                    cursors AS (UPDATE event_cursor e SET source = m.source FROM moved m
                                WHERE e.clinic_id = m.clinic_id AND e.source IS NOT NULL)
                    UPDATE source_state SET source = regexp_replace(source, ':\d+/', :port)"""),
                {"port": f":{port}/", "name": PLAYED_TOKEN},
            )
