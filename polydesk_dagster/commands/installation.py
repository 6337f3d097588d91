"""Opening an installation for one command: its settings, its database started and checked, everything closed after."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import sqlalchemy as sa

from polydesk_dagster import settings as configuration
from polydesk_dagster.database import embedded, refusals, roles
from polydesk_dagster.database.engine import Role, business_url, create_engine, dagster_url
from polydesk_dagster.database.migrate import SchemaError, create_database, migrate, serving
from polydesk_dagster.database.refusals import Phase
from polydesk_dagster.errors import PermanentError
from polydesk_dagster.runtime.dagster_inside import rows
from polydesk_dagster.runtime.state.activity import starts_live
from polydesk_dagster.settings import Settings

PLAYED_TOKEN = "POLYDESK_STUDIOLAB_TOKEN_DEMO"  # noqa: S105 - a variable's name
"""The variable that the integrations of the demo's clinics name; `polydesk up` sets it for its own processes."""


def is_demo(engine: sa.Engine) -> bool:
    """Whether the records of this installation are the demo's."""
    with engine.connect() as connection:
        return bool(
            connection.scalar(
                sa.text("SELECT EXISTS (SELECT FROM integration WHERE token_env = :name)"), {"name": PLAYED_TOKEN}
            )
        )


@dataclass(frozen=True)
class Installation:
    settings: Settings
    engine: sa.Engine

    @property
    def live(self) -> bool:
        """Whether its services start by themselves without anybody's word."""
        return starts_live(self.settings)

    def has_token(self, name: str) -> bool:
        """Whether the variable that a clinic's integration names is set; a simulator knows its own."""
        return configuration.secret(name) is not None or self._plays(name)

    def token(self, name: str) -> str | None:
        """The value of that variable; of a simulator's the token that it takes. None where it is not set."""
        value = configuration.secret(name)
        if value is None and self._plays(name):
            from polydesk_dagster.demo.simulators.server import DEMO_TOKEN

            return DEMO_TOKEN
        return value

    def _plays(self, name: str) -> bool:
        return self.settings.embedded and name == PLAYED_TOKEN

    @contextmanager
    def dagster(self) -> Iterator[sa.Connection | None]:
        """A connection to Dagster's own database; None where there is no such database, or it has no tables yet."""
        engine = create_engine(dagster_url(self.settings).set(drivername="postgresql+psycopg"), pool_size=1)
        try:
            connection = engine.connect()
        except sa.exc.OperationalError:
            yield None
            return
        try:
            yield connection if rows.written(connection) else None
        finally:
            connection.close()
            engine.dispose()


@contextmanager
def opened(*, create: bool = False) -> Iterator[Installation]:
    """The installation of this environment, its schema one that suits this program.

    The embedded server is started if it is not running, and stopped again if nobody else uses it; its databases are
    brought up to date here, and with ``create`` made where there are none. A configured database is never changed in
    passing: if it is behind, that is refused.

    Raises:
        ConfigurationError: if the environment is wrong.
        PermanentError: if the database is missing, unreachable, behind or too new, or without ``create`` does not exist
            yet.
    """
    settings = configuration.load()
    if not settings.embedded:
        yield from _configured(settings)
        return
    if not create and not embedded.exists(settings.home):
        raise PermanentError("no_installation", home=str(settings.home))
    was_running = embedded.running(settings.home)
    embedded.start(settings.home)
    try:
        with refusals.told(business_url(settings)):
            engine = _made(settings)
            try:
                yield Installation(settings, engine)
            finally:
                engine.dispose()
    finally:
        if not was_running:
            embedded.stop(settings.home)


def _made(settings: Settings) -> sa.Engine:
    engine = serving(business_url(settings))
    try:
        with engine.connect():
            return engine
    except SchemaError:
        pass
    except sa.exc.OperationalError as error:  # there is no such database yet, or nobody answers
        why = refusals.known(error, engine.url, Phase.CONNECT)
        if why is not None and why.code == "database_unreachable":
            raise
    _brought_up(settings)
    return engine


def _brought_up(settings: Settings) -> tuple[str | None, str]:
    """The embedded server's roles, databases and schema as this program wants them."""
    roles.prepare(settings.home)
    owner = create_engine(business_url(settings, Role.OWNER), pool_size=1)
    try:
        return migrate(owner, then=roles.grant)
    finally:
        owner.dispose()


def _configured(settings: Settings) -> Iterator[Installation]:
    engine = serving(business_url(settings))
    try:
        try:
            engine.connect().close()
        except sa.exc.OperationalError as error:
            raise refusals.refused(error, engine.url, Phase.CONNECT) from None
        with refusals.told(engine.url):
            yield Installation(settings, engine)
    finally:
        engine.dispose()


def migrated(settings: Settings) -> tuple[str | None, str]:
    """Create what is missing of the two databases and bring ours to the newest revision; returns before and after.

    Raises:
        PermanentError: if the configured database cannot be reached, or refuses.
    """
    try:
        if settings.embedded:
            return _brought_up(settings)
        create_database(dagster_url(settings).set(drivername="postgresql+psycopg"))
        engine = create_engine(business_url(settings))
        try:
            return migrate(engine)
        finally:
            engine.dispose()
    except sa.exc.DBAPIError as error:
        raise refusals.refused(error, business_url(settings), Phase.MIGRATE) from None
