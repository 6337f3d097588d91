"""An installation's whole life, from the wheel on: set up beside Debian's PostgreSQL from a workbook, live with one
clinic, killed as by a power cut, copied, restored elsewhere; nothing is lost and nothing is sent twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from dotenv import set_key
from sqlalchemy.engine import make_url

from polydesk_dagster.database.engine import create_engine
from polydesk_dagster.database.migrate import MIGRATIONS, head
from polydesk_dagster.demo.simulators.faults import Fault
from polydesk_dagster.demo.simulators.server import DEMO_TOKEN, in_thread
from polydesk_dagster.demo.simulators.sms import SmsSimulator
from tests import world
from tests.keeping import debian
from tests.keeping import world as kept
from tests.keeping.wheel import Started, Wheel, clean, installed
from tests.sources.test_practice_workbook import WHOLE, book
from tests.waiting import PATIENCE, until

PATIENTS = 12
"""Who have an appointment tomorrow."""
WHY = "provato con la direzione"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(debian.why_not() is not None, reason=debian.why_not() or ""),
]


class Place:
    """A home, and the wheel's command in it."""

    def __init__(self, wheel: Wheel, home: Path) -> None:
        self._wheel = wheel
        self.home = home
        self._environment = {**clean(), "POLYDESK_HOME": str(home)}

    def start(self, *arguments: str) -> Started:
        return self._wheel.start(*arguments, environment=self._environment)

    def run(self, *arguments: str, status: int = 0) -> str:
        running = self.start(*arguments)
        out, err = running.said()
        assert running.status == status, (arguments, out, err)
        return out

    def run_as_installed(self, *arguments: str) -> None:
        """By a process of its own, as a person starts it."""
        command = [str(self._wheel.command), *arguments]
        subprocess.run(command, env=self._environment, cwd="/", check=True, timeout=PATIENCE)

    def json(self, *arguments: str, status: int = 0) -> Any:
        return json.loads(self.run(*arguments, "--json", status=status))

    def set_up(self, url: str, sms: str) -> None:
        file = self.home.with_suffix(".values")
        values = {"DATABASE_URL": url, "SMS_URL": sms, "SMS_TOKEN": DEMO_TOKEN, "SMS_SENDER": "Polydesk"}
        for name, value in values.items():
            set_key(file, f"POLYDESK_{name}", value)
        assert all(each["why"] is None for each in self.json("setup", "--file", str(file))["tried"])


@pytest.fixture
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wheel]:
    with installed(tmp_path_factory.mktemp("wheel")) as wheel:
        yield wheel


def test_from_the_wheel_to_a_second_home_nothing_is_lost_and_nothing_sent_twice(wheel: Wheel, tmp_path: Path) -> None:
    gateway = SmsSimulator()
    with debian.cluster() as server, in_thread(gateway) as sms:
        first = Place(wheel, tmp_path / "first")
        engine = create_engine(make_url(server.url("polydesk")).set(drivername="postgresql+psycopg"))
        _at_the_schema_before(engine)
        first.set_up(server.url("polydesk"), sms)
        first.run_as_installed("db", "migrate")
        workbook = tmp_path / "practice.xlsx"
        workbook.write_bytes(book(WHOLE))
        first.json("practice", "import", str(workbook), "--no-slots", "--reason", WHY)
        _in_daylight(engine)
        assert first.json("run", "generate_slots", "--clinic", "BO01")["counts"]["created"] > 0
        first.run("go-live", "generate_slots", "--reason", WHY)
        first.run("go-live", "send_reminders", "--reason", WHY)
        with engine.begin() as connection:
            _appointments(connection)

        _power_cut_in_the_middle(first, gateway, server)
        engine.dispose()

        copy = Path(first.json("backup", str(tmp_path / "copies"))["folder"])
        before = kept.rows(engine.url)
        _sent_once_each(first, gateway, engine)  # of which the copy knows a part
        second = Place(wheel, tmp_path / "second")
        elsewhere = server.url("elsewhere")
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(sa.text("CREATE DATABASE elsewhere TEMPLATE template0 ENCODING 'UTF8'"))
        second.set_up(elsewhere, sms)
        assert second.json("restore", str(copy))["figures"]["patients"] == PATIENTS
        restored = create_engine(make_url(elsewhere).set(drivername="postgresql+psycopg"))
        assert kept.rows(restored.url) == before

        held = second.json("run", "send_reminders", status=3)
        assert (held["reasons"][0]["code"], len(gateway.sent)) == ("restored", PATIENTS)
        second.run("db", "accept", "--reason", WHY)
        _sent_once_each(second, gateway, restored)
        with restored.connect() as connection:
            assert set(connection.scalars(sa.text("SELECT state FROM message"))) == {"sent"}
        assert second.json("run", "generate_slots", "--clinic", "BO01")["counts"]["created"] == 0
        restored.dispose()
        engine.dispose()


def _at_the_schema_before(engine: sa.Engine) -> None:
    """What the release before left: its schema, and a clinic in it."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, f"{int(head()) - 1:04d}")
        world.clinic(connection, "MI01")


def _in_daylight(engine: sa.Engine) -> None:
    """Nobody is written to at night: let it be eleven in the morning where the clinic is."""
    offset = 11 - datetime.now(UTC).hour
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE clinic SET time_zone = :zone"), {"zone": f"Etc/GMT{-offset:+d}"})


def _appointments(connection: sa.Connection) -> None:
    agenda = connection.scalar(sa.text("SELECT id FROM agenda")) or 0
    now = datetime.now(UTC)
    for number in range(PATIENTS):
        starts = (now + timedelta(hours=22)).replace(minute=number * 5, second=0, microsecond=0)
        slot = world.slot(connection, agenda, starts, manual=True, ends_at=starts + timedelta(minutes=5))
        world.appointment(
            connection,
            slot,
            service_id=world.offered(connection, slot),
            patient_id=world.patient(connection, mobile=f"+39347555{100 + number}0"),
            created_at=now - timedelta(days=5),
        )


def _power_cut_in_the_middle(place: Place, gateway: SmsSimulator, server: debian.Cluster) -> None:
    gateway.faults.append(Fault(kind="slow", path="/messages", times=None, seconds=0.5))
    running = place.start("run", "send_reminders")
    until(lambda: gateway.sent or running.ended(), "nothing was sent")
    assert not running.ended(), running.said()
    server.cut()
    os.killpg(running.pid, signal.SIGKILL)
    running.said()
    gateway.faults.clear()
    server.start()


def _sent_once_each(place: Place, gateway: SmsSimulator, engine: sa.Engine) -> None:
    def all_told() -> bool:
        place.json("run", "send_reminders")
        return len(gateway.sent) >= PATIENTS

    until(all_told, "some were never told")
    assert Counter(message.to for message in gateway.sent) == Counter(_numbers(engine))


def _numbers(engine: sa.Engine) -> list[str]:
    with engine.connect() as connection:
        return list(connection.scalars(sa.text("SELECT mobile FROM patient")))
