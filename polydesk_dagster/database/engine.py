"""How the databases are reached: one server, the clinics' records in one database and Dagster's storage in another."""

from __future__ import annotations

import select
import time
from collections.abc import Sequence
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any, cast

import psycopg
import sqlalchemy as sa
from sqlalchemy.engine import URL, make_url

from polydesk_dagster.database import embedded, patience, programs
from polydesk_dagster.errors import in_brief
from polydesk_dagster.settings import Settings

BUSINESS = "polydesk"
DAGSTER = "polydesk_dagster"


SESSION = {
    "timezone": "UTC",
    "lock_timeout": "1min",
    "idle_in_transaction_session_timeout": "10min",
    "jit": "off",
}
"""What each of our sessions asks for as it begins."""

_REST = 1.0
"""Seconds for which a connection that has just worked, and on which nothing came meanwhile, is not asked whether it
still does: a server that restarts says so, or closes it. Who asks for one ten times a second was answered as often
before it could ask."""


class Role(StrEnum):
    """As whom a process meets the embedded server; a configured one knows the account of its URL only."""

    OWNER = "polydesk_owner"
    """Whose the schema is: migrations, and whoever types SQL."""
    APP = "polydesk_app"
    """The services and the pages: reads and writes records, never the schema nor the audit trail's past."""
    DAGSTER = "polydesk_dagster"
    """Dagster's storage, and nothing of ours."""
    FRONT = "polydesk_front"
    """What answers whoever asks: reads what is public."""
    READER = "polydesk_reader"
    """What the pages show, health and figures: reads records and Dagster's storage but no secret, writes nothing."""


def server_url(settings: Settings, role: Role = Role.APP) -> URL:
    """The server of this installation; the embedded one must be running.

    For a configured server the URL names the clinics' database; Dagster's is the same name plus ``_dagster``.
    """
    if settings.database_url is not None:
        return make_url(settings.database_url.get_secret_value()).set(drivername="postgresql+psycopg")
    return make_url(embedded.url(settings.home, role)).set(drivername="postgresql+psycopg", database=BUSINESS)


def business_url(settings: Settings, role: Role = Role.APP) -> URL:
    url = server_url(settings, role)
    return url if url.database else url.set(database=BUSINESS)


def dagster_url(settings: Settings, role: Role = Role.DAGSTER) -> URL:
    """For dagster-postgres, which needs psycopg2 named: a bare ``postgresql://`` would pick psycopg 3 and break it."""
    url = business_url(settings, role)
    name = DAGSTER if url.database == BUSINESS else f"{url.database}_dagster"
    return url.set(drivername="postgresql+psycopg2", database=name)


def plain_url(url: URL) -> str:
    """For ``psql`` and psycopg: no driver's name; the password in clear, so never for a log."""
    address, mark, query = url.set(drivername="postgresql").render_as_string(hide_password=False).partition("?")
    return address + mark + query.replace("+", "%20")  # libpq takes a plus for a plus


def create_engine(url: URL, *, pool_size: int = 4, reads: bool = False, waits: float = patience.PERSON) -> sa.Engine:
    """An engine whose sessions speak UTC and never wait for ever for a lock, an idle peer or a server that is mute
    (that one ``waits`` so many seconds to live); one that only ``reads`` is refused whatever it would write.

    Its errors never quote a row, nor the values of a statement: those may be a patient's.
    """
    asked = SESSION | ({"default_transaction_read_only": "on"} if reads else {})
    engine = sa.create_engine(
        url,
        pool_size=pool_size,
        max_overflow=8,
        hide_parameters=True,
        connect_args={
            "connect_timeout": 10,
            "application_name": "polydesk",
            **patience.NETWORK,
            "options": " ".join(f"-c {name}={value}" for name, value in asked.items()),
        },
    )
    sa.event.listen(engine, "handle_error", _without_rows)
    sa.event.listen(engine, "do_connect", partial(_connected, waits))
    ask_who_rested(engine)
    return engine


def ask_who_rested(engine: sa.Engine) -> None:
    """Do what ``pool_pre_ping`` does, for connections that have rested for a while; one that is dead is replaced."""
    sa.event.listen(engine, "checkin", lambda _, record: record.info.update(rests_since=time.monotonic()))
    sa.event.listen(engine, "checkout", partial(_works, engine))


def _works(engine: sa.Engine, connection: Any, record: Any, _proxy: object) -> None:
    rested = time.monotonic() - record.info.get("rests_since", time.monotonic())
    if rested <= _REST and not _unasked(connection):
        return
    try:
        engine.dialect.do_ping(connection)
    except psycopg.errors.ConnectionTimeout:
        raise  # nobody is there for another connection either
    except engine.dialect.loaded_dbapi.Error:
        raise sa.exc.DisconnectionError from None


def _unasked(connection: Any) -> bool:
    """Whether something came that nobody has asked for: the end of the connection, as a rule."""
    came = select.poll()
    came.register(connection.fileno(), select.POLLIN)
    return bool(came.poll(0))


def _connected(
    waits: float, _dialect: object, _record: object, given: list[Any], named: dict[str, Any]
) -> patience.Connection:
    connection = patience.Connection.connect(*given, **named)
    connection.patience = waits
    return connection


def _without_rows(failed: sa.engine.ExceptionContext) -> None:
    _hide_rows(failed.original_exception, failed.sqlalchemy_exception)


def _hide_rows(error: BaseException, said: sa.exc.StatementError | None) -> None:
    """Leave of PostgreSQL's words only those that quote nothing: its detail and context quote rows, and what it says of
    values that it cannot read (class 22) quotes them."""
    diagnosis = getattr(error, "diag", None)
    sqlstate = getattr(diagnosis, "sqlstate", None)
    if diagnosis is None or sqlstate is None:  # none of PostgreSQL's, or of a connection that was not to be had
        return
    error.args = (in_brief(error) if sqlstate.startswith("22") else diagnosis.message_primary,)
    if said is not None:
        said.args = (f"({type(error).__name__}) {error}",)


def ask(connection: sa.Connection, statement: str, values: Sequence[object]) -> Any:
    """The first row that a statement answers, asked of the driver itself, in the connection's transaction.

    For what runs so often that SQLAlchemy's part of it counts: that costs a client more than the driver's.

    Args:
        statement: with psycopg's placeholders.

    Raises:
        sa.exc.DBAPIError: what SQLAlchemy would raise; like its own it quotes neither rows nor values.
    """
    if not connection.in_transaction():
        connection.begin()  # as SQLAlchemy's own statements do, or nobody would commit
    driver = cast(psycopg.Connection[Any], connection.connection.driver_connection)
    try:
        return driver.execute(statement.encode(), values).fetchone()
    except psycopg.Error as error:
        if driver.closed:
            connection.invalidate(error)
        said = sa.exc.DBAPIError.instance(
            statement, None, error, psycopg.Error, hide_parameters=True, connection_invalidated=driver.closed
        )
        _hide_rows(error, said)
        raise said from error


def psql_path() -> Path:
    """The ``psql`` that comes with the embedded server."""
    return programs.folder() / "psql"
