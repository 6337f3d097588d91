"""The one resource of every asset and job: this installation's settings, database and clock."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from functools import lru_cache
from typing import TypeVar

import dagster as dg
import sqlalchemy as sa
from sqlalchemy.engine import URL

from polydesk_dagster import settings
from polydesk_dagster.central import Central
from polydesk_dagster.clinic.clinics import ACTIVE_CLINICS
from polydesk_dagster.database import patience, refusals
from polydesk_dagster.database.engine import business_url
from polydesk_dagster.database.migrate import serving
from polydesk_dagster.errors import ConfigurationError, PolydeskError, in_brief
from polydesk_dagster.settings import Settings
from polydesk_dagster.sources import authority, epochs, integrations, vendors
from polydesk_dagster.sources.port import Link, Source
from polydesk_dagster.told import teller
from polydesk_dagster.values import Reason, Term

T = TypeVar("T")

LONGEST_ROUND = 1200.0
"""Seconds after which no further source is tried: a run has an hour, and each may use up its whole patience."""


@lru_cache(maxsize=4)
def _engine(url: URL) -> sa.Engine:
    return serving(url, waits=patience.RUN)


# A forked run must never speak on its parent's connections.
os.register_at_fork(after_in_child=_engine.cache_clear)


class PolydeskResource(dg.ConfigurableResource):  # pyrefly: ignore[implicit-any-type-argument]
    """Settings are read from the environment at each use, so a process never runs on stale ones."""

    def settings(self) -> Settings:
        return settings.load()

    def engine(self) -> sa.Engine:
        """The clinics' database; one pool a process."""
        return _engine(business_url(self.settings()))

    @contextmanager
    def looking(self) -> Iterator[sa.Connection]:
        """A connection for the look of a schedule or a sensor.

        Raises:
            dagster.Failure: the database cannot be looked at, in the words that a run would say it with.
        """
        try:
            with self.engine().connect() as connection:
                yield connection
        except PolydeskError as error:
            raise dg.Failure(teller().reason(error.reason)) from None
        except sa.exc.DBAPIError as error:
            why = refusals.known(error, business_url(self.settings())) or Reason(
                "unexpected", {"error": in_brief(error)}
            )
            raise dg.Failure(teller().reason(why)) from None

    def central(self) -> Central:
        """The chain's central server. Raises ConfigurationError where none is configured."""
        known = self.settings()
        if known.central_url is None or known.central_token is None:
            raise ConfigurationError("no_central")
        return Central(known.central_url, known.central_token.get_secret_value())

    def source(self, clinic: str, engine: sa.Engine | None = None) -> Source:
        """The source of a clinic; close it. Whoever has the ``engine`` already spares the settings being read anew.

        Raises ConfigurationError where there is none, its settings are wrong or a token is not in the environment, and
        SourceChangedError where a person must first say whether it is still the same system.
        """
        with (engine or self.engine()).begin() as connection:
            link = integrations.configured(connection, clinic, on=True)
            epochs.meet(connection, clinic, vendors.epoch(link))
        return vendors.open_source(link, settings.secret)

    def chains_source(self, kind: str, ask: Callable[[Source], T], failed: Callable[[str, PolydeskError], object]) -> T:
        """What ``ask`` comes to with the one source of the list ``kind``, which belongs to no clinic. Where none was
        named yet it is that of the first clinic which has the list and gives it; ``failed`` is told of each before it.

        Raises the source's error, or the first clinic's where it fails with all of them; ConfigurationError where there
        is none.
        """
        with self.engine().connect() as connection:
            pinned = authority.pinned(connection, kind)
            clinics = list(connection.scalars(ACTIVE_CLINICS))
        if pinned is not None:
            with closing(self._pinned(pinned)) as source:
                if kind not in source.capabilities.lists:
                    raise ConfigurationError("authority_without_list", what=Term("list", kind))
                return ask(source)
        first: PolydeskError | None = None
        started = time.monotonic()
        for clinic in clinics:
            if first is not None and time.monotonic() - started > LONGEST_ROUND:
                break
            try:
                with closing(self.source(clinic)) as source:
                    if kind in source.capabilities.lists:
                        given = ask(source)
                        with self.engine().begin() as connection:
                            authority.first(connection, kind, clinic, self.now())
                        return given
            except PolydeskError as error:
                first = first or error
                failed(clinic, error)
        raise first or ConfigurationError("no_integration")

    def _pinned(self, pinned: str | Link) -> Source:
        if isinstance(pinned, str):
            return self.source(pinned)
        return vendors.open_source(pinned, settings.secret)

    def now(self) -> datetime:
        return datetime.now(UTC)
