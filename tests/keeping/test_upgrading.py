"""The embedded server's data on the wheel's next version of PostgreSQL, from the version before, which is in the wheel
too: nothing is lost, nothing is taken for a copy, and no attempt that was killed leaves half of one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from polydesk_dagster.database import embedded, programs
from polydesk_dagster.database.engine import Role, business_url, create_engine
from polydesk_dagster.errors import PermanentError
from polydesk_dagster.keeping import upgrading
from polydesk_dagster.runtime.state import restored
from polydesk_dagster.settings import Settings
from tests import world
from tests.keeping import world as kept
from tests.runtime.world import ROOT

OLD = 16
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(programs.folder_of(OLD) is None, reason=f"the wheel has no PostgreSQL {OLD} any more"),
]

FILLED = """
import pathlib, sys
from datetime import UTC, datetime
from polydesk_dagster.database import embedded, roles
from polydesk_dagster.database.engine import Role, business_url, create_engine
from polydesk_dagster.database.migrate import migrate
from polydesk_dagster.runtime.state import restored
from polydesk_dagster.settings import Settings
from tests import world
settings = Settings(home=pathlib.Path(sys.argv[1]))
embedded.LETTERS = ()  # the machine's own, as it was then
embedded.start(settings.home)
roles.prepare(settings.home)
engine = create_engine(business_url(settings, Role.OWNER))
migrate(engine)
with engine.begin() as connection:
    world.patient(connection)
assert restored.go_out(engine, settings.home, datetime.now(UTC)) is None
engine.dispose()
if sys.argv[2:] == ["stop"]:
    embedded.stop(settings.home)
"""
"""An installation of the program before, which has sent something; as it was left running it ends by a power cut."""


@pytest.fixture
def settings() -> Iterator[Settings]:
    with kept.home() as home:
        yield Settings(home=home)


def _of_the_version_before(home: Path, *how: str) -> None:
    told = subprocess.run(
        [sys.executable, "-c", FILLED, str(home), *how],
        env={**os.environ, "PGSERVER_POSTGRES_VERSION": str(OLD), "PYTHONPATH": str(ROOT)},
        check=False,
        capture_output=True,
        text=True,
    )
    assert told.returncode == 0, told.stderr


def _cut(home: Path) -> None:
    data = home / "postgres"
    programs.run("pg_ctl", "stop", "-m", "immediate", "-D", str(data), data=data, of=programs.folder_of(OLD))


def _patients(settings: Settings) -> int:
    engine = create_engine(business_url(settings, Role.OWNER), pool_size=1)
    try:
        with engine.connect() as connection:
            assert restored.noticed_restore(connection, settings.home, world.AS_OF) is None
            return int(connection.scalar(sa.text("SELECT count(*) FROM patient")) or 0)
    finally:
        engine.dispose()


def test_after_a_power_cut_the_data_of_the_version_before_are_taken_over(settings: Settings) -> None:
    _of_the_version_before(settings.home)
    _cut(settings.home)
    with pytest.raises(PermanentError, match="embedded_version"):
        embedded.start(settings.home)
    assert embedded.made_with(settings.home) == OLD
    assert upgrading.upgrade(settings) == (OLD, programs.version())
    assert _patients(settings) == 1
    assert (upgrading.kept(settings.home, OLD) / "PG_VERSION").read_text().strip() == str(OLD)
    assert upgrading.upgrade(settings) == (programs.version(), programs.version())


def test_what_stands_in_the_way_is_said_and_killed_at_any_step_it_is_done_again(settings: Settings) -> None:
    """What a kill leaves: half a new folder, a whole one beside the old, and a whole one whose place is free."""
    _of_the_version_before(settings.home, "stop")
    upgrading.kept(settings.home, OLD).mkdir()
    with pytest.raises(PermanentError, match="embedded_old_there"):
        upgrading.upgrade(settings)
    upgrading.kept(settings.home, OLD).rmdir()
    version = settings.home / "postgres" / "PG_VERSION"
    for found, code in (("99", "embedded_newer"), ("14", "embedded_old_programs")):
        version.write_text(f"{found}\n")
        with pytest.raises(PermanentError, match=code):
            upgrading.upgrade(settings)
    version.write_text(f"{OLD}\n")
    for left in ("postgres.growing", embedded.UPGRADED):
        (settings.home / left).mkdir()
        (settings.home / left / "half").touch()
    assert upgrading.upgrade(settings) == (OLD, programs.version())
    assert embedded.stop(settings.home)
    (settings.home / "postgres").rename(settings.home / embedded.UPGRADED)
    assert embedded.exists(settings.home)
    embedded.start(settings.home)
    assert _patients(settings) == 1
