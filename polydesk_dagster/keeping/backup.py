"""A copy of an installation while it works: both databases, the index and the documents that it answers from, the
settings without secrets. It is a folder, whole or not there.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import sqlalchemy as sa
from sqlalchemy.engine import URL

from polydesk_dagster.database import embedded
from polydesk_dagster.database.engine import business_url, create_engine, dagster_url
from polydesk_dagster.database.locks import exclusive
from polydesk_dagster.database.migrate import current
from polydesk_dagster.errors import PermanentError
from polydesk_dagster.keeping import dumps, environment, manifest
from polydesk_dagster.keeping.manifest import Manifest
from polydesk_dagster.knowledge import generations
from polydesk_dagster.knowledge.indexing import LOCK
from polydesk_dagster.knowledge.library import listing
from polydesk_dagster.settings import Settings

PATIENCE = 120.0
"""Seconds that a run which is writing the index has to end; after that the index is left out of the copy."""

_NAME = re.compile(r"polydesk-\d{4}-\d\d-\d\dT\d{6}Z")

FIGURES = """
    SELECT (SELECT count(*) FROM clinic) AS clinics, (SELECT count(*) FROM patient) AS patients,
           (SELECT count(*) FROM appointment) AS appointments, (SELECT count(*) FROM message) AS messages"""
TOKENS = "SELECT DISTINCT token_env FROM integration WHERE token_env IS NOT NULL ORDER BY 1"


def take(settings: Settings, into: Path, as_of: datetime, *, patience: float = PATIENCE) -> tuple[Path, Manifest]:
    """Make a copy as a new folder under ``into``; returns it, and what it holds.

    Dagster's storage is copied first. What ran meanwhile is then in our records and not yet in its history, and a run
    that is started again finds nothing left to do; the other way round a day's work would count as done and be missing.

    Raises:
        PermanentError: a database refuses, or is newer than the programs that copy it.
    """
    into.mkdir(parents=True, exist_ok=True)
    instant = as_of.astimezone(UTC).isoformat(timespec="seconds").removesuffix("+00:00").replace(":", "")
    whole = into / f"polydesk-{instant}Z"
    if whole.exists():
        raise PermanentError("backup_there", folder=str(whole))
    growing = into / f".{whole.name}.new"
    growing.mkdir(mode=0o700)
    try:
        made = _take(settings, growing, as_of, patience)
        written = growing / manifest.NAME
        written.write_text(made.model_dump_json(indent=2))
        _to_the_disk(growing)
        growing.rename(whole)
        _sync(into)
    except BaseException:
        shutil.rmtree(growing, ignore_errors=True)
        raise
    return whole, made


def thin_out(into: Path, keep: int) -> list[Path]:
    """Of the copies under ``into`` leave the newest ``keep``; what is no whole copy of ours is not touched. Returns
    those that went."""
    whole = [path for path in into.iterdir() if _NAME.fullmatch(path.name) and (path / manifest.NAME).is_file()]
    old = sorted(whole)[:-keep]
    for path in old:
        (path / manifest.NAME).unlink()  # from here on it is no copy any more, however far this comes
        shutil.rmtree(path)
    return old


def _take(settings: Settings, folder: Path, as_of: datetime, patience: float) -> Manifest:
    ours, theirs = whole_urls(settings)
    engine = create_engine(ours)
    try:
        with engine.connect() as connection:
            server = dumps.server_version(connection)
        dumps.dump(theirs, folder / manifest.DAGSTER, server=server)
        with _index_to_ourselves(engine, patience) as still, _snapshot(engine) as (connection, snapshot):
            figures = connection.execute(sa.text(FIGURES)).one()._asdict()
            revision = current(connection)
            generation = generations.find(connection, "current")
            tokens = tuple(connection.scalars(sa.text(TOKENS)))
            dumps.dump(ours, folder / manifest.BUSINESS, server=server, snapshot=snapshot)
            index = _index(settings, folder, still=still) if generation is not None else "none"
    finally:
        engine.dispose()
    documents = _documents(settings.documents_folder, folder / manifest.DOCUMENTS)
    secrets = environment.write(settings, tokens, folder / manifest.SETTINGS)
    return Manifest(
        format=manifest.FORMAT,
        program=version("polydesk-dagster"),
        revision=revision or "",
        taken_at=as_of,
        postgres=server,
        database="embedded" if settings.embedded else "configured",
        home=str(settings.home),
        generation=generation.id if generation else None,
        index=index,
        documents=documents,
        figures=figures,
        secrets=secrets,
        parts=manifest.parts(folder),
    )


def whole_urls(settings: Settings) -> tuple[URL, URL]:
    """Our database and Dagster's, as whoever may read all of both."""
    ours, theirs = business_url(settings), dagster_url(settings).set(drivername="postgresql+psycopg")
    if settings.embedded:
        ours, theirs = ours.set(username=embedded.ADMINISTRATOR), theirs.set(username=embedded.ADMINISTRATOR)
    return ours, theirs


@contextmanager
def _index_to_ourselves(engine: sa.Engine, patience: float) -> Iterator[bool]:
    """Whether nobody writes the index during the block."""
    deadline = time.monotonic() + patience
    while True:
        with exclusive(engine, LOCK) as taken:
            if taken or time.monotonic() >= deadline:
                yield taken
                return
        time.sleep(0.5)


@contextmanager
def _snapshot(engine: sa.Engine) -> Iterator[tuple[sa.Connection, str]]:
    with engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection, connection.begin():
        connection.execute(sa.text("SET LOCAL idle_in_transaction_session_timeout = 0"))
        yield connection, str(connection.scalar(sa.text("SELECT pg_export_snapshot()")))


def _index(settings: Settings, folder: Path, *, still: bool) -> Literal["copied", "none", "elsewhere", "busy"]:
    where = index_folder(settings)
    if where is None:
        return "elsewhere"
    if not still:
        return "busy"
    if not where.is_dir():
        return "none"
    shutil.copytree(where, folder / manifest.INDEX)
    return "copied"


def index_folder(settings: Settings) -> Path | None:
    """Where the index is on this machine; None where it is in an object store."""
    where = settings.knowledge_uri or str(settings.home / "knowledge")
    return None if "://" in where else Path(where)


def _documents(source: Path, target: Path) -> int:
    """Copy what the index reads; a file that goes away meanwhile is gone."""
    if not source.is_dir():
        return 0
    copied = 0
    for path, file in listing(source).files.items():
        to = target / path
        to.parent.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copy2(file.location, to)
        except FileNotFoundError:
            continue
        copied += 1
    return copied


def _to_the_disk(folder: Path) -> None:
    """A copy that a power cut empties is none."""
    for path in folder.rglob("*"):
        _sync(path)
    _sync(folder)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
