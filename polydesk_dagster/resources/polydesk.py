"""The one resource of every asset and job: this installation's settings, database and clock."""

import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache
from typing import TypeVar

import dagster as dg
import sqlalchemy as sa
from sqlalchemy.engine import URL

from polydesk_dagster import settings
from polydesk_dagster.central import Central
from polydesk_dagster.clinic.clinics import ACTIVE_CLINICS
from polydesk_dagster.database.engine import business_url, create_engine
from polydesk_dagster.errors import ConfigurationError, PolydeskError
from polydesk_dagster.settings import Settings
from polydesk_dagster.sources.access import check_address, check_token
from polydesk_dagster.sources.studiolab.client import Studiolab

T = TypeVar("T")

LONGEST_ROUND = 1200.0
"""Seconds after which no further studiolab is tried: a run has an hour, and each may use up its whole patience."""


@lru_cache(maxsize=4)
def _engine(url: URL) -> sa.Engine:
    return create_engine(url)


# A forked run must never speak on its parent's connections.
os.register_at_fork(after_in_child=_engine.cache_clear)


class PolydeskResource(dg.ConfigurableResource):  # type: ignore[type-arg]
    """Settings are read from the environment at each use, so a process never runs on stale ones."""

    def settings(self) -> Settings:
        return settings.load()

    def engine(self) -> sa.Engine:
        """The clinics' database; one pool a process."""
        return _engine(business_url(self.settings()))

    def central(self) -> Central:
        """The chain's central server. Raises ConfigurationError where none is configured."""
        known = self.settings()
        if known.central_url is None or known.central_token is None:
            raise ConfigurationError("no_central")
        return Central(known.central_url, known.central_token.get_secret_value())

    def studiolab(self, clinic: str) -> Studiolab:
        """The studiolab of a clinic.

        Raises ConfigurationError where there is none, or where its token is not in the environment.
        """
        with self.engine().connect() as connection:
            found = connection.execute(
                sa.text("""
                    SELECT i.base_url, i.token_env FROM clinic c JOIN integration i ON i.clinic_id = c.id
                    WHERE c.active AND i.active AND c.code = :clinic
                """),
                {"clinic": clinic},
            ).one_or_none()
        if found is None:
            raise ConfigurationError("integration_off", clinic=clinic)
        check_token(found.token_env, clinic)
        check_address(found.base_url, clinic)
        token = settings.secret(found.token_env)
        if token is None:
            raise ConfigurationError("token_missing", clinic=clinic, variable=found.token_env)
        return Studiolab(clinic, found.base_url, token)

    def any_studiolab(self, ask: Callable[[Studiolab], T], failed: Callable[[str, PolydeskError], object]) -> T:
        """What ``ask`` comes to with the first clinic's studiolab that it does not fail with: for what belongs to no
        clinic. ``failed`` is told of each clinic before that one.

        Raises the first clinic's error where it fails with all of them, and ConfigurationError where there is none.
        """
        with self.engine().connect() as connection:
            clinics = list(connection.scalars(ACTIVE_CLINICS))
        first: PolydeskError | None = None
        started = time.monotonic()
        for clinic in clinics:
            if first is not None and time.monotonic() - started > LONGEST_ROUND:
                break
            try:
                with self.studiolab(clinic) as studiolab:
                    return ask(studiolab)
            except PolydeskError as error:
                first = first or error
                failed(clinic, error)
        raise first or ConfigurationError("no_integration")

    def now(self) -> datetime:
        return datetime.now(UTC)
