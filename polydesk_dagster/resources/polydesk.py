"""The one resource of every asset and job: this installation's settings, database and clock."""

import os
from datetime import UTC, datetime
from functools import lru_cache

import dagster as dg
import sqlalchemy as sa
from sqlalchemy.engine import URL

from polydesk_dagster import settings
from polydesk_dagster.central import Central
from polydesk_dagster.database.engine import business_url, create_engine
from polydesk_dagster.errors import ConfigurationError
from polydesk_dagster.settings import Settings
from polydesk_dagster.studiolab.client import Studiolab


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
            raise ConfigurationError(
                "POLYDESK_CENTRAL_URL e POLYDESK_CENTRAL_TOKEN: il server centrale non è configurato"
            )
        return Central(known.central_url, known.central_token.get_secret_value())

    def studiolab(self, clinic: str | None) -> Studiolab:
        """The studiolab of a clinic, or for what belongs to no clinic that of the first one with an integration.

        Raises ConfigurationError where there is none, or where its token is not in the environment.
        """
        with self.engine().connect() as connection:
            found = connection.execute(
                sa.text("""
                    SELECT c.code, i.base_url, i.token_env FROM clinic c JOIN integration i ON i.clinic_id = c.id
                    WHERE c.active AND i.active AND (:clinic IS NULL OR c.code = :clinic) ORDER BY c.code LIMIT 1
                """).bindparams(sa.bindparam("clinic", type_=sa.Text)),
                {"clinic": clinic},
            ).one_or_none()
        if found is None:
            whose = f"della clinica {clinic}" if clinic else "di nessuna clinica"
            raise ConfigurationError(f"L'integrazione con studiolab {whose} non è attiva")
        token = settings.secret(found.token_env)
        if token is None:
            raise ConfigurationError(f"{found.token_env}: manca il token di studiolab della clinica {found.code}")
        return Studiolab(found.code, found.base_url, token)

    def now(self) -> datetime:
        return datetime.now(UTC)
