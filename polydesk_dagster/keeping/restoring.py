"""An installation made of its copy, in a new home or on another server; never over one that lives."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import URL

from polydesk_dagster.database import embedded, roles
from polydesk_dagster.database.engine import Role, business_url, create_engine, dagster_url
from polydesk_dagster.database.migrate import create_database, head, migrate
from polydesk_dagster.errors import PermanentError
from polydesk_dagster.keeping import dumps, manifest
from polydesk_dagster.keeping.backup import index_folder
from polydesk_dagster.keeping.manifest import Manifest
from polydesk_dagster.runtime.state import restored
from polydesk_dagster.settings import Settings

_LIVES = """
    SELECT EXISTS (
        SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast') AND n.nspname NOT LIKE 'pg_temp%')"""

_MARK = "SELECT obj_description(oid, 'pg_namespace') FROM pg_namespace WHERE nspname = 'public'"


def restore(settings: Settings, folder: Path, *, into_embedded: bool = False) -> Manifest:
    """Bring back the copy in ``folder`` as the installation of these settings. The embedded server is started, and left
    for the caller to stop; a copy that is not of one goes into it only ``into_embedded``: where the server's address
    was forgotten, patients' data would land on another machine's disk.

    Files come first, each folder under its own name only once it is whole; then Dagster's storage, and our records with
    the mark that holds what sends and syncs. One that was interrupted can be done again.

    Raises:
        PermanentError: the copy is not whole or of a newer program, something lives where it would go, or the server is
            too old or refuses, or is the embedded one unasked; nothing that was there is changed then.
    """
    found = manifest.read(folder)
    if found.revision > head():
        raise PermanentError("backup_newer", found=found.program)
    if settings.embedded and found.database != "embedded" and not into_embedded:
        raise PermanentError("restore_embedded", home=str(settings.home))
    targets = _folders(settings)
    missing = {name: target for name, target in targets.items() if not _brought(found, name, target)}
    for target in missing.values():
        if target.exists() and any(target.iterdir()):
            raise PermanentError("restore_over", what=str(target))
    if settings.embedded:
        embedded.start(settings.home)
        roles.prepare(settings.home)
    ours = business_url(settings, Role.OWNER)
    theirs = dagster_url(settings).set(drivername="postgresql+psycopg")
    if not settings.embedded:
        create_database(ours)
        create_database(theirs)
    mark = f"polydesk {found.taken_at.isoformat()}"
    server, _ = free(ours)
    _, loaded = free(theirs, mark)
    for name, target in missing.items():
        _bring(folder / name, target)
    if not loaded:
        then = [f"COMMENT ON SCHEMA public IS '{mark}'"]
        dumps.load(folder / manifest.DAGSTER, theirs, server=server, then=then)
    now = datetime.now(UTC)
    load_ours(settings, folder / manifest.BUSINESS, ours, lambda c: restored.hold(c, now), server=server)
    return found


def load_ours(
    settings: Settings, source: Path, ours: URL, mark: Callable[[sa.Connection], None], *, server: int
) -> None:
    """Our records out of a dump, with the roles that the embedded server has, at the newest schema, and a ``mark``
    that says what the copy is."""
    dumps.load(source, ours, server=server)
    if settings.embedded:
        roles.hand_over(settings.home, Role.OWNER)

    def granted(connection: sa.Connection) -> None:
        roles.grant(connection)
        mark(connection)

    engine = create_engine(ours, pool_size=1)
    try:
        migrate(engine, then=granted if settings.embedded else mark)
    finally:
        engine.dispose()


def _folders(settings: Settings) -> dict[str, Path]:
    """Where what is not in a database goes, by its name in the copy."""
    index = index_folder(settings)
    return {manifest.DOCUMENTS: settings.documents_folder} | ({manifest.INDEX: index} if index else {})


def free(url: URL, mark: str | None = None) -> tuple[int, bool]:
    """The server's major version, and whether what the database holds is what an interrupted restore of the same copy,
    which left its ``mark``, has brought already; there must be nothing else in it."""
    engine = create_engine(url, pool_size=1)
    try:
        with engine.connect() as connection:
            server = dumps.server_version(connection)
            if server < dumps.OLDEST:
                raise PermanentError("server_too_old", found=server, wanted=dumps.OLDEST)
            brought = mark is not None and connection.scalar(sa.text(_MARK)) == mark
            if not brought and connection.scalar(sa.text(_LIVES)):
                raise PermanentError("restore_over", what=str(url.database))
            return server, brought
    finally:
        engine.dispose()


def _brought(found: Manifest, name: str, target: Path) -> bool:
    """Whether a folder of the copy is there already, file by file."""
    wanted = {path.removeprefix(f"{name}/"): part for path, part in found.parts.items() if path.startswith(f"{name}/")}
    return target.is_dir() and manifest.parts(target) == wanted


def _bring(source: Path, target: Path) -> None:
    if not source.is_dir():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    growing = target.with_name(f".{target.name}.new")
    shutil.rmtree(growing, ignore_errors=True)
    shutil.copytree(source, growing)
    if target.exists():
        target.rmdir()
    growing.rename(target)
