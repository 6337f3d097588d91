"""The embedded server's data taken over by the next major version of PostgreSQL, with its own ``pg_upgrade``.

The new data grow beside the old, which lose nothing by it, and take their place at once; the old stay until somebody
removes them.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import sqlalchemy as sa

from polydesk_dagster.database import embedded, programs, roles
from polydesk_dagster.database.engine import Role, business_url, create_engine
from polydesk_dagster.database.migrate import migrate
from polydesk_dagster.errors import PermanentError
from polydesk_dagster.runtime.state import restored
from polydesk_dagster.settings import Settings

_CHECKSUMS = re.compile(r"Data page checksum version:\s*(\d+)")


def upgrade(settings: Settings) -> tuple[int, int]:
    """Bring the data of the embedded server, which nobody may use meanwhile, to the version of our programs. Returns
    the version before and after; the server is left running, on the newest schema. An attempt that was killed can be
    made again.

    Raises:
        PermanentError: somebody uses the server, its data are of a newer version, the programs of theirs are not on
            this machine, or older data lie where they would stay; everything is as it was then.
    """
    home = settings.home.absolute()
    with embedded.to_ourselves(home) as alone:
        if not alone:
            raise PermanentError("embedded_in_use")
        embedded.settle(home)
        found, wanted = embedded.made_with(home), programs.version()
        if found > wanted:
            raise PermanentError("embedded_newer", found=str(found), wanted=str(wanted))
        if found < wanted:
            _take_over(home, found)
    embedded.start(home)
    if found < wanted:
        _known_again(settings)
    return found, wanted


def kept(home: Path, version: int) -> Path:
    """Where the data of the version before stay."""
    return home / f"postgres.{version}"


def _take_over(home: Path, found: int) -> None:
    old, grown, olds = home / "postgres", home / embedded.UPGRADED, programs.folder_of(found)
    if olds is None:
        raise PermanentError("embedded_old_programs", found=str(found), folder=str(programs.DEBIANS / str(found)))
    if kept(home, found).exists():
        raise PermanentError("embedded_old_there", folder=str(kept(home, found)))
    programs.let_use(olds)
    server = programs.account()
    embedded.disown(home)
    embedded.configure(old, server)
    embedded.launch(old, olds)  # after a power cut it reads its log first: pg_upgrade would not
    programs.run("pg_ctl", "stop", "-w", "-D", str(old), data=old, of=olds)
    said = programs.run("pg_controldata", "-D", str(old), data=old, of=olds)
    summed = (state := _CHECKSUMS.search(said)) is not None and state[1] != "0"
    growing = home / "postgres.growing"
    embedded.make_empty(growing, "--data-checksums" if summed else "--no-data-checksums")
    embedded.configure(growing, server)
    given = ("-b", str(olds), "-B", str(programs.folder()), "-d", str(old), "-D", str(growing))
    more = ("-U", embedded.ADMINISTRATOR, "--socketdir", str(programs.socket_folder(growing)))
    programs.run("pg_upgrade", *given, *more, data=growing)
    if not summed:
        programs.run("pg_checksums", "--enable", "-D", str(growing), data=growing)
    shutil.rmtree(grown, ignore_errors=True)  # of an attempt that was killed; the old data may have moved on since
    growing.rename(grown)
    old.rename(kept(home, found))
    embedded.settle(home)


def _known_again(settings: Settings) -> None:
    """The server has another identity now, but what lies in it is no copy beside another."""
    roles.prepare(settings.home)
    engine = create_engine(business_url(settings, Role.OWNER), pool_size=1)

    def settled(connection: sa.Connection) -> None:
        roles.grant(connection)
        restored.moved(connection)

    try:
        migrate(engine, then=settled)
    finally:
        engine.dispose()
