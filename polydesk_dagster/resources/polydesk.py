"""The one resource of every asset and job: this installation's settings, database and clock."""

import os
from datetime import UTC, datetime
from functools import lru_cache

import dagster as dg
import sqlalchemy as sa
from sqlalchemy.engine import URL

from polydesk_dagster import settings
from polydesk_dagster.database.engine import business_url, create_engine
from polydesk_dagster.settings import Settings


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

    def now(self) -> datetime:
        return datetime.now(UTC)
