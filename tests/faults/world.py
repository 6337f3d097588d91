"""One demo chain for the faults of databases: on a server of its own, in a small disk, with its simulators."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from io import RawIOBase
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import make_url

from polydesk_dagster import settings as configuration
from polydesk_dagster.catalog import Service
from polydesk_dagster.clinic.bookings import checks as bookings
from polydesk_dagster.clinic.calendar import checks as calendar
from polydesk_dagster.commands import night, simulators
from polydesk_dagster.commands.installation import Installation
from polydesk_dagster.commands.run import run_service
from polydesk_dagster.database import embedded, programs, refusals
from polydesk_dagster.database.engine import create_engine, dagster_url
from polydesk_dagster.database.migrate import migrate, serving
from polydesk_dagster.demo import chain
from polydesk_dagster.errors import PolydeskError, in_brief
from polydesk_dagster.outcome import Report, combine
from polydesk_dagster.runtime import instance
from polydesk_dagster.settings import Settings
from polydesk_dagster.values import Reason
from tests import postgres
from tests.knowledge.world import short_documents
from tests.waiting import PATIENCE
from tests.world import AS_OF

ROOM = 96 * 1024**2
"""Bytes of a small disk: several times what the chain takes, and what its home does."""


class Chain:
    """The installation of the environment, and the server and the disk that it lives on."""

    def __init__(self, settings: Settings, engine: sa.Engine, server: Path, disk: Path | None) -> None:
        self.installation = Installation(settings, engine)
        self.engine, self.server = engine, server
        self.disk = disk
        """Where its records lie; None where no disk may be mounted."""
        self.home = settings.home
        """Where its logs and its index lie: a disk too, then."""
        self._filler: RawIOBase | None = None

    def run(self, service: Service, **options: object) -> Report:
        given = {"as_of": AS_OF.isoformat(), **options}
        self._fill()
        return combine(report for _, report in run_service(self.installation, service, None, given))

    def night(self) -> dict[str, Report]:
        """Every scheduled service once."""
        return self.each(night.order())

    def each(self, services: Iterable[Service]) -> dict[str, Report]:
        """Each of them once. Where the database cannot be asked at all, why it says so itself."""
        found = {}
        for service in services:
            try:
                found[service.key] = self.run(service)
            except PolydeskError as error:
                found[service.key] = Report.of_failure(error.reason)
            except sa.exc.DBAPIError as error:
                why = refusals.known(error, self.engine.url)
                found[service.key] = Report.of_failure(why or Reason("unexpected", {"error": in_brief(error)}))
        return found

    def broken_invariants(self) -> list[str]:
        return broken_invariants(self.engine)

    def restart(self, mode: str) -> None:
        """The server stops, by ``fast`` or as by a power cut by ``immediate``, and comes back."""
        data = self.server / "postgres"
        patience = ("-w", "-t", f"{PATIENCE:.0f}")
        programs.run("pg_ctl", "restart", *patience, "-m", mode, "-D", str(data), "-l", str(data / "log"), data=data)

    @contextmanager
    def full(self, disk: Path) -> Iterator[None]:
        """Not a byte is left on the disk whenever a service begins during the block."""
        filler = disk / "filler"
        try:
            with filler.open("wb", buffering=0) as self._filler:
                self._fill()
                yield
        finally:
            self._filler = None
            filler.unlink()

    def _fill(self) -> None:
        """What the server has given back by itself meanwhile is taken too: it does so when it has time."""
        if self._filler is not None:
            for size in (1 << 20, 1 << 12):
                with suppress(OSError):
                    while True:
                        self._filler.write(bytes(size))


def broken_invariants(engine: sa.Engine, as_of: datetime = AS_OF) -> list[str]:
    """By name, what must hold of a chain from ``as_of`` on and does not."""
    looks = (calendar.overlapping, calendar.bookings_without_slot, calendar.free_on_closure)
    with engine.connect() as connection:
        found = {look.__name__: look(connection, as_of) for look in (*looks, bookings.collisions)}
    return [name for name, finding in found.items() if finding.count]


@contextmanager
def demo_chain(server: Path) -> Iterator[Chain]:
    """The demo chain of size ``small`` on the server whose home is ``server``."""
    admin = make_url(embedded.url(server)).set(drivername="postgresql+psycopg")
    url = admin.set(database="chain")
    with ExitStack() as held:
        disk = held.enter_context(_disk(programs.SERVER_ACCOUNT))
        home = held.enter_context(_disk()) or Path(held.enter_context(tempfile.TemporaryDirectory()))
        if disk is not None:
            postgres.do(admin, f"CREATE TABLESPACE small LOCATION '{disk}'")
        postgres.do(
            admin, f"CREATE DATABASE chain TEMPLATE template0 ENCODING 'UTF8' {'TABLESPACE small' if disk else ''}"
        )
        os.environ |= {"POLYDESK_HOME": str(home), "POLYDESK_DATABASE_URL": url.render_as_string(hide_password=False)}
        settings = configuration.load()
        postgres.dagster_storage(dagster_url(settings))
        engine = create_engine(url)
        migrate(engine)
        chain.load(engine, "small", as_of=AS_OF)
        simulators.mark_demo(engine, home)
        short_documents(settings.documents_folder)
        played, environment = simulators.unconfigured(settings)
        held.enter_context(simulators.playing(played, environment))
        simulators.point_studiolab(engine, played)
        engine.dispose()
        instance.prepare(settings)
        serves = serving(url)
        serves.connect().close()
        yield Chain(configuration.load(), serves, server, disk)
        serves.dispose()
        postgres.do(admin, "DROP DATABASE chain WITH (FORCE)", *(["DROP TABLESPACE small"] if disk else []))


@contextmanager
def _disk(owner: str = "root") -> Iterator[Path | None]:
    """A small disk of its own in memory; None where this machine lets none be mounted."""
    place = Path(tempfile.mkdtemp(prefix="polydesk-disk-"))
    mount = ["mount", "-t", "tmpfs", "-o", f"size={ROOM},mode=0777", "tmpfs", str(place)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        place.rmdir()
        yield None
        return
    shutil.chown(place, owner)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=False)
        place.rmdir()
